"""Files and folders of this machine that survive a power cut: with the old bytes or all the new ones.

A rename can reach the disk before what was written under the other name, and a file before the folder that names it.
So what is to be seen is synced before it is given its name, and the folder after it. A folder goes by a rename, too,
before its files do: killed between, nobody takes what is left for a store.
"""

import os
import platform
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from dataworth.storage.processes import is_alive

__all__ = [
    "REMOVED",
    "make_folder",
    "move_into_place",
    "remove_dead_partials",
    "remove_tree",
    "replace_file",
    "staging_prefix",
    "sync_tree",
]

REMOVED = ".removed"
PARTIAL = ".partial"
STAGING = ".staging-"


def _host() -> str:
    return platform.node() or "host"


def replace_file(path: Path, content: bytes, permissions: int = 0o666) -> None:
    """Write a file so that a reader sees the old bytes or all the new ones, also after a power cut.

    Of two that write it at once, the later one's bytes stay.

    Args:
        path: of the file.
        content: of it.
        permissions: from its first moment on, but for those that the process's mask takes away.
    """
    own = f"{_host()}-{os.getpid()}-{threading.get_ident()}"
    partial = path.with_name(f".{path.name}.{own}{PARTIAL}")
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, permissions)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and the missing ones above it, so that they survive a power cut."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _sync(each.parent)


def move_into_place(source: Path, target: Path) -> None:
    """Move a folder or a file to its final name, replacing a file there, once every byte of it is on disk."""
    sync_tree(source)
    os.replace(source, target)
    _sync(target.parent)


def sync_tree(path: Path) -> None:
    """Flush every file of a folder and the folders themselves, or one file, to disk."""
    if not path.is_dir():
        _sync(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    """A file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a folder: its name is gone at once, before its files are."""
    gone = folder.with_name(f".{folder.name}{REMOVED}")
    if gone.exists():
        _unlink_tree(gone)
    os.replace(folder, gone)
    _sync(folder.parent)
    _unlink_tree(gone)


def _unlink_tree(folder: Path) -> None:
    """As shutil.rmtree, also where another process is removing the same folder."""
    while folder.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def staging_prefix(process: int | None = None) -> str:
    """How names of staging folders begin: those of all processes of this machine, or of one process."""
    return f"{STAGING}{_host()}-" + ("" if process is None else f"{process}-")


def remove_dead_partials(root: Path, *, deep: bool = True) -> None:
    """Remove what killed processes of this machine left in a folder: half-written files, half-removed folders.

    Args:
        root: the folder.
        deep: in all folders below, too.
    """
    of_staging = re.compile(rf"{re.escape(staging_prefix())}(\d+)-")
    of_file = re.compile(rf".*\.{re.escape(_host())}-(\d+)-\d+{re.escape(PARTIAL)}$")
    for parent, folders, names in os.walk(root):
        for name in list(folders):
            owner = of_staging.match(name)
            if (name.startswith(".") and name.endswith(REMOVED)) or (owner and not is_alive(int(owner[1]))):
                folders.remove(name)
                _unlink_tree(Path(parent, name))
        for name in names:
            owner = of_file.match(name)
            if owner and not is_alive(int(owner[1])):
                Path(parent, name).unlink(missing_ok=True)
        if not deep:
            return
