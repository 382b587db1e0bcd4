"""What the stores promise: whole or not there, one writer, damage is named."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.corpus import CorpusStore, TokenisedDocument
from dataworth.storage.errors import SchemaVersionError, StoreBusyError, StoreDamagedError, StoreIncompleteError
from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.storage.manifest import new_store, read_manifest, staging_folder, write_manifest, writer_lock
from dataworth.storage.ref import fingerprint
from dataworth.storage.scores import ScoreWriter


def test_fingerprints_ignore_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_store_that_was_not_finished_is_not_there(place):
    def stopped_half_way():
        with new_store(place / "s") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped_half_way()
    assert not (place / "s").is_dir()
    assert not [name for name in place.files() if not name.endswith(".lock")]
    with pytest.raises(StoreIncompleteError, match="holds no finished store"):
        read_manifest(place / "s")


def test_what_a_killed_process_left_is_removed_and_a_living_ones_work_is_not(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from dataworth.storage.manifest import staging_folder\n"
        f"with staging_folder(Path({str(tmp_path)!r})) as folder:\n"
        "    (folder / 'half').write_text('x'); print(folder, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        left = Path(process.stdout.readline().strip())
        with staging_folder(tmp_path) as own:
            assert left.is_dir()
            assert own != left
        process.kill()
        process.wait()
        with staging_folder(tmp_path):
            assert not left.exists()
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.communicate()


def test_a_newer_schema_and_a_broken_manifest_are_told(place, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("dataworth.storage.checksums.SCHEMA_VERSION", 99)
        with new_store(place / "s") as folder:
            write_manifest(folder, {})
    with pytest.raises(SchemaVersionError, match="schema version 99"):
        read_manifest(place / "s")
    manifest = place / "s" / "manifest.json"
    manifest.write_whole(b"{")
    with pytest.raises(StoreDamagedError, match="not valid JSON"):
        read_manifest(place / "s")


def test_the_second_writer_is_refused_also_from_another_process(place):
    code = (
        "import sys; from dataworth.storage.manifest import writer_lock\n"
        f"with writer_lock({str(place / 's')!r}):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreBusyError, match="another run is writing"), writer_lock(place / "s"):
            pass
        holder.kill()
        holder.wait()
        with writer_lock(place / "s"):
            pass
    finally:
        holder.kill()
        holder.communicate()


def documents():
    return [
        TokenisedDocument("a", "s", "ab", np.array([1, 2, 3, 4, 5], np.int32), ((0, 3, 0, 0, 1), (3, 2, 0, 1, 2))),
        TokenisedDocument("empty", "s", "x", np.array([], np.int32), ()),
        TokenisedDocument("b", "t", "cd", np.array([6, 7], np.int32), ((0, 2, 1, 0, 2),), 1),
    ]


def test_corpus_round_trip(place):
    ref = CorpusStore.write(place, documents(), {"max_length": 3})
    store = CorpusStore.open(ref)
    assert (store.n_documents, store.n_examples, store.n_tokens) == (3, 3, 7)
    assert [store.tokens(window).tolist() for window in range(3)] == [[1, 2, 3], [4, 5], [6, 7]]
    assert store.windows["n_masked"].tolist() == [0, 0, 1]
    assert store.first_windows.tolist() == [0, 2, 2, 3]
    assert [row["document_id"] for row in store.documents([2, 0])] == ["b", "a"]
    assert CorpusStore.write(place, documents(), {"max_length": 3}) == ref
    assert CorpusStore.write(place, documents()[:2], {"max_length": 3}) != ref
    assert CorpusStore.write(place, documents(), {"max_length": 4}) != ref
    split = [replace(document, n_prompt_characters=2 * document.n_prompt_characters) for document in documents()]
    assert CorpusStore.write(place, split, {"max_length": 3}) != ref
    assert not [name for name in place.files() if ".staging" in name]


def test_a_corpus_keeps_further_fields_and_is_as_it_was_without(place):
    of_no_prompt = CorpusStore.write(place, documents()[:2], {"max_length": 3})
    assert of_no_prompt.fingerprint == "567284b6a17109e825ea5172cc85e1f9"  # as before there were fields
    plain = CorpusStore.write(place, documents(), {"max_length": 3})
    assert CorpusStore.open(plain).fields == []
    with pytest.raises(KeyError, match="year"):
        CorpusStore.open(plain).field("year")
    years = [replace(document, fields={"year": year}) for year, document in enumerate(documents())]
    ref = CorpusStore.write(place, years, {"max_length": 3}, ["year"])
    store = CorpusStore.open(ref)
    assert (store.fields, store.field("year"), store.field("source")) == (["year"], [0, 1, 2], ["s", "s", "t"])
    assert ref != plain
    assert store.contents_fingerprint == CorpusStore.open(plain).contents_fingerprint
    assert CorpusStore.write(place, years[::-1], {"max_length": 3}, ["year"]) != ref


def test_a_corpus_that_fails_half_way_leaves_nothing(place):
    def broken():
        yield documents()[0]
        raise ValueError("bad line")

    with pytest.raises(ValueError, match="bad line"):
        CorpusStore.write(place, broken(), {})
    assert place.files() == {}


def test_a_truncated_corpus_is_told(place):
    ref = CorpusStore.write(place, documents(), {})
    (ref.path / "tokens.bin").write_whole(b"1234")
    with pytest.raises(StoreDamagedError, match="tokens.bin: its bytes changed: remove"):
        CorpusStore.open(ref).tokens(0)


def test_layer_store_round_trip_and_damage(place):
    matrices = [{"fisher": np.arange(6.0).reshape(2, 3)}, {}]
    layers = [Layer("../../evil\n"), Layer("b")]
    ref = LayerStore.write(place, "f", layers, matrices, {"kind": "x"})
    store = LayerStore.open(ref)
    np.testing.assert_array_equal(store.matrix("../../evil\n", "fisher"), matrices[0]["fisher"])
    assert store.names("../../evil\n") == ["fisher"]
    assert store.names("b") == []
    chunk = ref.path / "layer_0000" / "fisher" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_whole(bytes(content))
    with pytest.raises(StoreDamagedError, match="fisher/c/0/0: its bytes changed: remove"):
        LayerStore.open(ref).matrix("../../evil\n", "fisher")
    chunk.remove()
    with pytest.raises(StoreDamagedError, match="fisher/c/0/0: is gone: remove"):
        LayerStore.open(ref).matrix("../../evil\n", "fisher")


def test_the_score_writer_joins_blocks_into_chunks(tmp_path, monkeypatch):
    import zarr

    monkeypatch.setattr("dataworth.storage.scores.COLUMNS_PER_CHUNK", 4)
    scores = np.random.default_rng(0).standard_normal((2, 11)).astype(np.float32)
    writer = ScoreWriter(tmp_path / "scores.zarr", ["q", "*"], 11)
    for start, end in ((0, 3), (3, 3), (3, 9), (9, 11)):
        writer.add(scores[:, start:end], [f"d{number}" for number in range(start, end)])
    writer.close()
    group = zarr.open_group(tmp_path / "scores.zarr", mode="r")
    np.testing.assert_array_equal(group["scores"][...], scores)
    assert group["document_id"][...].tolist() == [f"d{number}" for number in range(11)]
    short = ScoreWriter(tmp_path / "short.zarr", ["q"], 3)
    short.add(scores[:1, :2], ["a", "b"])
    with pytest.raises(ValueError, match="2 columns of scores came, expected 3"):
        short.close()


def test_weights_of_trainings_are_kept_until_they_are_dropped(place):
    store = UtilityStore.create(place, "game", {})
    masks = np.array([[True, False, True], [False, True, True]])
    store.add_weights(masks[0], b"first")
    store.add_weights(masks[0], b"of another run")
    store.add(masks, np.ones((2, 1)))
    np.testing.assert_array_equal(store.have_weights(masks), [True, False])
    assert store.weights(masks[0]) in (b"first", b"of another run")
    with pytest.raises(StoreIncompleteError, match="no weights of the coalition 60 are kept"):
        store.weights(masks[1])
    store.check_weights()
    (name, *_) = [name for name in store.path.files() if name.endswith(".safetensors")]
    (store.path / name).write_whole(b"changed")
    with pytest.raises(StoreDamagedError, match="remove that file and run again"):
        store.check_weights()
    store.drop_weights()
    np.testing.assert_array_equal(store.have_weights(masks), [False, False])
    assert len(store.known(3, 1)[0]) == 2
