"""A small store with every kind of file, damaged at random places; what the same commands then come to.

`python -m tests.bench damage` is the long form.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import DataworthError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.scores import ScoreStore
from dataworth.storage.verification import verified
from dataworth.storage.withdrawals import Withdrawals
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.curvature.steps import fit_query_factors, fit_source_sums
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.report.results.folder import read_results
from dataworth.tasks.report.results.valuation import ValuationParts
from dataworth.tasks.report.steps import publish_valuation
from dataworth.what_if import valued
from tests.harness.pipeline import Pipeline

__all__ = ["Damaged", "Valued", "here", "kind_of", "sweep", "unnamed"]

SAMPLED = CurvatureConfig(kind="fisher", draws=1, seed=5)
# Stages whose stores are removed so that a damaged earlier one has to be read again.
LATER = {
    "kept": (),
    "values removed": ("values",),
    "scores removed": ("scores", "values"),
    "games removed": ("games", "scores", "values"),
    "gradients removed": ("gradients", "scores", "values"),
}
HOW = ("flip", "flip", "flip", "flip", "truncate", "remove")
# What no command reads: locks, and what only people look at.
UNREAD = (".lock", ".html", ".png", "sources.csv", "results/scores.zarr", "results/layers.parquet")


class _Here:
    """Stands in for a cluster: the work is done in this process, at once."""

    status, scheduler = "running", mock.Mock(addr="here")

    def nthreads(self) -> dict[str, int]:
        return {"here": 1}

    def scheduler_info(self) -> dict[str, Any]:
        return {"workers": {"here": None}}

    def scatter(self, item: Any, **_: Any) -> Any:
        return item

    def submit(self, function: Callable[..., Any], *arguments: Any, pure: bool, **named: Any) -> Any:
        return mock.Mock(result=lambda: function(*arguments, **named))


@contextmanager
def here(*_: Any) -> Iterator[_Here]:
    yield _Here()


class Valued:
    """A corpus valued in a folder: a withdrawal, a game with stored worths, a sketch, a results folder.

    Args:
        folder: to work in.
        checkpoint: of a small model.
        texts: of the documents.
    """

    republishes = False  # also where the results are there

    def __init__(self, folder: Path, checkpoint: Path, texts: list[str]) -> None:
        self.root, self._aside, self._checkpoint = folder / "work", folder / "aside", checkpoint
        self._files = folder / "corpus.jsonl", folder / "queries.jsonl"
        documents = [{"id": f"d{n}", "source": f"s{n % 4}", "text": text} for n, text in enumerate(texts[:9])]
        queries = [{"id": f"q{n}", "prompt": texts[n][:20], "completion": texts[n][20:40]} for n in (1, 2)]
        for path, rows in zip(self._files, (documents, queries), strict=True):
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        Withdrawals(self.root / "store").add(sources=["s3"])
        self.whole = self.outcome()
        self._content = {name: (self.root / name).read_bytes() for name in self._states()}
        self._before = self._states()

    def outcome(self) -> str:
        """What every command says, as one text: the pipeline run again, then what reads the results."""
        with mock.patch("dataworth.storage.gradients.rows_per_shard", return_value=4):
            return repr(self._outcome())

    def _outcome(self) -> list[Any]:
        run = Pipeline(
            self.root / "store", self._checkpoint, *self._files, {"kind": "random", "rank": 2}, SAMPLED,
            GradientsConfig(batch_tokens=96, dtype="int8"),
        )  # fmt: skip
        scores = run.scores(top_k=3, by_layer=True)
        parts = GameParts(
            model=run.model,
            queries=run.queries,
            query_gradients=run.query_gradients,
            bases=run.bases,
            sums=fit_source_sums(run.store, run.model, run.corpus, run.bases, run.gradients, SAMPLED, 96),
            factors=fit_query_factors(run.store, run.model, run.queries, run.bases, SAMPLED),
            damping=DampingConfig(),
            corpus=run.corpus,
            gradients=run.gradients,
            curvature=SAMPLED,
        )
        sources = SourcesConfig(game="newton", utility="evaluated", fallback=False)
        values = value_sources(run.store, scores, sources, parts)
        results = self.root / "results"
        if self.republishes or not results.exists():
            publish_valuation(str(results), self._valuation(run, scores, values), 0.95)
        kept, game = ScoreStore.open(scores), CoalitionStore.open(values)
        said = [table.to_pylist() for table in (kept.passages, kept.source_sums, kept.layer_scores, game.values)]
        said += [None if game.overlap is None else game.overlap.to_pylist(), kept.matrix.columns(np.arange(3)).tolist()]
        said += [kept.matrix.document_ids, list(CorpusStore.open(run.corpus).documents())]
        corpus, gradients = CorpusStore.open(run.corpus), GradientStore.open(run.gradients)
        said += [rows.tolist() for rows in gradients.rows_of(corpus.contents)]
        said += [column.tolist() for column in gradients.column_of("loss", corpus.contents)]
        matrix = np.ones((gradients.n_columns, 8), np.float32)
        for segment in gradients.segments():
            said.append([block.tolist() for block in segment.sketch(8, lambda rows: rows @ matrix)])
        found = read_results(str(results))
        said += [
            found.sources.to_dict("records"),
            found.documents.to_dict("records"),
            dict(found.record),
            found.machine,
        ]
        asked = valued(results, None)
        return [*said, asked.names, asked.shares.tolist(), asked.sums.tolist(), asked.estimate(
            asked.sources, np.eye(len(asked.names))).values.tolist()]  # fmt: skip

    def _valuation(self, run: Pipeline, scores: Any, values: Any) -> ValuationParts:
        from dataworth.tasks.model.loading import load

        return ValuationParts(
            title="a test", parameters={}, corpus=run.corpus, queries=run.queries, gradients=run.gradients,
            curvature=run.curvature, scores=scores, values=values, model_name=run.model.name,
            model_fingerprint=load(run.model).fingerprint, query_gradients=run.query_gradients,
            command="dataworth value", timings={}, prefect_run="none", prefect_url=None,
            machine=({"time": 1.0, "cpu": 2.0},),
        )  # fmt: skip

    def _states(self) -> dict[str, tuple[int, int, int]]:
        """Relative name → what changes where a file is written."""
        found = {}
        for path in self.root.rglob("*"):
            state = path.stat()
            if not path.is_dir() and ".lock" not in path.name:
                found[str(path.relative_to(self.root))] = (state.st_size, state.st_mtime_ns, state.st_ino)
        return found

    def remove_stages(self, stages: Sequence[str]) -> None:
        """Take stages of the store away, until they are restored."""
        for stage in stages:
            self._aside.mkdir(exist_ok=True)
            (self.root / "store" / stage).rename(self._aside / stage)

    def restore(self) -> None:
        """Everything as it was when it was whole."""
        for stage in sorted(self._aside.glob("*")):
            shutil.rmtree(self.root / "store" / stage.name, ignore_errors=True)
            stage.rename(self.root / "store" / stage.name)
        now = self._states()
        for name in now.keys() - self._content.keys():
            (self.root / name).unlink()
        for name in self._content:
            if now.get(name) != self._before[name]:
                path = self.root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._content[name])
                state = path.stat()
                self._before[name] = (state.st_size, state.st_mtime_ns, state.st_ino)

    @property
    def files(self) -> list[str]:
        """Relative names of all files that a command reads."""
        return [name for name in sorted(self._content) if not any(unread in name for unread in UNREAD)]


class Damaged:
    """One damage.

    Args:
        valued: whose file.
        name: of the file.
        how: `flip`, `truncate` or `remove`.
        generator: of places.
    """

    def __init__(self, valued: Valued, name: str, how: str, generator: random.Random) -> None:
        self._path, self._how = valued.root / name, how
        self._size = self._path.stat().st_size
        self._place, self._bits = generator.randrange(max(1, self._size)), generator.randrange(1, 256)

    def __str__(self) -> str:
        return f"{self._how} {self._path} at {self._place} of {self._size}, bits {self._bits:#x}"

    def do(self) -> None:
        if self._how == "remove" or self._size == 0:
            self._path.unlink()
        elif self._how == "truncate":
            self._path.write_bytes(self._path.read_bytes()[: self._place])
        else:
            content = bytearray(self._path.read_bytes())
            content[self._place] ^= self._bits
            self._path.write_bytes(content)


def kind_of(name: str) -> str:
    """What a file is, whatever the fingerprints in its name."""
    parts = ["…" if len(part.split(".")[0]) >= 32 else part for part in name.split("/")]
    return "/".join("…" if part.isdigit() or part.startswith("layer_") else part for part in parts)


def _kinds(names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(kind_of(name), []).append(name)
    return found


def sweep(valued: Valued, places: int, seed: int) -> dict[str, Counter[str]]:
    """Damage one file after another, of every kind in turn, with and without the later stages.

    Args:
        valued: restored afterwards.
        places: how many.
        seed: of the places.

    Returns:
        By kind of file, how often the commands said the same and how often they refused, in one sentence.

    Raises:
        AssertionError: they said something else, or a sentence names neither the file nor its store.
        Exception: whatever else they raised, with the damage as a note.
    """
    generator = random.Random(seed)
    kinds = _kinds(valued.files)
    counts = {kind: Counter[str]() for kind in kinds}
    for number in range(places):
        kind = sorted(kinds)[number % len(kinds)]
        damage = Damaged(valued, generator.choice(kinds[kind]), generator.choice(HOW), generator)
        later = generator.choice(list(LATER))
        valued.remove_stages([stage for stage in LATER[later] if f"store/{stage}/" not in kind])
        damage.do()
        try:
            counts[kind][_said(valued, damage)] += 1
        except Exception as error:
            error.add_note(f"{damage}, {later}")
            raise
        finally:
            valued.restore()
    return counts


def _said(valued: Valued, damage: Damaged) -> str:
    try:
        outcome = valued.outcome()
    except DataworthError as error:
        said = str(error)
        assert "\n" not in said, said
        assert len(said) < 1000, said
        assert str(valued.root) in said, said
        return "refused"
    assert outcome == valued.whole, f"another result, and no word of it: {damage}"
    return "the same"


def unnamed(valued: Valued, seed: int) -> list[str]:
    """Kinds of files whose flipped byte `verify` does not name; every kind is flipped once, at a random place.

    A round damages one file a store, so that one verification sees many. Sketches are left out: they are made again
    where they are damaged.
    """
    generator = random.Random(seed)
    checked = [name for name in valued.files if name.startswith("store/") and "/sketch_" not in name]
    by_store: dict[str, list[str]] = {}
    for names in _kinds(checked).values():
        name = generator.choice(names)
        by_store.setdefault("/".join(name.split("/")[1:3]).split(".")[0], []).append(name)
    missed = []
    for number in range(max(map(len, by_store.values()))):
        chosen = [names[number] for names in by_store.values() if number < len(names)]
        damages = [Damaged(valued, name, "flip", generator) for name in chosen]
        for damage in damages:
            damage.do()
        found = [f"{entry.what} {entry.damage}" for entry in verified(valued.root / "store") if entry.damage]
        stores = [name.split("/")[2] if name.count("/") > 1 else "withdrawals" for name in chosen]
        named = [sum(store in said for said in found) for store in stores]
        missed += [str(damage) for damage, count in zip(damages, named, strict=True) if count != 1]
        missed += found if len(found) != len(chosen) else []
        valued.restore()
    return missed
