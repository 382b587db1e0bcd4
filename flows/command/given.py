"""What a command is given, checked before anything heavy is imported or started."""

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dataworth.storage.errors import InputError, StoreUnreachableError
from dataworth.storage.locations import home, home_folder, location_of
from dataworth.storage.plain_files import no_plain_file
from dataworth.tasks.configuration import Configuration
from dataworth.tasks.corpus.places import place_of
from dataworth.tasks.report.config import TrackingConfig

if TYPE_CHECKING:
    from dataworth.storage.place import Location

__all__ = ["check_address", "check_inputs", "finished", "make_homes", "prefect_home", "stores"]


def check_inputs(files: list[str], queries: str | None = None) -> None:
    """Refuse paths that do not exist, or are pipes or devices, before anything heavy is started.

    Raises:
        InputError: one of them is not there, or is a pipe or a device.
    """
    places = [place for place in map(place_of, files) if not place.is_of_hub]
    documents = {name for place in places for name in place.files}
    for name in [*sorted(documents), *([queries] if queries is not None else [])]:
        if not os.path.exists(name):  # unlike Path, of names too long, too
            raise InputError(f"{name}: no such file")
        mode = os.stat(name).st_mode
        what = no_plain_file(mode)
        if what is not None and not (name in documents and stat.S_ISDIR(mode)):
            raise InputError(f"{name}: is {what}, expected a plain file{' or a folder' if name in documents else ''}")


def check_address(store: str | None) -> None:
    """Refuse an address that cannot be used, above all one with a password in it, before it is recorded anywhere.

    Raises:
        InputError: it cannot be used.
    """

    if store:
        location_of(store)


def prefect_home() -> Path:
    """Prefect's own folder.

    Raises:
        InputError: nobody knows of a home folder.
    """
    return home_folder("PREFECT_HOME", ".prefect")


def make_homes(config: Configuration | None = None) -> None:
    """Make the default folders that a command writes to if no others are named, before anything heavy is started.

    Args:
        config: of the command; None: of a command that uses them all.

    Raises:
        InputError: one of them cannot be made or written.
    """
    _make_home(prefect_home(), "PREFECT_HOME", "Prefect's folder")
    if config is None or _keeps_at_home(config):
        _make_home(home(), "DATAWORTH_HOME", "the folder of the default store and of the local MLflow")


def _keeps_at_home(config: Configuration) -> bool:
    """No store is named, or no MLflow."""
    fields = type(config).model_fields
    tracking = getattr(config, "tracking", TrackingConfig() if "store" not in fields else None)  # the demo has neither
    tracked_here = tracking is not None and not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    return tracked_here or ("store" in fields and getattr(config, "store", None) is None)


def _make_home(folder: Path, variable: str, what: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        named = f"{variable} {folder}" if os.environ.get(variable) else f"{folder} ({what}, {variable} is not set)"
        raise InputError(
            f"{named}: cannot be written ({error.strerror}); set {variable} to a folder that can"
        ) from None


def finished(results: str) -> Path:
    """The folder of a finished valuation; anything else is refused.

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
    from dataworth.storage.locations import default_store

    root = location_of(store or default_store())
    try:
        there = root.is_dir()
    except StoreUnreachableError as error:
        raise InputError(f"--store {root}: cannot be used ({error.reason})") from None
    if not there:
        raise InputError(f"--store {root}: no such folder")
    return root.absolute()
