"""The power is cut while a corpus is indexed and valued: a disk as it is then, and the same command on it.

The disk is an ext4 file system in a file, mounted through a loop device. What was written there and not synced is in
memory alone; a copy of the file, taken while its writer stands still, is what a power cut leaves.
"""

import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dataworth.tasks.training.small_model import train_tokenizer
from tests.harness.damage import Valued
from tests.harness.faults import forked, state
from tests.reference.checkpoints import TEXTS, save_checkpoint

__all__ = ["can_mount", "cut"]

IMAGE_BYTES = 96 * 2**20


def can_mount(folder: Path) -> bool:
    """This process may mount a file."""
    try:
        with _mounted(_formatted(folder / "probe.img"), folder / "probe"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _formatted(image: Path) -> Path:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
    return image


@contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True)


def _run(valued: Valued) -> None:
    valued.republishes = True
    valued.outcome()


def cut(folder: Path, cuts: int, seed: int) -> list[str]:
    """Cut the power so many times, each time of a run from nothing, in a process of its own, which forks.

    Args:
        folder: to work in.
        cuts: how many.
        seed: of the moments.

    Returns:
        A sentence for each after which the same command did not end with the same bytes.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "tests.harness.power", str(folder), str(cuts), str(seed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found: list[str] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main(folder: Path, cuts: int, seed: int) -> None:
    """Entry point."""
    image, copy, root = folder / "disk.img", folder / "copy.img", folder / "work"
    save_checkpoint("llama", folder / "model", train_tokenizer(TEXTS, 300))
    with _mounted(_formatted(image), root):
        valued = Valued(folder, folder / "model", TEXTS)
    with _mounted(_formatted(image), root):
        start = time.monotonic()
        code, said = forked(partial(_run, valued))
        seconds = time.monotonic() - start
        whole = state(root, fragments=False)
    if code:
        raise RuntimeError(said)
    moments, problems = random.Random(seed), []
    for number in range(cuts):
        moment = moments.uniform(0, seconds)
        with _mounted(_formatted(image), root):
            _stopped_at(moment, valued, image, copy)
        with _mounted(copy, root):
            code, said = forked(partial(_run, valued))
            after = state(root, fragments=False)
        differing = sorted(name for name in whole.keys() | after.keys() if whole.get(name) != after.get(name))
        if code or differing:
            problems.append(f"cut {number} after {moment:.2f} s: {said or differing[:5]}")
        sys.stderr.write(f"cut {number + 1} of {cuts}, {len(problems)} problems\n")
    sys.stdout.write(json.dumps(problems) + "\n")


def _stopped_at(moment: float, valued: Valued, image: Path, copy: Path) -> None:
    """A copy of the disk as it is that many seconds after a run begins."""
    child = os.fork()
    if child == 0:
        try:
            _run(valued)
        finally:
            os._exit(0)
    time.sleep(moment)
    os.kill(child, signal.SIGSTOP)
    shutil.copyfile(image, copy)
    while not filecmp.cmp(image, copy, shallow=False):  # the system wrote to the disk meanwhile
        shutil.copyfile(image, copy)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
