"""Parameters of valuing sources."""

from typing import Literal

from pydantic import Field, field_validator

from tasks.coalitions.groupings import SOURCE, grouping_fields
from tasks.configuration import Configuration

__all__ = ["PayoutConfig", "PayoutRule", "SourcesConfig"]

PayoutRule = Literal["proportional", "floor", "tokens"]


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

    game: Literal["additive"] = Field("additive", description="additive: a source is worth the sum of its scores.")
    semivalue: Literal["shapley"] = Field(
        "shapley", description="How a coalition's worth is divided among its members."
    )
    by: list[str] = Field(
        default_factory=lambda: [SOURCE],
        min_length=1,
        description="What is valued: source, another field, or fields in one another, as in 'publisher>section'.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    payout: PayoutConfig = Field(default_factory=PayoutConfig, description="From values to payouts.")

    @field_validator("by")
    @classmethod
    def _groupings(cls, by: list[str]) -> list[str]:
        return list(dict.fromkeys(">".join(grouping_fields(grouping)) for grouping in by))
