"""One fault after another in a command that writes: at each call that changes a file, a kill, an I/O error, a full disk
or a torn write; then the same command again, undisturbed.

faults.c, preloaded, does the faults.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

__all__ = ["HOW", "forked", "state", "swept"]

ROOT = Path(__file__).parents[2]
HOW = ("kill", "I/O error", "full disk", "torn write")
# What differs between two runs of the same: dates, whose turn it was, and what it cost.
DATES = ("begun", "finished", "date", "made", "crc32c", "seconds", "bytes")


def swept(folder: Path, every: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Run sweeps in a process of its own.

    Args:
        folder: to work in.
        every: names in COMMANDS; a fault at each so-many-th call of it, beginning at a random one.

    Returns:
        For each, `calls` that the command makes, `faults` done, `problems`: a sentence each.
    """
    if " " in str(folder):
        raise ValueError(f"{folder}: the loader takes a name with a space for two libraries")
    shim = folder / "faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.harness.faults", str(folder), json.dumps(dict(every))],
        env={**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if ran.returncode:
        raise RuntimeError(f"the sweep ended with {ran.returncode}")
    found: dict[str, dict[str, Any]] = json.loads(ran.stdout.splitlines()[-1])
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
    from dataworth.storage.withdrawals import Withdrawals

    Withdrawals(valued.root / "store").add(sources=names, documents=["d1"])


def _compact(valued: Any) -> None:
    from dataworth.storage.compaction import compact

    compact(valued.root / "store")


def _verify(valued: Any) -> None:
    from dataworth.storage.verification import verified

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


def _audit(valued: Any) -> None:
    """Trainings that take no time, kept one by one; scores by two methods; what comes of them."""
    from dataworth.tasks.configuration import ClusterConfig
    from dataworth.tasks.counterfactual import steps
    from dataworth.tasks.counterfactual.config import AuditConfig
    from dataworth.tasks.counterfactual.parts import MethodRun
    from dataworth.tasks.counterfactual.problem import NamedProblem
    from dataworth.tasks.curvature.config import CurvatureConfig
    from dataworth.tasks.projection.config import ProjectionConfig
    from tests.harness.damage import here

    store, place = str(valued.root / "store"), NamedProblem("tests.reference.instant:instant")
    audit, cluster = AuditConfig(subsets=6, seeds=2), ClusterConfig()
    with mock.patch("dataworth.tasks.counterfactual.trainings.dask_client", here):
        steps.train_subsets(store, place, audit, cluster)
        steps.train_without_sources(store, place, audit, cluster)
        for method in ("dot", "leave-one-out"):
            run = MethodRun(method=method, projection=ProjectionConfig(kind="identity"), curvature=CurvatureConfig())
            scores = steps.attribute(store, place, run, cluster, audit.seeds)
        steps.train_without_best(store, place, audit, cluster, method, scores, [0, 1])


COMMANDS = {
    "withdraw": Command(lambda valued: None, _withdraw),
    "compact": Command(_withdraw, _compact),
    "compact what was set aside": Command(_withdrawn_and_set_aside, _compact),
    "verify": Command(_flip_shards, _verify),
    "publish": Command(_without_results, _value),
    "audit": Command(lambda valued: None, _audit),
    "index, score, play, publish": Command(_empty, _value),
}


def state(root: Path, *, fragments: bool) -> dict[str, str]:
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


def forked(work: Callable[[], object]) -> tuple[int, str]:
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
    def __init__(self, folder: Path) -> None:
        from dataworth.tasks.training.small_model import train_tokenizer
        from tests.harness.damage import Valued
        from tests.reference.checkpoints import TEXTS, save_checkpoint

        save_checkpoint("llama", folder / "model", train_tokenizer(TEXTS, 300))
        self.folder, self.valued = folder, Valued(folder, folder / "model", TEXTS)
        self.shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.shim.fault_disarm.restype = ctypes.c_long
        shutil.copytree(self.valued.root, folder / "valued")

    def restored(self, name: str) -> None:
        shutil.rmtree(self.valued.root)
        shutil.copytree(self.folder / name, self.valued.root)

    def disturbed(self, command: Command, number: int, how: int) -> None:
        self.shim.fault_arm(os.fsencode(f"{self.valued.root}/"), ctypes.c_long(number), how)
        command.act(self.valued)
        self.shim.fault_disarm()

    def counted(self, command: Command) -> None:
        """Into a file: how many calls there are."""
        self.disturbed(command, -1, 0)
        (self.folder / "counted").write_text(str(self.shim.fault_disarm()))

    def found(self, name: str, every: int) -> dict[str, Any]:
        """What comes of a command that is disturbed at each so-many-th call."""
        command, removes = COMMANDS[name], "compact" in name
        self.restored("valued")
        code, said = forked(partial(command.prepare, self.valued))
        if code:
            raise RuntimeError(said)
        shutil.rmtree(self.folder / "prepared", ignore_errors=True)
        shutil.copytree(self.valued.root, self.folder / "prepared")
        code, said = forked(partial(self.counted, command))
        if code:
            raise RuntimeError(said)
        whole = state(self.valued.root, fragments=removes)
        calls, problems, faults = int((self.folder / "counted").read_text()), [], 0
        for number in range(random.Random(name).randrange(min(every, calls)), calls, every):
            sys.stderr.write(f"{name}: {number} of {calls} calls, {len(problems)} problems\n")
            for how, named in enumerate(HOW):
                self.restored("prepared")
                forked(partial(self.disturbed, command, number, how))
                faults += 1
                code, said = forked(partial(command.act, self.valued))
                if code:
                    problems.append(f"{named} at call {number}: the same command then ends with {code}: {said}")
                    continue
                after = state(self.valued.root, fragments=removes)
                differing = sorted(each for each in whole.keys() | after.keys() if whole.get(each) != after.get(each))
                if differing:
                    problems.append(f"{named} at call {number}: {len(differing)} files differ, {differing[:3]}")
        return {"calls": calls, "faults": faults, "problems": problems}


def main(folder: Path, every: dict[str, int]) -> None:
    """Entry point."""
    sweep = _Sweep(folder)
    sys.stdout.write(json.dumps({name: sweep.found(name, step) for name, step in every.items()}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
