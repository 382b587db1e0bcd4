"""What talks to whom: schedulers under TLS only, servers on loopback, one whole valuation that asks nobody else."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed.security import Security

from dataworth import ENVIRONMENT
from dataworth.serving.servers import mlflow_command
from dataworth.storage.errors import DataworthError, InputError
from dataworth.tasks.cluster import dask_client
from dataworth.tasks.configuration import ClusterConfig
from tests.harness.api import migrated_home
from tests.harness.hostile import NAMES

ROOT = Path(__file__).parents[2]
OPTIONS = {"ca": "tls_ca_file", "certificate": "tls_client_cert", "key": "tls_client_key"}


def certificates(folder):
    """Files of a new authority: option of the configuration → path."""
    made = Security.temporary()
    folder.mkdir()
    for name, attribute in OPTIONS.items():
        (folder / name).write_text(getattr(made, attribute))
    return {f"tls_{name}": str(folder / name) for name in OPTIONS}


@pytest.fixture
def secured_scheduler(tmp_path):
    """Address of a scheduler that speaks TLS only, and the files it takes."""
    files = certificates(tmp_path / "ours")
    told = tmp_path / "scheduler.json"
    words = [f"--tls-{word}={files[name]}" for word, name in
             (("ca-file", "tls_ca"), ("cert", "tls_certificate"), ("key", "tls_key"))]  # fmt: skip
    command = ["scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    dask = Path(sys.executable).with_name("dask")
    process = subprocess.Popen([dask, *command, "--scheduler-file", told, *words], stderr=subprocess.DEVNULL)
    try:
        while not told.exists() or not told.read_text().rstrip().endswith("}"):
            assert process.poll() is None
            time.sleep(0.1)
        yield json.loads(told.read_text())["address"], files
    finally:
        process.kill()
        process.wait()


def met(**config):
    with dask_client(ClusterConfig(**config), 1) as client:
        return client.scheduler_info()["address"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # distributed leaves the sockets of a refused handshake to the collector
def test_a_scheduler_under_tls_takes_only_those_it_knows(secured_scheduler, tmp_path, monkeypatch):
    address, files = secured_scheduler
    assert met(address=address, **files) == address
    with pytest.raises(InputError, match="--cluster.tls_ca: not given; TLS needs all three files"):
        met(address=address)
    monkeypatch.setenv("DATAWORTH_DASK", address)
    with pytest.raises(InputError, match="--cluster.tls_ca: not given; TLS needs all three files"):
        met()
    plain = address.replace("tls://", "tcp://")
    with pytest.raises(InputError, match="expected tls://, since TLS files are given"):
        met(address=plain, **files)
    monkeypatch.setattr("dataworth.tasks.cluster.SECONDS_TO_CONNECT", 3)
    strangers = certificates(tmp_path / "theirs")
    for config in ({"address": plain}, {"address": address, **strangers}):
        with pytest.raises(DataworthError, match="no Dask scheduler answers at"):
            met(**config)
    (tmp_path / "ours" / "key").write_text("no key")
    with pytest.raises(DataworthError, match="no Dask scheduler answers at"):
        met(address=address, **files)


def test_telemetry_is_off_before_any_library_is_imported():
    program = (
        "import flows, sys, os; assert not {'prefect', 'mlflow', 'transformers', 'huggingface_hub'} & set(sys.modules);"
        "print({name: os.environ[name] for name in flows.ENVIRONMENT})"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, check=True, capture_output=True)
    assert ENVIRONMENT["DO_NOT_TRACK"] == "true"  # MLflow does not know any other word for it
    assert ENVIRONMENT["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert ENVIRONMENT["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert ENVIRONMENT["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_the_servers_of_the_ui_are_on_loopback():
    command = mlflow_command(1)
    assert command[command.index("--host") + 1] == "127.0.0.1"


# In every process that the valuation starts; each attempt is one line, and none that leaves the machine succeeds.
WATCH = """
import os, sys

