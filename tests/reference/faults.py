"""One fault after another in a command that writes: at each call that changes a file, a kill, an I/O error, a full disk
or a torn write; then the same command again, undisturbed.

`python -m tests.reference.faults FOLDER COMMAND EVERY` prints what it saw; faults.c, preloaded, does the faults.
"""

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["HOW", "swept"]

ROOT = Path(__file__).parents[2]
HOW = ("kill", "I/O error", "full disk", "torn write")
# What differs between two runs of the same: dates, and whose turn it was.
DATES = ("begun", "finished", "date", "made", "crc32c")


def swept(folder: Path, command: str, every: int) -> dict[str, Any]:
    """Run a sweep in a process of its own.

    Args:
        folder: to work in.
        command: one of COMMANDS.
        every: a fault at each so-many-th call, beginning at a random one.

    Returns:
        `calls` that the command makes, `faults` done, `problems`: a sentence each.
    """
    if " " in str(folder):
        raise ValueError(f"{folder}: the loader takes a name with a space for two libraries")
    shim = folder / "faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.reference.faults", str(folder), command, str(every)],
        env={**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if ran.returncode:
        raise RuntimeError(f"the sweep of {command} ended with {ran.returncode}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Command:
    """What is disturbed.

    Args:
        prepare: once, before the folder is copied.
        act: the command; again after the fault.
    """

    prepare: Callable[[Any], object]
    act: Callable[[Any], object]


def _withdraw(valued: Any, names: tuple[str, ...] = ("s0",)) -> None:
    from storage.withdrawals import Withdrawals

    Withdrawals(valued.root / "store").add(sources=names, documents=["d1"])


def _compact(valued: Any) -> None:
    from storage.compaction import compact

    compact(valued.root / "store")


def _verify(valued: Any) -> None:
    from storage.verification import verified

    list(verified(valued.root / "store"))


def _flip_shards(valued: Any) -> None:
    """Of each segment the first shard, and the plan of one."""
    chunks = sorted((valued.root / "store" / "gradients").glob("*/*/gradients/c/0/0"))
    plan = next(iter(sorted((valued.root / "store" / "gradients").glob("*/*/contents/hash/c/0/0"))))
    for path in (*chunks, plan):
        content = bytearray(path.read_bytes())
        content[0] ^= 1
        path.write_bytes(content)


def _without_results(valued: Any) -> None:
    shutil.rmtree(valued.root / "results")


def _withdrawn_and_set_aside(valued: Any) -> None:
    _withdraw(valued)
    chunk = next(iter(sorted((valued.root / "store" / "gradients").glob("*/*/gradients/c/1/0"))))
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(content)
    _verify(valued)


def _empty(valued: Any) -> None:
    shutil.rmtree(valued.root / "store")
    shutil.rmtree(valued.root / "results")


def _value(valued: Any) -> None:
    valued.republishes = True
    valued.outcome()


COMMANDS = {
    "withdraw": Command(lambda valued: None, _withdraw),
    "compact": Command(_withdraw, _compact),
    "compact what was set aside": Command(_withdrawn_and_set_aside, _compact),
    "verify": Command(_flip_shards, _verify),
    "publish": Command(_without_results, _value),
    "index, score, play, publish": Command(_empty, _value),
}


def _state(root: Path, *, fragments: bool) -> dict[str, str]:
    """Relative name → content of every file, without dates; what a killed write left beside its file is none."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir():
            found[f"{name}/"] = ""
        elif not path.name.endswith(".lock") and (fragments or not path.name.endswith(".partial")):
            found[name] = _undated(path)
    receipts = [name for name in found if "/receipts/" in name and not name.endswith("/")]
    found.update({f"receipt {number}": found.pop(name) for number, name in enumerate(sorted(receipts))})
    return found


def _undated(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix not in (".json", ".jsonl", ".crc32c") or path.name == "zarr.json":
        return content.hex()
    return repr([_plain(json.loads(line)) for line in (content.splitlines() if path.suffix == ".jsonl" else [content])])


def _plain(record: Any) -> Any:
    if isinstance(record, dict):
        if "lists" in record:  # of the checksums of the list of withdrawals, in which dates are
            return len(record["lists"])
        return {name: _plain(value) for name, value in sorted(record.items()) if name not in DATES}
    return [_plain(each) for each in record] if isinstance(record, list) else record


def _forked(work: Callable[[], object]) -> tuple[int, str]:
    """Do some work in a child; (exit code or minus a signal, what it raised)."""
    with tempfile.TemporaryFile("w+") as told:
        child = os.fork()
        if child == 0:
            code = 0
            try:
                work()
            except BaseException as error:  # whatever a fault makes of it
                told.write(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
                told.flush()
                code = 3
            os._exit(code)
        _, status = os.waitpid(child, 0)
        told.seek(0)
        return os.waitstatus_to_exitcode(status), told.read()


class _Sweep:
    def __init__(self, folder: Path, command: Command) -> None:
        from tasks.model.training import train_tokenizer
        from tests.reference.checkpoints import TEXTS, save_checkpoint
        from tests.reference.damage import Valued

        save_checkpoint("llama", folder / "model", train_tokenizer(TEXTS, 300))
        self.valued, self.command = Valued(folder, folder / "model", TEXTS), command
        self.root, self._kept = self.valued.root, folder / "prepared"
        self.shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.shim.fault_disarm.restype = ctypes.c_long
        command.prepare(self.valued)
        shutil.copytree(self.root, self._kept)

    def restored(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self._kept, self.root)

    def disturbed(self, number: int, how: int) -> None:
        self.shim.fault_arm(os.fsencode(f"{self.root}/"), ctypes.c_long(number), how)
        self.command.act(self.valued)
        self.shim.fault_disarm()

    def calls(self, counted: Path) -> None:
        """Into a file: how many there are."""
        self.disturbed(-1, 0)
        counted.write_text(str(self.shim.fault_disarm()))


def main(folder: Path, name: str, every: int) -> None:
    """Entry point."""
    command = COMMANDS[name]
    sweep = _Sweep(folder, command)
    code, said = _forked(partial(sweep.calls, folder / "counted"))
    if code:
        raise RuntimeError(said)
    removes = "compact" in name
    whole = _state(sweep.root, fragments=removes)
    calls, problems, faults = int((folder / "counted").read_text()), [], 0
    for number in range(random.Random(name).randrange(every), calls, every):
        sys.stderr.write(f"{name}: {number} of {calls} calls, {len(problems)} problems\n")
        for how, named in enumerate(HOW):
            sweep.restored()
            before = f"{named} at call {number}"
            code, said = _forked(partial(sweep.disturbed, number, how))
            faults += 1
            code, said = _forked(partial(command.act, sweep.valued))
            if code:
                problems.append(f"{before}: the same command then ends with {code}: {said}")
                continue
            after = _state(sweep.root, fragments=removes)
            differing = sorted(name for name in whole.keys() | after.keys() if whole.get(name) != after.get(name))
            if differing:
                problems.append(f"{before}: {len(differing)} files differ afterwards, {differing[:3]}")
    sys.stdout.write(json.dumps({"calls": calls, "faults": faults, "problems": problems}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
