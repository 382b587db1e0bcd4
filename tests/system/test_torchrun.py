"""Two processes of torchrun on one store: the same gradients and curvature as one process, each computing its part."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from tests.reference.checkpoints import TEXTS, save_another

pytestmark = [pytest.mark.system, pytest.mark.slow]

N_DOCUMENTS = 1300  # rows of the whole gradient: three shards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    words = " ".join(TEXTS).split()
    generator = np.random.default_rng(0)
    rows = [
        {"id": f"d{n}", "source": f"s{n % 3}", "text": " ".join(generator.choice(words, 6))} for n in range(N_DOCUMENTS)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def together(prefect_server, folder, *words, processes=2):
    """A command under torchrun, whose processes all end with the test."""
    with subprocess.Popen(
        [
            Path(sys.executable).with_name("torchrun"),
            *("--standalone", "--nproc-per-node", str(processes)),
            Path(sys.executable).with_name("dataworth"),
            *map(str, words),
        ],
        env={**os.environ, "PREFECT_API_URL": prefect_server, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def only_store(root):
    (path,) = [path for path in root.iterdir() if not path.name.startswith(".")]
    return path


def test_two_processes_leave_what_one_leaves(prefect_server, dataworth, checkpoints, corpus, tmp_path):
    given = ["--model", checkpoints["llama"], "--corpus", corpus, "--corpus.max_length", "32"]
    given += ["--projection", "identity", "--gradients.dtype", "float32"]
    one = dataworth("index", *given, "--store", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    expected = GradientStore(only_store(tmp_path / "one" / "gradients"))
    contents = expected.stored()
    assert [segment.n_shards for segment in expected.segments()] == [3]
    for name, extra in (("two", []), ("sharded", ["--model.shard"])):
        found = together(prefect_server, tmp_path, "index", *given, *extra, "--store", tmp_path / name)
        assert found.returncode == 0, found.stderr
        assert len(re.findall("gradient store: ", found.stdout)) == 1
        store = GradientStore(only_store(tmp_path / name / "gradients"))
        assert store.fingerprint == expected.fingerprint
        ours, theirs = (np.concatenate(entry.rows_of(contents)) for entry in (store, expected))
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
    again = together(prefect_server, tmp_path, "index", *given, "--store", tmp_path / "sharded")
    assert "the corpus: 0 of 1,306 examples to compute" in again.stderr


@pytest.mark.long
def test_two_processes_index_two_checkpoints(prefect_server, checkpoints, corpus, tmp_path):
    models = [checkpoints["llama"], save_another(checkpoints["llama"], tmp_path / "other")]
    given = ["--corpus", corpus, "--corpus.max_length", "32", "--projection.rank", "4"]
    for extra in ([], ["--model.shard", "--gradients.dtype", "float32"]):
        found = together(
            prefect_server, tmp_path, "index", "--model", *models, *given, *extra, "--store", tmp_path / "s"
        )
        assert found.returncode == 0, found.stderr
        stores = re.findall(r"gradient store: (\S+)", found.stdout)
        assert len(set(stores)) == 2
        assert all(len(GradientStore(store).stored()) > 1000 for store in stores)


def test_two_processes_fit_what_one_fits(prefect_server, dataworth, checkpoints, corpus, tmp_path):
    given = ["--model", checkpoints["llama"], "--corpus", corpus, "--corpus.max_length", "32"]
    given += ["--projection", "pca", "--projection.rank", "4", "--curvature", "ekfac", "--curvature.draws", "2"]
    given += ["--gradients.batch_tokens", "512"]
    one = dataworth("fit", *given, "--store", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    two = together(prefect_server, tmp_path, "fit", *given, "--store", tmp_path / "two")
    assert two.returncode == 0, two.stderr
    compared = 0
    for path in (tmp_path / "one" / "layers").iterdir():
        if path.name.startswith("."):
            continue
        theirs = LayerStore(path)
        if "covariances" not in theirs.attributes or "kind" in theirs.attributes:
            continue
        ours = LayerStore(tmp_path / "two" / "layers" / path.name)
        for layer in theirs.layers:
            for key in theirs.names(layer.name):
                expected = theirs.matrix(layer.name, key)
                np.testing.assert_allclose(
                    ours.matrix(layer.name, key), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
                )
                compared += 1
    assert compared == 2 * 14


def test_value_is_not_run_by_several_processes(prefect_server, checkpoints, corpus, queries_file, tmp_path):
    given = ["--model", checkpoints["llama"], "--corpus", corpus, "--queries", queries_file, "--results", tmp_path]
    found = together(prefect_server, tmp_path, "value", *given)
    assert found.returncode != 0
    assert "several processes work on `index` and `fit`; start `value` by itself after them" in found.stderr