def _watch(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
        free = event == "socket.bind"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host, free = arguments[0], False
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host is None or str(host).startswith("127.") or host in ("localhost", "::1"):
        return
    with open(os.environ["WATCH_LOG"], "a") as file:
        file.write(f"{event} {host} {sys.argv[:3]}\\n")
    if not free:
        raise OSError(f"refused: {event} {host}")

sys.addaudithook(_watch)
with open(os.environ["WATCH_LOG"] + ".processes", "a") as file:
    file.write(f"{os.getpid()}\\n")
"""
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIASECRETOFTHISTEST",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-of-this-test",
    "AWS_SESSION_TOKEN": "aws-token-of-this-test",
    "HF_TOKEN": "hf_secretofthistest",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-secret-of-this-test",
    "MLFLOW_TRACKING_USERNAME": "mlflow-user-of-this-test",
    "PREFECT_API_AUTH_STRING": "admin:prefect-secret-of-this-test",
}


@pytest.fixture
def watched(tmp_path):
    """Environment of a run with secrets whose every process is watched, and the file of what it tried."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    log = tmp_path / "watch" / "log"
    log.touch()
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", *ENVIRONMENT)}
    return {
        **kept,
        **SECRETS,
        "PYTHONPATH": f"{tmp_path / 'watch'}:{ROOT}",
        "WATCH_LOG": str(log),
        "HF_HOME": str(tmp_path / "hf"),
        "DATAWORTH_HOME": str(tmp_path / "home"),
        "PREFECT_HOME": migrated_home(tmp_path / "prefect"),
    }, log


def test_the_watch_sees_what_leaves_the_machine(watched):
    environment, log = watched
    attempts = {
        "import urllib.request; urllib.request.urlopen('http://x.example')": "socket.getaddrinfo x.example",
        "import socket; socket.socket().connect(('192.0.2.1', 80))": "socket.connect 192.0.2.1",
        "import socket; socket.socket().bind(('0.0.0.0', 0))": "socket.bind 0.0.0.0",
    }
    for program, line in attempts.items():
        log.write_text("")
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
        assert log.read_text().startswith(line)


def hostile_corpus(path):
    rows = [
        {
            "id": f"{name}{number}"[-10_000:],
            "source": name,
            "text": f"The river {name[:60]} runs down to {NAMES[-number][:60]} sea.",
        }
        for number, name in enumerate(NAMES)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.slow
@pytest.mark.system
def test_a_whole_valuation_of_strangers_texts(watched, checkpoints, tmp_path):
    """Nobody is asked but this machine, no secret is written anywhere, and every source keeps its own name."""
    import pandas as pd

    environment, log = watched
    (tmp_path / "in").mkdir()
    hostile_corpus(tmp_path / "in" / "<u>x [x](y)`.jsonl")
    queries = [{"id": name, "prompt": "The river", "completion": " runs"} for name in NAMES[:4]]
    (tmp_path / "in" / "q.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in [*queries, {"id": "p", "prompt": "x"}])
    )
    given = {
        "--model": checkpoints["llama"], "--corpus": tmp_path / "in" / "<u>x [x](y)`.jsonl",
        "--queries": tmp_path / "in" / "q.jsonl", "--results": tmp_path / "out", "--store": tmp_path / "store",
        "--corpus.max_length": 32, "--projection.rank": 2, "--curvature.draws": 1, "--queries.max_new_tokens": 4,
    }  # fmt: skip
    words = [str(word) for pair in given.items() for word in pair]
    command = [sys.executable, "-c", "from dataworth.command.cli import main; main()", "value", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path / "in", timeout=400)
    assert done.returncode == 0, done.stderr
    assert log.read_text() == ""
    assert len(log.with_suffix(".processes").read_text().split()) >= 3  # itself, the Prefect server, a Dask worker
    sources = pd.read_parquet(tmp_path / "out" / "sources.parquet")
    assert sorted(sources[sources["query_id"] == "*"]["source"]) == sorted(set(NAMES))
    assert all("\x1b" not in text and "\u202e" not in text for text in (done.stdout, done.stderr))
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "sitecustomize.py"]
    assert len(kept) > 20
    content = b"".join(path.read_bytes() for path in kept) + done.stdout.encode() + done.stderr.encode()
    assert [name for name, secret in SECRETS.items() if secret.encode() in content] == []
    page = (tmp_path / "out" / "report.html").read_text()
    assert [word for word in ("<img", "<u>x") if word in page] == []
    assert page.count("<script") == 1  # its own
