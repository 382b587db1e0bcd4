"""Parameters of valuing sources."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.registry import FALLBACK, GAMES
from dataworth.tasks.configuration import Configuration, Names
from dataworth.tasks.corpus.groups import SOURCE, grouping_fields

__all__ = ["PayoutConfig", "PayoutRule", "SourcesConfig"]

PayoutRule = Literal["proportional", "floor", "tokens"]
Name = Annotated[str, Field(min_length=1)]


class PayoutConfig(Configuration):
    """How a sum of money would be divided by the values, and what is published of small sources."""

    rule: PayoutRule = Field(
        "proportional",
        description="proportional to positive values; floor: nobody gets nothing; tokens: by size, for comparison.",
    )
    floor: float = Field(
        0.1, ge=0, le=1, description="With the rule floor: the part of an equal split every source gets at least."
    )
    minimum_documents: int = Field(
        1, ge=1, le=1_000_000, description="Sources of fewer documents are published as one row, (small sources)."
    )


class SourcesConfig(Configuration):
    """The game over sources and what is reported of it."""

    game: Literal["auto", "additive", "interaction", "newton", "path", "retrain", "merged", "ledger", "dose"] = Field(
        "auto",
        description="auto: merged for a language model whose --model.base and --training are given, newton for a "
        "classifier with a base, else additive; "
        + "; ".join(f"{name}: {entry.said}" for name, entry in GAMES.items())
        + ".",
    )
    utility: Literal["auto", "evaluated", "quadratic", "linear"] = Field(
        "auto",
        description="Worth of a coalition in newton: evaluated by a forward pass of the model, or by the queries' "
        "expansion; auto: evaluated up to 8 sources, else quadratic.",
    )
    semivalue: Literal["shapley", "banzhaf", "beta", "leave_one_out"] = Field(
        "shapley", description="How a coalition's utility is divided among its members."
    )
    alpha: float = Field(1.0, gt=0, le=100, description="Of beta: a larger one weighs small coalitions more.")
    beta: float = Field(1.0, gt=0, le=100, description="Of beta: a larger one weighs large coalitions more.")
    pull: float | None = Field(
        None,
        gt=0,
        le=1e12,
        description="Regularisation of the summed loss towards where training began (newton, path, interaction); "
        "default: estimated with --model.base, else by --curvature.damping.",
    )
    budget: int | None = Field(
        None,
        ge=4,
        le=10**7,
        description="Most coalitions whose utility is asked for; in retrain, most trainings. Default: 2,000; in "
        "merged, each of whose coalitions is a model that reads the queries, 256.",
    )
    trainings: int = Field(
        0,
        ge=0,
        le=10**6,
        description="Measure the values by training --model.base again on at most so many coalitions, as --training "
        "says, with an interval, until it is within the tolerance. From one more than there are sources on (of at most "
        "ten) models of all others are merged from theirs, else the values of the game are corrected; 0: none, and "
        "shares are not certified.",
    )
    ledger_every: int = Field(
        1,
        ge=1,
        le=10**6,
        description="In ledger, steps of the training between two looks at the queries: more cost less time, and miss "
        "more of what was taught.",
    )
    checkpoints: Annotated[list[Name], Names.MODEL] = Field(
        default_factory=list,
        description="Checkpoints that the training left between --model.base and --model, in their order: in ledger, "
        "nothing is trained then, and what each source taught is told from the ways between them. On a command line, "
        "run/checkpoint-* is all such folders, by their numbers.",
    )
    tolerance: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Sampling ends when every interval of all queries together is within this part of the largest.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of sampled coalitions.")
    fallback: bool = Field(
        True, description="Where a check finds the game unreliable for this model, value by additive and say so."
    )
    by: list[str] = Field(
        default_factory=lambda: [SOURCE],
        min_length=1,
        description="What is valued: source, another field, or fields in one another, as in 'publisher>section'.",
    )
    document_groups: int = Field(
        5,
        ge=1,
        le=1000,
        description="Groups of each source's documents that are left out in turn for the error of the documents it "
        "happened to contribute (newton, path, interaction); the game is played, and its sums are stored, as many "
        "times; 1: no such error.",
    )
    document_values: bool = Field(
        False,
        description="In path and dose, also what every document is worth: they add up to their source's value. In path "
        "it takes as long as fitting the curvature.",
    )
    projection_seeds: int = Field(
        1,
        ge=1,
        le=64,
        description="Projections, seeds in a row from --projection.seed, that the values are the mean over; the error "
        "tells how far they move from one to the next. Everything but the documents' scores is made as many times.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    payout: PayoutConfig = Field(default_factory=PayoutConfig, description="From values to payouts.")

    @property
    def most_coalitions(self) -> int:
        """Whose utility is asked for."""
        return self.budget or GAMES.get(self.game, GAMES[FALLBACK]).most_coalitions

    @property
    def summed(self) -> "SourcesConfig":
        """The same, for sums of scores by the first of the groupings."""
        usual = type(self)()
        told = {"game": "additive", "by": self.by[:1], "confidence": self.confidence, "payout": self.payout}
        return usual.model_copy(update=told)

    @field_validator("checkpoints", mode="before", json_schema_input_type=list[Name] | Name)
    @classmethod
    def _single(cls, checkpoints: Any) -> Any:
        return [checkpoints] if isinstance(checkpoints, str) else checkpoints

    @field_validator("by")
    @classmethod
    def _groupings(cls, by: list[str]) -> list[str]:
        return list(dict.fromkeys(">".join(grouping_fields(grouping)) for grouping in by))

    @model_validator(mode="after")
    def _playable(self) -> "SourcesConfig":
        entry = GAMES.get(self.game)
        if entry is not None and not entry.is_semivalue and self.semivalue != "shapley":
            raise ValueError(f"{self.game} values are no semivalue: leave {setting('sources.semivalue')} out")
        if self.document_values and not (entry and entry.values_documents):
            able = " or ".join(name for name, each in GAMES.items() if each.values_documents)
            raise ValueError(f"document_values: only values of the game {able} are of documents, too: pass {able}")
        trained = entry is not None and entry.made_of == "trainings"
        if self.trainings and entry is not None and entry.is_truth:
            raise ValueError(f"{self.game} is measured, not corrected: leave {setting('sources.trainings')} out")
        if self.trainings and self.document_values:
            raise ValueError(
                f"{setting('sources.trainings')}: values of documents are not corrected: leave one of both out"
            )
        if self.checkpoints and self.game not in ("ledger", "auto"):
            raise ValueError(
                f"{setting('sources.checkpoints')}: are of the game ledger: leave them or {setting('sources.game')} out"
            )
        if self.checkpoints and self.ledger_every != 1:
            raise ValueError(
                f"{setting('sources.checkpoints')}: no steps are made: leave {setting('sources.ledger_every')} out"
            )
        if 0 < self.trainings < 3:
            raise ValueError(f"{setting('sources.trainings')}: everybody and a pair of coalitions are 3 at least")
        usual = type(self).model_fields["document_groups"].default
        if trained and self.document_groups not in (1, usual):
            raise ValueError(
                f"{self.game} tells no errors of documents: leave {setting('sources.document_groups')} out"
            )
        return self
