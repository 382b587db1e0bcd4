"""The table of what becomes of every architecture: kept, shown as a page of the documentation, and compared."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from tests.conformance.families import CAUSAL, CLASSIFIERS
from tests.conformance.outcomes import Outcome, outcome_of

__all__ = ["PAGE", "TABLE", "TASKS", "kept", "outcomes", "page", "row_of", "write"]

TABLE = Path(__file__).with_name("architectures.json")
PAGE = Path(__file__).parents[2] / "infra" / "docs" / "architectures.md"
TASKS = {"language model": CAUSAL, "classifier": CLASSIFIERS}


def outcomes() -> Iterator[tuple[str, str, Outcome]]:
    """(task, model type, what became of it) of every architecture, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        for task, kinds in TASKS.items():
            for kind in sorted(kinds):
                yield task, kind, outcome_of(kind, Path(folder) / task / kind, classifies=task == "classifier")


def row_of(outcome: Outcome) -> dict[str, Any]:
    """What is kept of an outcome: nothing that changes from machine to machine."""
    found = {"status": outcome.status, "sentence": outcome.sentence, "tracked": round(outcome.tracked, 2)}
    if outcome.status == "right":
        found |= {"all": round(outcome.tracked_of_all, 3), "all is slower": outcome.is_slower}
    return found


def kept() -> dict[str, Any]:
    """The kept table: `transformers`, and for each task model type → row."""
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


def page(table: dict[str, Any]) -> str:
    """The page of the documentation."""
    rows = {task: table[task] for task in TASKS}
    counts = Counter(row["status"] for found in rows.values() for row in found.values())
    numbers = ", ".join(f"{counts[status]} {status}" for status in ("right", "refused", "wrong", "not built"))
    lines = [
        "# Architectures",
        "",
        "Every causal language model and sequence classifier that transformers "
        f"{table['transformers']} can build from a small random configuration, tried as dataworth is used: its "
        "checkpoint is loaded, texts of unequal length are computed in batches, and the gradient of every tracked "
        f"layer is held against autograd, one text at a time. Of {counts.total()}: {numbers}.",
        "",
        "*Tracked* is the share of the tiny model's parameters that gradients are kept of: embeddings, heads and norms "
        "are not among them, nor experts that are one tensor. "
        "*Of all* is the share with `--model.parameters all`, a star where batches are smaller with it than without. "
        "Beside *right* stands what is slower. `dataworth doctor --model CHECKPOINT` tries the same on a checkpoint of "
        "your own. `python -m tests.conformance` makes this page.",
    ]
    for task, found in rows.items():
        lines += [
            "",
            f"## As a {task}",
            "",
            "| model type | outcome | tracked | of all | |",
            "| --- | --- | ---: | ---: | --- |",
        ]
        for kind, row in found.items():
            tracked = of_all = ""
            if row["status"] == "right":
                tracked, of_all = f"{row['tracked']:.0%}", f"{row['all']:.1%}" + "*" * row["all is slower"]
            sentence = row["sentence"].replace("|", "\\|").replace("\n", " ")
            lines.append(f"| `{kind}` | {row['status']} | {tracked} | {of_all} | {sentence} |")
    return "\n".join(lines) + "\n"


def write(found: dict[str, dict[str, Any]]) -> None:
    """Keep a table, and its page."""
    table = {"transformers": transformers.__version__, **found}
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(table))
