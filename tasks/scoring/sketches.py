"""A first look at a store: rows made narrow by a sparse sketch, searched approximately, the best scored exactly.

Every column of a row is added, with a random sign, to one of m: inner products keep their expectation.
Source: Charikar, Chen & Farach-Colton 2002 (the count sketch); the search itself is faiss (Douze et al. 2024,
arXiv 2401.08281), exact inner products of 16-bit vectors.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix

__all__ = ["best_rows", "sketch_matrix"]


def sketch_matrix(n_columns: int, m: int, seed: int = 0) -> csr_matrix:
    """(n_columns, min(m, n_columns)) sparse S with one +1 or -1 a row; the identity where nothing is to be saved."""
    if n_columns <= m:
        return csr_matrix((np.ones(n_columns, np.float32), (np.arange(n_columns), np.arange(n_columns))))
    generator = np.random.default_rng([seed, n_columns, m])
    signs = generator.choice(np.array([-1.0, 1.0], np.float32), n_columns)
    return csr_matrix((signs, (np.arange(n_columns), generator.integers(0, m, n_columns))), shape=(n_columns, m))


def best_rows(
    sketches: Iterable[Float[np.ndarray, "n m"]], query: Float[np.ndarray, " m"], count: int
) -> Int[np.ndarray, " k"]:
    """Numbers of the rows with the largest inner product with a query, best first.

    Args:
        sketches: blocks of rows, float16; a row of NaN is no row.
        query: sketched in the same way.
        count: rows wanted.
    """
    import faiss

    index = faiss.IndexScalarQuantizer(len(query), faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    numbers, first = [], 0
    for block in sketches:
        there = np.flatnonzero(~np.isnan(block[:, 0]))
        if len(there):
            index.add(np.ascontiguousarray(block[there], np.float32))
        numbers.append(first + there)
        first += len(block)
    if index.ntotal == 0:
        return np.empty(0, np.int64)
    _, best = index.search(np.ascontiguousarray(query[None], np.float32), min(count, index.ntotal))
    return np.concatenate(numbers)[best[0]]
