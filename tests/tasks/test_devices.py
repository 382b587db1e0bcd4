"""One task computes on a device of this machine at a time, whoever started it and however that ended."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dataworth.tasks.devices import on_a_device

HOLDS = """
import signal
import time
from dataworth.tasks.devices import on_a_device

@on_a_device
def hold():
    print("held", flush=True)
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
hold()
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that computes."""
    monkeypatch.setenv("DATAWORTH_HOME", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_place_is_free_when_its_process_has_ended(holder, kind, caplog):
    began = threading.Event()
    waiting = threading.Thread(target=on_a_device(began.set))
    with caplog.at_level("INFO"):
        waiting.start()
        assert not began.wait(2)
        os.kill(holder.pid, kind)
        started = time.monotonic()
        assert began.wait(600)
        waiting.join()
    assert time.monotonic() - started < 60
    assert "another run computes on this machine's device" in caplog.text
    assert "the device is free" in caplog.text


def test_tasks_of_a_process_take_turns_and_may_call_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAWORTH_HOME", str(tmp_path))
    now, most = [], []

    @on_a_device
    def inner():
        now.append(1)
        most.append(len(now))
        time.sleep(0.05)
        now.pop()

    threads = [threading.Thread(target=on_a_device(inner)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_as_many_places_as_there_are_devices(holder, monkeypatch):
    monkeypatch.setattr("dataworth.tasks.devices._n_places", lambda: 2)
    assert on_a_device(lambda: "computed")() == "computed"
