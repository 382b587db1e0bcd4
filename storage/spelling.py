"""How messages name a setting: as their reader writes it, on the command line, in a form or as an argument."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["SHORT", "as_field", "as_option", "setting", "spell", "spelled"]

# The frequent options of the command line, by their short names.
SHORT = {
    "model.name": "--model",
    "corpus.files": "--corpus",
    "queries.file": "--queries",
    "candidates.files": "--candidates",
    "projection.kind": "--projection",
    "curvature.kind": "--curvature",
    "scoring.kind": "--scoring",
    "sources.game": "--game",
}


def as_option(name: str) -> str:
    """A setting as it is written on the command line."""
    return SHORT.get(name, f"--{name}")


def as_field(name: str) -> str:
    """A setting in a form or as an argument: `projection.rank` is the entry `rank` of `projection`."""
    return f"`{name}`"


_doors: list[Callable[[str], str]] = [as_option]


def setting(name: str) -> str:
    """A setting, given by its dotted name in the configuration, as users of this process write it."""
    return _doors[-1](name)


def spell(how: Callable[[str], str]) -> None:
    """Name settings with this function from now on, in this process."""
    _doors[:] = [how]


@contextmanager
def spelled(how: Callable[[str], str]) -> Iterator[None]:
    """Name settings with this function while the block lasts."""
    _doors.append(how)
    try:
        yield
    finally:
        _doors.remove(how)
