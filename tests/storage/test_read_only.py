"""A finished store on a disk that can only be read is read; what would have to be written is one sentence."""

import errno
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
import pytest

from dataworth.storage.errors import InputError, StoreReadOnlyError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.locations import check_usable, check_writable, location_of
from dataworth.storage.verification import verified
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.steps import prepare_corpus
from dataworth.tasks.model.config import ModelConfig
from tests.harness.damage import Valued
from tests.harness.pipeline import MAX_LENGTH
from tests.reference.checkpoints import TEXTS


@contextmanager
def read_only(folder: Path, monkeypatch):
    """Mounted to be read where this process may mount; else the system's refusals are played."""
    mounted = subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode == 0
    if mounted:
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True, capture_output=True)
            yield
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    real = os.access

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: not mode & os.W_OK and real(path, mode))
        patched.setattr(filelock.FileLock, "acquire", refused)
        patched.setattr("dataworth.storage.locations.replace_file", refused)
        yield


def test_what_is_finished_is_read_and_what_is_not_is_refused(tmp_path, checkpoints, monkeypatch):
    made = Valued(tmp_path, checkpoints["llama"], TEXTS)
    store = made.root / "store"
    with read_only(store, monkeypatch):
        assert location_of(store).is_read_only()
        assert made.outcome() == made.whole
        assert not [entry for entry in verified(store) if entry.damage]
        (place,) = [path for path in (store / "gradients").iterdir() if len(list(path.glob("*/gradients/c/*"))) > 1]
        for segment in GradientStore(place).segments():  # a sketch that cannot be kept
            blocks = list(segment.sketch(3, lambda rows: rows[:, :3]))
            np.testing.assert_array_equal(np.concatenate(blocks)[0], segment.read_shard(0)[0, :3].astype(np.float16))
        assert not list(store.rglob("sketch_3"))
        check_usable(store, "--store")
        with pytest.raises(InputError, match="--store .* may not be written"):
            check_writable(store, "--store")
        with pytest.raises(InputError, match="--store .* may not be written"):
            check_usable(store / "new", "--store")
        other = tmp_path / "other.jsonl"
        refused = CorpusConfig(files=[str(other)], max_length=MAX_LENGTH)
        other.write_text('{"id": "a", "source": "s", "text": "Another text than those that are there."}\n')
        with pytest.raises(StoreReadOnlyError, match=r"may not be written \(Read-only file system\)"):
            prepare_corpus(str(store), ModelConfig(name=str(checkpoints["llama"])), refused)
    assert not location_of(store).is_read_only()


def test_damage_in_a_store_to_be_read_is_named_and_stays(tmp_path, checkpoints, monkeypatch):
    made = Valued(tmp_path, checkpoints["llama"], TEXTS)
    store = made.root / "store"
    chunk = min(store.glob("gradients/*/*/gradients/c/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with read_only(store, monkeypatch):
        (damaged,) = [entry for entry in verified(store) if entry.damage]
    assert "may not be written, so it cannot be set aside" in damaged.damage
    assert chunk.is_file()
