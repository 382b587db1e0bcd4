"""A whole run with its stores in a bucket: what it leaves and what it says are those of a folder."""

from dataclasses import replace

import numpy as np
import pytest

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.compaction import compact
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.gradients import GradientStore
from dataworth.storage.locations import location_of
from dataworth.storage.scores import ScoreStore
from dataworth.storage.verification import verified
from dataworth.storage.withdrawals import Withdrawals
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.ready import Pass
from dataworth.tasks.scoring.steps import average_scores
from tests.harness.pipeline import Pipeline, matrix_by_id

HALF = GradientsConfig(batch_tokens=96)


def stored(place) -> dict[str, bytes]:
    """Relative name → content of every file, but for locks."""
    root = location_of(place)
    return {name: (root / name).read_bytes() for name in root.files() if not name.endswith(".lock")}


@pytest.fixture
def run(checkpoints, corpus_file, queries_file, monkeypatch):
    """A function that runs everything with its stores in a place."""
    monkeypatch.setattr("dataworth.storage.gradients.rows_per_shard", lambda n_columns, itemsize: 4)

    def everything(place):
        pipeline = Pipeline(
            place,
            checkpoints["llama"],
            corpus_file,
            queries_file,
            {"kind": "pca", "rank": 3},
            CurvatureConfig(draws=2),
            HALF,
        )
        scores = pipeline.scores(by_layer=True)
        return pipeline, scores, value_sources(pipeline.store, scores, SourcesConfig())

    return everything


def test_a_bucket_holds_what_a_folder_would_and_all_that_follows(run, bucket, tmp_path):
    _, local_scores, local_values = run(tmp_path / "store")
    pipeline, scores, values = run(bucket)
    assert stored(bucket) == stored(tmp_path / "store")
    assert scores.fingerprint == local_scores.fingerprint
    assert CoalitionStore.open(values).values.equals(CoalitionStore.open(local_values).values)
    ScoreStore.open(scores).matrix_path.copy_to(tmp_path / "scores.zarr")
    assert stored(tmp_path / "scores.zarr") == stored(ScoreStore.open(local_scores).matrix_path)
    assert run(bucket)[1:] == (scores, values)  # all of it is there already
    assert all(entry.damage is None for entry in verified(bucket))

    Withdrawals(bucket).add(sources=["s1"])
    Withdrawals(tmp_path / "store").add(sources=["s1"])
    one, two = (replace(compact(place).receipts[0][0], begun="", finished="") for place in (bucket, tmp_path / "store"))
    assert replace(one, withdrawn=[]) == replace(two, withdrawn=[])
    left = stored(bucket), stored(tmp_path / "store")
    for files in left:
        for name in [name for name in files if name.startswith(("withdrawals.", "receipts/"))]:  # which hold times
            files.pop(name)
    assert left[0] == left[1]
    run(bucket)
    again = CorpusStore.open(pipeline.queries)
    assert len(GradientStore.open(pipeline.query_gradients).rows_of(again.contents)) == again.n_documents


def test_scores_in_a_bucket_are_averaged(run, bucket, monkeypatch):
    monkeypatch.setattr("dataworth.storage.scores.COLUMNS_PER_CHUNK", 5)
    pipeline, _, _ = run(bucket)
    passes = [
        Pass(
            gradients=pipeline.gradients,
            query_gradients=pipeline.query_gradients,
            curvature=pipeline.curvature,
            scores=pipeline.scores(kind=kind),
        )
        for kind in ("dot", "relative")
    ]
    damping, scoring = pipeline.curvature_config.damping, ScoringConfig(save_matrix=True)
    ref = average_scores(pipeline.store, pipeline.corpus, pipeline.queries, passes, damping, scoring)
    one, two = (matrix_by_id(each.scores, 3) for each in passes)
    for name, scores in matrix_by_id(ref, 3).items():
        np.testing.assert_allclose(scores, (one[name].astype(np.float64) + two[name]) / 2, rtol=1e-6)


def test_workers_score_from_the_bucket(run, bucket):
    pipeline, _, _ = run(bucket)
    one = matrix_by_id(pipeline.scores(workers=1, kind="relative"), 2)
    two = matrix_by_id(pipeline.scores(workers=2, kind="relative", top_k=3), 2)
    assert one.keys() == two.keys()
    for name, scores in one.items():
        np.testing.assert_array_equal(scores, two[name])
