"""Overlaps: between -1 and 1, 1 for copies, unknown where a source has no interaction with itself."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataworth.storage.schema import ALL_QUERIES, OVERLAP
from dataworth.tasks.coalitions.payout.overlap import overlap_rows, overlaps


@given(st.integers(0, 6), st.integers(1, 4), st.integers(0, 99), st.sampled_from([1e-160, 1.0, 1e150]))
def test_overlaps_are_cosines(n_sources, k, seed, scale):
    vectors = np.random.default_rng(seed).standard_normal((n_sources, k))
    found = overlaps(scale * (vectors @ vectors.T))
    cosines = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found, cosines @ cosines.T, atol=1e-9)
    assert (np.abs(found) <= 1).all()
    assert len(overlap_rows([str(n) for n in range(n_sources)], vectors @ vectors.T, "q")) == (
        n_sources * (n_sources - 1) // 2
    )


def test_rows_of_copies_strangers_and_the_unknown():
    vectors = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    rows = overlap_rows(["a", "copy", "other", "nothing"], vectors @ vectors.T, ALL_QUERIES)
    found = {(row["source"], row["other"]): row["overlap"] for row in rows}
    assert found["a", "copy"] == 1.0
    assert found["a", "other"] == found["copy", "other"] == 0.0
    assert found["other", "nothing"] is None
    assert len(found) == 6
    assert pa.Table.from_pylist(rows, OVERLAP).num_rows == 6
