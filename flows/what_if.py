"""What-if questions on a valuation: the shares without some sources, and what a source would gain by splitting.

Reads the results folder and the stores; writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dataworth.command.terminal import table
from dataworth.storage.coalitions import CoalitionStore, UtilityStore
from dataworth.storage.errors import InputError
from dataworth.storage.locations import StoreFolders
from dataworth.storage.manifest import MANIFEST
from dataworth.storage.place import Location
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.estimators import Estimate
from dataworth.tasks.coalitions.games.model_game import play_of
from dataworth.tasks.coalitions.games.play import Play
from dataworth.tasks.coalitions.games.portions import all_but, divided
from dataworth.tasks.coalitions.games.sums_game import SumsGame, game_on
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.payout.what_if import mean_estimate, shares_without, split_gain
from dataworth.tasks.coalitions.registry import GAMES
from dataworth.tasks.coalitions.steps import game_fingerprint
from dataworth.tasks.corpus.groups import grouping_fields
from dataworth.tasks.model.loading import load
from dataworth.tasks.report.numbers import interval, number, percent
from dataworth.tasks.report.results.folder import read_record

__all__ = ["Valued", "valued", "what_if"]

# Of a game, kept beside its values; what an average of values names its checkpoints is no setting.
SETTINGS = SourcesConfig.model_fields.keys() - {"checkpoints"}


class _Known:
    """Utilities of coalitions that a valuation kept; nothing is added."""

    def __init__(self, store: UtilityStore | None) -> None:
        self._store = store

    def known(self, n_players: int, n_queries: int) -> tuple[np.ndarray, np.ndarray]:
        if self._store is None:
            return np.empty((0, n_players), bool), np.empty((0, n_queries))
        return self._store.known(n_players, n_queries)

    def add(self, masks: np.ndarray, utilities: np.ndarray) -> None:
        """Of no effect."""


@dataclass(frozen=True)
class Valued:
    """The sources of a finished valuation, and what is needed to play their games again.

    Args:
        store: root of the stores.
        names: (n_sources,) players, in their order.
        shares: (n_sources,) of all queries together; NaN where none is positive.
        sums: (n_sources,) scores summed, all queries together: the additive game.
        sources: the game that gave the values, as the valuation was run.
        parts: what other games are made of; None where the valuation was run with the additive one.
        scores: fingerprint of the scoring pass.
        n_queries: that they are of.
        notes: what the valuation tells beside its values.
        model_fingerprint: of the weights that were valued.
        checkpoints: each valued by itself, where the values are the mean over several; empty where there is one.
    """

    store: Location
    names: list[str]
    shares: np.ndarray
    sums: np.ndarray
    sources: SourcesConfig
    parts: GameParts | None
    scores: str
    n_queries: int
    notes: dict[str, Any]
    model_fingerprint: str
    checkpoints: tuple["Valued", ...] = ()

    def numbers(self, option: str, names: Sequence[str]) -> list[int]:
        """The numbers of the sources with these names, each once.

        Raises:
            InputError: a name is none of a source.
        """
        for name in names:
            if name not in self.names:
                known = ", ".join(self.names[:8]) + (" …" if len(self.names) > 8 else "")
                raise InputError(f"{option} {name}: not in this valuation, which has {known}")
        return [self.names.index(name) for name in dict.fromkeys(names)]

    @property
    def games(self) -> list[SourcesConfig]:
        """Every game that can be played: that of the run as it was, others by quadratic utilities."""
        made_of = {"scores"} | ({"sums"} if self.parts is not None and self.parts.sums else set())
        return [
            self.sources
            if name == self.sources.game
            else self.sources.model_copy(update={"game": name, "utility": "quadratic"})
            for name, entry in GAMES.items()
            if entry.made_of in made_of
        ]

    def estimate(self, game: SourcesConfig, portions: np.ndarray) -> Estimate:
        """Values of players that hold portions of the sources; the last row is of all queries together.

        Up to 16 players exact, unless their coalitions are too many for forward passes; beyond that as the run's. Of
        several checkpoints the mean, each playing the game by itself.
        """
        if self.checkpoints:
            return mean_estimate([each.estimate(game, portions) for each in self.checkpoints])
        if GAMES[game.game].made_of == "scores":
            values = (portions @ self.sums)[None]
            return Estimate(values, np.zeros_like(values), values, values, 0, "closed form")
        if self._game(game, portions).affords_all:
            game = game.model_copy(update={"budget": max(game.most_coalitions, 2 ** len(portions))})
        return self._game(game, portions).estimate()

    def title(self, game: SourcesConfig) -> str:
        """The name of a game; for newton also its utility."""
        if self.checkpoints:
            return self.checkpoints[0].title(game)
        if GAMES[game.game].made_of == "scores":
            return game.game
        return self._game(game, np.eye(len(self.names))).title

    def _game(self, game: SourcesConfig, portions: np.ndarray) -> SumsGame:
        """A game of players that hold portions of the sources."""
        return game_on(replace(self._play, portions=portions), game, self._known(game))

    @cached_property
    def _play(self) -> Play:
        if self.parts is None:
            raise ValueError("a valuation by the additive game keeps nothing that another one is made of")
        if load(self.parts.model).fingerprint != self.model_fingerprint:
            raise InputError(
                f"{self.parts.model.name}: no longer the model that was valued; run `dataworth value` again"
            )
        base, valued_from = self.parts.model.base, self.parts.base
        if valued_from is not None and load(self.parts.model, 1.0).fingerprint != valued_from:
            raise InputError(f"{base}: no longer the base of the model that was valued; run `dataworth value` again")
        return play_of(self.parts, self.names, self.sources.pull)

    def _known(self, game: SourcesConfig) -> _Known:
        root = StoreFolders(self.store).games
        name = game_fingerprint(self.parts, game, self.scores) if self.parts is not None else ""
        return _Known(UtilityStore(root / name) if name and UtilityStore.exists(root, name) else None)


def valued(results: Path, by: str | None) -> Valued:
    """The sources of a valuation.

    Args:
        results: its folder, which holds `valuation.json`.
        by: grouping of the sources; None: the first of the valuation.

    Raises:
        InputError: the folder is none of a valuation, or the valuation has no such grouping.
    """
    made = read_record(str(results))
    try:
        locations, weights = made["stores"], made["fingerprints"]["model"]
        each_weights = [each["fingerprints"]["model"] for each in made.get("checkpoints", [])]
    except (KeyError, TypeError):
        raise InputError(f"--results {results}: valuation.json is damaged; run `dataworth value` again") from None
    if "values" not in locations:
        raise InputError(f"--results {results}: made by an earlier dataworth; run `dataworth value` again")
    store = CoalitionStore(_grouped(locations["values"], by))
    places = [store.path.parent / name for name in store.attributes.get("checkpoints", [])]
    singles = zip(places, each_weights, strict=True)
    return replace(
        _opened(store, weights), checkpoints=tuple(_opened(CoalitionStore(place), own) for place, own in singles)
    )


def _opened(store: CoalitionStore, weights: str) -> Valued:
    """The sources of one store of values, by the weights of a fingerprint."""
    with store.files.reading(MANIFEST):
        return _read(store, weights)


def _read(store: CoalitionStore, weights: str) -> Valued:
    attributes, root = store.attributes, store.path.parent.parent
    rows = store.values.to_pandas()
    rows = rows[(rows["query_id"] == ALL_QUERIES) & (rows["level"] == rows["level"].max())]
    sums = ScoreStore(StoreFolders(root).scores / attributes["scores"]).source_sums.to_pandas()
    n_queries = sums["query_id"].nunique() - 1
    sums = sums[sums["query_id"] == ALL_QUERIES].set_index("source")["sum"]
    parts = attributes.get("game parts")
    return Valued(
        store=root,
        names=rows["source"].to_list(),
        shares=rows["share"].to_numpy(np.float64, na_value=np.nan),
        sums=sums[rows["source"]].to_numpy(np.float64),
        sources=SourcesConfig.model_validate({k: attributes[k] for k in SETTINGS if k in attributes}),
        parts=None if parts is None else GameParts.model_validate(parts),
        scores=attributes["scores"],
        notes=attributes["notes"],
        n_queries=n_queries,
        model_fingerprint=weights,
    )


def _grouped(locations: dict[str, str], by: str | None) -> str:
    """The location of the values of a grouping, the first where none is named."""
    if by is None:
        return next(iter(locations.values()))
    try:
        return locations[">".join(grouping_fields(by))]
    except (KeyError, ValueError):
        raise InputError(f"--by {by}: not in this valuation, which has {', '.join(locations)}") from None


def what_if(
    results: Path, without: Sequence[str], split: Sequence[str], parts: int, by: str | None = None
) -> list[str]:
    """The texts to print: a table for the sources that are absent together, one for each that splits, remarks.

    Args:
        results: folder of the valuation.
        without: names of absent sources; none: no such table.
        split: names of sources that split, each by itself.
        parts: in how many.
        by: grouping of the sources; None: the first of the valuation.

    Raises:
        InputError: no such valuation, grouping or source, or nobody is left.
    """
    valuation = valued(results, by)
    absent, splitting = valuation.numbers("--without", without), valuation.numbers("--split", split)
    if absent and GAMES[valuation.sources.game].made_of == "trainings":
        raise InputError("--without: nothing is trained here; value the corpus without these sources instead")
    if len(absent) == len(valuation.names):
        raise InputError("--without: names every source, so that nobody is left to have a share")
    texts = [_absence(valuation, absent)] if absent else []
    whole = [valuation.estimate(game, np.eye(len(valuation.names))) for game in valuation.games] if splitting else []
    texts += [_splitting(valuation, whole, source, parts) for source in splitting]
    return [*texts, *_remarks(valuation, bool(splitting))]


def _absence(valuation: Valued, absent: list[int]) -> str:
    others = valuation.estimate(valuation.sources, all_but(len(valuation.names), absent))
    without = shares_without(others, absent)
    now, then, low, high = valuation.shares, without.shares[-1], without.low[-1], without.high[-1]
    sampled = not np.array_equal(others.high, others.low)
    rows = [
        [
            valuation.names[n],
            percent(now[n]),
            percent(then[n]),
            _points(then[n] - now[n]),
            *([f"{percent(low[n])} … {percent(high[n])}"] if sampled else []),
        ]
        for n in np.argsort(-now, kind="stable")
    ]
    nobody = "" if np.isfinite(then).any() else "\n\nno value is positive then, so that nobody has a share"
    named = ", ".join(valuation.names[n] for n in absent)
    game = valuation.title(valuation.sources)
    header = ["source", "share now", "share then", "difference", *(["interval of share then"] if sampled else [])]
    return f"had {named} been absent ({game}, all queries together)\n\n{table(header, rows)}{nobody}"


def _points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "" if np.isnan(difference) else f"{round(difference, 3) + 0.0:+.1%}"


def _splitting(valuation: Valued, whole: list[Estimate], source: int, parts: int) -> str:
    rows, sampled = [], False
    for game, values in zip(valuation.games, whole, strict=True):
        in_parts = valuation.estimate(game, divided(len(valuation.names), source, parts))
        gained = split_gain(values, in_parts, source)
        n = valuation.n_queries
        gain, reach = float(gained.gain[-1]) / n, float(gained.reach[-1]) / n
        sampled = sampled or reach != 0
        ends = interval(gain - reach, gain + reach) if reach != 0 else "exact"
        per_query = [float(gained.whole[-1]) / n, float(gained.in_parts[-1]) / n, gain]
        row = [valuation.title(game), *map(number, per_query)]
        rows.append([*row, percent(float(gained.relative[-1])), ends])
    header = ["game", "nats a query", "of its parts", "gain", "of its value", "interval of the gain"]
    kept = len(header) - (not sampled)
    listed = table(header[:kept], [row[:kept] for row in rows])
    return f"were {valuation.names[source]} split in {parts} parts (all queries together)\n\n{listed}"


def _remarks(valuation: Valued, splitting: bool) -> list[str]:
    """What a reader must know beside the numbers."""
    lines = []
    lines.append("shares here are parts of the positive values, not of what was taught")
    if not (valuation.parts and valuation.parts.sums) and splitting:
        lines.append("for the other games value the corpus with one of them first: dataworth value … --game path")
    if valuation.checkpoints:
        lines.append(f"all numbers are means over {len(valuation.checkpoints)} checkpoints, each played by itself")
    if "projections" in valuation.notes:
        lines.append(
            f"shares now are the mean over {valuation.notes['projections']} projections; games are played here with "
            "the first alone"
        )
    if valuation.notes.get("certified"):
        lines.append("shares now are corrected by trainings; games are played here without")
    elif "fallback" in valuation.notes:
        lines.append(f"valued by the additive game, as the check failed: {valuation.notes['fallback']}")
    elif not valuation.notes.get("reliable", True):
        lines.append(
            "on this model the check of the games failed (`missed`, `reach` in valuation.json): do not rely on them"
        )
    return lines
