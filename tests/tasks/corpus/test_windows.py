"""Windows, batches and the demo's corpus."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.batches import batches_by_length, padded_batch
from dataworth.tasks.corpus.documents import Document
from dataworth.tasks.corpus.stdlib import held_out, standard_library_documentation
from dataworth.tasks.corpus.windows import tokenised_document, tokenised_query, window_bounds
from tests.reference.checkpoints import TEXTS


@given(st.integers(0, 60), st.integers(2, 9))
def test_windows_cover_every_token_but_a_last_single_one(n_tokens, max_length):
    bounds = window_bounds(n_tokens, max_length)
    covered = [place for start, length in bounds for place in range(start, start + length)]
    dropped = n_tokens % max_length == 1
    assert covered == list(range(n_tokens - dropped))
    assert all(2 <= length <= max_length for _, length in bounds)


def test_a_document_keeps_its_special_token_and_its_characters(tokenizer):
    text = " ".join(TEXTS)
    document = tokenised_document(tokenizer, Document("d", "s", text, ""), 32)
    assert document.tokens.tolist() == tokenizer(text)["input_ids"][: len(document.tokens)]
    assert document.tokens[0] == tokenizer.bos_token_id
    pieces = [text[first:end] for *_, first, end in document.windows]
    assert "".join(pieces) == text
    assert len(pieces) > 3


def test_a_query_is_joined_from_prompt_and_completion(tokenizer):
    query = tokenised_query(tokenizer, "q", "The river", " runs", "f, line 1", 64)
    prompt = tokenizer("The river")["input_ids"]
    completion = tokenizer(" runs", add_special_tokens=False)["input_ids"]
    assert query.tokens.tolist() == prompt + completion
    assert query.windows[0][:3] == (0, len(prompt) + len(completion), len(prompt))
    assert query.text[query.n_prompt_characters :] == " runs"
    with pytest.raises(InputError, match="the model reads at most 3"):
        tokenised_query(tokenizer, "q", "The river", " runs", "f, line 1", 3)


@given(st.lists(st.integers(2, 40), max_size=30), st.integers(2, 100))
def test_batches_hold_every_example_once_within_the_budget(lengths, budget):
    lengths = np.asarray(lengths, np.int64)
    batches = batches_by_length(lengths, budget, "padded")
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


def test_padding_is_masked():
    rows = [np.array([5, 6, 7]), np.array([8, 9])]
    input_ids, mask, labels = padded_batch(rows, np.array([0, 1]), 0)
    assert input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert labels.tolist() == [[5, 6, 7], [-100, 9, -100]]


def test_the_standard_library_is_a_corpus_of_many_sources():
    passages = standard_library_documentation()
    texts = [passage["text"] for passage in passages]
    assert len(passages) >= 1500
    assert len({passage["source"] for passage in passages}) >= 12
    assert len(set(texts)) == len(texts)
    assert len({passage["id"] for passage in passages}) == len(passages)
    split = held_out(passages, 3, seed=0)
    assert len(split.corpus) + len(split.queries) == len(passages)
    kept = {passage["text"] for passage in split.corpus}
    assert all(query["prompt"] + query["completion"] not in kept for query in split.queries)
    assert {split.sources[query["id"]] for query in split.queries} == {passage["source"] for passage in passages}
    assert held_out(passages, 3, seed=0) == split
