"""A game is one file and one entry of the registry: the next one is valued, kept and read like any other."""

import numpy as np
import pytest

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.coalitions import registry
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.curvature.config import CurvatureConfig
from tests.harness.pipeline import Pipeline
from tests.reference.airport_game import ENTRY, littlechild_owen


@pytest.fixture
def airport(monkeypatch):
    """The registry with one entry more, and settings that choose it."""
    monkeypatch.setattr(registry, "GAMES", {**registry.GAMES, "airport": ENTRY})
    for module in ("games.source_game", "steps"):
        monkeypatch.setattr(f"dataworth.tasks.coalitions.{module}.GAMES", registry.GAMES)
    return SourcesConfig().model_copy(update={"game": "airport"})


def test_the_next_game_is_a_file_and_an_entry(tmp_path, checkpoints, corpus_file, queries_file, airport):
    pipeline = Pipeline(
        tmp_path / "store",
        checkpoints["gpt2"],
        corpus_file,
        queries_file,
        {"kind": "random", "rank": 4},
        CurvatureConfig(kind="none"),
    )
    scores = pipeline.scores()
    found = CoalitionStore.open(value_sources(str(pipeline.store), scores, airport))
    table = found.values.to_pandas()
    assert set(table["game"]) == {"airport"}
    assert found.attributes["notes"]["utility"] == "best member"
    assert (table["error_coalitions"] == 0).all()
    sums = ScoreStore.open(scores).source_sums.to_pandas()
    total = 0
    for query, rows in sums.groupby("query_id", sort=False):
        if query != ALL_QUERIES:
            own = table[table["query_id"] == query].set_index("source")["value"]
            expected = littlechild_owen(rows["sum"].abs().to_numpy())
            np.testing.assert_allclose(own[rows["source"]], expected, rtol=1e-9)
            total = total + expected
    np.testing.assert_allclose(table[table["query_id"] == ALL_QUERIES]["value"], total, rtol=1e-9)
    assert value_sources(str(pipeline.store), scores, airport).fingerprint == found.fingerprint
