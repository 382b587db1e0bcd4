"""What all tests share: offline libraries, shapes checked by beartype, small checkpoints, a home of their own."""

import os
import tempfile
from contextlib import ExitStack

from dataworth.command.imports import many_imports

collection = ExitStack()
collection.enter_context(many_imports())

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DATAWORTH_HOME"] = tempfile.mkdtemp(prefix="dataworth-home-")
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="dataworth-prefect-")
# What all processes of these tests share: made by the first, which starts the others, and removed by it.
FIRST = "DATAWORTH_TESTS" not in os.environ
if FIRST:
    os.environ["DATAWORTH_TESTS"] = tempfile.mkdtemp(prefix="dataworth-tests-")
    os.mkdir(f"{os.environ['DATAWORTH_TESTS']}/tokenizers")
# A tokenizer is tried once for all homes.
os.symlink(f"{os.environ['DATAWORTH_TESTS']}/tokenizers", f"{os.environ['DATAWORTH_HOME']}/tokenizers")
# Homes of tests go with them, and so do the servers of those homes.
os.environ["DATAWORTH_SERVER_MINUTES"] = "0"
for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "DATAWORTH_DASK"):
    os.environ.pop(name, None)
# Side by side, two processes with two threads each fight over two cores: small products take ten times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for those that tests start

from jaxtyping import install_import_hook

CHECKED = [
    "dataworth.tasks.attribution.arnoldi",
    "dataworth.tasks.attribution.datainf",
    "dataworth.tasks.attribution.iterative",
    "dataworth.tasks.attribution.products",
    "dataworth.tasks.attribution.solvers",
    "dataworth.tasks.capture.losses",
    "dataworth.tasks.capture.passes",
    "dataworth.tasks.projection.bases",
    "dataworth.tasks.projection.logra",
    "dataworth.tasks.projection.sides",
    "dataworth.tasks.projection.sketch",
    "dataworth.tasks.curvature.sums",
    "dataworth.tasks.corpus.draws",
    "dataworth.tasks.curvature.dense",
    "dataworth.tasks.curvature.kronecker",
    "dataworth.tasks.curvature.lowrank",
    "dataworth.tasks.curvature.damping",
    "dataworth.tasks.curvature.precondition",
    "dataworth.tasks.gradients.order",
    "dataworth.tasks.scoring.blocks",
    "dataworth.tasks.scoring.tally",
    "dataworth.tasks.scoring.averages",
    "dataworth.tasks.attribution.baselines",
    "dataworth.tasks.coalitions.games.additive",
    "dataworth.tasks.coalitions.games.expansion",
    "dataworth.tasks.coalitions.games.newton_steps",
    "dataworth.tasks.coalitions.games.path_values",
    "dataworth.tasks.coalitions.games.play",
    "dataworth.tasks.coalitions.games.second_order",
    "dataworth.tasks.coalitions.games.step_games",
    "dataworth.tasks.coalitions.uncertainty.jackknife",
    "dataworth.tasks.coalitions.valuation",
    "dataworth.tasks.coalitions.games.portions",
    "dataworth.tasks.curvature.source_sums",
    "dataworth.tasks.coalitions.payout.levels",
    "dataworth.tasks.coalitions.payout.overlap",
    "dataworth.tasks.coalitions.payout.payouts",
    "dataworth.tasks.coalitions.payout.what_if",
    "dataworth.tasks.coalitions.estimation.designs",
    "dataworth.tasks.coalitions.estimation.estimators",
    "dataworth.tasks.coalitions.estimation.intervals",
    "dataworth.tasks.coalitions.estimation.reuse",
    "dataworth.tasks.coalitions.estimation.sampling",
    "dataworth.tasks.coalitions.estimation.semivalues",
    "dataworth.tasks.coalitions.estimation.utilities",
]
install_import_hook(CHECKED, "beartype.beartype")

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from dataworth.storage.locations import location_of
from dataworth.storage.place import Location
from dataworth.tasks.training.small_model import train_tokenizer
from tests.harness.objects import environment, new_bucket, shared_object_server
from tests.reference.checkpoints import ARCHITECTURES, CLASSIFIERS, TEXTS, save_checkpoint

# How long an example takes says how busy the machine is, no more.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    threadpool_limits(1)  # of NumPy, which plugins have imported by now
else:
    torch.set_num_threads(2)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist writes the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file that computes stays on one process; whole systems, which also wait, are spread among those files."""
    systems, files = [], []
    for item in items:
        if item.get_closest_marker("system"):
            systems.append(item)
        else:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
            files.append(item)
    systems.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)  # the long ones first
    places = {item: (n + 0.5) / len(group) for group in (systems, files) for n, item in enumerate(group)}
    items.sort(key=places.__getitem__)


def pytest_collection_finish() -> None:
    """Everything is imported."""
    collection.close()


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """A small random checkpoint of every architecture."""
    root = tmp_path_factory.mktemp("checkpoints")
    names = (*ARCHITECTURES, *CLASSIFIERS)
    for name in names:
        save_checkpoint(name, root / name, tokenizer)
    return {name: root / name for name in names}


@pytest.fixture
def model_in_float64(checkpoints):
    """Loads a checkpoint's model in float64, frozen and in evaluation mode."""

    def load(name: str):
        kind = AutoModelForSequenceClassification if name in CLASSIFIERS else AutoModelForCausalLM
        model = kind.from_pretrained(checkpoints[name], dtype=torch.float64)
        return model.eval().requires_grad_(False)

    return load


@pytest.fixture
def corpus_file(tmp_path) -> Path:
    """Twelve documents of three sources, two of them the same text, one longer than a window."""
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS[:10])]
    rows.append({"id": "copy", "source": "s1", "text": TEXTS[0]})
    rows.append({"id": "long", "source": "s2", "text": " ".join(TEXTS)})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def queries_file(tmp_path) -> Path:
    path = tmp_path / "queries.jsonl"
    rows = [
        {"id": "q0", "prompt": "The river runs", "completion": " down to the sea."},
        {"id": "q1", "prompt": "A list of", "completion": " small things and names"},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def s3_server() -> str:
    """Address of an S3 server on loopback, the same for all processes of the tests."""
    return shared_object_server()


@pytest.fixture
def bucket(s3_server, monkeypatch) -> Location:
    """A place in an empty bucket of that server."""
    for name, value in environment(s3_server).items():
        monkeypatch.setenv(name, value)
    return location_of(f"s3://{new_bucket(s3_server)}/of/ours")


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> Location:
    """An empty place for stores, of either kind."""
    return request.getfixturevalue("bucket") if request.param == "bucket" else location_of(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _clean_homes():
    yield
    for name in ("DATAWORTH_HOME", "PREFECT_HOME"):
        shutil.rmtree(os.environ[name], ignore_errors=True)


def pytest_unconfigure() -> None:
    if FIRST:
        shutil.rmtree(os.environ["DATAWORTH_TESTS"], ignore_errors=True)
