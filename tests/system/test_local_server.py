"""The Prefect server of a home: shared by commands, begun again where it dies, gone some time after the last."""

import json
import os
import shutil
import signal
from contextlib import contextmanager

import psutil
import pytest

from dataworth.serving.local_server import local_server
from dataworth.storage.errors import InputError
from tests.harness.api import migrated_home, wait_until
from tests.reference.checkpoints import TEXTS

pytestmark = [pytest.mark.system, pytest.mark.slow]

SECONDS = 600


@pytest.fixture
def home(tmp_path):
    """Of Prefect, where no server is named."""
    return {"PREFECT_HOME": migrated_home(tmp_path / "prefect"), "PREFECT_API_URL": ""}


def server_of(home):
    """The process of the server, once there is one."""

    def found():
        try:
            with open(f"{home['PREFECT_HOME']}/dataworth/server.json") as file:
                return psutil.Process(json.load(file)["process"])
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None

    return wait_until(found, "no server")


@pytest.fixture
def words(checkpoints, queries_file, tmp_path):
    """Of a valuation that takes its time, in a folder of its own."""
    documents = [{"id": f"d{n}", "source": f"s{n % 3}", "text": f"{n} {TEXTS[n % len(TEXTS)]}"} for n in range(600)]
    corpus = tmp_path / "many.jsonl"
    corpus.write_text("".join(f"{json.dumps(row)}\n" for row in documents))

    def named(name):
        words = ("value", "--model", checkpoints["llama"], "--corpus", corpus, "--queries", queries_file)
        words += ("--corpus.max_length", 32, "--projection.rank", 4, "--gradients.batch_tokens", 64)
        return (*words, "--curvature", "none", "--store", tmp_path / f"{name}.store", "--results", tmp_path / name)

    return named


def test_two_commands_share_a_server_that_dies_meanwhile(forked, home, words, tmp_path):
    there = {**os.environ, **home}
    processes = []
    for name in ("one", "two"):
        with (tmp_path / f"{name}.log").open("w") as log:
            processes.append(forked.start([*map(str, words(name))], there, tmp_path, log, log))
    logs = [tmp_path / f"{name}.log" for name in ("one", "two")]
    wait_until(lambda: all("examples to compute" in log.read_text() for log in logs), "they do not begin")
    first = server_of(home)
    first.send_signal(signal.SIGKILL)
    codes = [process.wait(SECONDS) for process in processes]
    said = [log.read_text() for log in logs]
    assert codes == [0, 0], said
    assert not any("Traceback" in text or "database is locked" in text for text in said), said
    assert all((tmp_path / name / "valuation.json").is_file() for name in ("one", "two"))
    assert json.loads((tmp_path / "one" / "valuation.json").read_text())["prefect"]["url"] is None
    wait_until(lambda: not os.path.exists(f"{home['PREFECT_HOME']}/dataworth/server.json"), "it stays")
    assert not first.is_running()


def test_a_server_ends_when_the_command_that_used_it_was_killed(started_dataworth, home, words):
    process, log, left = started_dataworth(*words("one"), environment=home)
    wait_until(lambda: "examples to compute" in log.read_text(), "it does not begin")
    server = server_of(home)
    process.kill()
    process.wait(SECONDS)
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "it stays")
    assert left() == []


@pytest.fixture
def kept(home, monkeypatch):
    """Uses the server of this home for a moment, and leaves it; returns what is known of the server."""
    monkeypatch.setenv("PREFECT_HOME", home["PREFECT_HOME"])

    @contextmanager
    def used(minutes, port=0):
        monkeypatch.setenv("DATAWORTH_SERVER_MINUTES", str(minutes))
        with local_server(port, 60 * minutes) as server:
            server.wait()
            yield server.record

    yield used
    with local_server(0):  # whose last user ends it
        pass


def is_gone(record):
    try:
        return psutil.Process(record.process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_server_stays_for_the_next_command_and_not_for_ever(kept):
    with kept(minutes=0.1) as first:
        pass
    with kept(minutes=0.1) as second:
        assert second == first
    assert not is_gone(first)
    wait_until(lambda: is_gone(first), "it stays")
    with kept(minutes=0.1) as third:
        assert third.key != first.key


def test_a_server_that_nobody_uses_gives_way(kept, monkeypatch):
    with kept(minutes=60) as first:
        with pytest.raises(InputError, match="the runs under way use the server"), kept(60, first.port + 1):
            pass
        monkeypatch.setenv("PREFECT_SERVER_API_KEEPALIVE_TIMEOUT", "7")
        with kept(minutes=60) as second:  # which others use: it is shared as it is
            assert second == first
    with kept(minutes=60) as third:
        assert third.process != first.process
    assert is_gone(first)
    with kept(minutes=0) as fourth:
        assert fourth == third
    assert is_gone(third)


def test_a_server_goes_with_its_home(kept, home):
    with kept(minutes=60) as record:
        pass

    def left():
        shutil.rmtree(home["PREFECT_HOME"], ignore_errors=True)  # it may write meanwhile
        return is_gone(record)

    wait_until(left, "it stays")
