"""What coalitions are worth, kept so that none is asked for twice."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["Utilities", "Utility"]

Utility = Callable[[np.ndarray], np.ndarray]


class Utilities:
    """A utility that remembers: coalitions it has met, or was told of, are not evaluated again.

    asked: different coalitions asked for, whether they were known or not.
    evaluated: different coalitions the utility was called for.
    """

    def __init__(self, utility: Utility, n_players: int, known: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Args:
        utility: masks (m, s) to the utility of each for every query (m, q); called once a batch.
        n_players: s.
        known: masks and utilities from elsewhere.
        """
        self._utility = utility
        self._n_players = n_players
        self._rows: dict[bytes, np.ndarray] = {}
        self._asked: set[bytes] = set()
        self.evaluated = 0
        if known is not None:
            self._keep(_keys(known[0]), np.asarray(known[1], np.float64))

    @property
    def asked(self) -> int:
        return len(self._asked)

    def __call__(self, masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        """The utility of each coalition, in the order asked.

        Raises:
            ValueError: the utility gave too few rows, or a number that is not finite.
        """
        keys = _keys(masks)
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._rows}
        if first:
            rows = sorted(first.values())
            self._keep([keys[row] for row in rows], np.asarray(self._utility(masks[rows]), np.float64))
            self.evaluated += len(rows)
        self._asked.update(keys)
        return np.stack([self._rows[key] for key in keys])

    def everything(self) -> tuple[Bool[np.ndarray, "m s"], Float[np.ndarray, "m q"]]:
        """Masks and utilities of every coalition known, to be handed on as `known`."""
        packed = np.frombuffer(b"".join(self._rows), np.uint8).reshape(len(self._rows), -1)
        masks = np.unpackbits(packed, axis=1, count=self._n_players).astype(bool)
        return masks, np.stack(list(self._rows.values()))

    def _keep(self, keys: list[bytes], utilities: np.ndarray) -> None:
        if utilities.ndim != 2 or len(utilities) != len(keys):
            raise ValueError(
                f"expected the utilities of {len(keys)} coalitions by query, got an array {utilities.shape}"
            )
        if not np.isfinite(utilities).all():
            raise ValueError("the utility of a coalition is not a finite number: look at the game before its values")
        self._rows.update(zip(keys, utilities, strict=True))


def _keys(masks: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in np.packbits(masks, axis=1)]
