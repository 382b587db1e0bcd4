"""The services of infra/compose.yaml without containers: their commands, health checks and environments as processes.

PostgreSQL, the Prefect server and MLflow on it, a Dask scheduler and a worker, a Prefect worker; and a valuation asked
of the pool, which uses all of them.
"""

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psycopg2
import pytest
from distributed import Client
from mlflow.tracking import MlflowClient
from prometheus_client.parser import text_string_to_metric_families

from dataworth.serving.servers import child
from tests.harness.compose import CODE, OnLoopback, secret_names

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("services")]  # one set of services

SECONDS_TO_START = 600.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def postgresql_programs() -> Path:
    """Folder of initdb and postgres; where Debian keeps them they are not on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    if found or on_path:
        return (found[-1] if found else Path(on_path).resolve()).parent
    sentence = "PostgreSQL is not installed (no initdb): `apt-get install postgresql`, as .ci/run does"
    return pytest.fail(sentence) if os.environ.get("CI") else pytest.skip(sentence)


def as_postgres(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return command
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


def is_well(here: OnLoopback, name: str) -> bool:
    environment = {**os.environ, **here.environment(name)}
    return subprocess.run(here.health(name), env=environment, capture_output=True, check=False).returncode == 0


def wait_until_well(here: OnLoopback, name: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not is_well(here, name):
        assert process.poll() is None, f"{name} ended with exit code {process.returncode}"
        assert time.monotonic() < deadline, f"{name} is not well after {SECONDS_TO_START:.0f} s"
        time.sleep(0.5)


@contextmanager
def database(here: OnLoopback, given: dict[str, str]) -> Iterator[None]:
    """What PostgreSQL's image does: a new cluster, its server, and the script that is run once."""
    folder = here.folder("postgres", "/var/lib/postgresql/data")
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    password = folder.parent / "password"
    password.write_text(given["POSTGRES_PASSWORD"])
    environment = here.environment("postgres")
    initdb = [str(here.programs / "initdb"), "--username", "postgres", environment["POSTGRES_INITDB_ARGS"]]
    initdb += ["--pgdata", str(folder), "--pwfile", str(password), "--no-sync"]
    subprocess.run(as_postgres(initdb), check=True, capture_output=True)
    server = as_postgres([*here.command("postgres"), "-D", str(folder), "-k", str(folder)])
    with child(server, environment) as process:
        wait_until_well(here, "postgres", process)
        script = here.mounted_file("postgres", "create-databases.sh")
        client = {"PGHOST": "127.0.0.1", "PGPORT": here.ports["postgres"]["5432"]}
        client |= {"PGPASSWORD": given["POSTGRES_PASSWORD"], "PATH": f"{here.programs}:{os.environ['PATH']}"}
        subprocess.run(["sh", script], env={**os.environ, **environment, **client}, check=True)
        yield


@pytest.fixture(scope="module")
def given() -> dict[str, str]:
    return {name: secrets.token_hex(32) for name in secret_names()}


@pytest.fixture(scope="module")
def stack(given) -> Iterator[OnLoopback]:
    """All services of the compose file, started in its order, each well by its own health check."""
    programs = postgresql_programs()
    # Not below pytest's folder, which is closed to PostgreSQL's user.
    root = Path(tempfile.mkdtemp(prefix="dataworth-infra-"))
    root.chmod(0o755)
    here = OnLoopback(given, root, programs)
    with ExitStack() as started:
        started.callback(shutil.rmtree, root, ignore_errors=True)
        assert not any(is_well(here, name) for name in here.services if name != "deployments")
        started.enter_context(database(here, given))
        for level in (["prefect-server", "mlflow", "dask-scheduler", "dask-worker"], ["prefect-worker"]):
            processes = {
                name: started.enter_context(child(here.command(name), here.environment(name))) for name in level
            }
            for name, process in processes.items():
                wait_until_well(here, name, process)
        offer = subprocess.run(
            here.command("deployments"),
            env={**os.environ, **here.environment("deployments")},
            cwd=CODE,
            capture_output=True,
            text=True,
            check=False,
        )
        assert offer.returncode == 0, offer.stdout + offer.stderr
        yield here


def rows(here: OnLoopback, given: dict[str, str], role: str, query: str, *values: str) -> list[tuple]:
    """Of the role's database."""
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=here.ports["postgres"]["5432"],
        user=role,
        dbname=role,
        password=given[f"{role.upper()}_DATABASE_PASSWORD"],
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall()
    finally:
        connection.close()


def run_on_pool(prefect: httpx.Client, config: dict) -> dict:
    """A flow run of the pool's value-corpus that has ended."""
    offered = prefect.get("/deployments/name/value-corpus/dataworth").raise_for_status().json()
    answer = prefect.post(f"/deployments/{offered['id']}/create_flow_run", json={"parameters": {"config": config}})
    assert answer.status_code == 201, answer.text
    run_id = answer.json()["id"]
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        run = prefect.get(f"/flow_runs/{run_id}").json()
        if run["state"]["type"] in ENDED:
            return run
        time.sleep(0.5)
    raise AssertionError("the run does not end")


