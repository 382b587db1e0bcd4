"""The order of contents, and which window is in which row."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataworth.tasks.gradients.order import content_order, row_windows


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=12), st.randoms())
def test_contents_are_distinct_short_first_and_independent_of_the_documents_order(documents, random):
    contents = np.asarray([bytes([kind, size]) for kind, size in documents], "S32")
    sizes = np.asarray([size for _, size in documents])
    order = content_order(contents, sizes)
    assert sorted(contents[order]) == sorted(set(contents))
    assert (np.diff(sizes[order]) >= 0).all()
    shuffled = list(range(len(documents)))
    random.shuffle(shuffled)
    again = content_order(contents[shuffled], sizes[shuffled])
    assert contents[shuffled][again].tolist() == contents[order].tolist()


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.randoms())
def test_every_row_finds_its_window(n_windows, random):
    contents = np.asarray([bytes([65 + number]) for number in range(len(n_windows))], "S32")
    first_windows = np.concatenate([[0], np.cumsum(n_windows)])
    chosen = [number for number in range(len(n_windows)) if random.random() < 0.7]
    random.shuffle(chosen)
    strangers = [b"unknown"]
    segment = np.asarray([*contents[chosen], *strangers], "S32")
    first_rows = np.concatenate([[0], np.cumsum([*(n_windows[number] for number in chosen), 2])])
    rows = row_windows(segment, first_rows, contents, first_windows)
    expected = [window for number in chosen for window in range(first_windows[number], first_windows[number + 1])]
    assert rows.tolist() == [*expected, -1, -1]
