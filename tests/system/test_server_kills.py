"""kill -9 of what a run depends on, in the middle of it: nothing is lost, and what is said tells what happened."""

import contextlib
import json
import os
import signal
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from dataworth.serving.deployments import apply_deployments, worker_command
from dataworth.serving.servers import child, free_port, mlflow_command, wait_for
from tests.harness.api import Api, prefect_server_process, wait_until
from tests.harness.kills import stored_files
from tests.reference.checkpoints import TEXTS

pytestmark = [pytest.mark.system, pytest.mark.slow]

INDEXING = "examples to compute"
# Enough to find a server that is back; the default, five, are those of a minute.
FEW_RETRIES = {"PREFECT_CLIENT_MAX_RETRIES": "2"}


@pytest.fixture(scope="session")
def given(checkpoints, tmp_path_factory):
    """Options of a valuation, but for its folders, that takes long enough to be met in the middle."""
    folder, generator = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    rows = [{"id": f"d{n}", "source": f"s{n % 4}", "text": " ".join(generator.choice(words, 24))} for n in range(1_600)]
    (folder / "long.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    query = {"id": "q0", "prompt": "The river runs", "completion": " down to the sea."}
    (folder / "queries.jsonl").write_text(f"{json.dumps(query)}\n")
    return (
        *("--model", checkpoints["llama"], "--corpus", folder / "long.jsonl", "--queries", folder / "queries.jsonl"),
        *("--corpus.max_length", "32", "--projection.rank", "16", "--curvature", "none"),
    )


def in_folder(folder):
    return ("--store", folder / "store", "--results", folder / "out")


@pytest.fixture(scope="session")
def straight(forked, prefect_server, given, tmp_path_factory):
    """Folder of the store and the results of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    words = ["value", *map(str, (*given, *in_folder(folder)))]
    made = forked.run(words, {**os.environ, "PREFECT_API_URL": prefect_server}, folder, 300)
    assert made.returncode == 0, made.stderr
    return folder


def assert_same_values(results, expected):
    for name in ("sources.csv", "documents.parquet"):
        assert (results / name).read_bytes() == (expected / name).read_bytes()


def assert_nothing_partial(results):
    """No valuation, and nothing that looks like one."""
    assert not results.exists() or list(results.iterdir()) == []


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def said_by(process, log, seconds):
    """The last line of a command that must end by itself, without a traceback before it."""
    assert process.wait(seconds) == 1, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    return log.read_text().strip().splitlines()[-1]


def until_said(process, log, words):
    wait_until(lambda: words in log.read_text() or process.poll() is not None, f"never: {words}")
    assert process.poll() is None, log.read_text()


def worker(server):
    return child(worker_command(), {"PREFECT_API_URL": server, "PREFECT_WORKER_QUERY_SECONDS": "2"})


@pytest.fixture
def another_prefect_server(tmp_path):
    """Not the one that other tests use: work pools and deployments have the same names everywhere."""
    with prefect_server_process(tmp_path / "another home") as (_, address):
        yield address


def test_a_killed_worker_and_its_run(another_prefect_server, given, straight, tmp_path):
    prefect_server = another_prefect_server
    options = dict(zip(given[::2], map(str, given[1::2]), strict=True))
    config = {
        "model": {"name": options["--model"]},
        "corpus": {"files": [options["--corpus"]], "max_length": 32},
        "projection": {"rank": 16},
        "curvature": {"kind": "none"},
        "store": str(tmp_path / "store"),
    }
    apply_deployments(prefect_server, {"PREFECT_API_URL": prefect_server})
    api = Api(prefect_server)
    with worker(prefect_server) as first:
        run = api.start("index-corpus", config)
        # Its plan is seen sooner than its log, which is sent every other second: it might have ended by then.
        wait_until(lambda: any(tmp_path.glob("store/gradients/[!.]*/[!.]*/contents")), "the run does not begin")
        process = api.run(run["id"])["labels"]["dataworth.process"]
        kill(first)
        with contextlib.suppress(ProcessLookupError):  # where it is of the worker's group
            os.kill(process, signal.SIGKILL)
    assert api.run(run["id"])["state"]["type"] == "RUNNING"  # nobody told the server
    with worker(prefect_server):
        again = api.start("index-corpus", config)
        assert wait_until(lambda: api.ended(again["id"]), "the run does not end")["type"] == "COMPLETED"
        said = f"({run['id']}) is marked Crashed: its process {process} on"
        wait_until(lambda: said in api.log(again["id"]), "the next run does not say what happened")
    assert api.run(run["id"])["state"]["type"] == "CRASHED"
    resumed, expected = (stored_files(folder / "store" / "gradients") for folder in (tmp_path, straight))
    assert resumed
    assert resumed.items() <= expected.items()  # there, gradients of the queries are, too


def test_a_killed_prefect_server(started_dataworth, dataworth, given, straight, tmp_path):
    port, words = free_port(), ("value", *given, *in_folder(tmp_path))
    address = f"http://127.0.0.1:{port}/api"
    there = {**FEW_RETRIES, "PREFECT_API_URL": address}
    with prefect_server_process(tmp_path / "prefect", port) as (server, _):
        process, log, left = started_dataworth(*words, environment=there)
        until_said(process, log, INDEXING)
        kill(server)
    sentence = said_by(process, log, 90)
    assert sentence.startswith(f"dataworth: the Prefect server at {address} does not answer"), sentence
    assert "the same command goes on from there" in sentence
    assert left() == []
    assert_nothing_partial(tmp_path / "out")
    away = dataworth(*words, environment=there)
    assert away.returncode == 1
    assert "Traceback" not in away.stderr
    assert away.stderr.startswith(f"dataworth: the Prefect server at {address} does not answer"), away.stderr
    with prefect_server_process(tmp_path / "prefect", port):
        again = dataworth(*words, environment=there)
    assert again.returncode == 0, again.stderr
    assert f"is marked Crashed: its process {process.pid} on" in again.stderr
    assert_same_values(tmp_path / "out", straight / "out")


@contextmanager
def mlflow_server(port):
    command = mlflow_command(port)
    with child(command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}) as process:
        wait_for(process, f"http://127.0.0.1:{port}/health", "the MLflow server")
        yield process


def test_a_killed_mlflow_server(started_dataworth, dataworth, given, straight, tmp_path):
    port, out = free_port(), tmp_path / "out"
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(port) as server:
        process, log, left = started_dataworth("value", *given, *in_folder(tmp_path), "--tracking.uri", address)
        until_said(process, log, INDEXING)
        kill(server)
    assert process.wait(600) == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert left() == []
    assert f"MLflow at {address} did not take" in log.read_text()
    assert f"dataworth publish --results {out}" in log.read_text()
    assert json.loads((out / "valuation.json").read_text())["mlflow"] is None
    assert_same_values(out, straight / "out")
    with mlflow_server(port):
        published = dataworth("publish", "--results", out)
    assert published.returncode == 0, published.stderr
    assert json.loads((out / "valuation.json").read_text())["mlflow"]["tracking_uri"] == address


# A worker that takes its time, and tells what it has done.
SLOW = """
import os, time
from pathlib import Path
from dataworth.tasks.scoring import shards

real = getattr(shards.score_shard, "__wrapped__", shards.score_shard)  # a preload is imported twice

def slow(*arguments, **named):
    time.sleep(0.5)
    (Path(os.environ["SCORED"]) / str(time.monotonic_ns())).touch()
    return real(*arguments, **named)

slow.__wrapped__ = real
shards.score_shard = slow
"""


@contextmanager
def cluster_of_processes(port, folder):
    """A scheduler and a slow worker; gives the scheduler's process."""
    (folder / "slow.py").write_text(SLOW)
    dask = [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", "127.0.0.1:0"]
    to = [*dask, "worker", f"tcp://127.0.0.1:{port}", "--host", "127.0.0.1", "--nthreads", "1"]
    to += ["--dashboard-address", "127.0.0.1:0", "--preload", str(folder / "slow.py"), "--death-timeout", "30"]
    with child(scheduler, {}) as process, child(to, {"SCORED": str(folder)}):
        yield process


def test_a_killed_dask_scheduler(started_dataworth, dataworth, given, straight, tmp_path):
    port, scored = free_port(), tmp_path / "scored"
    scored.mkdir()
    address = f"tcp://127.0.0.1:{port}"
    words = ("value", *given, *in_folder(tmp_path), "--cluster.address", address)
    with cluster_of_processes(port, scored) as scheduler:
        process, log, left = started_dataworth(*words)
        wait_until(lambda: len(list(scored.glob("[0-9]*"))) >= 1 or process.poll() is not None, "no shard")
        kill(scheduler)
        sentence = said_by(process, log, 120)
    assert sentence.startswith(f"dataworth: no Dask scheduler answers at {address}"), sentence
    assert f"the Dask scheduler at {address} went away while scoring" in log.read_text()
    assert left() == []
    assert_nothing_partial(tmp_path / "out")
    assert list((tmp_path / "store" / "scores").glob("[0-9a-f]*")) == []
    with cluster_of_processes(port, scored):
        again = dataworth(*words)
    assert again.returncode == 0, again.stderr
    assert "the corpus: 0 of" in again.stderr
    assert_same_values(tmp_path / "out", straight / "out")
