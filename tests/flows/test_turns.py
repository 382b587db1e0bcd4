"""Runs of several checkpoints take a turn for each, and meet the runs of one of them there."""

import pytest

from flows.config import CorpusRunConfig
from flows.turns import IRRELEVANT, each_in_turn
from storage.errors import StoreBusyError
from storage.locations import StoreFolders
from storage.manifest import writer_lock
from storage.ref import fingerprint
from tasks.corpus.config import CorpusConfig
from tasks.model.config import ModelsConfig


def run_of(overlap):
    return CorpusRunConfig(model=ModelsConfig(name=["a", "b", "c"]), corpus=CorpusConfig(files=["f"]), overlap=overlap)


def taken(store, config):
    """The turn of a run is taken by another."""
    name = fingerprint({"run": 1, **config.model_dump(mode="json", exclude=IRRELEVANT)})
    return writer_lock(StoreFolders(store).runs / name)


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
