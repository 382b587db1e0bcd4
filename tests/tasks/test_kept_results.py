"""A kept result is found again only where nothing that decides it has changed: every input and every setting in turn.

Each is changed, and the run done again in a store that holds the results of before, and in a fresh one: both must leave
the same. A setting that is in no list of tests.harness.kept_settings fails.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import dataworth.tasks.curvature.fitting
from dataworth.config import AuditRunConfig, CorpusRunConfig, SearchConfig, ValueConfig
from dataworth.storage.manifest import write_manifest
from dataworth.storage.withdrawals import CHECKSUMS, FILE, Withdrawals
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.training.small_model import SmallModel
from dataworth.tasks.training.steps import train_small_model
from dataworth.training import Indexing
from tests.harness.kept import TOLERANCE, Inputs, Tables, audited, bodies, differing, leaves, searched, valued
from tests.harness.kept_settings import (
    AUDIT,
    AUDIT_NOTHING,
    CHANGES,
    COMMON,
    FAMILIES,
    MAX_COLUMNS,
    SEARCH,
    SEARCH_NOTHING,
    VALUE,
    VALUE_NOTHING,
    resolved,
)

pytestmark = pytest.mark.filterwarnings("ignore")
# After them a store has rows of other documents, too, and sums them in another order.
OF_DOCUMENTS = ("a document's", "order of documents", "a further document", "a query's", "corpus.", "queries.")


class Walk:
    """Runs families of settings in one store, which keeps the results of all of them, and in fresh ones."""

    def __init__(self, folder: Path) -> None:
        self.inputs, self.store, self._folder = Inputs(folder), folder / "store", folder
        self._first: dict[str, Tables] = {}
        self._fresh = 0

    def settings(self, family: str, leaf: str = "", value: Any = None) -> dict[str, Any]:
        """Of a family, with another value of a leaf."""
        given = COMMON | FAMILIES[family]
        path = leaf.split(".") if leaf else []
        return resolved(_with(given, path, value) if path else given, self.inputs)

    def run(self, family: str, given: dict[str, Any], store: Path) -> Tables:
        """The results of a family's settings."""
        kind = family.partition(",")[0]
        of_value = {"gradients", "scoring", "sources"}
        if kind == "search":
            given = {name: part for name, part in given.items() if name not in ("queries", "scoring", "sources")}
        if kind == "audit":
            given = {name: part for name, part in given.items() if name not in of_value}
        with pytest.MonkeyPatch.context() as patched:
            if family in MAX_COLUMNS:
                patched.setattr(dataworth.tasks.curvature.fitting, "MAX_COLUMNS", MAX_COLUMNS[family])
            return {"search": searched, "audit": audited}.get(kind, valued)(given, store)

    def first(self, family: str) -> Tables:
        """The results before anything is changed."""
        if family not in self._first:
            self._first[family] = self.run(family, self.settings(family), self.store)
        return self._first[family]

    def fresh(self) -> Path:
        self._fresh += 1
        return self._folder / f"fresh store {self._fresh}"

    def compare(self, family: str, given: dict[str, Any], what: str) -> None:
        """Run with what has changed in both kinds of store; results must not be those of before."""
        before = self._first[family]
        warm, cold = self.run(family, given, self.store), self.run(family, given, self.fresh())
        exact = not what.startswith(OF_DOCUMENTS)
        stale, moved = differing(warm, cold, 0.0 if exact else TOLERANCE), differing(cold, before)
        assert not stale, f"{what}: an older result was found again"
        assert moved, f"{what}: of no effect, so that nothing is shown"


