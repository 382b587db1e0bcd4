"""Opening untrusted files: plain ones only, so that no pipe is waited for, no device read, no folder left by a link."""

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from dataworth.storage.errors import InputError

__all__ = ["below", "no_plain_file", "open_plain", "trusted_folder"]

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a link"),
)
# A repository of the hub's cache, whose snapshots are links to blobs beside them.
REPOSITORY = re.compile(r"(datasets|models|spaces)--.+")


def trusted_folder(folder: Path) -> Path:
    """The folder that links in a folder may lead to: its real path, or in the hub's cache the whole repository."""
    real = Path(os.path.realpath(folder))
    for snapshot in (real, *real.parents):
        snapshots = snapshot.parent
        if snapshots.name == "snapshots" and REPOSITORY.fullmatch(snapshots.parent.name):
            return snapshots.parent
    return real


def below(path: str | Path, folder: Path) -> bool:
    """Whether a path, its links followed, is in a folder (given as a path without links)."""
    return Path(os.path.realpath(path)).is_relative_to(folder)


def no_plain_file(mode: int) -> str | None:
    """What kind of file a mode stands for, in words; None for a plain file."""
    if stat.S_ISREG(mode):
        return None
    return next((what for is_kind, what in KINDS if is_kind(mode)), "no plain file")


def open_plain(path: Path, where: str, within: Path | None = None) -> BinaryIO:
    """Open a plain file for reading; anything else is refused, and never waited for.

    What was opened is what is looked at: nobody can put another file in its place between the two.

    Args:
        path: of the file.
        where: its name, for messages.
        within: the folder that it was found in (see `trusted_folder`), out of which no link may lead; None: the path is
            what a person gave, and may be a link to anywhere.

    Raises:
        InputError: it is no plain file, or elsewhere.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
    opened, state = path, os.stat(path) if within is None else os.lstat(path)
    if within is not None:
        flags |= getattr(os, "O_NOFOLLOW", 0)
        if stat.S_ISLNK(state.st_mode):
            opened = Path(os.path.realpath(path))
            if not opened.is_relative_to(within):
                raise InputError(f"{where}: links to a file outside of its folder; nothing but the folder is read")
            state = os.stat(opened)
    # Looked at twice, since of a device opening is an act by itself.
    _refuse(state.st_mode, where)
    descriptor = os.open(opened, flags)
    try:
        _refuse(os.fstat(descriptor).st_mode, where)
        if hasattr(os, "set_blocking"):
            os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse(mode: int, where: str) -> None:
    what = no_plain_file(mode)
    if what is not None:
        raise InputError(f"{where}: is {what}, expected a plain file")
