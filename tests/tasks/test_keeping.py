"""A result is built once: who comes meanwhile waits for it, and finds it."""

import threading
import time

import numpy as np
import pytest

from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.tasks.keeping import kept


def test_whoever_comes_second_waits_and_builds_nothing(tmp_path, caplog):
    began, built, refs = threading.Event(), [], []

    def build(root, name):
        built.append(name)
        began.set()
        time.sleep(1.5)
        LayerStore.write(root, name, [Layer("a")], [{"m": np.ones(2)}], {})

    def run():
        refs.append(kept(str(tmp_path), "layers", {"of": 1}, "bases", build))

    first, second = threading.Thread(target=run), threading.Thread(target=run)
    with caplog.at_level("INFO"):
        first.start()
        assert began.wait(600)
        second.start()
        first.join()
        second.join()
    assert len(built) == 1
    assert refs[0] == refs[1]
    np.testing.assert_array_equal(LayerStore.open(refs[0]).matrix("a", "m"), 1)
    assert "bases: another run builds it: waiting" in caplog.text
    assert "bases: there already" in caplog.text


def test_a_build_that_fails_leaves_the_way_free(tmp_path):
    def failing(root, name):
        raise RuntimeError("the power is out")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="the power is out"):
            kept(str(tmp_path), "layers", {"of": 1}, None, failing)
