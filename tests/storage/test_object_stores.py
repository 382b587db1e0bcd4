"""Stores on an object store: as those of a folder, byte for byte, with the same promises."""

import pickle
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dataworth.storage.compaction import compact
from dataworth.storage.errors import InputError, StoreBusyError, StoreError, StoreUnreachableError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import check_writable, location_of
from dataworth.storage.manifest import new_store, write_manifest, writer_lock
from dataworth.storage.partial import PartialSums
from dataworth.storage.s3 import leases
from dataworth.storage.verification import verified
from dataworth.storage.withdrawals import Withdrawals
from tests.harness.api import wait_until
from tests.harness.object_writer import N_SHARDS, filled
from tests.harness.objects import SECRET, environment, new_bucket, object_server, refusing


def stored(place) -> dict[str, bytes]:
    """Relative name → content of every file, but for locks."""
    root = location_of(place)
    return {name: (root / name).read_bytes() for name in root.files() if ".lock" not in name}


@contextmanager
def writer(place, *options):
    """A process that fills a store; it is ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.object_writer", str(place), *options],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def impatient(monkeypatch):
    """Locks are too old after two seconds."""
    monkeypatch.setattr(leases, "SECONDS_STALE", 2.0)
    monkeypatch.setattr(leases, "SECONDS_OF_DOUBT", 0.5)
    monkeypatch.setattr(leases, "SECONDS_BETWEEN_RENEWALS", 0.3)


def test_addresses():
    place = location_of("s3://a-bucket/one/two/")
    assert str(place) == "s3://a-bucket/one/two"
    assert (place.name, str(place.parent), str(place / "x/y")) == ("two", "s3://a-bucket/one", f"{place}/x/y")
    assert place.with_name("three") == location_of("s3://a-bucket/one/three")
    assert str(location_of("s3://a-bucket")) == "s3://a-bucket"
    assert location_of(place) is place
    for wrong in ("s3:/a-bucket/x", "s3://", "s3://UPPER/x", "s3://a-bucket/../x", "s3://a-bucket//x"):
        with pytest.raises(InputError, match="expected s3://bucket/prefix"):
            location_of(wrong)
    with pytest.raises(InputError, match="credentials come from") as refused:
        location_of(f"s3://id:{SECRET}@a-bucket/x")
    assert SECRET not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(InputError, match=re.escape("pip install 'dataworth[objects]'")):
        check_writable("s3://never-seen/x", "--store")


def test_a_location_does_what_a_folder_does(place):
    file = place / "a" / "b"
    assert not file.is_file()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.write_whole(b"one")
    file.write_whole(b"three")
    (place / "a" / "c" / "d").write_whole(b"")
    (place / "a" / ".hidden" / "e").write_whole(b"x")
    assert (file.read_bytes(), file.n_bytes(), file.is_file(), file.is_dir()) == (b"three", 5, True, False)
    assert list((place / "a").have(["b", "c/d", "c", "e"])) == [True, True, False, False]
    assert [folder.name for folder in (place / "a").folders()] == ["c"]
    assert place.files() == {"a/b": 5, "a/c/d": 0, "a/.hidden/e": 1}
    assert (place / "a" / "c" / "d").mapped().tolist() == []
    content = file.mapped()
    content[0] = 0  # reaches nothing
    assert file.read_bytes() == b"three"
    with file.as_file() as path:
        assert path.read_bytes() == b"three"
    file.move_to(place / "a" / "f")
    assert not file.is_file()
    file.remove()
    (place / "a").remove_tree()
    assert place.files() == {}
    assert (place / "nothing").folders() == []


def test_partial_sums_and_withdrawals(place):
    sums = PartialSums(place / "layers", "f")
    assert sums.load() == (0, {})
    sums.save(3, {"a": np.arange(4.0)})
    steps, arrays = sums.load()
    assert (steps, arrays["a"].tolist()) == (3, [0, 1, 2, 3])
    sums.remove()
    assert sums.load() == (0, {})
    assert Withdrawals(place).add(sources=["s"]) == 1
    assert Withdrawals(place).add(sources=["s"], documents=["d"]) == 1
    assert Withdrawals(place).covers("d", "t")


def test_a_store_that_was_uploaded_in_part_is_not_there_and_is_made_again(bucket):
    (bucket / "layers" / "f" / "layer_0000" / "half").write_whole(b"x")
    assert not LayerStore.exists(bucket / "layers", "f")
    compact(bucket)
    assert bucket.files() == {}
    (bucket / "layers" / "f" / "half").write_whole(b"x")
    LayerStore.write(bucket / "layers", "f", [Layer("a")], [{"m": np.ones((2, 2))}], {})
    assert "layers/f/half" not in bucket.files()
    assert LayerStore(bucket / "layers" / "f").matrix("a", "m").tolist() == [[1, 1], [1, 1]]
    store = GradientStore.create(bucket / "gradients", "f", [Layer("l", n_columns=1)], "float16", {})
    (store.path / "abc" / "zarr.json").write_whole(b"{}")
    assert store.segments() == []


def test_a_sketch_is_kept(bucket):
    filled(bucket / "gradients")
    (segment,) = GradientStore(bucket / "gradients" / "f").segments()
    first = list(segment.sketch(16, lambda rows: rows[:, :16].astype(np.float32)))
    again = list(segment.sketch(16, lambda rows: 1 / 0))
    assert len(first) == N_SHARDS
    np.testing.assert_array_equal(first, again)


def test_killed_again_and_again_it_ends_with_the_bytes_of_a_folder(bucket, tmp_path):
    filled(tmp_path)
    moments, n_done = random.Random(0), []

    def shards():
        return sum(name.count("gradients/c/") for name in bucket.files())

    for _ in range(6):
        with writer(bucket) as process:
            assert process.stdout.readline() == "held\n", process.stderr.read()
            before = n_done[-1] if n_done else 0
            wait_until(lambda before=before: shards() > before or process.poll() is not None, "nothing is written")
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        n_done.append(shards())
    assert 0 < n_done[0] < N_SHARDS
    assert n_done == sorted(n_done)
    filled(bucket)  # at once: the process that held the lock is dead
    assert stored(bucket) == stored(tmp_path)
    (segment,) = GradientStore(bucket / "f").segments()
    handed_on = pickle.dumps(segment.path.array_store().store)
    assert SECRET.encode() not in handed_on
    assert SECRET not in repr(segment.path.array_store())


def test_a_flipped_byte_is_named_and_set_aside(bucket):
    filled(bucket / "gradients")
    whole = stored(bucket)
    (name,) = [name for name in whole if name.endswith("gradients/c/7/0")]
    (bucket / name).write_whole(bytes([whole[name][0] ^ 1]) + whole[name][1:])
    (damaged,) = [entry for entry in verified(bucket) if entry.damage]
    assert damaged.what.endswith("shard 7")
    assert "set aside" in damaged.damage
    filled(bucket / "gradients")
    again = stored(bucket)
    assert again.pop(f"{name.removesuffix('/0')}/damaged") != whole[name]
    assert again == whole


def test_a_living_writer_keeps_its_lock_and_a_stopped_one_loses_it(bucket, impatient):
    with writer(bucket, "--wait", "--impatient") as process:
        assert process.stdout.readline() == "held\n", process.stderr.read()
        time.sleep(3.5)
        with pytest.raises(StoreBusyError, match="another run is writing"), writer_lock(bucket / "f"):
            pass
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreBusyError, match="another run is writing"), writer_lock(bucket / "f"):
            pass
        time.sleep(3.5)
        with writer_lock(bucket / "f"):
            process.send_signal(signal.SIGCONT)
            time.sleep(1.0)
            _, said = process.communicate("\n", timeout=600)
            assert process.returncode == 1
            assert "StoreBusyError: another run has taken over" in said
            assert not [name for name in bucket.files() if "gradients/c/" in name]
        assert not (bucket / ".f.lock").is_file()


# It falls asleep after its last look at its lock, just before it writes; its clock is ten minutes ahead.
SLEEPER = """
import os, signal, sys, time
import obstore
import dataworth.storage.s3.leases

