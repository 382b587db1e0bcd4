"""Tokenizers of checkpoints tried in a process of their own before they are used in this one.

A tokenizer's files decide how long it works and how much memory it takes, and its library ends the process where that
is too much. Each is loaded and given some texts under limits, once for the same files. One that has something none of
the field's has gets every text there first: what is harmless on one text may explode on another.
"""

import contextlib
import hashlib
import json
import os
import select
import subprocess
import tempfile
import weakref
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dataworth.storage.errors import InputError
from dataworth.storage.limited import (
    Ended,
    half_of_memory,
    limited_command,
    limited_environment,
    run_limited,
    sentence_of_end,
)
from dataworth.storage.locations import home
from dataworth.tasks.model.tokenizer_trial import ORDINARY

__all__ = ["TOKENIZER_FILES", "Forerunner", "forerunner", "tried"]

PROGRAM = Path(__file__).with_name("tokenizer_trial.py")
# Bytes and seconds of a trial; the largest vocabularies in use need 1 GB and, on a busy machine, 10 s.
MAX_MEMORY = 2**32
SECONDS = 120.0
# Of a text: bytes for the longest, seconds for any, and bytes a second beyond.
MAX_TEXT_MEMORY = 12 * 2**30
SECONDS_OF_TEXT, BYTES_A_SECOND = 60.0, 50_000
ENVIRONMENT = {"RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

FILES = ("tokenizer.json", "tokenizer_config.json")
# Any of a tokenizer.
TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken")
PATTERNS = (*TOKENIZER_FILES, "config.json")


@dataclass(frozen=True)
class Trial:
    """How a tokenizer did.

    Args:
        unusual: what none of the field's has, in words; None: nothing.
    """

    unusual: str | None


def tried(name: str) -> Trial:
    """Try the tokenizer of a checkpoint, unless the same files were tried before.

    Args:
        name: local folder, or name on the hub.

    Raises:
        InputError: it takes more time or memory than any should, or panics.
    """
    folder = _folder(name)
    kept = None if folder is None else home() / "tokenizers" / _identity(folder)
    if kept is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return Trial(json.loads(kept.read_bytes())["unusual"])
    trial = _tried(name, folder)
    if kept is not None and trial is not None:
        # Where nothing can be kept, it is tried again.
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
                json.dump({"unusual": trial.unusual}, file)
            Path(file.name).replace(kept)
    return trial or Trial(None)


def _folder(name: str) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils.hub import cached_file

    for file in FILES:
        # Whether there is such a checkpoint is for those to say who load it next.
        with contextlib.suppress(OSError, ValueError):
            path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                return Path(path).parent
    return None


def _identity(folder: Path) -> str:
    """Changes with any file of a tokenizer, with how it is tried, and with what reads it."""
    digest = hashlib.sha256(PROGRAM.read_bytes())
    digest.update(f"{version('tokenizers')} {version('transformers')} {MAX_MEMORY} {SECONDS}".encode())
    for path in sorted({path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()}):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _tried(name: str, folder: Path | None) -> Trial | None:
    """None: it cannot be loaded at all, as who loads it says."""
    file = None if folder is None else folder / "tokenizer.json"
    if file is not None and file.is_file():
        trial = _outcome("file", str(file))
        if trial is not None and trial.unusual is None:
            return trial
    return _outcome("whole", name)


def _outcome(kind: str, given: str) -> Trial | None:
    ended = run_limited(limited_command(PROGRAM, [kind, given], MAX_MEMORY), SECONDS, ENVIRONMENT)
    if ended.code == ORDINARY:
        return None
    if ended.code != 0:
        raise InputError(f"its tokenizer: {sentence_of_end(ended, SECONDS)}")
    return Trial(json.loads(ended.out.splitlines()[-1])["unusual"])


def forerunner(tokenizer: Any, unusual: str) -> "Forerunner | None":
    """What tries every text first; None of a tokenizer in Python, which fails as Python does.

    Args:
        tokenizer: a transformers tokenizer.
        unusual: what is unusual about it, in words.
    """
    return Forerunner(tokenizer.backend_tokenizer.to_str(), unusual) if tokenizer.is_fast else None


class Forerunner:
    """The same tokenizer in a process of its own, under limits.

    Args:
        content: of its tokenizer.json.
        unusual: what is unusual about it, in words.
    """

    def __init__(self, content: str, unusual: str) -> None:
        self._unusual = unusual
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        file = tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8")  # noqa: SIM115
        file.write(content)
        file.flush()
        self._process = subprocess.Popen(
            limited_command(PROGRAM, ["texts", file.name], half_of_memory(MAX_TEXT_MEMORY)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=limited_environment(ENVIRONMENT),
        )
        weakref.finalize(self, _end, os.getpid(), self._process, self._said, file)

    def check(self, text: str, where: str = "") -> None:
        """Encode a text there.

        Args:
            text: any.
            where: file and line, for messages.

        Raises:
            InputError: that takes more time or memory than it should, or panics.
        """
        line = json.dumps(text).encode() + b"\n"
        seconds = SECONDS_OF_TEXT + len(line) / BYTES_A_SECOND
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise ValueError("started without pipes")
        ready: list[Any] = []
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line)
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            if ready and process.stdout.readline() == b"ok\n":
                return
        late = process.poll() is None and not ready
        if late:
            process.kill()
        code = process.wait()
        self._said.seek(0)
        ended = Ended(None if late else code, "", self._said.read().decode(errors="replace"))
        raise InputError(
            f"{where}{': ' if where else ''}the tokenizer has {self._unusual}, and on this text of {len(text):,} "
            f"characters: {sentence_of_end(ended, seconds)}"
        )


def _end(starter: int, process: "subprocess.Popen[bytes]", *files: Any) -> None:
    if os.getpid() != starter:  # a fork of it, which has no children
        return
    process.kill()
    process.wait()
    for file in (process.stdin, process.stdout, *files):
        with contextlib.suppress(OSError):
            file.close()
