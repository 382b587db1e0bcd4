"""Withdrawing, compacting and verifying a store that a real run has filled."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataworth.command.receipts import receipt
from dataworth.storage.compaction import compact
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.durable import staging_prefix
from dataworth.storage.errors import InputError, StoreDamagedError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.partial import PartialSums
from dataworth.storage.scores import ScoreStore
from dataworth.storage.verification import verified
from dataworth.storage.withdrawals import Withdrawals
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.steps import prepare_corpus
from dataworth.tasks.counterfactual.config import AuditConfig
from dataworth.tasks.counterfactual.parts import MethodRun
from dataworth.tasks.counterfactual.problem import CheckpointProblem
from dataworth.tasks.counterfactual.steps import attribute, train_subsets
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.training.config import TrainingConfig
from tests.harness.pipeline import MAX_LENGTH, Pipeline
from tests.reference.checkpoints import TEXTS

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
        value_sources(pipeline.store, pipeline.scores(), SourcesConfig())
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

    ((removed, _),) = compact(root).receipts
    assert {kind: len(names) for kind, names in removed.stores.items()} == {
        "corpora": 1,
        "layers": 1,
        "scores": 1,
        "values": 1,
        "games": 0,
        "gradients": 0,
    }
    assert removed.rows > 0
    assert len(removed.texts) == 4
    assert names(root / "corpora") == {second.corpus.fingerprint, second.queries.fingerprint}
    left = [CorpusStore(root / "corpora" / name) for name in names(root / "corpora")]
    texts = [text for corpus in left for text in corpus.column("text").to_pylist()]
    assert not {TEXTS[0], TEXTS[1], TEXTS[4], TEXTS[7]} & set(texts)
    live = CorpusStore.open(second.corpus).contents
    store = GradientStore.open(second.gradients)
    assert set(store.stored().tolist()) == set(live.tolist())
    for content, kept in zip(live.tolist(), store.rows_of(live), strict=True):
        np.testing.assert_array_equal(kept, rows[content])
    assert compact(root).receipts == []
    third = run()
    assert third.scores() == second.scores()
    assert all(entry.damage is None for entry in verified(root))


def remains(root, texts, ids, rows):
    """Files below a folder that hold one of some texts, ids or rows; the lists of what was withdrawn hold its name."""
    sought = [text.encode() for text in texts] + [f'"{name}"'.encode() for name in ids]
    sought += [row.tobytes() for content in rows for row in content.astype(np.float16)]
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "withdrawals.jsonl":
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += repr(pq.read_table(path).to_pylist()).replace("'", '"').encode()
            found += [str(path)] if any(each in content for each in sought) else []
    return found


@pytest.fixture
def distinct(corpus_file):
    """Ten documents none of which holds another's text."""
    lines = corpus_file.read_text().splitlines()[:10]
    corpus_file.write_text("".join(f"{line}\n" for line in lines))


def edited(corpus_file, target):
    """The same corpus with other texts of source s1."""
    rows = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    for row in rows:
        if row["source"] == "s1":
            row["text"] = f"Edited since: {row['text']}"
    target.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return target


def of_source(pipeline, source):
    """Texts, ids and rows of one source."""
    corpus, store = CorpusStore.open(pipeline.corpus), GradientStore.open(pipeline.gradients)
    chosen = np.flatnonzero(np.asarray(corpus.column("source").to_pylist()) == source)
    documents = list(corpus.documents(chosen))
    texts, ids = [each["text"] for each in documents], [each["document_id"] for each in documents]
    return texts, ids, store.rows_of(corpus.contents[chosen])


def test_of_documents_that_were_edited_no_earlier_row_stays(run, distinct, tmp_path, corpus_file):
    """A first withdrawal removes the corpora that told whose the earlier texts were."""
    root = tmp_path / "store"
    first = run()
    second = run([edited(corpus_file, tmp_path / "edited.jsonl")])
    early, late = of_source(first, "s1"), of_source(second, "s1")
    Withdrawals(root).add(sources=["s0"])
    compact(root)
    assert names(root / "corpora") == {first.queries.fingerprint}
    assert remains(root, [], [], early[2])
    Withdrawals(root).add(sources=["s1"])
    ((removal, path),) = compact(root).receipts
    assert removal.rows == sum(map(len, early[2])) + sum(map(len, late[2]))
    for texts, ids, rows in (early, late):
        assert remains(root, texts, ids, rows) == []
    assert path.is_file()
    assert compact(root).checked["contents of nobody known"] == 0


