"""Programs that try untrusted files, in a process of their own with limits on memory, time and file size."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "half_of_memory", "limited_command", "limited_environment", "run_limited", "sentence_of_end"]

# Sets the limits before anything of the program is imported.
BEGIN = """
import json, runpy, sys
limits, sys.argv = json.loads(sys.argv[1]), sys.argv[2:]
try:
    import resource
except ImportError:
    limits = {}
for name, most in limits.items():
    kind = getattr(resource, name, None)
    if kind is not None:
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):  # macOS knows some of them by name only
            pass
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Address space that is reserved and never used, such as threads' stacks and mapped libraries.
RESERVED_BYTES = 2**34
MAX_SAID = 300
# What Python, Arrow and Rust say.
NO_MEMORY = ("MemoryError", "emory allocation", "capacity overflow", "bad_alloc", "malloc of size")


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Args:
        code: its exit code; minus the number of the signal that ended it; None: its time was over.
        out: what it printed.
        err: what it complained.
    """

    code: int | None
    out: str
    err: str


def half_of_memory(at_most: int) -> int:
    """Bytes that one process may take: half of this machine's memory, but no more than `at_most`."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return at_most
    return min(at_most, there // 2)


def limited_command(
    program: Path, words: Sequence[str], memory: int, *, mapped: bool = False, limits: Mapping[str, int] | None = None
) -> list[str]:
    """The command that runs a program file of ours under limits.

    Args:
        program: a Python file that imports nothing of this project.
        words: its arguments.
        memory: bytes it may take.
        mapped: it also maps files of any size, which are no memory.
        limits: further ones: name in `resource` → value.
    """
    # The folder a person is in, and that of the program, are not looked through for modules.
    bounds = {"RLIMIT_DATA": memory, "RLIMIT_CORE": 0, **(limits or {})}
    if not mapped:
        bounds["RLIMIT_AS"] = memory + RESERVED_BYTES
    return [sys.executable, "-P", "-c", BEGIN, json.dumps(bounds), str(program), *words]


def run_limited(command: Sequence[str], seconds: float | None, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a limited command until it ends or its time is over.

    Args:
        command: of `limited_command`.
        seconds: it may take; None: any.
        environment: variables beside those of this process.
    """
    there = limited_environment(environment or {})
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, env=there, check=False
        )
    except subprocess.TimeoutExpired:
        return Ended(None, "", "")
    return Ended(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def limited_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a limited command: this process's variables and the given ones."""
    return {**os.environ, **variables}


def sentence_of_end(ended: Ended, seconds: float | None) -> str:
    """Why a program ended as it should not, in words.

    Args:
        ended: how.
        seconds: it had.
    """
    if ended.code is None:
        return f"not done after {seconds:.0f} s"
    if ended.code == -signal.SIGKILL or any(words in ended.err for words in NO_MEMORY):
        return "needs more memory than any should"
    if ended.code < 0:
        return f"the process that read it was ended by {signal.Signals(-ended.code).name}"
    lines = [line for line in ended.err.strip().splitlines() if not line.startswith("note:")]
    return lines[-1][:MAX_SAID] if lines else f"the process that read it ended with code {ended.code}"
