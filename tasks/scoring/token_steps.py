"""The step that tells of the best passages which of their tokens taught, and which tokens of the answer."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.precondition import applied
from dataworth.tasks.keeping import kept
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import progress
from dataworth.tasks.projection.logra import stored_directions, stored_projections
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.ready import ReadyPass, ready_players
from dataworth.tasks.scoring.telling import Teller, pieces

__all__ = ["PARTS", "tell_tokens"]

ALGORITHM = 1
# Queries whose passages are told of: a page of more is read by nobody.
MOST_QUERIES = 100
# Tokens computed for answers, each of whose tokens takes a copy of its query; answers beyond are not told of.
ANSWER_TOKENS = 2**16
# The only "layer" of the store. Its arrays, for n pairs of a query and a passage: `pair` (n, 3), the query's row (one
# more than queries: all together), the document's number and the window; `tokens` (n, 2), how many tokens passage and
# answer have; `parts` (sum of tokens,), first all of a passage, then of its query's answer, pair by pair.
PARTS = "parts"


def tell_tokens(
    store: str,
    model: ModelConfig,
    corpus: StoreRef,
    gradients: StoreRef,
    queries: StoreRef,
    query_gradients: StoreRef,
    curvature: StoreRef | None,
    damping_config: DampingConfig,
    bases: StoreRef,
    scoring: ScoringConfig,
    scores: StoreRef,
) -> StoreRef:
    """Parts of the scores of the best passages of each query, by token: nats, or what scores have.

    The texts of the tokens are the attribute `pieces`, by window, and `answers`, by query. A passage has one part more
    than tokens: the last is of no token (see dataworth.tasks.scoring.telling).

    Args:
        store: root of the stores.
        model: the checkpoint.
        corpus, gradients: the documents, and theirs.
        queries, query_gradients: the queries, and theirs.
        curvature, damping_config: as for `score_corpus`.
        bases: of the projection, or the queries' directions; with those answers are not told of.
        scoring: how many passages.
        scores: which passages; of several checkpoints, their mean.
    """
    parts = {
        "tokens": ALGORITHM,
        "model": load(model).fingerprint,
        "corpus": corpus.fingerprint,
        "gradients": gradients.fingerprint,
        "query_gradients": query_gradients.fingerprint,
        "curvature": curvature.fingerprint if curvature else None,
        "damping": damping_config.model_dump() if curvature else None,
        "scores": scores.fingerprint,
        "count": scoring.tokens,
    }

    def build(root: Location, name: str) -> None:
        documents, asked, loaded = CorpusStore.open(corpus), CorpusStore.open(queries), load(model)
        players = ready_players(documents, scoring, "source")
        ready = ReadyPass.of(documents, players, gradients, asked, query_gradients, curvature, damping_config, scoring)
        made = LayerStore.open(bases)
        projections = [each.to(loaded.device, loaded.model.dtype) for each in stored_projections(made)]
        teller = Teller(loaded, projections, stored_directions(made, loaded.device))
        telling = _Telling(teller, documents, asked, ready)
        found = telling.pairs(_best(ScoreStore.open(scores), scoring.tokens, documents, asked))
        decode = _decoder(loaded.tokenizer)
        windows = sorted({each.window for each in found})
        rows = sorted({each.query for each in found if each.query < asked.n_examples})
        attributes = {
            **parts,
            "pieces": {str(window): pieces(decode, documents.tokens(window).tolist()) for window in windows},
            "answers": {str(row): pieces(decode, asked.tokens(row).tolist()) for row in rows},
        }
        LayerStore.write(root, name, [Layer(PARTS)], [_arrays(found)], attributes)

    return kept(store, "layers", parts, "tokens", build)


@dataclass(frozen=True)
class _Told:
    """One passage of one query.

    Args:
        query: its row; of all queries together, one more than there are.
        document, window: numbers of the passage's.
        passage: (t,) parts of the passage's tokens.
        answer: (u,) of the query's; none of all queries together.
    """

    query: int
    document: int
    window: int
    passage: np.ndarray
    answer: np.ndarray


def _arrays(found: list[_Told]) -> dict[str, np.ndarray]:
    """As they are stored; see PARTS."""
    return {
        "pair": np.array([(each.query, each.document, each.window) for each in found], np.int64).reshape(-1, 3),
        "tokens": np.array([(len(each.passage), len(each.answer)) for each in found], np.int64).reshape(-1, 2),
        PARTS: np.concatenate([np.zeros(0), *(part for each in found for part in (each.passage, each.answer))]),
    }


@dataclass(frozen=True)
class _Telling:
    teller: Teller
    corpus: CorpusStore
    queries: CorpusStore
    ready: ReadyPass

    def pairs(self, best: list[tuple[int, int, int]]) -> list[_Told]:
        """Parts of each (query, document, window)."""
        passages, answers = {}, {}
        by_window: dict[int, list[int]] = {}
        by_query: dict[int, list[int]] = {}
        for query, _, window in best:
            by_window.setdefault(window, []).append(query)
            if query < self.queries.n_examples and self.teller.queries is None:
                by_query.setdefault(query, []).append(window)
        of_window = {window: document for _, document, window in best}
        with progress("tokens", len(by_window) + len(by_query), "passage") as bar:
            for window, rows in by_window.items():
                found = self.teller.of_passage(self.corpus, window, self.ready.queries.queries[rows])
                passages.update({(row, window): part for row, part in zip(rows, found.T, strict=True)})
                bar.advance(1)
            room = ANSWER_TOKENS
            for row, windows in by_query.items():
                room -= self.teller.n_answer_tokens(self.queries, row)
                bar.advance(1)
                if room < 0:
                    continue
                directions = [self._direction(of_window[window], window) for window in windows]
                found = self.teller.of_answer(self.queries, row, np.stack(directions))
                answers.update({(row, window): part for window, part in zip(windows, found.T, strict=True)})
        nothing = np.zeros(0)
        return [
            _Told(row, document, window, passages[row, window], answers.get((row, window), nothing))
            for row, document, window in best
        ]

    def _direction(self, document: int, window: int) -> np.ndarray:
        """What a query's gradient is multiplied with to give its score for a passage."""
        (rows,) = self.ready.gradients.rows_of(self.corpus.contents[[document]])
        own = rows[window - int(self.corpus.first_windows[document])].astype(np.float64)
        direction: np.ndarray = applied(own[None], self.ready.inverses)[0] / self.ready.divided_by
        return direction


def _best(scores: ScoreStore, count: int, corpus: CorpusStore, queries: CorpusStore) -> list[tuple[int, int, int]]:
    """(query, document, window) of the passages that are told of."""
    table = scores.passages.to_pandas()
    ids = queries.column("document_id").to_pylist()
    rows = {name: row for row, name in enumerate(ids[:MOST_QUERIES])} | {ALL_QUERIES: len(ids)}
    chosen = table[(table["rank"] > 0) & (table["rank"] <= count) & table["query_id"].isin(rows.keys())]
    wanted = set(chosen["document_id"])
    numbers = {name: n for n, name in enumerate(corpus.column("document_id").to_pylist()) if name in wanted}
    starts, first = corpus.windows["character_start"], corpus.first_windows
    found = []
    for row in chosen.itertuples():
        document = numbers[row.document_id]
        own = starts[first[document] : first[document + 1]]
        window = int(first[document]) + int(np.flatnonzero(own == row.window_start)[0])
        found.append((rows[row.query_id], document, window))
    return found


def _decoder(tokenizer: Any) -> Any:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
