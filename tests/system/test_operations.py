"""Deployments as they live: a schedule fires by itself, a run is cancelled, runs overlap, machines die."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from dataworth.serving.deployments import apply_deployments, worker_command
from dataworth.serving.servers import child
from dataworth.storage.locations import StoreFolders
from dataworth.storage.manifest import writer_lock
from tests.harness.api import Api, prefect_server_process, wait_until
from tests.reference.checkpoints import TEXTS

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("deployments")]  # one worker of a pool

SECONDS_TO_CANCEL = 15.0
BATCH_TOKENS = 128
LONG = ("--corpus.max_length", "32", "--projection.rank", "16", "--gradients.batch_tokens", str(BATCH_TOKENS))
CANCELLED_AT_ITS_END = """
from prefect import flow, get_client
from prefect.runtime import flow_run
from prefect.states import Cancelling

from dataworth.lifecycle.cancelling import unless_cancelled


def cancel():
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, Cancelling())


@flow
def done_at_once():
    print(flow_run.id)
    return unless_cancelled(cancel)


done_at_once(return_state=True)
"""

ASKED_FOR_TWICE = """
from prefect import flow, get_client
from prefect.context import FlowRunContext
from prefect.states import Pending

from dataworth.lifecycle.runs import announce


@flow
def inner():
    own = FlowRunContext.get().flow_run
    with get_client(sync_client=True) as client:
        for parent in (own.parent_task_run_id, None):
            twin = client.create_flow_run(inner, state=Pending(), parent_task_run_id=parent)
            print(twin.id)
    announce()
    print(own.id)


@flow
def outer():
    inner()


