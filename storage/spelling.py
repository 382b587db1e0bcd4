"""How a setting is named in what is said: as who reads it would write it, at whichever door they came in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["SHORT", "as_field", "as_option", "setting", "spell", "spelled"]

# The frequent options of the command line, by their short names.
SHORT = {
    "model.name": "--model",
    "corpus.files": "--corpus",
    "queries.file": "--queries",
    "projection.kind": "--projection",
    "curvature.kind": "--curvature",
    "scoring.kind": "--scoring",
    "sources.game": "--game",
}


def as_option(name: str) -> str:
    """On the command line."""
    return SHORT.get(name, f"--{name}")


def as_field(name: str) -> str:
    """In a form, or as an argument: `projection.rank` is the entry `rank` of `projection`."""
    return f"`{name}`"


_doors: list[Callable[[str], str]] = [as_option]


def setting(name: str) -> str:
    """A setting by its dotted name in the configuration, as it is written at this process's door."""
    return _doors[-1](name)


def spell(how: Callable[[str], str]) -> None:
    """Name settings so from now on, in this process."""
    _doors[:] = [how]


@contextmanager
def spelled(how: Callable[[str], str]) -> Iterator[None]:
    """Name settings so while the block lasts."""
    _doors.append(how)
    try:
        yield
    finally:
        _doors.remove(how)
