"""What all tests share: offline libraries, shapes checked by beartype, small checkpoints, a home of their own."""

import os
import tempfile
from contextlib import ExitStack

from flows.imports import many_imports

collection = ExitStack()
collection.enter_context(many_imports())

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DATAWORTH_HOME"] = tempfile.mkdtemp(prefix="dataworth-home-")
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="dataworth-prefect-")
for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "DATAWORTH_DASK"):
    os.environ.pop(name, None)
# Side by side, two processes with two threads each fight over two cores: small products take ten times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for those that tests start

from jaxtyping import install_import_hook

CHECKED = [
    "tasks.attribution.arnoldi",
    "tasks.attribution.datainf",
    "tasks.attribution.iterative",
    "tasks.attribution.products",
    "tasks.attribution.solvers",
    "tasks.capture.losses",
    "tasks.capture.passes",
    "tasks.projection.bases",
    "tasks.projection.logra",
    "tasks.projection.sides",
    "tasks.projection.sketch",
    "tasks.curvature.sums",
    "tasks.corpus.draws",
    "tasks.curvature.lowrank",
    "tasks.curvature.damping",
    "tasks.curvature.precondition",
    "tasks.gradients.order",
    "tasks.scoring.blocks",
    "tasks.scoring.tally",
    "tasks.scoring.averages",
    "tasks.scoring.baselines",
    "tasks.coalitions.additive",
    "tasks.coalitions.games",
    "tasks.coalitions.newton",
    "tasks.coalitions.path",
    "tasks.coalitions.play",
    "tasks.coalitions.portions",
    "tasks.curvature.source_sums",
    "tasks.coalitions.levels",
    "tasks.coalitions.overlap",
    "tasks.coalitions.payouts",
    "tasks.coalitions.what_if",
    "tasks.coalitions.designs",
    "tasks.coalitions.estimators",
    "tasks.coalitions.intervals",
    "tasks.coalitions.reuse",
    "tasks.coalitions.sampling",
    "tasks.coalitions.semivalues",
    "tasks.coalitions.worths",
]
install_import_hook(CHECKED, "beartype.beartype")

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from storage.locations import Location
from tasks.model.training import train_tokenizer
from tests.reference.checkpoints import ARCHITECTURES, CLASSIFIERS, TEXTS, save_checkpoint
from tests.reference.objects import environment, new_bucket, object_server

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
def s3_server() -> Iterator[str]:
    """Address of an S3 server on loopback."""
    with object_server() as address:
        yield address


@pytest.fixture
def bucket(s3_server, monkeypatch) -> Location:
    """A place in an empty bucket of that server."""
    for name, value in environment(s3_server).items():
        monkeypatch.setenv(name, value)
    return Location.of(f"s3://{new_bucket(s3_server)}/of/ours")


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> Location:
    """An empty place for stores, of either kind."""
    return request.getfixturevalue("bucket") if request.param == "bucket" else Location.of(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _clean_homes():
    yield
    for name in ("DATAWORTH_HOME", "PREFECT_HOME"):
        shutil.rmtree(os.environ[name], ignore_errors=True)
