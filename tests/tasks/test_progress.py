"""What is seen of long work where there is no terminal."""

import logging

import pytest

from dataworth.tasks import progress as module
from dataworth.tasks.progress import Sink, progress, set_sink


@pytest.fixture
def clock(monkeypatch):
    """The seconds that a test sets."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_says_how_far_how_fast_and_how_long(clock, caplog):
    caplog.set_level(logging.INFO, "dataworth")
    with progress("gradients of the corpus", 1_000, "example") as bar:
        for _ in range(10):
            clock[0] += 30
            bar.advance(50)
    assert [record.getMessage() for record in caplog.records][:2] == [
        "gradients of the corpus: 150 of 1,000 examples, 1.67 a second, about 8 min left",
        "gradients of the corpus: 300 of 1,000 examples, 1.67 a second, about 7 min left",
    ]
    assert len(caplog.records) == 3


def test_a_sink_is_told_how_much_is_done(clock):
    told = []

    class Told(Sink):
        def begin(self, description):
            return lambda percent: told.append(percent) or True

    set_sink(Told())
    try:
        with progress("work", 0, "step") as bar:
            bar.expect(4)
            for _ in range(4):
                clock[0] += 3
                bar.advance()
    finally:
        set_sink(Sink())
    assert told == [25.0, 50.0, 75.0, 100.0, 100.0]
