"""`dataworth ui`: what is wrong is a sentence, and nothing stays; what it shows is in test_browser.py."""

import re

import pytest

from tests.harness.api import served

pytestmark = [pytest.mark.system, pytest.mark.slow]


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
    assert process.wait(600) == 130
    assert left() == []
