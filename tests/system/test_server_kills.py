"""SIGKILL of a worker, the Prefect server, MLflow and the Dask scheduler in the middle of a run: nothing is lost.

Each with processes of its own; what ran on has an end and a sentence, and the next run says what happened and goes on.
"""

import json
import os
import re
import signal
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest

from flows.deployments import apply_deployments, worker_command
from flows.servers import child, free_port, mlflow_command, wait_for
from tests.reference.checkpoints import TEXTS
from tests.system.test_operations import Api, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

# Of a command whose server is gone.
SECONDS_TO_GIVE_UP = 120.0


@pytest.fixture
def given(checkpoints, queries_file, tmp_path):
    """Options of a valuation that takes long enough to be met in the middle."""
    path, generator = tmp_path / "long.jsonl", np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    rows = [{"id": f"d{n}", "source": f"s{n % 4}", "text": " ".join(generator.choice(words, 24))} for n in range(4_000)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return (
        *("--model", checkpoints["llama"], "--corpus", path, "--corpus.max_length", 32, "--queries", queries_file),
        *("--projection.rank", 16, "--curvature", "none", "--store", tmp_path / "store", "--results", tmp_path / "out"),
    )


def killed(process):
    """SIGKILL of a process and of all it started."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.wait(20)


def prefect_server(folder, port):
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    own = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": "", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return child(command, own)


def met(process, log, line):
    wait_until(lambda: line in log.read_text() or process.poll() is not None, 120, f"no {line!r}")
    assert line in log.read_text(), log.read_text()


def values(folder):
    return pd.read_parquet(folder / "sources.parquet").set_index(["query_id", "source"])["value"]


def last_line(text):
    return [line for line in text.splitlines() if line.startswith("dataworth: ")][-1]


def test_a_worker_and_what_it_ran(given, started_dataworth, dataworth, tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    own = {"PREFECT_API_URL": address, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    names = iter(given)
    options = dict(zip(names, names, strict=True))
    config = {
        "model": {"name": str(options["--model"])},
        "corpus": {"files": [str(options["--corpus"])], "max_length": 32},
        "projection": {"rank": 16},
        "curvature": {"kind": "none"},
        "store": str(options["--store"]),
    }
    with prefect_server(tmp_path / "prefect", port) as server:
        wait_for(server, f"{address}/health", "the Prefect server")
        apply_deployments(address, own)
        api = Api(address)
        with child(worker_command(), own) as worker:
            run = api.start("index-corpus", config)
            wait_until(lambda: "examples to compute" in api.log(run["id"]), 90, "the run does not begin")
            killed(worker)
        with child(worker_command(), own):
            again = api.start("index-corpus", config)
            state = wait_until(lambda: api.ended(again["id"]), 180, "the run does not end")
            assert state["type"] == "COMPLETED", state
        assert api.run(run["id"])["state"]["type"] == "CRASHED"
        assert f"({run['id']}) is marked Crashed" in api.log(again["id"])
    verified = dataworth("verify", "--store", config["store"])
    assert verified.returncode == 0, verified.stdout
    assert " 0 damaged" in verified.stdout


def test_the_prefect_server(given, started_dataworth, dataworth, tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    own = {"PREFECT_API_URL": address}
    with prefect_server(tmp_path / "prefect", port) as server:
        wait_for(server, f"{address}/health", "the Prefect server")
        process, log, left = started_dataworth("value", *given, environment=own)
        met(process, log, "examples to compute")
        killed(server)
        start = time.monotonic()
        code = process.wait(2 * SECONDS_TO_GIVE_UP)
        assert time.monotonic() - start < SECONDS_TO_GIVE_UP
    assert code == 1, log.read_text()
    said = last_line(log.read_text())
    assert f"127.0.0.1:{port}" in said, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert left() == []
    assert not (tmp_path / "out").exists()
    with prefect_server(tmp_path / "prefect", port) as server:
        wait_for(server, f"{address}/health", "the Prefect server")
        again = dataworth("value", *given, environment=own)
        assert again.returncode == 0, again.stderr
        assert "is marked Crashed" in again.stderr
    straight = dataworth("value", *given, "--store", tmp_path / "other", "--results", tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    pd.testing.assert_series_equal(values(tmp_path / "out"), values(tmp_path / "straight"))


def test_mlflow(given, started_dataworth, dataworth, tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with child(mlflow_command(port), {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}) as server:
        wait_for(server, f"{address}/health", "MLflow")
        process, log, _ = started_dataworth("value", *given, "--tracking.uri", address)
        met(process, log, "examples to compute")
        killed(server)
        assert process.wait(2 * SECONDS_TO_GIVE_UP) == 0, log.read_text()
    out = tmp_path / "out"
    assert "Traceback" not in log.read_text()
    assert f"dataworth publish --results {out}" in log.read_text()
    assert json.loads((out / "valuation.json").read_text())["mlflow"] is None
    with child(mlflow_command(port), {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}) as server:
        wait_for(server, f"{address}/health", "MLflow")
        published = dataworth("publish", "--results", out)
        assert published.returncode == 0, published.stderr
    assert json.loads((out / "valuation.json").read_text())["mlflow"]["tracking_uri"] == address


def dask(kind, *words):
    return child([sys.executable, "-m", f"distributed.cli.dask_{kind}", *map(str, words)], {})


def test_the_dask_scheduler(given, started_dataworth, dataworth, tmp_path):
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ("--host", "127.0.0.1", "--port", port, "--no-dashboard")
    worker = (address, "--nthreads", 1, "--nworkers", 1, "--no-dashboard", "--local-directory", tmp_path)
    indexed = dataworth("index", *index_words(given))
    assert indexed.returncode == 0, indexed.stderr
    with dask("scheduler", *scheduler) as process, dask("worker", *worker):
        started, log, left = started_dataworth("value", *given, "--cluster.address", address)
        met(started, log, "score every document for every query")
        os.kill(process.pid, signal.SIGKILL)
        start = time.monotonic()
        code = started.wait(2 * SECONDS_TO_GIVE_UP)
        assert time.monotonic() - start < SECONDS_TO_GIVE_UP
    assert code == 1, log.read_text()
    assert re.search(r"Dask scheduler", last_line(log.read_text())), log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert left() == []
    assert not (tmp_path / "out" / "valuation.json").exists()
    with dask("scheduler", *scheduler), dask("worker", *worker):
        again = dataworth("value", *given, "--cluster.address", address)
        assert again.returncode == 0, again.stderr
    own = dataworth(
        "value", *given, "--store", tmp_path / "store", "--results", tmp_path / "own", "--cluster.workers", 1
    )
    assert own.returncode == 0, own.stderr
    pd.testing.assert_series_equal(values(tmp_path / "out"), values(tmp_path / "own"))


def index_words(given):
    """Those of the options that `index` takes."""
    names = iter(given)
    pairs = zip(names, names, strict=True)
    return [word for name, value in pairs if name not in ("--queries", "--results") for word in (name, value)]
