"""Withdrawing, compacting and verifying a store that a real run has filled."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from storage.compaction import compact
from storage.corpus import CorpusStore
from storage.errors import InputError, StoreDamagedError
from storage.gradients import GradientStore
from storage.scores import ScoreStore
from storage.verification import verified
from storage.withdrawals import Withdrawals
from tasks.coalitions.config import SourcesConfig
from tasks.coalitions.task import value_sources
from tasks.configuration import ClusterConfig
from tasks.corpus.config import CorpusConfig
from tasks.corpus.task import prepare_corpus
from tasks.counterfactual.config import AuditConfig, TrainingConfig
from tasks.counterfactual.parts import MethodRun
from tasks.counterfactual.problem import CheckpointProblem
from tasks.counterfactual.task import attribute, train_subsets
from tasks.curvature.config import CurvatureConfig
from tasks.gradients.config import GradientsConfig
from tasks.model.config import ModelConfig
from tests.reference.checkpoints import TEXTS
from tests.reference.pipeline import MAX_LENGTH, Pipeline

HALF = GradientsConfig(batch_tokens=96)


@pytest.fixture
def run(tmp_path, checkpoints, corpus_file, queries_file):
    """A store with everything in it, and a function that runs the same again."""

    def again(files=(corpus_file,)):
        pipeline = Pipeline(
            tmp_path / "store",
            checkpoints["llama"],
            files[0],
            queries_file,
            {"kind": "random", "rank": 3},
            CurvatureConfig(draws=2),
            HALF,
        )
        value_sources.fn(pipeline.store, pipeline.scores(), SourcesConfig())
        return pipeline

    return again


def shards_of(pipeline):
    store = GradientStore.open(pipeline.gradients)
    return [
        segment.path / "gradients" / "c" / str(shard) / "0"
        for segment in store.segments()
        for shard in range(segment.n_shards)
    ]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()


def test_a_withdrawn_source_is_in_no_later_valuation_and_compacting_removes_its_bytes(run, tmp_path, caplog):
    root = tmp_path / "store"
    first = run()
    contents = CorpusStore.open(first.corpus).contents
    rows = dict(zip(contents.tolist(), GradientStore.open(first.gradients).rows_of(contents), strict=True))
    assert Withdrawals(root).add(sources=["s1"], documents=["d0"]) == 2
    assert Withdrawals(root).add(sources=["s1"]) == 0
    second = run()
    assert "5 documents were withdrawn and are left out" in caplog.text
    found = ScoreStore.open(second.scores())
    assert set(found.passages["source"].to_pylist()) == set(found.source_sums["source"].to_pylist()) == {"s0", "s2"}
    assert "d0" not in found.passages["document_id"].to_pylist()
    assert second.gradients == first.gradients

    removed = compact(root)
    assert (removed.corpora, removed.scores, removed.values) == (1, 1, 1)
    assert removed.fits == 1
    assert removed.gradient_bytes > 0
    assert names(root / "corpora") == {second.corpus.fingerprint, second.queries.fingerprint}
    left = [CorpusStore(root / "corpora" / name) for name in names(root / "corpora")]
    texts = [text for corpus in left for text in corpus.column("text").to_pylist()]
    assert not {TEXTS[0], TEXTS[1], TEXTS[4], TEXTS[7]} & set(texts)
    live = CorpusStore.open(second.corpus).contents
    store = GradientStore.open(second.gradients)
    assert set(store.stored().tolist()) == set(live.tolist())
    for content, kept in zip(live.tolist(), store.rows_of(live), strict=True):
        np.testing.assert_array_equal(kept, rows[content])
    assert compact(root).gradient_bytes == 0
    third = run()
    assert third.scores() == second.scores()
    assert all(entry.damage is None for entry in verified(root))


def test_a_text_that_another_source_provided_too_stays(run, tmp_path):
    first = run()
    Withdrawals(tmp_path / "store").add(documents=["copy"])  # the same text as d0
    n_before = len(CorpusStore.open(first.corpus).contents)
    second = run()
    compact(tmp_path / "store")
    contents = CorpusStore.open(second.corpus).contents
    assert len(contents) == n_before - 1
    assert len(GradientStore.open(second.gradients).rows_of(contents)) == 11


def test_compacting_removes_what_an_audit_kept_of_a_withdrawn_document(run, tmp_path, checkpoints):
    pipeline = run()
    model = ModelConfig(name=str(checkpoints["llama"]), base=str(checkpoints["llama"]), device="cpu")
    problem = CheckpointProblem((model,), pipeline.corpus, pipeline.queries, TrainingConfig(epochs=1), "audited")
    audit = AuditConfig(subsets=3, seeds=1)
    store, cluster = str(tmp_path / "store"), ClusterConfig(workers=1)
    subsets = train_subsets.fn(store, problem, audit, cluster)
    scores = attribute.fn(store, problem, MethodRun(method="size", projection={}, curvature={}), cluster, 1)
    kept = {subsets.fingerprint, scores.fingerprint}
    assert kept <= names(tmp_path / "store" / "layers")
    outcomes = [path for path in (tmp_path / "store" / "games").iterdir() if list(path.glob("*.parquet"))]
    assert outcomes
    compact(tmp_path / "store")
    assert kept <= names(tmp_path / "store" / "layers")
    Withdrawals(tmp_path / "store").add([], [CorpusStore.open(pipeline.corpus).column("document_id")[0].as_py()])
    compact(tmp_path / "store")
    assert not kept & names(tmp_path / "store" / "layers")
    assert not any(path.exists() for path in outcomes)


def test_a_corpus_all_of_which_was_withdrawn_is_refused(tmp_path, run, corpus_file):
    pipeline = run()
    Withdrawals(tmp_path / "store").add(sources=["s0", "s1", "s2"])
    with pytest.raises(InputError, match="no document was not withdrawn and has the two tokens"):
        prepare_corpus.fn(pipeline.store, pipeline.model, CorpusConfig(files=[str(corpus_file)], max_length=MAX_LENGTH))


def test_a_broken_list_of_withdrawals_stops_a_run(tmp_path):
    (tmp_path / "withdrawals.jsonl").write_text('{"what": "source", "name": "a"}\n{"wh')
    with pytest.raises(StoreDamagedError, match="line 2 is not a withdrawal"):
        Withdrawals(tmp_path)


def test_one_flipped_byte_in_any_shard_is_named_and_repaired_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr("storage.gradients.rows_per_shard", lambda n_columns, itemsize: 4)
    pipeline = run()
    paths = shards_of(pipeline)
    assert len(paths) >= 4
    whole = {path: path.read_bytes() for path in paths}
    from tasks.gradients import task as module

    counted, real = [], module.gradient_rows

    def counting(body, head, capture, *batch):
        counted.append(len(batch[0]))
        return real(body, head, capture, *batch)

    monkeypatch.setattr(module, "gradient_rows", counting)
    for number, path in enumerate(paths):
        content = bytearray(whole[path])
        content[(number * 7919) % len(content)] ^= 1 << (number % 8)
        path.write_bytes(content)
        damaged = [entry for entry in verified(tmp_path / "store") if entry.damage]
        assert [f"shard {path.parent.name}" in entry.what for entry in damaged] == [True]
        assert "set aside" in damaged[0].damage
        counted.clear()
        assert pipeline.indexed(pipeline.corpus, HALF) == pipeline.gradients
        assert 0 < sum(counted) <= 4
        assert path.read_bytes() == whole[path]
        assert not [entry for entry in verified(tmp_path / "store") if entry.damage]


@pytest.mark.parametrize(
    "victim",
    [
        "corpora/*/tokens.bin",
        "corpora/*/windows.parquet",
        "corpora/*/documents.parquet",
        "layers/*/layer_0000/*/c/0/0",
        "layers/*/layer_0000/*/zarr.json",
        "scores/*/passages.parquet",
        "values/*/values.parquet",
        "values/*/manifest.json",
    ],
)
def test_damage_anywhere_is_named(run, tmp_path, victim):
    run()
    path = min((tmp_path / "store").glob(victim))
    whole = path.read_bytes()
    for place in (len(whole) - 1 - len(whole) // 50, len(whole) // 3):
        content = bytearray(whole)
        content[place] ^= 16
        path.write_bytes(content)
        damaged = [entry for entry in verified(tmp_path / "store") if entry.damage]
        assert len(damaged) == 1
        assert str(path) in damaged[0].damage
        assert str(path).split("/store/")[1].split("/")[1] in damaged[0].what


def test_the_commands(tmp_path, run, monkeypatch, capsys):
    from flows.cli import _exit_code

    root = str(tmp_path / "store")
    pipeline = run()

    def dataworth(*words):
        monkeypatch.setattr("sys.argv", ["dataworth", *words])
        code = _exit_code()
        out = capsys.readouterr()
        return code, out.out + out.err

    code, said = dataworth("verify", "--store", root)
    assert code == 0
    assert "0 damaged" in said
    (path, *_) = shards_of(pipeline)
    path.write_bytes(path.read_bytes()[:-1])
    code, said = dataworth("verify", "--store", root)
    assert code == 1
    assert "shard 0: its bytes changed; set aside" in said
    assert said.splitlines()[-1].startswith("dataworth: 1 of ")
    assert dataworth("withdraw", "--store", root)[0] == 2
    assert dataworth("withdraw", "--store", root, "--source", "s1", "--document", "d0")[0] == 0
    code, said = dataworth("compact", "--store", root)
    assert code == 0
    assert "1 corpora" in said
    assert dataworth("compact", "--store", str(tmp_path / "nowhere")) == (
        2,
        f"dataworth: --store {tmp_path / 'nowhere'}: no such folder\n",
    )
    lines = (tmp_path / "store" / "withdrawals.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["s1", "d0"]
    shutil.rmtree(root)