put, now = obstore.put, time.time
time.time = lambda: now() + 600
dataworth.storage.s3.leases.SECONDS_BETWEEN_RENEWALS = 0.3

def sleeps(store, key, content, **named):
    if key.endswith("withdrawals.jsonl"):
        print("asleep", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    return put(store, key, content, **named)

obstore.put = sleeps
from dataworth.storage.withdrawals import Withdrawals
Withdrawals(sys.argv[1]).add(["late"])
"""


@pytest.mark.parametrize("before", [[], ["early"]])
def test_a_writer_that_slept_between_its_last_look_and_its_write_does_not_write(bucket, impatient, before):
    Withdrawals(bucket).add(before)
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(bucket)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "asleep\n"
        time.sleep(3.5)
        assert Withdrawals(bucket).add(["meanwhile"]) == 1
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=600)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "StoreBusyError" in said
    assert Withdrawals(bucket).sources == {*before, "meanwhile"}


def test_a_lock_that_vanished_is_lost_and_one_of_elsewhere_is_waited_for(bucket, impatient):
    def loses_it():
        with writer_lock(bucket / "f"):
            (bucket / ".f.lock").remove()
            time.sleep(1.0)
            (bucket / "f" / "x").write_whole(b"x")

    with pytest.raises(StoreBusyError, match="has taken over"):
        loses_it()
    (bucket / ".f.lock").write_whole(b'{"process": 1, "processes": "of another machine"}')
    with pytest.raises(StoreBusyError, match="another run is writing"), writer_lock(bucket / "f"):
        pass
    time.sleep(3.5)
    with writer_lock(bucket / "f"):
        pass
    assert bucket.files() == {}


def test_a_server_without_conditional_puts_is_refused(bucket, monkeypatch):
    real = leases.obstore.put
    monkeypatch.setattr(leases.obstore, "put", lambda *given, mode=None: real(*given))
    with pytest.raises(StoreError, match="takes no account of If-None-Match"), writer_lock(bucket / "f"):
        pass
    assert bucket.files() == {}


def sentence(error) -> str:
    """What is told: one line, without a secret."""
    text = str(error.value)
    assert "\n" not in text
    assert SECRET not in text
    assert "Debug" not in text
    return text


@pytest.mark.usefixtures("bucket")
def test_what_is_wrong_with_a_bucket_is_a_sentence():
    with pytest.raises(InputError) as error:
        check_writable("s3://no-such-bucket/x", "--store")
    assert sentence(error).startswith("--store s3://no-such-bucket/x: ")
    assert "NoSuchBucket" in sentence(error)
    with pytest.raises(StoreUnreachableError, match="NoSuchBucket"), new_store("s3://no-such-bucket/x") as folder:
        write_manifest(folder, {})


def test_a_server_that_refuses_and_then_goes_away_is_a_sentence(monkeypatch):
    monkeypatch.setattr("dataworth.storage.s3.client.RETRIES", 2)
    with object_server() as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        new_bucket(address)
        place = location_of(f"s3://{new_bucket(address)}/x")
        with refusing(address):
            with pytest.raises(InputError) as refused:
                check_writable(place, "--store")
            assert "InvalidAccessKeyId" in sentence(refused)
            with pytest.raises(StoreUnreachableError) as lost:
                list(verified(place))
            assert "InvalidAccessKeyId" in sentence(lost)
        check_writable(place, "--store")
        filled(place)
        (segment,) = GradientStore(place / "f").segments()
        rows = segment.read_shard(0).astype(np.float32)
    columns = {"n_tokens": np.zeros(len(rows)), "loss": np.zeros(len(rows))}
    for use in (lambda: segment.read_shard(1), lambda: segment.write_shard(0, segment.encoded(rows), columns)):
        with pytest.raises(StoreUnreachableError) as error:
            use()
        assert "Connection refused" in sentence(error)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # noqa: S301  as Dask hands it on
    with pytest.raises(InputError, match="--store s3://"):
        check_writable(place, "--store")
