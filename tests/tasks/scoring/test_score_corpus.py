"""A scoring pass on real clusters: filters, parts by layer, any number of workers, workers that die, TLS."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed.security import Security

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import DataworthError, InputError
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.steps import score_corpus
from tests.harness.pipeline import Pipeline, assert_same_scores, matrix_by_id


@pytest.fixture
def small(tmp_path, checkpoints, corpus_file, queries_file, monkeypatch):
    monkeypatch.setattr("dataworth.storage.gradients.rows_per_shard", lambda n_columns, itemsize: 2)
    return Pipeline(
        tmp_path,
        checkpoints["llama"],
        corpus_file,
        queries_file,
        {"kind": "random", "rank": 3},
        CurvatureConfig(draws=2),
        GradientsConfig(batch_tokens=96, dtype="float32"),
    )


def fresh_scores(pipeline, cluster, **scoring):
    """Scores computed anew, whatever is stored."""
    shutil.rmtree(StoreFolders(pipeline.corpus.path.parents[1]).scores, ignore_errors=True)
    return score_corpus(
        pipeline.store,
        pipeline.corpus,
        pipeline.gradients,
        pipeline.queries,
        pipeline.query_gradients,
        pipeline.curvature,
        pipeline.curvature_config.damping,
        ScoringConfig(save_matrix=True, **scoring),
        cluster,
    )


def everything(ref):
    store = ScoreStore.open(ref)
    return store.passages.to_pylist(), store.source_sums.to_pylist(), matrix_by_id(ref, 3)


def assert_identical(one, two):
    assert one[:2] == two[:2]
    assert one[2].keys() == two[2].keys()
    assert all(np.array_equal(one[2][name], two[2][name]) for name in one[2])


@pytest.mark.slow
def test_one_two_and_four_workers_give_the_same_results_bit_by_bit(small):
    one = everything(fresh_scores(small, ClusterConfig(workers=1)))
    for workers in (2, 4):
        assert_identical(one, everything(fresh_scores(small, ClusterConfig(workers=workers))))


@pytest.mark.parametrize("kind", ["dot", "relative"])
def test_parts_by_layer_add_up_to_the_score(small, kind):
    store = ScoreStore.open(fresh_scores(small, ClusterConfig(workers=1), by_layer=True, kind=kind, top_k=3))
    passages, layers = store.passages.to_pandas(), store.layer_scores.to_pandas()
    names = [layer.name for layer in LayerStore.open(small.bases).layers]
    sums = layers.groupby(["query_id", "rank", "document_id"])["score"].agg(["sum", "size"])
    assert (sums["size"] == len(names)).all()
    assert len(sums) == len(passages)
    for row in passages.itertuples():
        assert sums.loc[(row.query_id, row.rank, row.document_id), "sum"] == pytest.approx(row.score, rel=1e-4)
    assert ScoreStore.open(fresh_scores(small, ClusterConfig(workers=1))).layer_scores is None


def test_layers_by_pattern_partition_the_scores(small):
    whole = matrix_by_id(fresh_scores(small, ClusterConfig(workers=1)), 2)
    parts = [
        matrix_by_id(fresh_scores(small, ClusterConfig(workers=1), layers=[pattern]), 2)
        for pattern in ("*.mlp.*", "*.self_attn.*")
    ]
    assert_same_scores({name: parts[0][name] + parts[1][name] for name in whole}, whole)
    with pytest.raises(InputError, match=r"--scoring.layers: the pattern '\*.no.\*' matches none of the store's 14"):
        fresh_scores(small, ClusterConfig(workers=1), layers=["*.no.*"])


def test_sources_by_pattern_are_scored_as_they_were(small):
    whole = matrix_by_id(fresh_scores(small, ClusterConfig(workers=1)), 2)
    corpus = CorpusStore.open(small.corpus)
    ids, names = (corpus.column(column).to_pylist() for column in ("document_id", "source"))
    sources = dict(zip(ids, names, strict=True))
    for given, kept in (({"sources": ["s[01]"]}, {"s0", "s1"}), ({"without_sources": ["s1"]}, {"s0", "s2"})):
        ref = fresh_scores(small, ClusterConfig(workers=1), **given)
        part = matrix_by_id(ref, 2)
        assert part.keys() == {name for name, source in sources.items() if source in kept}
        assert all(np.array_equal(part[name], whole[name]) for name in part)
        values = CoalitionStore.open(value_sources(small.store, ref, SourcesConfig())).values.to_pandas()
        assert set(values["source"]) == kept
    with pytest.raises(InputError, match="the pattern 'nobody' matches none of the corpus' 3 sources"):
        fresh_scores(small, ClusterConfig(workers=1), sources=["nobody"])
    with pytest.raises(InputError, match="no source is left"):
        fresh_scores(small, ClusterConfig(workers=1), without_sources=["s*"])


def test_groups_of_any_kind_add_up_level_by_level(tmp_path, checkpoints, corpus_file, queries_file):
    rows = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"publisher": "pq"[number % 2], "year": 2020 + number % 3 // 2}
    corpus_file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    projection, curvature = {"kind": "random", "rank": 3}, CurvatureConfig(draws=2)
    given = (checkpoints["llama"], corpus_file, queries_file, projection, curvature)
    pipeline = Pipeline(tmp_path, *given, fields=["publisher", "year"])
    ref = pipeline.scores(grouping="publisher>year", sources=["s[01]"])
    by_id = matrix_by_id(ref, 3)
    assert by_id.keys() == {row["id"] for row in rows if row["source"] != "s2"}
    values = CoalitionStore.open(value_sources(pipeline.store, ref, SourcesConfig())).values.to_pandas()
    assert set(values["grouping"]) == {"publisher>year"}
    assert set(values[values["level"] == 1]["source"]) == {"p", "q"}
    for row in values.itertuples():
        number = ["q0", "q1", "*"].index(row.query_id)
        path = (row.source.split(" > "), ["publisher", "year"][: row.level])
        members = [r for r in rows if r["id"] in by_id and [str(r[field]) for field in path[1]] == path[0]]
        assert row.n_documents == len(members)
        assert row.value == pytest.approx(sum(by_id[r["id"]][number] for r in members), rel=1e-4, abs=1e-6)
    whole = values[values["query_id"] == "*"]
    for _, level in whole.groupby("level"):
        assert level["share"].sum() == pytest.approx(1.0)
    assert pipeline.scores() != pipeline.scores(grouping="publisher")
    with pytest.raises(InputError, match="--sources.by licence: the corpus keeps no field 'licence'"):
        pipeline.scores(grouping="licence")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_does_not_change_the_results(small, monkeypatch, workers):
    expected = everything(fresh_scores(small, ClusterConfig(workers=1)))
    from dataworth.tasks.scoring import steps as module

    killed = []
    real = module.Combination.add

    def slowly(self, *arguments):
        """After the second shard a worker is killed, while shards are ahead of the reader."""
        real(self, *arguments)
        if len(killed) == 0 and self.tally.counts.sum() >= 2:
            victims = [process for process in psutil.Process().children(recursive=True) if _is_worker(process)]
            os.kill(victims[0].pid, signal.SIGKILL)
            killed.append(victims[0].pid)

    monkeypatch.setattr(module, "LITTLE", 0)  # which a cluster of one worker takes on, too
    monkeypatch.setattr(module.Combination, "add", slowly)
    monkeypatch.setattr(module, "SHARDS_AHEAD", 1)
    found = everything(fresh_scores(small, ClusterConfig(workers=workers)))
    assert len(killed) == 1
    assert_identical(found, expected)


def _is_worker(process):
    """It, and the process that it was forked from, are what multiprocessing calls a fork server."""
    try:
        return all("forkserver" in " ".join(each.cmdline()) for each in (process, process.parent()))
    except psutil.Error:
        return False


@contextlib.contextmanager
def cluster_of_processes(folder, *words, workers=1):
    """A scheduler and workers as processes of their own; yields the scheduler's process and address."""
    started = []

    def start(*command):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        started.append(subprocess.Popen([Path(sys.executable).with_name("dask"), *command], env=environment))
        return started[-1]

    file = folder / "scheduler.json"
    main = start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file, *words)
    try:
        while not file.exists() or not file.read_text().rstrip().endswith("}"):  # written in parts
            assert main.poll() is None
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        for _ in range(workers):
            start("worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", folder, *words)
        yield main, address
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_scheduler_elsewhere_with_tls_gives_the_same_results(small, tmp_path):
    expected = everything(fresh_scores(small, ClusterConfig(workers=1)))
    made = Security.temporary()
    for name, content in (("ca", made.tls_ca_file), ("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        (tmp_path / f"{name}.pem").write_text(content)
    words = [f"--tls-{option}={tmp_path / name}.pem" for option, name in
             (("ca-file", "ca"), ("cert", "cert"), ("key", "key"))]  # fmt: skip
    secured = {f"tls_{option}": str(tmp_path / f"{name}.pem") for option, name in
               (("ca", "ca"), ("certificate", "cert"), ("key", "key"))}  # fmt: skip
    with cluster_of_processes(tmp_path, "--protocol", "tls", *words) as (_, address):
        assert address.startswith("tls://")
        assert_identical(everything(fresh_scores(small, ClusterConfig(address=address, **secured))), expected)
        with pytest.raises(InputError, match="--cluster.tls_key: not given; TLS needs all three"):
            fresh_scores(small, ClusterConfig(address=address, **{**secured, "tls_key": None}))


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_one_sentence(small, tmp_path, monkeypatch):
    from dataworth.tasks.scoring import steps as module

    monkeypatch.setattr(module, "SHARDS_AHEAD", 1)
    real = module.Combination.add
    with cluster_of_processes(tmp_path) as (main, address):

        def dying(self, *arguments):
            real(self, *arguments)
            main.kill()

        monkeypatch.setattr(module.Combination, "add", dying)
        with pytest.raises(DataworthError, match=f"the Dask scheduler at {address} went away while scoring: run again"):
            fresh_scores(small, ClusterConfig(address=address))
    assert not ScoreStore.exists(StoreFolders(small.corpus.path.parents[1]).scores, "x")
    assert not list(StoreFolders(small.corpus.path.parents[1]).scores.glob("[0-9a-f]*"))
    monkeypatch.setattr("dataworth.tasks.cluster.SECONDS_TO_CONNECT", 3)
    with pytest.raises(DataworthError, match="no Dask scheduler answers at"):
        fresh_scores(small, ClusterConfig(address=address))
