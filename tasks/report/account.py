"""What the numbers of a valuation are: their unit, their total, and how much of it they account for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataworth.storage.spelling import setting
from dataworth.tasks.report.evidence import evidence
from dataworth.tasks.report.numbers import number, percent

__all__ = ["OLD", "Account", "account_of"]

# Of valuations of before there was a unit.
OLD = "unknown"
# Nats a token that no training leaves to be lost: a blind guess among 160,000 words.
BLIND = 12.0
# Who tells shares of what training took off; of the other games they are predicted.
TELLERS = {
    "ledger": "the ledger of one training has it",
    "dose": "the training in growing doses of everybody has it",
    "merged": "models merged from trainings on one source each have it",
    "additive": "the gradients of base and model divide it",
}


@dataclass(frozen=True)
class Account:
    """Of all queries together.

    Args:
        kind: marginal, share or certified (see VALUES of dataworth.storage.schema); unknown of an older valuation.
        n_queries: values are nats of their losses, added up.
        n_targets: tokens whose loss is taken, or classes; 0 where it is not known.
        of_class: the targets are classes.
        model: nats of all queries under the model; None where it is not known.
        total: nats that training took off them; None where no base is known.
        values: sum of all values, nats.
        smallest, largest: of all sources' values, nats.
        in_nats: values are in nats; else in scores without a unit, as those of cosines are.
        scores_in_nats: the same of the documents' scores.
        verdict: of the certificate; empty where there is none.
        believed: by the certificate, the scores tell more of removals than sizes do.
        game: that told the values.
        scaled_by: what the values were multiplied by, so that they add up to what was taught; None: by nothing.
        counterfactual: what becomes of the steps of a training without a source; empty where nothing is trained again.
        evidence: how far shares told in the same way were off where they were measured; empty where they never were.
    """

    kind: str
    n_queries: int
    n_targets: int = 0
    of_class: bool = False
    model: float | None = None
    total: float | None = None
    values: float = 0.0
    smallest: float = 0.0
    largest: float = 0.0
    in_nats: bool = True
    scores_in_nats: bool = True
    verdict: str = ""
    believed: bool = False
    game: str = ""
    scaled_by: float | None = None
    counterfactual: str = ""
    evidence: str = ""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Account":
        """As it was written into `valuation.json`; of an older one as much as is known.

        Args:
            record: the content of the file.
        """
        known = record.get("account")
        if known is not None:
            return cls(**known)
        n_queries = int(record.get("counts", {}).get("n_queries", 1))
        return cls(OLD, n_queries, in_nats=False, scores_in_nats=False)

    @property
    def shared(self) -> float | None:
        """Nats of all queries that values are parts of; None where they are marginal, or nothing was taught."""
        return self.total if self.kind in ("share", "certified") and self.total is not None and self.total > 0 else None

    @property
    def part(self) -> str:
        """Heading of `part_of`."""
        return "of positive values" if self.shared is None else "of what was taught"

    def part_of(self, value: float | None, share: float | None) -> float | None:
        """A value of all queries together as a part: of what was taught, else of the positive values.

        Args:
            value: nats.
            share: part of the positive values.
        """
        if self.shared is None or value is None:
            return share
        return value / self.shared

    def per_query(self, value: float | None) -> float | None:
        """Of a value of all queries together: nats a query, in the mean."""
        return None if value is None or value != value else value / self.n_queries

    @property
    def unit(self) -> str:
        """Of what `per_query` gives."""
        return "nats a query" if self.in_nats else "value a query"

    @property
    def unit_of_scores(self) -> str:
        """Of sums of documents' scores, a query."""
        return "nats a query" if self.scores_in_nats else "score a query"

    def sentences(self) -> list[str]:
        """The first lines of every page: what was taught in all, what the values are of it, how sure that is."""
        return [self._taught(), self._said(), *filter(None, (self.verdict, self.evidence))]

    def _taught(self) -> str:
        if self.model is None:
            return "The loss of the queries is not known."
        model, n = self.model, self.n_queries
        beside = ""
        if self.n_targets and not self.of_class:
            beside = f", {number(model / self.n_targets)} a token"
        if self.total is None:
            return (
                f"The model loses {number(model / n)} nats a query{beside} (mean of {_counted(n)}). How much training "
                f"took off is not known, as no base is named ({setting('model.base')})."
            )
        verb = "took" if self.total > 0 else "added"
        if self.n_targets and not self.of_class:
            beside = f"; {number(abs(self.total) / self.n_targets)} a token"
        return (
            f"Training {verb} {number(abs(self.total) / n)} nats {'off' if self.total > 0 else 'to'} each query, from "
            f"{number((model + self.total) / n)} to {number(model / n)} (mean of {_counted(n)}{beside})."
        )

    def _said(self) -> str:
        if self.kind == OLD:
            return "This valuation was made before values had a unit and a total: value the corpus again for both."
        if not self.in_nats:
            return (
                "Values are sums of scores that have no unit: they rank sources, and are no shares of what was "
                f"taught{self._uncertified}."
            )
        if self.kind == "marginal":
            said = (
                "Values are marginal: what a query's loss would gain, in nats, without the source now, at the end of "
                f"training. They rank sources, and are no shares of what was taught{self._uncertified}."
            )
            if self.total is not None and self.total > 0:
                said += f" They add up to {percent(self.values / self.total)} of it."
            return said + self._impossible
        if self.shared is None:
            return "Training took nothing off the queries, so that there is nothing to share: values are nats a query."
        teller = TELLERS.get(self.game, "the game predicts it")
        told = "trainings measured it" if self.kind == "certified" else f"{teller}{self._uncertified}"
        said = f"Values are parts of that, in nats a query, as {told}"
        if self.scaled_by is not None:
            said += f". Unscaled they add up to {number(self.values / self.scaled_by / self.n_queries)}"
        else:
            said += f". They account for {percent(self.values / self.shared)} of it"
        if self.counterfactual == "epochs" and self.game not in ("ledger", "dose", "additive"):
            said += ". Without a source the others would have been read as often as now, in fewer steps"
        return f"{said}."

    @property
    def _impossible(self) -> str:
        """Where a value is more than a loss can change, a sentence that says so."""
        if self.model is None or not self.n_targets or self.of_class:
            return ""
        room = BLIND * self.n_targets - self.model
        if self.largest > room > 0:
            beyond, most = self.largest, f"who guesses blindly loses only {number(room / self.n_queries)} more"
        elif -self.smallest > self.model:
            beyond, most = -self.smallest, f"no more than {number(self.model / self.n_queries)} are lost in all"
        else:
            return ""
        return (
            f" Their size cannot be right ({number(beyond / self.n_queries)} nats a query of one source, and {most}): "
            f"take the order of the sources alone, or measure some removals ({setting('certify')} 20)."
        )

    @property
    def _uncertified(self) -> str:
        return "" if self.kind == "marginal" and self.believed else "; not certified"


