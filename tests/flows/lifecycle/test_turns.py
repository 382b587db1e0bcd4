"""Runs of several checkpoints take a turn for each, and meet the runs of one of them there."""

import pytest

from dataworth.config import CorpusRunConfig
from dataworth.lifecycle.turns import each_in_turn, in_turn, results_turn, run_turn
from dataworth.storage.errors import StoreBusyError
from dataworth.storage.manifest import writer_lock
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.model.config import ModelsConfig


def run_of(overlap):
    return CorpusRunConfig(model=ModelsConfig(name=["a", "b", "c"]), corpus=CorpusConfig(files=["f"]), overlap=overlap)


def taken(store, config):
    """The turn of a run is taken by another."""
    return writer_lock(run_turn(str(store), config))


def test_checkpoints_are_worked_on_in_the_given_order(tmp_path):
    found = each_in_turn(str(tmp_path), run_of("refuse"), lambda one: one.model.only.name)
    assert found == ["a", "b", "c"]


def test_another_run_of_one_of_them_is_met_there(tmp_path):
    done: list[str] = []
    config = run_of("skip")
    with taken(tmp_path, config.by_checkpoint[1]):
        outcome = each_in_turn(str(tmp_path), config, lambda one: done.append(one.model.only.name))
        assert outcome.name == "Skipped"
        assert done == ["a"]
        with pytest.raises(StoreBusyError):
            each_in_turn(str(tmp_path), run_of("refuse"), lambda one: done.append(one.model.only.name))
    assert done == ["a", "a"]


def test_runs_into_one_folder_meet_and_those_into_others_do_not(tmp_path):
    store, here, there = str(tmp_path / "store"), str(tmp_path / "here"), str(tmp_path / "there")
    with writer_lock(results_turn(store, here)):
        assert in_turn(results_turn(store, there), "refuse", lambda: "done") == "done"
        skipped = in_turn(results_turn(store, here), "skip", lambda: "done")
        assert skipped.name == "Skipped"
        with pytest.raises(StoreBusyError):
            in_turn(results_turn(store, here), "refuse", lambda: "done")


def test_a_run_that_waits_begins_once_the_other_has_ended(tmp_path, monkeypatch):
    turn, order = results_turn(str(tmp_path), "out"), []
    held = writer_lock(turn)
    held.__enter__()

    def end_the_other(_):
        order.append("other")
        held.__exit__(None, None, None)

    monkeypatch.setattr("dataworth.lifecycle.turns.time.sleep", end_the_other)
    in_turn(turn, "wait", lambda: order.append("this"))
    assert order == ["other", "this"]
