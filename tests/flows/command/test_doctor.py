"""The doctor finds what works and names what does not, with what to do."""

from dataworth.command.doctor import checks
from dataworth.serving.servers import free_port


def test_this_environment_is_well():
    found = {check.what: check for check in checks()}
    assert all(check.ok for check in found.values())
    assert {"torch", "prefect", "device", "store", "Prefect", "MLflow", "Dask"} <= found.keys()


def test_servers_that_do_not_answer_and_folders_that_cannot_be_written(monkeypatch, tmp_path):
    nobody = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("PREFECT_API_URL", nobody)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DATAWORTH_HOME", str(tmp_path / "file"))
    failing = {check.what: check.remedy for check in checks() if not check.ok}
    assert failing.keys() == {"Prefect", "MLflow", "store"}
    assert "unset PREFECT_API_URL" in failing["Prefect"]
    assert "set DATAWORTH_HOME" in failing["store"]


def test_versions_that_do_not_work_together_are_told(monkeypatch):
    real = {"fastapi": "0.165.0", "sqlalchemy": "2.1.9"}
    from dataworth.command import doctor

    original = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: real.get(name) or original(name))
    assert {check.what: check.remedy for check in checks() if not check.ok} == {
        "fastapi": "install fastapi<0.151",
        "sqlalchemy": "install sqlalchemy<2.1",
    }