def account_of(
    sources: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Any],
    n_queries: int,
    notes: Mapping[str, Any],
    scores_in_nats: bool = True,
) -> Account:
    """Of a valuation.

    Args:
        sources: rows of VALUES of all queries together.
        losses: `QueryLoss` by query, as far as they are known.
        n_queries: of them all.
        notes: what was written beside the values.
        scores_in_nats: of the documents' scores; sums of them are the values of the additive game.
    """
    known = len(losses) == n_queries and n_queries > 0
    first: Mapping[str, Any] = sources[0] if sources else {}
    return Account(
        kind=first.get("kind") or "marginal",
        n_queries=n_queries,
        n_targets=sum(loss.n_targets for loss in losses.values()) if known else 0,
        of_class=any(loss.of_class for loss in losses.values()),
        model=sum(loss.total for loss in losses.values()) if known else None,
        total=first.get("total"),
        values=float(sum(row["value"] for row in sources)),
        smallest=float(min((row["value"] for row in sources), default=0.0)),
        largest=float(max((row["value"] for row in sources), default=0.0)),
        in_nats=scores_in_nats or first.get("game") != "additive",
        scores_in_nats=scores_in_nats,
        game=str(first.get("game", "")),
        scaled_by=notes.get("scaled by"),
        counterfactual=str(notes.get("counterfactual", "")),
        evidence=evidence(
            str(first.get("kind")), str(first.get("game")), notes, not any(loss.of_class for loss in losses.values())
        ),
    )


def _counted(n: int) -> str:
    return f"{n:,} quer{'y' if n == 1 else 'ies'}"
