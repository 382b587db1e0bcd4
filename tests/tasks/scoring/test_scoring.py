"""Scores, rankings and sums against plain formulas, whatever the shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataworth.tasks.attribution.baselines import bm25_scores, first_rate, source_sums
from dataworth.tasks.curvature.precondition import self_influence
from dataworth.tasks.scoring.blocks import Preconditioned, document_sums, window_scores
from dataworth.tasks.scoring.combination import Combination
from dataworth.tasks.scoring.plan import corpus_places, shard_works
from dataworth.tasks.scoring.tally import block_tally, floors, merged_tally, ranking


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_window_scores_are_inner_products():
    rows, queries = draw(7, 5).astype(np.float16), draw(3, 5).astype(np.float32)
    expected = queries.astype(np.float64) @ rows.astype(np.float64).T
    np.testing.assert_allclose(window_scores(rows, Preconditioned(queries, None)), expected, rtol=1e-5, atol=1e-5)


def test_relative_scores_divide_by_the_root_of_the_self_influence():
    rows, queries, factor = draw(4, 5), draw(2, 5).astype(np.float32), draw(3, 3, seed=1).astype(np.float32)
    rows[2] = 0

    class Factor:
        def applied(self, gradients):
            raise NotImplementedError

        def whitened(self, gradients):
            return gradients @ factor

    whitening = [(slice(0, 3), Factor()), (slice(3, 5), None)]
    self_values = ((rows[:, :3] @ factor) ** 2).sum(axis=1) + (rows[:, 3:] ** 2).sum(axis=1)
    np.testing.assert_allclose(self_influence(rows, whitening), self_values, rtol=1e-5)
    found = window_scores(rows, Preconditioned(queries, whitening))
    assert (found[:, 2] == 0).all()
    kept = [0, 1, 3]
    expected = (queries @ rows.T)[:, kept] / np.sqrt(self_values[kept])
    np.testing.assert_allclose(found[:, kept], expected, rtol=1e-4)


@given(st.integers(0, 12), st.integers(1, 6), st.booleans(), st.integers(0, 3))
def test_ranking_is_the_full_sort(n, k, descending, seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(-2, 3, (2, n)).astype(np.float64)
    documents = np.stack([generator.permutation(20)[:n] for _ in range(2)]).reshape(2, n)
    found = ranking(scores, documents, k, descending=descending)
    for query in range(2):
        sign = -1 if descending else 1
        order = sorted(range(n), key=lambda place: (sign * scores[query, place], documents[query, place]))[:k]
        assert [number for number in found.documents[query] if number >= 0] == documents[query, order].tolist()
        assert found.scores[query][: len(order)].tolist() == scores[query, order].tolist()


@given(st.integers(0, 8), st.integers(0, 8))
def test_merging_is_the_tally_of_both(n_first, n_second):
    scores, documents = draw(3, n_first + n_second), np.arange(n_first + n_second)
    sources = documents % 3
    whole = block_tally(scores, documents, sources, 3, 4)
    parts = [slice(0, n_first), slice(n_first, None)]
    merged = merged_tally([block_tally(scores[:, p], documents[p], sources[p], 3, 4) for p in parts])
    np.testing.assert_array_equal(whole.top.documents, merged.top.documents)
    np.testing.assert_array_equal(whole.bottom.documents, merged.bottom.documents)
    np.testing.assert_allclose(whole.sums, merged.sums)
    np.testing.assert_allclose(whole.squares, merged.squares)
    np.testing.assert_array_equal(whole.counts, merged.counts)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.integers(1, 6),
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
)
def test_documents_over_several_shards_are_summed_and_counted_once(n_windows, rows_per_shard, wanted):
    """Contents of several rows, shards of any size, several documents of one content, contents nobody asked for."""
    hashes = np.asarray([bytes([65 + number]) for number in range(len(n_windows))], "S32")
    first_rows = np.concatenate([[0], np.cumsum(n_windows)])
    rows, queries = draw(int(first_rows[-1]), 4), draw(2, 4, seed=1).astype(np.float32)
    content_of_document = np.asarray([number % len(n_windows) for number in wanted])
    places = corpus_places(hashes[content_of_document], np.arange(len(wanted)))
    sources = np.arange(len(wanted)) % 2
    blocks = {}
    combination = Combination(
        sources, 2, 2, 3, lambda block, numbers: blocks.update(zip(numbers.tolist(), block.T, strict=True))
    )
    for work in shard_works("segment", hashes, first_rows, rows_per_shard, places):
        start = work.shard * rows_per_shard
        scores = window_scores(rows[start : start + rows_per_shard], Preconditioned(queries, None))
        sums = document_sums(scores, work.first_rows)
        whole = work.whole[work.positions]
        block, numbers = sums[:, work.positions[whole]], work.documents[whole]
        partial = {work.first_content + int(p): sums[:, p] for p in np.unique(work.positions[~whole])}
        combination.add(work, block_tally(block, numbers, sources[numbers], 2, 3), partial, block, numbers)
    expected = np.stack(
        [
            queries.astype(np.float64) @ rows[first_rows[content] : first_rows[content + 1]].sum(axis=0)
            for content in content_of_document
        ],
        axis=1,
    )
    found = np.stack([blocks[number] for number in range(len(wanted))], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    by_source = np.stack([expected[:, sources == number].sum(axis=1) for number in range(2)], axis=1)
    np.testing.assert_allclose(combination.tally.sums, by_source, rtol=1e-4, atol=1e-4)
    assert combination.tally.counts.sum() == len(wanted)


def test_baselines():
    documents = ["the cat sat on the mat", "dogs bark at night", "a cat and another cat"]
    scores = bm25_scores(documents, ["cat", "night dogs"])
    assert scores.shape == (2, 3)
    assert scores.argmax(axis=1).tolist() == [2, 1]
    assert scores[0, 1] == 0
    sums = source_sums(scores, ["x", "y", "x"], ["x", "y"])
    np.testing.assert_allclose(sums[:, 0], scores[:, 0] + scores[:, 2])
    assert first_rate(sums, ["x", "y"], ["x", "x"]) == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n", [1, 1024, 1500])
def test_large_blocks_score_like_small_ones(monkeypatch, dtype, n):
    rows, queries = draw(n, 5).astype(dtype), Preconditioned(draw(3, 5, seed=1).astype(np.float32), None)
    small = window_scores(rows, queries)
    monkeypatch.setattr("dataworth.tasks.scoring.blocks.TORCH_ENTRIES", 0)
    np.testing.assert_allclose(window_scores(rows, queries), small, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 50))
def test_what_others_have_reached_changes_nothing_that_is_kept(k, n_blocks, seed):
    """Pruned by the floors of the blocks before, with many ties: the same tally."""
    generator = np.random.default_rng(seed)
    documents = generator.permutation(8 * n_blocks)
    plain = pruned = None
    for block in range(n_blocks):
        chosen = documents[8 * block : 8 * block + 8]
        scores = generator.integers(-2, 3, (2, 8)).astype(np.float64)
        one = block_tally(scores, chosen, chosen % 3, 3, k)
        two = block_tally(scores, chosen, chosen % 3, 3, k, None if pruned is None else floors(pruned))
        plain = one if plain is None else merged_tally([plain, one])
        pruned = two if pruned is None else merged_tally([pruned, two])
    for found, expected in ((pruned.top, plain.top), (pruned.bottom, plain.bottom)):
        np.testing.assert_array_equal(found.documents, expected.documents)
        np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize(("n_queries", "n", "n_columns"), [(3, 1024, 3072), (3, 341, 3072), (7, 1024, 1024)])
def test_scores_do_not_depend_on_where_queries_lie_in_memory(n_queries, n, n_columns):
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((n_queries, n_columns)).astype(np.float32)
    rows = generator.standard_normal((n, n_columns)).astype(np.float16)
    expected = window_scores(rows, Preconditioned(queries, None))
    for offset in (4, 8, 20, 36):
        room = np.empty(queries.nbytes + 128, np.uint8)
        first = -room.ctypes.data % 64 + offset
        moved = room[first : first + queries.nbytes].view(np.float32).reshape(queries.shape)
        moved[:] = queries
        np.testing.assert_array_equal(window_scores(rows, Preconditioned(moved, None)), expected)
