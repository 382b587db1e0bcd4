"""Rows that cannot be read: they end a run, the first named together, or are left out and kept with the reason."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from dataworth.storage.errors import InputError

__all__ = ["OnBadRow", "Rejected", "SettingError"]

OnBadRow = Literal["stop", "skip"]
Item = TypeVar("Item")
# Bad rows that are named, and good ones that are looked at for others.
NAMED, LOOKED_THROUGH = 10, 100_000
# Characters of each but the first.
SHORT = 60


def _short(sentence: str, file: str) -> str:
    """Without the file that was named already, and cut."""
    said = sentence.removeprefix(f"{file}, ")
    return said if len(said) <= SHORT else f"{said[:SHORT]}…"


class SettingError(InputError):
    """Wrong for every row: no row can be left out for it."""


class Rejected:
    """What is wrong with rows, and what follows.

    Args:
        on_bad_row: `stop`: the run ends with the first that are wrong; `skip`: each is left out, and its sentence kept.
    """

    def __init__(self, on_bad_row: OnBadRow = "stop") -> None:
        self._stops = on_bad_row == "stop"
        self.sentences: list[str] = []

    @property
    def ends(self) -> bool:
        """Is it known that the run ends, so that rows are only looked through?"""
        return self._stops and bool(self.sentences)

    @contextmanager
    def told(self) -> Iterator[None]:
        """A row is read in the block; what is wrong with it ends the block.

        Raises:
            InputError: so many are wrong that the run ends.
        """
        try:
            yield
        except SettingError:
            raise
        except InputError as error:
            self.sentences.append(str(error))
            if self._stops and len(self.sentences) == NAMED:
                self.stop()

    def before_the_end(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same, none once the run is known to end; some further ones are looked through for what else is wrong.

        Raises:
            InputError: the run ends.
        """
        n_looked = 0
        for item in items:
            if not self.ends:
                yield item
                continue
            n_looked += 1
            if n_looked == LOOKED_THROUGH:
                self.stop()

    def stop(self) -> None:
        """End the run where it was to end.

        Raises:
            InputError: names the rows.
        """
        if not self.ends:
            return
        first, *others = self.sentences
        if not others:
            raise InputError(first)
        said = [_short(each, first.partition(", ")[0]) for each in others]
        count = f"the first {NAMED}" if len(self.sentences) == NAMED else len(self.sentences)
        raise InputError(f"{first} ({count} rows cannot be read: also {'; '.join(said)})")