@pytest.mark.parametrize("aside", ["a shard", "a plan", "the store"])
def test_what_was_set_aside_goes_too(run, distinct, tmp_path, monkeypatch, aside):
    monkeypatch.setattr("dataworth.storage.gradients.rows_per_shard", lambda n_columns, itemsize: 4)
    root = tmp_path / "store"
    first = run()
    texts, ids, rows = of_source(first, "s1")
    (segment, *_) = GradientStore.open(first.gradients).segment_places()
    damaged = {
        "a shard": segment / "gradients" / "c" / "1" / "0",
        "a plan": segment / "contents" / "n_windows" / "c" / "0",
        "the store": segment.parent / "manifest.json",
    }[aside]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert sum(entry.damage is not None for entry in verified(root)) == 1
    Withdrawals(root).add(sources=["s1"])
    compact(root)
    assert remains(root, texts, ids, rows) == []
    second = run()
    contents = CorpusStore.open(second.corpus).contents
    assert len(GradientStore.open(second.gradients).rows_of(contents)) == len(contents)
    assert remains(root, texts, ids, rows) == []


def test_what_killed_runs_left_goes_too(run, distinct, tmp_path):
    root = tmp_path / "store"
    texts, ids, rows = of_source(run(), "s1")
    gone = subprocess.Popen(["true"])
    gone.wait()
    staging = root / "corpora" / f"{staging_prefix(gone.pid)}abc"
    staging.mkdir()
    (staging / "documents.parquet").write_bytes(texts[0].encode())
    removed = root / "corpora" / ".0123.removed"
    removed.mkdir()
    (removed / "tokens.bin").write_bytes(texts[1].encode())
    PartialSums(root / "layers", "abc").save(1, {"sum": rows[0].astype(np.float16)})
    partial = root / "corpora" / f".x.json.{staging_prefix().removeprefix('.staging-')}{gone.pid}-1.partial"
    partial.write_bytes(texts[2].encode())
    Withdrawals(root).add(sources=["s1"])
    compact(root)
    assert remains(root, texts, ids, rows) == []


def test_a_receipt_is_of_what_was_withdrawn_and_of_no_more(run, distinct, tmp_path):
    root = tmp_path / "store"
    texts, _, _ = of_source(run(), "s1")
    Withdrawals(root).add(sources=["s1"])
    ((removal, path),) = compact(root).receipts
    assert removal.texts == sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    assert [entry["name"] for entry in removal.withdrawn] == ["s1"]
    said = receipt(removal, path)
    assert "withdrawn source s1 (2" in said
    assert f"removed   {len(texts)} texts; {removal.rows} rows" in said
    assert "none was withdrawn" in said
    assert str(path) in said
    path.write_bytes(path.read_bytes().replace(b"s1", b"s2"))
    with pytest.raises(StoreDamagedError, match="its bytes changed"):
        compact(root)


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
    subsets = train_subsets(store, problem, audit, cluster)
    scores = attribute(store, problem, MethodRun(method="size", projection={}, curvature={}), cluster, 1)
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
        prepare_corpus(pipeline.store, pipeline.model, CorpusConfig(files=[str(corpus_file)], max_length=MAX_LENGTH))


def test_a_broken_list_of_withdrawals_stops_a_run(tmp_path):
    (tmp_path / "withdrawals.jsonl").write_text('{"what": "source", "name": "a"}\n{"wh')
    with pytest.raises(StoreDamagedError, match="line 2 is not a withdrawal"):
        Withdrawals(tmp_path)


def test_one_flipped_byte_in_any_shard_is_named_and_repaired_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr("dataworth.storage.gradients.rows_per_shard", lambda n_columns, itemsize: 4)
    pipeline = run()
    paths = shards_of(pipeline)
    assert len(paths) >= 4
    whole = {path: path.read_bytes() for path in paths}
    from dataworth.tasks.gradients import steps as module

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
    from dataworth.command.cli import _exit_code

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
