"""When a share has moved, and what the event tells."""

import json

import pytest

import dataworth.lifecycle.events as module
from dataworth.lifecycle.events import MOVED, emit_moved, published_shares
from dataworth.tasks.report.results.folder import write_record
from tests.harness.results import results_folder


@pytest.fixture
def told(monkeypatch):
    events = []
    monkeypatch.setattr(module, "emit_event", lambda event, **content: events.append((event, content)))
    return events


def test_only_shares_that_moved_far_enough_are_told(told):
    before = {("source", 1, "a"): 0.50, ("source", 1, "b"): 0.30, ("source", 1, "gone"): 0.20}
    after = {("source", 1, "a"): 0.54, ("source", 1, "b"): 0.20, ("source", 1, "new"): 0.26}
    emit_moved("out", "m on c", before, after, 0.05)
    assert [event for event, _ in told] == [MOVED] * 3
    moved = {content["payload"]["source"]: content["payload"] for _, content in told}
    assert (moved["b"]["before"], moved["b"]["after"]) == (0.30, 0.20)
    assert (moved["gone"]["after"], moved["new"]["before"]) == (0.0, 0.0)


def test_a_first_valuation_and_a_grouping_that_is_new_move_nothing(told):
    emit_moved("out", "m on c", {}, {("source", 1, "a"): 1.0}, 0.05)
    emit_moved("out", "m on c", {("source", 1, "a"): 1.0}, {("source", 1, "a"): 1.0, ("licence", 1, "x"): 1.0}, 0.05)
    emit_moved("out", "m on c", {("source", 1, "a"): 1.0}, {("source", 1, "a"): float("nan")}, 0.05)
    assert told == []


def test_shares_are_read_from_a_finished_valuation_only(tmp_path, caplog):
    folder = results_folder(tmp_path / "results", {"a": 2.0})
    record = (folder / "valuation.json").read_bytes()
    (folder / "valuation.json").unlink()
    assert published_shares(str(folder)) == {}
    write_record(folder, json.loads(record))
    ((key, share),) = published_shares(str(folder)).items()
    assert key == ("source", 1, "a")
    assert share == 1.0
    damaged = bytearray((folder / "sources.parquet").read_bytes())
    damaged[40] ^= 1
    (folder / "sources.parquet").write_bytes(damaged)
    assert published_shares(str(folder)) == {}  # the valuation that is under way takes its place
    assert "sources.parquet: its bytes changed" in caplog.text
