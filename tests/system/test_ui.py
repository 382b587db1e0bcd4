"""`dataworth ui`: both servers and the flows come up, a run started there ends, and Ctrl-C leaves nothing."""

import re
import signal

import httpx
import psutil
import pytest

from tests.harness.api import migrated_home, served, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]


def assert_nobody_is_told(key, folder, log):
    """No file and no command holds the key, but for what was printed in the terminal: databases, logs, results.

    This user's other commands find it in a file that nobody else can read.
    """
    told = {path for path in folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()}
    (record,) = told - {log}
    assert record.name == "server.json"
    assert record.stat().st_mode & 0o077 == 0
    assert log.read_text().count(key) == 2  # in the address, and for other terminals
    assert not any(key in word for process in psutil.process_iter() for word in command_of(process))


def command_of(process):
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_the_ui_runs_a_valuation_from_its_form(started_dataworth, checkpoints, corpus_file, queries_file, tmp_path):
    own = {"PREFECT_HOME": migrated_home(tmp_path / "prefect"), "DATAWORTH_HOME": str(tmp_path / "home")}
    process, log, left = started_dataworth(
        "ui", "--prefect-port", "0", "--mlflow-port", "0", environment=own, script=True
    )
    ui = served(process, log)
    api = ui.api

    def deployments():
        return {item["entrypoint"].split(".")[-1]: item for item in api.deployments()}

    offered = wait_until(lambda: len(deployments()) == 5 and deployments(), "no deployments")
    schema = offered["value_corpus"]["parameter_openapi_schema"]
    rank = schema["definitions"]["ProjectionConfig"]["properties"]["rank"]
    assert rank["maximum"] == 4096
    assert rank["description"] == "Dimensions kept on each side of a layer."
    config = {
        "model": {"name": str(checkpoints["llama"])},
        "corpus": {"files": [str(corpus_file)], "max_length": 32},
        "queries": {"file": str(queries_file)},
        "projection": {"rank": 4},
        "store": str(tmp_path / "store"),
        "results": str(tmp_path / "out"),
        "tracking": {"experiment": "from the form"},
    }
    start = f"/deployments/{offered['value_corpus']['id']}/create_flow_run"
    wrong = api.answer("POST", start, {"parameters": {"config": {**config, "projection": {"rank": 99_999}}}})
    assert wrong.status_code == 409, wrong.text
    assert "99999 is greater than the maximum of 4096" in wrong.text
    run = api.start("value-corpus", config)
    assert wait_until(lambda: api.ended(run["id"]), "the run does not end")["type"] == "COMPLETED"
    assert (tmp_path / "out" / "valuation.json").is_file()
    experiment = httpx.get(
        f"{ui.mlflow}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "from the form"}
    ).json()
    assert experiment["experiment"]["name"] == "from the form"
    assert_nobody_is_told(ui.key, tmp_path, log)
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 130
    assert left() == []


def test_a_taken_port_is_a_sentence(dataworth, prefect_server):
    port = re.search(r":(\d+)/", prefect_server).group(1)
    result = dataworth("ui", "--prefect-port", port, "--mlflow-port", "0")
    assert result.returncode == 2
    assert result.stderr.strip() == (
        f"dataworth: --prefect-port {port}: not free (Address already in use); 0 picks a free one"
    )


def test_a_home_that_cannot_be_made_is_a_sentence(script, tmp_path):
    (tmp_path / "file").touch()
    result = script("ui", environment={"PREFECT_HOME": str(tmp_path / "file" / "prefect")})
    assert result.returncode == 2
    reason = "cannot be written (Not a directory); set PREFECT_HOME to a folder that can"
    assert result.stderr == f"dataworth: PREFECT_HOME {tmp_path}/file/prefect: {reason}\n"


def test_a_terminated_ui_ends_its_servers(started_dataworth, tmp_path):
    own = {"PREFECT_HOME": str(tmp_path / "new" / "prefect"), "DATAWORTH_HOME": str(tmp_path / "other" / "home")}
    process, log, left = started_dataworth("ui", "--prefect-port", "0", "--mlflow-port", "0", environment=own)
    served(process, log)
    process.terminate()
    assert process.wait(90) == 130
    assert left() == []