def _with(given: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    name, *rest = path
    return {**given, name: _with(given.get(name, {}), rest, value) if rest else value}


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Iterator[Walk]:
    with bodies():
        yield Walk(tmp_path_factory.mktemp("walk"))


# Each change in one family; in the others that it decides slowly.
PAIRS = [
    pytest.param(change, family, id=f"{change}, {family}", marks=[pytest.mark.long] if number else [])
    for change, (_, families) in CHANGES.items()
    for number, family in enumerate(families)
]


@pytest.mark.parametrize(("change", "family"), PAIRS)
def test_an_input_changed_in_place(walk, change, family):
    apply, _ = CHANGES[change]
    walk.first(family)
    try:
        apply(walk.inputs)
        walk.compare(family, walk.settings(family), change)
    finally:
        walk.inputs.restore()


@pytest.mark.parametrize("family", ["additive", "linear", "audit", "search"])
def test_a_withdrawal(walk, family):
    before = walk.first(family)
    fresh = walk.fresh()
    for store in (walk.store, fresh):
        Withdrawals(store).add(sources=["s1"])
    given = walk.settings(family)
    try:
        warm, cold = walk.run(family, given, walk.store), walk.run(family, given, fresh)
    finally:
        for name in (FILE, CHECKSUMS):
            (walk.store / name).unlink()
    assert not differing(warm, cold)
    assert differing(cold, before)


@pytest.mark.long
@pytest.mark.parametrize("leaf", [*VALUE, *(f"audit {leaf}" for leaf in AUDIT), *(f"search {leaf}" for leaf in SEARCH)])
def test_another_value_of_a_setting(walk, leaf):
    kind, _, name = leaf.rpartition(" ")
    family, value = {"": VALUE, "audit": AUDIT, "search": SEARCH}[kind][name]
    walk.first(family)
    walk.compare(family, walk.settings(family, name, value), name)


def test_every_setting_is_in_one_list():
    for config, decides, nothing in ((ValueConfig, VALUE, VALUE_NOTHING), (AuditRunConfig, AUDIT, AUDIT_NOTHING)):
        assert sorted(leaves(config)) == sorted([*decides, *nothing])
    assert sorted(set(leaves(SearchConfig)) - set(leaves(CorpusRunConfig))) == sorted([*SEARCH, *SEARCH_NOTHING])


def test_a_change_of_the_base_that_rounding_hides_half_way(walk):
    """In bfloat16 other bases may have the same weights half-way, where the sums by source are taken."""
    given = walk.settings("linear", "model.dtype", "bfloat16")
    before = walk.run("linear", given, walk.store)
    try:
        _moved_unseen(walk.inputs)
        warm, cold = walk.run("linear", given, walk.store), walk.run("linear", given, walk.fresh())
    finally:
        walk.inputs.restore()
    assert not differing(warm, cold, 0.0)
    assert differing(cold, before, 0.0)


def _moved_unseen(inputs: Inputs) -> None:
    """Move what can be moved of a base by a last digit of bfloat16 without moving the mean of it and the model."""
    name = "model.layers.0.self_attn.q_proj.weight"
    path = inputs["base/model.safetensors"]
    weights, model = load_file(path), load_file(inputs["model/model.safetensors"])[name].bfloat16()
    base = weights[name].bfloat16()
    moved = torch.nextafter(base, torch.full_like(base, torch.inf))
    middle, after = (torch.lerp(model.float(), each.float(), 0.5).bfloat16() for each in (base, moved))
    weights[name] = torch.where(middle == after, moved, base).float()
    assert (weights[name] != base).any()
    save_file(weights, path, {"format": "pt"})


# Of dataworth.training.Indexing: another value, and whether it changes what is stored.
INDEXING = {
    "projection": ProjectionConfig(rank=2, seed=1),
    "include": ["*q_proj", "*v_proj"],
    "exclude": ["*q_proj"],
    "parameters": "all",
    "dtype": "int8",
    "data": "another set",
}


def _indexed(inputs: Inputs, store: Path, **given: Any) -> np.ndarray:
    """Rows of one example."""
    model = AutoModelForCausalLM.from_pretrained(inputs["model"])
    ids = torch.arange(4 if given.get("data") is None else 5)[None] + 20
    given = {"projection": ProjectionConfig(rank=2), "dtype": "float32"} | given
    with Indexing(model, store, **given) as index:
        model(input_ids=ids, labels=ids).loss.backward()
        index.add(["one"])
    return index.rows(["one"])


@pytest.mark.parametrize("changed", [*INDEXING, "weights of the model", "epsilon of the norms", "earlier bases"])
def test_gradients_of_a_training_loop(walk, changed):
    assert set(signature(Indexing).parameters) - {"model", "store"} == set(INDEXING)
    inputs, store = walk.inputs, walk.fresh()
    given = {"projection": ProjectionConfig(bases=inputs["bases"])} if changed == "earlier bases" else {}
    before = _indexed(inputs, store, **given)
    try:
        if changed in INDEXING:
            given = {changed: INDEXING[changed]}
        else:
            CHANGES[changed][0](inputs)
        warm, cold = _indexed(inputs, store, **given), _indexed(inputs, walk.fresh(), **given)
    finally:
        inputs.restore()
    np.testing.assert_array_equal(warm, cold)
    assert not np.array_equal(cold, before)


SMALL = SmallModel(vocabulary=280, hidden=8, layers=1, heads=2, intermediate=12, positions=32, epochs=1)
OF_A_SMALL_MODEL = {
    "vocabulary": 290, "hidden": 12, "layers": 2, "heads": 1, "intermediate": 16, "positions": 24, "epochs": 2,
    "batch_tokens": 64, "learning_rate": 1e-3, "weight_decay": 9.0, "seed": 1,
}  # fmt: skip


def _trained(folder: Path, corpus: str, settings: SmallModel, start: str | None) -> bytes:
    """The weights of the model that is there, or is trained now."""
    train_small_model(str(folder), CorpusConfig(files=[corpus]), settings, start)
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changed", [*OF_A_SMALL_MODEL, "a document's text", "start", "weights of the model", "tokenizer"]
)
def test_a_small_model_that_is_trained(walk, changed, tmp_path):
    inputs, settings = walk.inputs, SMALL
    assert set(OF_A_SMALL_MODEL) == {field.name for field in fields(SmallModel)}
    start = inputs["model"] if changed in ("weights of the model", "tokenizer") else None
    # A model that was trained here has a manifest, which a change of its files leaves as it is.
    write_manifest(Path(inputs["model"]), {"fingerprint": "as it was trained"})
    before = _trained(tmp_path / "kept", inputs["corpus.jsonl"], settings, start)
    try:
        if changed in OF_A_SMALL_MODEL:
            settings = replace(SMALL, **{changed: OF_A_SMALL_MODEL[changed]})
        elif changed == "start":
            start = inputs["model"]
        else:
            CHANGES[changed][0](inputs)
        found = [_trained(tmp_path / name, inputs["corpus.jsonl"], settings, start) for name in ("kept", "fresh")]
    finally:
        inputs.restore()
    assert found[0] == found[1]
    assert found[0] != before