def scored_shards(here: OnLoopback) -> float:
    """How many results of scoring the scheduler's workers have given, as it tells Prometheus."""
    metrics = httpx.get(f"http://{here.address['dask-scheduler:8787']}/metrics").raise_for_status().text
    wanted = {"task_prefix_name": "score_shard", "state": "memory"}
    samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.labels == wanted)


def check_mlflow(stack, given, tmp_path) -> None:
    """The run is in MLflow's PostgreSQL, its artifacts in MLflow's volume, and they come back through the server."""
    query = (
        "SELECT runs.run_uuid, artifact_uri, status FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid "
        "WHERE tags.key = 'dataworth.kind' AND tags.value = 'valuation'"
    )
    ((run_id, address, status),) = rows(stack, given, "mlflow", query)
    assert (status, address.partition(":")[0]) == ("FINISHED", "mlflow-artifacts")
    client = MlflowClient(stack.environment("prefect-worker")["MLFLOW_TRACKING_URI"])
    assert {item.path for item in client.list_artifacts(run_id)} >= {"report.html", "sources.parquet", "figures"}
    fetched = Path(client.download_artifacts(run_id, "report.html", str(tmp_path)))
    (kept,) = stack.folder("mlflow", "/var/lib/mlflow").rglob("report.html")
    made = stack.folder("prefect-worker", "/data") / "results" / "out" / "report.html"
    assert fetched.read_bytes() == kept.read_bytes() == made.read_bytes()


@pytest.fixture
def config(stack, checkpoints, corpus_file, queries_file) -> dict:
    """Of a valuation of what lies in the folder of inputs."""
    inputs = stack.folder("prefect-worker", "/inputs")
    shutil.copytree(checkpoints["llama"], inputs / "model", dirs_exist_ok=True)
    documents, queries = (shutil.copy(file, inputs) for file in (corpus_file, queries_file))
    return {
        "model": {"name": str(inputs / "model")},
        "corpus": {"files": [documents], "max_length": 32},
        "queries": {"file": queries},
        "projection": {"rank": 4},
        "curvature": {"draws": 2},
        "results": str(stack.folder("prefect-worker", "/data") / "results" / "out"),
    }


@pytest.fixture
def prefect(stack, given) -> Iterator[httpx.Client]:
    address = stack.environment("prefect-worker")["PREFECT_API_URL"]
    with httpx.Client(base_url=address, auth=("dataworth", given["PREFECT_PASSWORD"]), timeout=60) as client:
        yield client


def test_a_valuation_uses_every_service(stack, given, prefect, config, tmp_path, monkeypatch):
    client = stack.environment("prefect-worker")
    run = run_on_pool(prefect, config)
    assert run["state"]["type"] == "COMPLETED", run["state"]
    found = rows(stack, given, "prefect", "SELECT state_type::text FROM flow_run WHERE id = %s", run["id"])
    assert found == [("COMPLETED",)]
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, client[name])
    check_mlflow(stack, given, tmp_path)
    with Client(client["DATAWORTH_DASK"], set_as_default=False) as dask:
        assert len(dask.scheduler_info()["workers"]) == 1
    assert scored_shards(stack) > 0
    assert stack.folder("dask-worker", "/data") == stack.folder("prefect-worker", "/data")


def test_a_run_names_what_its_worker_permits_and_no_command(stack, prefect, config):
    state = run_on_pool(prefect, {**config, "corpus": {"files": ["/etc/passwd"]}})["state"]
    inputs = stack.folder("prefect-worker", "/inputs")
    assert state["type"] == "FAILED"
    assert f"corpus.files /etc/passwd: not permitted here; DATAWORTH_INPUTS permits {inputs}" in state["message"]
    pool = prefect.get("/work_pools/dataworth").json()["base_job_template"]
    assert pool == json.loads((CODE / "flows" / "serving" / "job-template.json").read_text())


def test_nobody_gets_in_without_the_secrets(stack):
    client = stack.environment("prefect-worker")
    asked = {"experiment_ids": ["0"], "max_results": 1}
    for auth in (None, ("dataworth", "dataworth"), ("admin", "password1234")):
        answer = httpx.post(f"{client['PREFECT_API_URL']}/flow_runs/filter", json={}, auth=auth)
        assert answer.status_code == 401
        answer = httpx.post(f"{client['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/runs/search", json=asked, auth=auth)
        assert answer.status_code == 401
    port = stack.ports["postgres"]["5432"]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(host="127.0.0.1", port=port, user="postgres", password="postgres", dbname="postgres")
