"""Processes of this machine: whether one is alive, and where its id has a meaning."""

import os
import platform
from pathlib import Path

__all__ = ["is_alive", "process_space"]


def is_alive(process: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def process_space() -> str | None:
    """Names the space in which process ids mean something: this boot of this machine, this container.

    None where the system does not tell; then nobody can say of a process elsewhere that it is dead.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
