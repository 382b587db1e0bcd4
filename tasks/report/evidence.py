"""How far shares told in the same way were from those that trainings measured, on the bench of truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataworth.tasks.report.numbers import percent

__all__ = ["BENCH", "TOKENS", "Evidence", "evidence"]


@dataclass(frozen=True)
class Evidence:
    """Share errors: what, of all shares, is with the wrong source. Of a corpus, and of one on which nothing was chosen.

    Args:
        by_package: of questions that one source's package answers, in the mean of the packages.
        together: of all questions together.
    """

    by_package: tuple[float, float]
    together: tuple[float, float]


TOKENS = Evidence((0.69, 0.79), (0.30, 0.21))
# Of small language models fine-tuned on eight sources (infra/docs/truth.md), by how shares are told.
BENCH: Mapping[str, Evidence] = {
    "additive": Evidence((0.09, 0.14), (0.16, 0.12)),
    "merged": Evidence((0.03, 0.09), (0.08, 0.08)),
    "checkpoints": Evidence((0.17, 0.17), (0.11, 0.07)),
}


def evidence(kind: str, game: str, notes: Mapping[str, Any], of_language: bool) -> str:
    """A sentence; empty where such shares were not measured on the bench, or are measured themselves.

    Args:
        kind: of the values.
        game: that told them.
        notes: what was written beside them.
        of_language: the model's targets are tokens.
    """
    told = BENCH.get("checkpoints" if game == "ledger" and "missed half-way" in notes else game)
    if told is None or kind != "share" or not of_language or "fallback" in notes:
        return ""
    return (
        f"On the bench's two corpora {_both(told.by_package)} of shares told in this way were with the wrong source "
        f"where questions are of one source's subject, {_both(told.together)} of all questions together (of shares by "
        f"tokens {_both(TOKENS.by_package)}, {_both(TOKENS.together)})."
    )


def _both(two: tuple[float, float]) -> str:
    return f"{percent(two[0], 0)} and {percent(two[1], 0)}"
