"""Ctrl-C thirty times, at random moments of a valuation: a sentence, nothing left, nothing in the way."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from dataworth.tasks.training.small_model import train_tokenizer
from tests.reference.checkpoints import TEXTS, save_checkpoint

__all__ = ["rows"]

TIMES = 30
FOLLOWED = 5  # each so-many-th is followed by a run that is not disturbed
SECONDS_TO_END = 60.0
SECONDS_UNTIL_WORK = 15.0
TOLD = "dataworth: interrupted; what was finished is kept, the same command goes on from there"
# What a run says when its first task begins to compute.
WORK = re.compile(r"windows, [\d,]+ tokens")


def rows() -> Iterator[dict[str, Any]]:
    """One row.

    Raises:
        AssertionError: an interrupt was told otherwise, left a process, or was in the way of the next run.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "DATAWORTH_HOME": f"{name}/home", "PREFECT_HOME": f"{name}/prefect"}
        environment |= {"HF_HUB_OFFLINE": "1"}
        words = _words(folder)
        until_work, whole = _undisturbed([*words, "--store", f"{name}/first"], environment, folder)
        moments, worst, late = random.Random(0), 0.0, 0.0
        for number in range(TIMES):
            store = ["--store", f"{name}/store-{number}"]
            late = max(late, _interrupted([*words, *store], environment, folder, moments.uniform(0.3, whole)))
            if number % FOLLOWED == 0:
                seconds, _ = _undisturbed([*words, *store], environment, folder)
                worst = max(worst, seconds - until_work)
        assert worst < SECONDS_UNTIL_WORK, worst
        yield {
            "interrupts": TIMES,
            "seconds to the end, at most": round(late, 1),
            "seconds of an undisturbed run": round(whole, 1),
            "until its first work": round(until_work, 1),
            "longer after an interrupt, at most": round(worst, 1),
        }


def _words(folder: Path) -> list[str]:
    save_checkpoint("llama", folder / "model", train_tokenizer(TEXTS, 300))
    documents = [{"id": f"d{n}", "source": f"s{n % 3}", "text": f"{n} {TEXTS[n % len(TEXTS)]}"} for n in range(600)]
    queries = [{"id": "q", "prompt": TEXTS[0][:20], "completion": TEXTS[0][20:40]}]
    for name, entries in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in entries))
    words = [str(Path(sys.executable).with_name("dataworth")), "value", "--model", "model", "--corpus", "corpus.jsonl"]
    words += ["--queries", "queries.jsonl", "--results", "results", "--corpus.max_length", "32"]
    return [*words, "--projection.rank", "4", "--gradients.batch_tokens", "128", "--curvature.draws", "1"]


def _started(words: list[str], environment: Mapping[str, str], folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(
            words,
            env=environment,
            cwd=folder,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def _undisturbed(words: list[str], environment: Mapping[str, str], folder: Path) -> tuple[float, float]:
    """Seconds until its first work, and in all."""
    log, start, began = folder / "log", time.monotonic(), None
    process = _started(words, environment, folder, log)
    while process.poll() is None:
        if began is None and WORK.search(log.read_text(errors="replace")):
            began = time.monotonic() - start
        time.sleep(0.1)
    assert process.returncode == 0, log.read_text()
    assert began is not None, log.read_text()
    return began, time.monotonic() - start


def _interrupted(words: list[str], environment: Mapping[str, str], folder: Path, moment: float) -> float:
    """Seconds from Ctrl-C, of the whole group as a terminal has it, to the end."""
    log = folder / "log"
    process = _started(words, environment, folder, log)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    family = []
    if process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        os.killpg(process.pid, signal.SIGINT)
    start = time.monotonic()
    process.wait(SECONDS_TO_END)
    seconds = time.monotonic() - start
    said = log.read_text(errors="replace")
    assert "Traceback" not in said, f"after {moment:.2f} s: {said}"
    if process.returncode != 0:  # else it was done
        assert process.returncode == 130, f"after {moment:.2f} s: {process.returncode} {said}"
        assert said.strip().splitlines()[-1] == TOLD, f"after {moment:.2f} s: {said}"
    _, alive = psutil.wait_procs(family, SECONDS_TO_END)
    assert not alive, f"after {moment:.2f} s: {alive}"
    return seconds
