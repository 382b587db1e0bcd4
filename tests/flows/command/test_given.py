"""Folders that a command writes to where nobody named others: made, or refused before anything heavy is started."""

import subprocess
import sys

import pytest

from dataworth.command.doctor import checks
from dataworth.command.given import make_homes
from dataworth.config import AuditRunConfig, CorpusRunConfig, DemoConfig, PublishConfig, SearchConfig, ValueConfig
from dataworth.storage.errors import InputError
from dataworth.tasks.report.config import TrackingConfig

MODEL = {"model": {"name": ["m"]}, "corpus": {"files": ["c"]}}
VALUE = {**MODEL, "queries": {"file": "q"}, "results": "r"}
STORE, TRACKED = {"store": "s"}, {"tracking": TrackingConfig(uri="sqlite:///m.db")}


@pytest.fixture(params=["/proc/1", "/dev/null/x", "below a file"])
def homeless(request, monkeypatch, tmp_path):
    """A home folder that cannot be written, whoever one is."""
    if request.param == "below a file":
        (tmp_path / "file").write_text("x")
    home = str(tmp_path / "file" / "x") if request.param == "below a file" else request.param
    monkeypatch.setenv("HOME", home)
    for name in ("DATAWORTH_HOME", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return home


def test_what_to_set_is_said(homeless, monkeypatch, tmp_path):
    with pytest.raises(InputError) as caught:
        make_homes()
    assert str(caught.value).startswith(f"{homeless}/.prefect (Prefect's folder, PREFECT_HOME is not set): cannot be")
    assert str(caught.value).endswith("; set PREFECT_HOME to a folder that can")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "new" / "prefect"))
    with pytest.raises(InputError, match=f"^{homeless}/.dataworth .*; set DATAWORTH_HOME to a folder that can$"):
        make_homes()
    assert (tmp_path / "new" / "prefect").is_dir()
    monkeypatch.setenv("DATAWORTH_HOME", str(tmp_path / "ours"))
    make_homes()
    assert list((tmp_path / "ours").iterdir()) == []
    monkeypatch.setenv("DATAWORTH_HOME", f"{homeless}/y")
    with pytest.raises(InputError, match=f"^DATAWORTH_HOME {homeless}/y: cannot be written"):
        make_homes()


NEEDS = [
    (CorpusRunConfig(**MODEL), True),
    (CorpusRunConfig(**MODEL, **STORE), False),
    (SearchConfig(**MODEL, **STORE, query="x"), False),
    (ValueConfig(**VALUE, **STORE), True),
    (ValueConfig(**VALUE, **TRACKED), True),
    (ValueConfig(**VALUE, **STORE, **TRACKED), False),
    (AuditRunConfig(results="r", audit={"problem": "digits"}, **STORE), True),
    (PublishConfig(results="r"), True),
    (PublishConfig(results="r", **TRACKED), False),
    (DemoConfig(), True),
]


@pytest.mark.parametrize(("config", "needs_home"), NEEDS, ids=range(len(NEEDS)))
def test_a_home_that_nothing_is_kept_in_is_not_asked_for(monkeypatch, tmp_path, config, needs_home):
    monkeypatch.setenv("DATAWORTH_HOME", "/dev/null/x")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if needs_home:
        with pytest.raises(InputError, match="DATAWORTH_HOME /dev/null/x: cannot be written"):
            make_homes(config)
    else:
        make_homes(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    if getattr(config, "store", "named") is not None:
        make_homes(config)


def test_nobody_knows_of_a_home(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.delenv("PREFECT_HOME")
    with pytest.raises(InputError, match="no home folder is known for ~/.prefect: set PREFECT_HOME to a folder"):
        make_homes()


def test_the_doctor_says_it(homeless):
    failing = {check.what: check.remedy for check in checks() if not check.ok}
    assert "set DATAWORTH_HOME" in failing["store"]
    assert "set PREFECT_HOME" in failing["Prefect's home"]


def test_a_command_is_refused_before_anything_heavy_is_imported(homeless, tmp_path):
    (tmp_path / "c.jsonl").write_text("{}")
    program = (
        "import sys; from dataworth.command import cli;"
        "sys.argv = ['dataworth', 'index', '--model', 'm', '--corpus', sys.argv[1]];"
        "code = cli._exit_code(); assert not {'prefect', 'torch'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "c.jsonl"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"dataworth: {homeless}/.prefect ")
    assert done.stderr.count("\n") == 1
