"""Two valuations side by side: what differs in how they were made, and in what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.report.account import Account
from dataworth.tasks.report.page.bars import Bar, Chart, chart
from dataworth.tasks.report.results.folder import Results, whole_values
from dataworth.tasks.report.results.parameters import flat

__all__ = ["Comparison", "SourcePair", "compared", "overlapping", "rank_correlation"]

# Where a run is written to tells nothing about what it says.
LEFT_OUT = ("results",)


@dataclass(frozen=True)
class SourcePair:
    """A source in both valuations, in parts of each one's positive total (or its values, where none is positive).

    Args:
        name: of the source.
        first, second: its bar in each; None where it is not there.
    """

    name: str
    first: Bar | None
    second: Bar | None

    @property
    def difference(self) -> float | None:
        """Share in the second less share in the first; None where one is not known."""
        if self.first is None or self.second is None or self.first.share is None or self.second.share is None:
            return None
        return self.second.share - self.first.share

    @property
    def intervals(self) -> str:
        """Whether the intervals overlap: yes, no or unknown."""
        if self.first is None or self.second is None:
            return "unknown"
        overlap = overlapping(self.first, self.second)
        return "unknown" if overlap is None else "yes" if overlap else "no"


@dataclass(frozen=True)
class Comparison:
    """What differs between two valuations.

    Args:
        first, second: names of their folders.
        warnings: sentences on what makes them hard to compare.
        parameters: (name, value in the first, value in the second), only those that differ.
        sources: those in both, by the larger share first; then those in one.
        axis: that the bars of both are drawn on.
        only_first, only_second: names of sources in one of them.
        source_correlation: Spearman's of the values of the sources in both; None where it is not defined.
        n_documents: top documents of all queries together in the first, in the second, in both.
        document_correlation: Spearman's of the scores of the top documents in both.
    """

    first: str
    second: str
    warnings: tuple[str, ...]
    parameters: tuple[tuple[str, str, str], ...]
    sources: tuple[SourcePair, ...]
    axis: Chart
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    source_correlation: float | None
    n_documents: tuple[int, int, int]
    document_correlation: float | None


def overlapping(first: Bar, second: Bar) -> bool | None:
    """Whether their closed intervals have a point in common; None where an end is not known."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    return max(first.low, second.low) <= min(first.high, second.high)


def rank_correlation(one: Sequence[float], two: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None for fewer than 2 values or where all are equal."""
    if len(one) < 2:
        return None
    ranks = np.stack([pd.Series(values).rank().to_numpy() for values in (one, two)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    sizes = np.sqrt((centred**2).sum(axis=1))
    return None if (sizes == 0).any() else float(centred[0] @ centred[1] / sizes.prod())


def compared(first: Results, second: Results) -> Comparison:
    """Compare two valuations, all queries together, by the finest level of each one's first grouping."""
    tables = whole_values(first.sources), whole_values(second.sources)
    charts = [chart(table.to_dict("records")) for table in tables]
    bars = [{bar.name: bar for bar in drawn.bars} for drawn in charts]
    names = list(dict.fromkeys([*bars[0], *bars[1]]))
    pairs = [SourcePair(name, bars[0].get(name), bars[1].get(name)) for name in names]
    values = [dict(zip(table["source"], table["value"], strict=True)) for table in tables]
    common = [name for name in values[0] if name in values[1]]
    scores = [_top(results.documents) for results in (first, second)]
    both = [name for name in scores[0] if name in scores[1]]
    return Comparison(
        first=first.name,
        second=second.name,
        warnings=tuple(_warnings(first, second, charts)),
        parameters=tuple(_differing(_described(first), _described(second))),
        sources=tuple(sorted(pairs, key=_order)),
        axis=_common_axis(charts),
        only_first=tuple(name for name in values[0] if name not in values[1]),
        only_second=tuple(name for name in values[1] if name not in values[0]),
        source_correlation=rank_correlation([values[0][n] for n in common], [values[1][n] for n in common]),
        n_documents=(len(scores[0]), len(scores[1]), len(both)),
        document_correlation=rank_correlation([scores[0][n] for n in both], [scores[1][n] for n in both]),
    )


def _top(documents: pd.DataFrame) -> dict[str, float]:
    chosen = documents[(documents["query_id"] == ALL_QUERIES) & (documents["rank"] > 0)]
    return dict(zip(chosen["document_id"], chosen["score"], strict=True))


def _order(pair: SourcePair) -> tuple[bool, float]:
    there = [bar for bar in (pair.first, pair.second) if bar is not None]
    return len(there) < 2, -max(bar.value for bar in there)


def _common_axis(charts: Sequence[Chart]) -> Chart:
    lowest, highest = min(each.lowest for each in charts), max(each.highest for each in charts)
    return Chart((), lowest, highest, all(each.in_shares for each in charts))


def _described(results: Results) -> dict[str, str]:
    """Parameters, the model's fingerprint, and the game that values are of, which a fallback may have changed."""
    described = {name: value for name, value in flat(results.parameters).items() if name not in LEFT_OUT}
    described["model fingerprint"] = str(results.fingerprints.get("model"))
    for column in ("game", "semivalue", "grouping"):
        played = results.sources[column].drop_duplicates().to_list()
        described[f"{column} of the values"] = ", ".join(map(str, played))
    return described


def _differing(one: Mapping[str, str], two: Mapping[str, str]) -> list[tuple[str, str, str]]:
    names = dict.fromkeys([*one, *two])
    return [(name, one.get(name, ""), two.get(name, "")) for name in names if one.get(name) != two.get(name)]


def _warnings(first: Results, second: Results, charts: Sequence[Chart]) -> list[str]:
    warnings = []
    if first.fingerprints.get("queries") != second.fingerprints.get("queries"):
        warnings.append("The queries differ: the two answer different questions.")
    if first.fingerprints.get("corpus") != second.fingerprints.get("corpus"):
        warnings.append("The corpora differ: a source of the same name may hold other documents.")
    if set(first.sources["game"]) != set(second.sources["game"]):
        warnings.append("The values are of different games: compare shares and ranks, not values.")
    kinds = [Account.read(each.record).kind for each in (first, second)]
    if kinds[0] != kinds[1]:
        warnings.append(f"A's values are {_named(kinds[0])}, B's are {_named(kinds[1])}: only their ranks compare.")
    if ("account" in first.record) != ("account" in second.record):
        warnings.append("One of them was made before scores were in nats: compare shares and ranks, not values.")
    if _grouping(first) != _grouping(second):
        warnings.append("Sources are grouped differently: the same name may stand for different documents.")
    if charts[0].in_shares != charts[1].in_shares:
        warnings.append("In one of them no source has a positive value: it has no shares.")
    return warnings


def _named(kind: str) -> str:
    return {"marginal": "marginal", "share": "shares", "certified": "certified shares"}.get(kind, kind)


def _grouping(results: Results) -> tuple[object, ...]:
    return tuple(results.sources[["grouping", "level"]].iloc[:1].to_numpy().ravel().tolist())
