"""What a command is given, checked before anything heavy is imported or started."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import InputError, StoreUnreachableError

if TYPE_CHECKING:
    from storage.locations import Location

__all__ = ["check_address", "check_inputs", "finished", "make_prefect_home", "stores"]


def check_inputs(files: list[str], queries: str | None = None) -> None:
    """Refuse files that are not there before anything heavy is started.

    Raises:
        InputError: one of them is not there.
    """
    for name in [*files, *([queries] if queries is not None else [])]:
        if not name.startswith("hf:") and not os.path.exists(name):  # unlike Path, of names too long, too
            raise InputError(f"{name}: no such file")


def check_address(store: str | None) -> None:
    """Refuse an address that cannot be used, a password in it above all, before anything records it.

    Raises:
        InputError: it cannot be used.
    """
    from storage.locations import Location

    if store:
        Location.of(store)


def make_prefect_home() -> None:
    """Prefect makes the folder itself, but none above it.

    Raises:
        InputError: it cannot be made.
    """
    home = os.environ.get("PREFECT_HOME")
    if home:
        try:
            Path(home).expanduser().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"PREFECT_HOME {home}: cannot be made ({error.strerror})") from None


def finished(results: str) -> Path:
    """The folder of a valuation, if it is one.

    Raises:
        InputError: it is none, or not finished.
    """
    folder = Path(results)
    if not (folder / "valuation.json").is_file():
        raise InputError(f"--results {results}: holds no finished valuation (no valuation.json)")
    return folder


def stores(store: str | None) -> "Location":
    """Where the stores are, by default those of `dataworth value`.

    Raises:
        InputError: there is no such folder, or it cannot be reached.
    """
    from storage.locations import Location, default_store

    root = Location.of(store or default_store())
    try:
        there = root.is_dir()
    except StoreUnreachableError as error:
        raise InputError(f"--store {root}: cannot be used ({error.reason})") from None
    if not there:
        raise InputError(f"--store {root}: no such folder")
    return root.absolute()
