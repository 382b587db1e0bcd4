"""Tokens in a page, marked by what they taught."""

from collections.abc import Sequence
from itertools import dropwhile, groupby

from dataworth.tasks.report.results.tokens import Piece

__all__ = ["marked", "said"]

# Of the largest part of a passage, in size, from which on a mark is stronger by one.
STEPS = (0.1, 0.25, 0.5, 0.75)


def marked(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Texts in their order, each with its class: p1 … p4 what taught, m1 … m4 what taught the opposite, "" the rest.

    Args:
        pieces: tokens and their parts of a score.
    """
    largest = max((abs(part) for _, part in pieces), default=0.0)
    classes = [(_class(part / largest if largest else 0.0), text) for text, part in pieces]
    return [("".join(text for _, text in group), name) for name, group in groupby(classes, key=lambda each: each[0])]


def said(pieces: Sequence[Piece]) -> list[Piece]:
    """Without what stands before the first token that anything was taught of: the prompt."""
    return list(dropwhile(lambda piece: piece[1] == 0.0, pieces))


def _class(part: float) -> str:
    step = sum(abs(part) >= least for least in STEPS)
    return "" if step == 0 else f"{'p' if part > 0 else 'm'}{step}"
