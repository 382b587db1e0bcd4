"""A first look without a valuation: which documents of an indexed corpus taught the model most about one query.

The bodies of the tasks run in this process, without Prefect: an answer takes the time of loading the model.
"""

import importlib.util
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataworth.config import SearchConfig
from dataworth.preparing import PLAIN, prepared_stores, refuse_nothing_kept, store_folder
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.locations import location_of
from dataworth.storage.segments import Segment
from dataworth.tasks.corpus.config import QueriesConfig
from dataworth.tasks.corpus.steps import prepare_queries
from dataworth.tasks.curvature.steps import fit_matrices
from dataworth.tasks.curvature.stored import damped_inverses
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.gradients.steps import gradient_store, index_gradients
from dataworth.tasks.model.alike import refuse_other_tokenizers
from dataworth.tasks.scoring.blocks import Preconditioned, window_scores
from dataworth.tasks.scoring.queries import chosen_inverses, preconditioned
from dataworth.tasks.scoring.sketches import best_rows, sketch_matrix

__all__ = ["Found", "search"]

# Rows scored exactly for each document wanted: the sketch only has to bring the right ones among these.
CANDIDATES = 10


@dataclass(frozen=True)
class Found:
    """The answer to a query.

    Args:
        text: prompt and completion.
        documents: the best, with the keys of `documents.parquet` that a terminal shows.
    """

    text: str
    documents: list[dict[str, Any]]


def search(config: SearchConfig) -> Found:
    """The documents with the highest influence on a query (mean over the checkpoints) among those that a sketch finds.

    Raises:
        InputError: the corpus is not indexed, or the search library is missing.
    """
    if importlib.util.find_spec("faiss") is None:
        raise InputError("search needs the package faiss: pip install 'dataworth[search]'")
    refuse_other_tokenizers(config.model.checkpoints)
    with _place_of_query(config) as own:
        return _found(config, own)


def _found(config: SearchConfig, own: str) -> Found:
    indexed: list[_Indexed] = []
    for one in config.by_checkpoint:
        indexed.append(_indexed(one, own, indexed[0].queries if indexed else None))
    corpus, queries = indexed[0].corpus, indexed[0].queries
    candidates = [_candidates(each.gradients, corpus, each.ready.queries[0], config) for each in indexed]
    numbers = np.unique(np.concatenate(candidates))
    scores = np.mean([each.scores(numbers) for each in indexed], axis=0)
    order = np.lexsort((numbers, -scores))[: config.count]
    documents = [
        {**document, "rank": rank, "score": float(scores[place]), "query_id": "query"}
        for rank, (place, document) in enumerate(zip(order, corpus.documents(numbers[order].tolist()), strict=True), 1)
    ]
    return Found(str(queries.column("text")[0].as_py()), documents)


@dataclass(frozen=True)
class _Indexed:
    """What a search needs of one checkpoint.

    Args:
        corpus, gradients: the documents, and theirs.
        queries: the one query.
        ready: its gradient, preconditioned.
    """

    corpus: CorpusStore
    gradients: GradientStore
    queries: CorpusStore
    ready: Preconditioned

    def scores(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) exact scores of some documents of the corpus."""
        rows_of = self.gradients.rows_of(self.corpus.contents[numbers])
        return np.array([window_scores(rows, self.ready)[0].sum() for rows in rows_of], np.float64)


@contextmanager
def _place_of_query(config: SearchConfig) -> Iterator[str]:
    """Where the query and its gradients are kept: in the store; where that can only be read, while the block lasts."""
    store = store_folder(config)
    if not location_of(store).is_read_only():
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="dataworth-") as folder:
        yield folder


def _indexed(config: SearchConfig, own: str, queries: CorpusStore | None) -> _Indexed:
    """Stores of one checkpoint that was indexed, those of the query in `own`; `queries` as an earlier one has them.

    Raises:
        InputError: the corpus is not indexed.
    """
    refuse_nothing_kept(config)
    store, model, tokens = store_folder(config), config.model.only, config.gradients.batch_tokens
    stores = prepared_stores(config, PLAIN)
    bases, corpus = stores.bases, CorpusStore.open(stores.corpus)
    gradients = gradient_store(store, model, corpus, bases, config.gradients)
    n_missing = int((~np.isin(corpus.contents[corpus.column("n_windows").to_numpy() > 0], gradients.stored())).sum())
    if n_missing:
        raise InputError(f"{n_missing} of {corpus.n_documents} documents are not indexed: run `dataworth index` first")
    curvature = None
    if config.curvature.kind != "none":
        curvature = fit_matrices(store, model, stores.corpus, bases, stores.covariances, config.curvature, tokens)
    queries = queries or _query(config, own)
    precise = GradientsConfig(dtype="float32", batch_tokens=tokens)
    ref = index_gradients(own, model, queries.ref, bases, precise, "the query")
    (query_rows,) = GradientStore.open(ref).rows_of(queries.contents)
    inverses = chosen_inverses(gradients.layers, damped_inverses(curvature, config.curvature.damping))
    ready = preconditioned(query_rows, inverses, "dot", 1 if curvature is None else corpus.n_examples)
    return _Indexed(corpus, gradients, queries, ready)


def _query(config: SearchConfig, own: str) -> CorpusStore:
    """The query as a store of one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "query.jsonl"
        path.write_text(json.dumps({"id": "query", "prompt": config.query, "completion": config.completion}))
        asked = QueriesConfig(file=str(path), max_new_tokens=config.max_new_tokens)
        return CorpusStore.open(prepare_queries(own, config.model.only, asked))


def _candidates(gradients: GradientStore, corpus: CorpusStore, query: np.ndarray, config: SearchConfig) -> np.ndarray:
    """Documents of the corpus that own the rows the sketch finds, in no order that means anything."""
    matrix = sketch_matrix(gradients.n_columns, config.sketch)
    contents: list[bytes] = []
    wanted = CANDIDATES * config.count
    for segment in gradients.segments():
        mine = np.isin(segment.contents, corpus.contents)
        if not mine.any():
            continue
        own = np.repeat(mine, np.diff(segment.first_rows))
        rows = best_rows(_blocks(segment, own, matrix), query @ matrix, wanted)
        owners = np.searchsorted(segment.first_rows, rows, side="right") - 1
        contents += segment.contents[owners].tolist()
    return np.flatnonzero(np.isin(corpus.contents, np.asarray(contents, "S32")))


def _blocks(segment: Segment, own: np.ndarray, matrix: Any) -> Iterator[np.ndarray]:
    """Sketches of a segment shard by shard; rows of other corpora's documents are NaN."""
    narrow = segment.sketch(matrix.shape[1], lambda rows: rows.astype(np.float32) @ matrix)
    for shard, block in enumerate(narrow):
        yield np.where(own[segment.rows(shard), None], block, np.float16(np.nan))
