"""A small model that the flow's own trainer tuned on the tests' corpus, with its base, and all that is made of it."""

from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.retraining import Retrained
from dataworth.tasks.training.small_model import SmallModel, train_language_model
from tests.harness.pipeline import Pipeline
from tests.reference.checkpoints import TEXTS

__all__ = ["NAMES", "TRAINING", "parts_of", "retrained", "small_with_base", "tuned"]

TRAINING = TrainingConfig(epochs=3, batch_tokens=128, learning_rate=6e-3, weight_decay=0.1, seed=4)
SMALL = SmallModel(
    vocabulary=300,
    hidden=16,
    layers=1,
    heads=2,
    intermediate=24,
    positions=24,
    **{name: getattr(TRAINING, name) for name in TrainingConfig.model_fields},
)
NAMES = ("s0", "s1", "s2")


def small_with_base(folder, positions=48):
    """A small model that was trained on the tests' texts; the folder, in which `base` is what training began from."""
    size = {"vocabulary": 300, "hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "positions": positions}
    train_language_model(TEXTS, folder, SmallModel(**size, epochs=3, batch_tokens=128, seed=4), lambda *_: None)
    return folder


def tuned(tmp_path, corpus_file, queries_file):
    """A model that train_language_model trained on the texts of the corpus, and its base."""
    texts = [*TEXTS[:10], TEXTS[0], " ".join(TEXTS)]
    train_language_model(texts, tmp_path / "model", SMALL, lambda *_: None)
    made = Pipeline(
        tmp_path / "store",
        tmp_path / "model",
        corpus_file,
        queries_file,
        {"kind": "random", "rank": 2},
        CurvatureConfig(draws=1),
    )
    made.model = made.model.model_copy(update={"base": str(tmp_path / "model" / "base")})
    return made


def parts_of(run, training=TRAINING):
    return GameParts(
        model=run.model,
        queries=run.queries,
        query_gradients=run.query_gradients,
        bases=run.bases,
        sums={},
        factors=None,
        damping=DampingConfig(),
        corpus=run.corpus,
        gradients=run.gradients,
        curvature=run.curvature_config,
        training=training,
    )


def retrained(run):
    return Retrained(run.model, run.corpus, run.queries, "source", NAMES, TRAINING)