outer()
"""


def printed_by(script, api):
    """What a script prints in a process of its own, which uses this server."""
    environment = {**os.environ, "PREFECT_API_URL": api.address}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory):
    """One of its own: work pools and deployments have the same names everywhere."""
    with prefect_server_process(tmp_path_factory.mktemp("prefect")) as (_, address):
        yield address


@pytest.fixture(scope="module")
def api(prefect_server, tmp_path_factory):
    """A server with every deployment, and a worker, in the folder of somebody whose own code has such names."""
    own = tmp_path_factory.mktemp("own")
    for name in ("flows", "storage"):
        (own / name).mkdir()
        (own / name / "__init__.py").write_text("raise ImportError('somebody else's')\n")
    (own / "tasks.py").write_text("raise ImportError('somebody else's')\n")
    environment = {"PREFECT_API_URL": prefect_server, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    with ExitStack() as lasting:
        with chdir(own):
            apply_deployments(prefect_server, {"PREFECT_API_URL": prefect_server})
            process = lasting.enter_context(child(worker_command(), environment))
        served = Api(prefect_server)
        served.worker = process
        yield served


@pytest.fixture(autouse=True)
def nothing_goes_on(api):
    """Runs of an earlier test would take the two places that a deployment has."""
    wait_until(lambda: not api.going_on(), "runs of an earlier test do not end")


@pytest.fixture
def config(checkpoints, corpus_file, queries_file, tmp_path):
    return {
        "model": {"name": str(checkpoints["llama"])},
        "corpus": {"files": [str(corpus_file)], "max_length": 32},
        "queries": {"file": str(queries_file)},
        "projection": {"rank": 4},
        "store": str(tmp_path / "store"),
        "results": str(tmp_path / "out"),
    }


@pytest.fixture
def long_config(config, tmp_path):
    """Enough documents, in batches small enough, that a run can be cancelled in the middle of its shards."""
    path, generator = tmp_path / "long.jsonl", np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    rows = [{"id": f"d{n}", "source": f"s{n % 4}", "text": " ".join(generator.choice(words, 24))} for n in range(4_000)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return config | {"corpus": {"files": [str(path)], "max_length": 32}, "curvature": {"kind": "none"},
                     "projection": {"rank": 16}, "gradients": {"batch_tokens": BATCH_TOKENS}}  # fmt: skip


def indexing(config):
    return {name: value for name, value in config.items() if name not in ("queries", "results")}


def test_a_schedule_fires_by_itself_and_finds_what_is_there(api, config):
    path, schedule = api.schedule("value-corpus", 20, config)
    ours = {"deployments": {"id": {"any_": [api.deployment("value-corpus")["id"]]}}}

    def finished():
        done = [run for run in api.runs(**ours) if run["state"]["type"] == "COMPLETED" and run["auto_scheduled"]]
        return done if len(done) >= 2 else None

    try:
        first, second = wait_until(finished, "the schedule does not fire twice")[:2]
    finally:
        api.unschedule(path, schedule)
    assert first["name"] == "llama on corpus.jsonl"
    assert {"dataworth", "valuation", "model:llama"} <= set(second["tags"])
    assert re.search(r"the corpus: [1-9]\d* of", api.log_of_all(first["id"]))
    wait_until(lambda: "the corpus: 0 of" in api.log_of_all(second["id"]), "it computed gradients")
    assert re.search(r"curvature: there already", api.log_of_all(second["id"]))
    events = {"filter": {"event": {"name": ["dataworth.valuation.finished"]}}}
    told = wait_until(lambda: api._asked("POST", "/events/filter", events)["events"], "no event")
    assert told[0]["payload"]["results"] == config["results"]


def test_a_cancelled_run_stops_soon_and_is_resumed(api, dataworth, long_config):
    """A valuation, in the middle of the subflow that stores its gradients."""
    run = api.start("value-corpus", long_config)
    wait_until(lambda: "examples to compute" in api.log_of_all(run["id"]), "the run does not begin")
    time.sleep(1.0)
    process = psutil.Process(api.run(run["id"])["labels"]["dataworth.process"])
    family = [process, *process.children(recursive=True)]
    started = time.monotonic()
    api.set_state(run["id"], "CANCELLING")
    state = wait_until(lambda: api.ended(run["id"]), "the run is not cancelled")
    settled = time.monotonic() - started
    wait_until(lambda: not any(member.is_running() for member in family), "its processes stay")
    seconds = time.monotonic() - started
    sys.stderr.write(f"seconds from Cancelling to Cancelled: {settled:.1f}\n")
    sys.stderr.write(f"seconds from Cancelling to the end of all processes: {seconds:.1f}\n")
    assert state["type"] == "CANCELLED"
    assert seconds < SECONDS_TO_CANCEL
    fitted, indexed = (each["state"]["type"] for each in api.subflows(run["id"]))
    assert (fitted, indexed) == ("COMPLETED", "CANCELLED")
    assert not Path(long_config["results"]).exists()
    again = api.start("value-corpus", long_config)
    assert wait_until(lambda: api.ended(again["id"]), "the run does not end")["type"] == "COMPLETED"
    assert (Path(long_config["results"]) / "sources.parquet").is_file()
    verified = dataworth("verify", "--store", long_config["store"])
    assert verified.returncode == 0, verified.stdout
    assert " 0 damaged" in verified.stdout


def test_a_run_of_the_command_line_is_cancelled_from_the_api(api, started_dataworth, long_config):
    words = ("index", "--model", long_config["model"]["name"], "--corpus", *long_config["corpus"]["files"])
    words += ("--store", long_config["store"], *LONG)
    process, log, left = started_dataworth(*words)
    wait_until(lambda: "examples to compute" in log.read_text() or process.poll() is not None, "it does not begin")
    run = api.running(process)
    started = time.monotonic()
    api.set_state(run["id"], "CANCELLING")
    assert process.wait(600) == 1, log.read_text()
    seconds = time.monotonic() - started
    sys.stderr.write(f"seconds from Cancelling to the end of the command: {seconds:.1f}\n")
    assert seconds < SECONDS_TO_CANCEL
    assert left() == []
    assert api.run(run["id"])["state"]["type"] == "CANCELLED"


def test_a_run_that_is_cancelled_when_its_work_is_done(api):
    """The server refuses what a run says of its end once it is Cancelling."""
    printed = printed_by(CANCELLED_AT_ITS_END, api)
    state = api.run(printed.strip())["state"]
    assert (state["type"], state["message"]) == ("CANCELLED", "cancelled when all its work was done, which is kept")


def test_a_flow_that_was_asked_for_twice_runs_once(api):
    """A client that does not wait for the answer of a busy server asks again, and the first run would stay Pending."""
    printed = printed_by(ASKED_FOR_TWICE, api)
    twin, stranger, own = printed.split()
    said = [api.run(name)["state"] for name in (twin, stranger, own)]
    assert [state["type"] for state in said] == ["CRASHED", "PENDING", "COMPLETED"]
    assert said[0]["message"] == f"asked for twice: it runs as {own}"
    api.set_state(stranger, "CANCELLED")


def stamps(store):
    """When every file was last written, but for locks."""
    paths = [path for path in Path(store).rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path): path.stat().st_mtime_ns for path in paths}


@contextmanager
def somebody_writing(store):
    """Holds the lock of the gradients that are there."""
    (gradients,) = StoreFolders(store).gradients.folders()
    with writer_lock(gradients):
        yield


def test_overlapping_runs_wait_or_are_skipped(api, config):
    first = api.start("index-corpus", indexing(config))
    assert wait_until(lambda: api.ended(first["id"]), "the run does not end")["type"] == "COMPLETED"
    with Path(config["corpus"]["files"][0]).open("a") as file:  # runs that have nothing to write need not wait
        file.write(f"{json.dumps({'id': 'new', 'source': 's0', 'text': TEXTS[1] + TEXTS[2]})}\n")
    with somebody_writing(config["store"]):
        waits = api.start("index-corpus", indexing(config) | {"overlap": "wait"})
        wait_until(lambda: "waiting for another run to end" in api.log(waits["id"]), "it does not say so")
        before = stamps(config["store"])
        skips = api.start("index-corpus", indexing(config) | {"overlap": "skip"})
        state = wait_until(lambda: api.ended(skips["id"]), "it is not skipped")
        assert (state["type"], state["name"]) == ("COMPLETED", "Skipped")
        assert "another run is writing" in state["message"]
        assert stamps(config["store"]) == before
        assert api.ended(waits["id"]) is None
    assert wait_until(lambda: api.ended(waits["id"]), "it waits for good")["type"] == "COMPLETED"
    wait_until(lambda: re.search(r"the corpus: [1-9]\d* of", api.log(waits["id"])), "it computed nothing")


def running_tasks(api, run):
    return [name for name, state in api.task_states(run["id"]).items() if state == "RUNNING"]


def test_a_run_that_was_killed_is_marked_and_resumed(api, started_dataworth, dataworth, long_config):
    words = ("index", "--model", long_config["model"]["name"], "--corpus", *long_config["corpus"]["files"])
    words += ("--store", long_config["store"], *LONG)
    process, log, _ = started_dataworth(*words)
    wait_until(lambda: "examples to compute" in log.read_text() or process.poll() is not None, "it does not begin")
    run = api.running(process)
    (holder,) = wait_until(lambda: running_tasks(api, run), "the server does not hear of its task")
    process.kill()
    process.wait(10)
    assert api.run(run["id"])["state"]["type"] == "RUNNING"  # nobody told the server
    again = dataworth(*words)
    assert again.returncode == 0, again.stderr
    assert f"({run['id']}) is marked Crashed: its process {process.pid} on" in again.stderr
    assert api.run(run["id"])["state"]["type"] == "CRASHED"
    assert api.task_states(run["id"])[holder] == "CRASHED"  # which frees its place on the device at once
