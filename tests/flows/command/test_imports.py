"""Imports with the collector at rest."""

import gc
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from dataworth.command.imports import many_imports


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def collecting(request):
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_the_collector_rests_and_then_does_what_it_did(collecting):
    frozen = gc.get_freeze_count()
    with many_imports():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
    assert gc.isenabled() is collecting
    assert gc.get_freeze_count() >= frozen + len(made)


def test_it_does_so_after_an_import_that_fails_too(collecting):
    with pytest.raises(ModuleNotFoundError), many_imports():
        import_module("flows.nowhere")
    assert gc.isenabled() is collecting


def test_deployed_flows_are_those_of_the_file():
    deployed = import_module("dataworth.deployed")
    made = yaml.safe_load((Path(__file__).parents[3] / "prefect.yaml").read_text())["deployments"]
    assert sorted(each["entrypoint"] for each in made) == [f"dataworth.deployed.{name}" for name in deployed.__all__]
