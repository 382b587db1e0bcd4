"""A valuation whose scores are what the training itself tells, gone back through."""

from pathlib import Path

import numpy as np
import pytest

import dataworth
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.ref import StoreRef
from dataworth.tasks.corpus.examples import CorpusExamples
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.report.results.folder import read_record
from dataworth.tasks.training import steps
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.recipes import recipe_of
from dataworth.tasks.training.replay import Replay
from dataworth.tasks.training.small_model import SmallModel, train_language_model
from tests.reference.checkpoints import TEXTS

TRAINING = TrainingConfig(epochs=3, batch_tokens=128, learning_rate=6e-3, weight_decay=0.1, seed=4)
SIZE = {"vocabulary": 300, "hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "positions": 24}
SETTINGS = {
    "corpus": {"max_length": 24},
    "projection": {"rank": 2},
    "curvature": {"kind": "none"},
    "sources": {"game": "additive"},
    "scoring": {"save_matrix": True, "top_k": 3},
}
QUERIES = [{"id": f"q{n}", "prompt": TEXTS[n][:14], "completion": TEXTS[n][14:28]} for n in range(2)]
ROWS = [{"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a trained model, its base inside."""
    folder = tmp_path_factory.mktemp("replayed") / "model"
    train_language_model(TEXTS, folder, SmallModel(**SIZE, **TRAINING.model_dump()), lambda *_: None)
    return folder


def valued(model, store, **options):
    of_model = {"base": str(model / "base"), "device": "cpu"}
    given = {"training": TRAINING.model_dump(), **SETTINGS, **options}
    return dataworth.value(str(model), None, ROWS, QUERIES, store=store, model=of_model, method="replay", **given)


def refs_of(made):
    places = {name: Path(read_record(str(made.folder))["stores"][name]) for name in ("corpus", "queries")}
    return {name: StoreRef(kind="corpus", location=str(at), fingerprint=at.name) for name, at in places.items()}


def test_scores_are_what_the_training_tells(model, tmp_path, monkeypatch):
    made = valued(model, tmp_path, orders=2)
    corpus, queries = (CorpusStore.open(refs_of(made)[name]) for name in ("corpus", "queries"))
    base, expected = load(ModelConfig(name=str(model), base=str(model / "base"), device="cpu"), 1.0), 0.0
    for seed in (4, 5):
        replay = Replay(recipe_of(base, corpus, TRAINING.model_copy(update={"seed": seed})))
        of_windows = -replay.derivatives(CorpusExamples(queries)) / 2
        of_documents = np.zeros((corpus.n_documents, 2))
        np.add.at(of_documents, corpus.windows["document"], of_windows.T)
        expected = expected + of_documents.T
    table = made.scores.to_pandas()
    ids = corpus.column("document_id").to_pylist()
    np.testing.assert_allclose(table.loc[["q0", "q1"], ids], expected, rtol=1e-3, atol=1e-5)
    best = made.documents.groupby("query_id").first()
    for number, name in enumerate(("q0", "q1")):
        assert best.loc[name, "document_id"] == ids[int(expected[number].argmax())]
    values = made.sources[made.sources["query_id"] == "*"].set_index("source")["value"]
    sources = np.array([row["source"] for row in ROWS])
    for source in ("s0", "s1", "s2"):
        assert values[source] == pytest.approx(expected.sum(axis=0)[sources == source].sum(), rel=1e-3)
    # Without a curvature, scores of gradients have no unit; these are nats.
    assert made.account.in_nats
    monkeypatch.setattr(steps, "Replay", None)
    assert valued(model, tmp_path, orders=2).sources.equals(made.sources)


def test_a_recipe_that_leads_elsewhere_is_refused(model, tmp_path):
    short = TRAINING.model_copy(update={"learning_rate": 1e-5}).model_dump()
    with pytest.raises(InputError, match="training on everything goes 0% of the way"):
        valued(model, tmp_path, training=short)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scoring": {"kind": "cosine"}}, "a training tells of no layers and no lengths"),
        ({"sources": {"projection_seeds": 2}}, "has no projection"),
        ({"method": "influence", "orders": 2}, "are of a replay"),
        ({"model": {}}, "the training begins from the base"),
    ],
)
def test_what_cannot_be_gone_back_through_is_refused(model, tmp_path, options, said):
    of_model = {"base": str(model / "base"), "device": "cpu"}
    given = {"training": TRAINING.model_dump(), **SETTINGS, "model": of_model, "method": "replay", **options}
    with pytest.raises(InputError, match=said):
        dataworth.value(str(model), None, ROWS, QUERIES, store=tmp_path, **given)
