"""The gradient store: grows by segments, goes on after any stop, names what is damaged."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataworth.storage.errors import RowRangeError, StoreDamagedError, StoreIncompleteError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layer_table import Layer
from dataworth.storage.locations import Place, location_of
from dataworth.storage.schema import rows_per_shard

LAYERS = [Layer("l", n_columns=3)]
N_WINDOWS = np.array([1, 2, 1, 3, 1, 2])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("dataworth.storage.gradients.rows_per_shard", lambda n_columns, itemsize: 4)


def contents(*names):
    return np.asarray([hashlib.sha256(name.encode()).digest() for name in names], "S32")


def row(content: bytes, window: int) -> np.ndarray:
    seed = int.from_bytes(content.ljust(32, b"\0")[:4], "little") + window
    return np.random.default_rng(seed).standard_normal(3).astype(np.float16)


def write(segment, shards=None):
    for shard in list(segment.open_shards())[:shards]:
        rows = [
            row(content, window)
            for content, first, end in zip(segment.contents, segment.first_rows, segment.first_rows[1:], strict=False)
            for window in range(end - first)
        ]
        chosen = segment.rows(shard)
        columns = {"n_tokens": np.arange(chosen.start, chosen.stop), "loss": np.zeros(chosen.stop - chosen.start)}
        segment.write_shard(shard, segment.encoded(np.stack(rows[chosen]).astype(np.float32)), columns)


def store(path: Place, dtype="float16") -> GradientStore:
    return GradientStore.create(path, "f", LAYERS, dtype, {})


def files(path: Place) -> dict[str, bytes]:
    root = location_of(path)
    return {name: (root / name).read_bytes() for name in root.files()}


def test_rows_come_back_by_content(place):
    target, names = store(place), contents(*"abcdef")
    (segment,) = target.plan(names, N_WINDOWS)
    assert segment.n_shards == 3
    write(segment)
    found = target.rows_of(names[[3, 0, 5]])
    for content, n_windows, rows in zip(names[[3, 0, 5]], N_WINDOWS[[3, 0, 5]], found, strict=True):
        np.testing.assert_array_equal(rows, [row(content, window) for window in range(n_windows)])
    assert segment.column("n_tokens").tolist() == list(range(10))
    assert target.plan(names, N_WINDOWS) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=4))
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(tmp_path_factory, stops):
    names = contents(*"abcdef")
    straight, halting = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("halting")
    for segment in store(straight).plan(names, N_WINDOWS):
        write(segment)
    for shards in [*stops, None]:
        for segment in store(halting).plan(names, N_WINDOWS):
            write(segment, shards)
    assert files(straight) == files(halting)


def test_new_documents_are_one_new_segment_and_old_shards_stay(place):
    target = store(place)
    names = contents(*"abcdefgh")
    write(target.plan(names[:6], N_WINDOWS)[0])
    before = files(place)
    (added,) = target.plan(names, np.append(N_WINDOWS, [2, 1]))
    assert sorted(added.contents) == sorted(names[6:])
    write(added)
    assert before.items() <= files(place).items()
    assert sorted(target.stored()) == sorted(names)


def test_no_content_is_stored_twice_by_interleaved_unfinished_runs(place):
    target = store(place)
    names = contents(*"abcdef")
    write(target.plan(names, N_WINDOWS)[0], 1)
    fewer = [0, 2, 3, 4, 5]  # another corpus, without one of the first's documents
    write(target.plan(names[fewer], N_WINDOWS[fewer])[0], 1)
    for segment in target.plan(names, N_WINDOWS):
        write(segment)
    for segment in target.plan(names[fewer], N_WINDOWS[fewer]):
        write(segment)
    kept = [segment.contents[segment.content_done()].tolist() for segment in target.segments()]
    flat = [content for part in kept for content in part]
    assert sorted(flat) == sorted(names.tolist())


def test_only_whole_contents_count(place):
    target, names = store(place), contents(*"abcdef")
    (segment,) = target.plan(names, N_WINDOWS)
    write(segment, 1)
    assert segment.content_done().tolist() == [True, True, True, False, False, False]
    with pytest.raises(StoreIncompleteError, match="lacks 1 of 2 documents"):
        target.rows_of(names[[0, 3]])
    with pytest.raises(StoreIncompleteError, match="lacks shard 2 of 3"):
        segment.read_shard(2)


@pytest.mark.parametrize("damage", ["flip first", "flip last", "flip checksum", "truncate", "empty", "longer"])
def test_damage_is_named_by_shard(place, damage):
    target, names = store(place), contents(*"abcdef")
    (segment,) = target.plan(names, N_WINDOWS)
    write(segment)
    path = segment.path / "gradients" / "c" / "1" / "0"
    content = bytearray(path.read_bytes())
    match damage:
        case "flip first":
            content[0] ^= 1
        case "flip last":
            content[-5] ^= 128
        case "flip checksum":
            content[-1] ^= 1
        case "truncate":
            content = content[:-7]
        case "empty":
            content = bytearray()
        case "longer":
            content += b"x"
    path.write_whole(bytes(content))
    segment.read_shard(0)
    with pytest.raises(StoreDamagedError, match="shard 1 of"):
        segment.read_shard(1)
    segment.set_aside(1)
    (again,) = target.plan(names, N_WINDOWS)
    assert list(again.open_shards()) == [1]
    write(again)
    assert len(target.rows_of(names)) == 6


def test_other_tools_read_the_store(place):
    import zarr

    target, names = store(place), contents(*"abcdef")
    (segment,) = target.plan(names, N_WINDOWS)
    write(segment)
    array = zarr.open_group(segment.path.array_store(), mode="r")["gradients"]
    np.testing.assert_array_equal(array[4:8], segment.read_shard(1))
    assert array.metadata.dimension_names == ("example", "column")


def test_shards_are_whole_rows_of_about_eight_megabytes():
    assert rows_per_shard(1024, 2) == 4096
    assert rows_per_shard(10_752, 2) == 390
    assert rows_per_shard(10**9, 2) == 1
    assert rows_per_shard(1, 2) == 4096


@pytest.mark.parametrize(("dtype", "bytes_a_row"), [("float32", 12), ("bfloat16", 6), ("int8", 3 + 4)])
def test_every_data_type_comes_back_to_its_precision(place, dtype, bytes_a_row):
    target, names = store(place, dtype), contents(*"abcdef")
    (segment,) = target.plan(names, N_WINDOWS)
    write(segment)
    expected = [row(content, 0).astype(np.float32) for content in names]
    found = [rows[0] for rows in target.rows_of(names)]
    largest = np.abs(expected).max(axis=1, keepdims=True)
    step = {"float32": 0.0, "bfloat16": np.abs(expected) / 256, "int8": largest / 127 / 2}[dtype]
    assert (np.abs(np.stack(found) - expected) <= step + 1e-7).all()
    on_disk = [segment.path / part / "c" / "1" / "0" for part in ("gradients", "scales")]
    assert sum(path.n_bytes() - 4 for path in on_disk if path.is_file()) == 4 * bytes_a_row


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_a_shard_of_zeros_counts(tmp_path, dtype):
    target, names = store(tmp_path, dtype), contents("a")
    (segment,) = target.plan(names, np.array([3]))
    columns = {"n_tokens": np.zeros(3), "loss": np.zeros(3)}
    segment.write_shard(0, segment.encoded(np.zeros((3, 3), np.float32)), columns)
    assert segment.is_done()
    assert not target.rows_of(names)[0].any()


def test_damaged_scales_are_named_too(place):
    target, names = store(place, "int8"), contents(*"abcdef")
    (segment,) = target.plan(names, N_WINDOWS)
    write(segment)
    path = segment.path / "scales" / "c" / "1" / "0"
    path.write_whole(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreDamagedError, match="shard 1 of"):
        segment.read_shard(1)
    path.remove()
    with pytest.raises(StoreDamagedError, match="scales/c/1/0: is gone"):
        segment.read_shard(1)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_contents_are_taken_out_and_the_others_stay_as_they_were(place, dtype):
    target, names = store(place, dtype), contents(*"abcdef")
    write(target.plan(names, N_WINDOWS)[0])
    before = target.rows_of(names[[0, 2, 4, 5]])
    (segment,) = target.segments()
    target.without(segment, names[[1, 3, 3]])
    (successor,) = target.segments()
    assert sorted(successor.contents) == sorted(names[[0, 2, 4, 5]])
    assert not segment.path.is_dir()
    for one, two in zip(target.rows_of(names[[0, 2, 4, 5]]), before, strict=True):
        np.testing.assert_array_equal(one, two)
    assert successor.column("n_tokens").tolist() == [0, 3, 7, 8, 9]
    target.without(successor, names[[1]])
    assert [each.name for each in target.segments()] == [successor.name]
    target.without(successor, names)
    assert target.segments() == []
    assert target.plan(names, N_WINDOWS)[0].n_rows == 10


def test_a_compaction_killed_half_way_counts_every_row_once(place, monkeypatch):
    """Killed before the new segment is whole: the old one counts. Killed before the old one is removed: the new one."""
    target, names = store(place), contents(*"abcdef")
    write(target.plan(names, N_WINDOWS)[0])
    (old,) = target.segments()

    real = type(old.path).remove_tree

    def dies(path):
        if path == old.path:
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(type(old.path), "remove_tree", dies)
        with pytest.raises(KeyboardInterrupt):
            target.without(old, names[[0]])
    (new,) = target.segments()
    assert new.name != old.name
    assert sorted(target.stored()) == sorted(names[1:])
    new.set_aside(0)
    assert [segment.name for segment in target.segments()] == [old.name]
    assert len(target.rows_of(names)) == 6
    target.remove_replaced()
    assert not new.path.is_dir()


def test_rows_that_cannot_be_stored_are_named(place):
    (segment,) = store(place).plan(contents("a"), np.array([3]))
    rows = np.ones((3, 3), np.float32)
    rows[2, 1] = 1e6
    with pytest.raises(RowRangeError, match="row 2 does not fit float16: pass --gradients.dtype bfloat16 or float32"):
        segment.encoded(rows)
    rows[1, 0] = np.nan
    with pytest.raises(RowRangeError, match="row 1 is not finite"):
        segment.encoded(rows)
