"""`dataworth ui`: both servers and the flows come up, a run started there ends, and Ctrl-C leaves nothing."""

import re
import signal

import httpx
import pytest

from tests.reference.api import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_the_ui_runs_a_valuation_from_its_form(started_dataworth, checkpoints, corpus_file, queries_file, tmp_path):
    own = {"PREFECT_HOME": str(tmp_path / "prefect"), "DATAWORTH_HOME": str(tmp_path / "home")}
    process, log, left = started_dataworth(
        "ui", "--prefect-port", "0", "--mlflow-port", "0", environment=own, script=True
    )
    wait_until(lambda: "Ctrl-C ends both" in log.read_text() or process.poll() is not None, 180, "no servers")
    prefect, mlflow = re.search(r"Prefect  (\S+)/deployments\nMLflow   (\S+)/#/experiments", log.read_text()).groups()

    def deployments():
        found = httpx.post(f"{prefect}/api/deployments/filter", json={}).json()
        return {item["entrypoint"].split(".")[-1]: item for item in found}

    offered = wait_until(lambda: len(deployments()) == 5 and deployments(), 90, "no deployments")
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
    start = f"{prefect}/api/deployments/{offered['value_corpus']['id']}/create_flow_run"
    wrong = httpx.post(start, json={"parameters": {"config": {**config, "projection": {"rank": 99_999}}}}, timeout=60)
    assert wrong.status_code == 409, wrong.text
    assert "99999 is greater than the maximum of 4096" in wrong.text

    def submitted():
        answer = httpx.post(start, json={"parameters": {"config": config}}, timeout=60)
        # On SQLite the server answers 503, with a Retry-After, while another process writes; its own client retries.
        assert answer.status_code in (201, 503), answer.text
        return answer if answer.status_code == 201 else None

    answer = wait_until(submitted, 60, "the server is busy all the time")
    run = answer.json()

    def ended():
        state = httpx.get(f"{prefect}/api/flow_runs/{run['id']}").json()["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    assert wait_until(ended, 180, "the run does not end")["type"] == "COMPLETED"
    assert (tmp_path / "out" / "valuation.json").is_file()
    experiment = httpx.get(
        f"{mlflow}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "from the form"}
    ).json()
    assert experiment["experiment"]["name"] == "from the form"
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
    wait_until(lambda: "Ctrl-C ends both" in log.read_text() or process.poll() is not None, 180, "no servers")
    process.terminate()
    assert process.wait(90) == 130
    assert left() == []
