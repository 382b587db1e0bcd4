"""Prompt and completion as the tokens of the joined text, split where the prompt ends, for every make of tokenizer."""

import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.documents import Document
from dataworth.tasks.corpus.windows import prompt_tokens, tokenised_document, tokenised_query
from tests.conformance.tokenizers import MAKES, TEXTS

WHERE = "queries.jsonl, line 1"
ENDS = {"</s>", "[SEP]"}


@pytest.fixture(scope="module", params=MAKES)
def tokenizer(request):
    return MAKES[request.param]()


def split(tokenizer, prompt, completion):
    """Ids of the query, and how many of them are the prompt's."""
    query = tokenised_query(tokenizer, "q", prompt, completion, WHERE, None)
    return query.tokens.tolist(), query.windows[0][2]


def joined(tokenizer, text):
    """Ids of a text without the end token, if there is one."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if tokenizer.convert_ids_to_tokens(ids[-1]) in ENDS else ids


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_are_those_of_the_joined_text(tokenizer, text):
    for place in range(1, len(text)):
        prompt, completion = text[:place], text[place:]
        if not prompt.strip() or not completion.strip():
            continue
        if tokenizer.is_fast and tokenizer(text, return_offsets_mapping=True)["offset_mapping"][0][1] > len(prompt):
            with pytest.raises(InputError, match="makes one token of prompt and completion"):
                split(tokenizer, prompt, completion)
            continue
        ids, n_prompt = split(tokenizer, prompt, completion)
        assert ids == joined(tokenizer, text)
        assert 0 < n_prompt < len(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_the_split_is_where_the_prompt_ends(tokenizer, text):
    """What stands before the split is the prompt's own beginning; before a new word, all of it."""
    words = [place for place in range(1, len(text)) if text[place] == " " and text[place - 1] not in " \n"]
    for place in words:
        ids, n_prompt = split(tokenizer, text[:place], text[place:])
        alone = prompt_tokens(tokenizer, text[:place])
        assert ids[:n_prompt] == alone[:n_prompt]
        assert len(alone) - n_prompt <= 1  # a last piece that goes on behind the joint is the completion's
        assert (
            tokenizer.decode(ids[n_prompt:]).replace(" ", "")[:1]
            == tokenizer.decode(tokenizer(text[place:].strip(), add_special_tokens=False)["input_ids"]).replace(
                " ", ""
            )[:1]
        )


def test_no_end_token_stands_at_the_joint_or_after_a_prompt(tokenizer):
    ids, _ = split(tokenizer, "The keeper sleeps.", " Nobody after")
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert not ENDS & set(pieces)
    assert not ENDS & set(tokenizer.convert_ids_to_tokens(prompt_tokens(tokenizer, "The keeper sleeps.")))


@pytest.mark.filterwarnings("ignore:This sequence already has:UserWarning")  # ByT5's own tokenizer says so
def test_a_text_that_begins_as_the_tokenizer_would_begins_once(tokenizer):
    text = "The keeper sleeps."
    plain = tokenizer(text)["input_ids"]
    first, last = plain[0], plain[-1]
    begins = tokenizer.convert_ids_to_tokens(first) in ("<s>", "[CLS]")
    finishes = tokenizer.convert_ids_to_tokens(last) in ENDS
    literal = (tokenizer.decode([first]) if begins else "") + text + (tokenizer.decode([last]) if finishes else "")
    document = tokenised_document(tokenizer, Document("d", "s", literal, ""), 512)
    ids = document.tokens.tolist()
    assert ids.count(first) == 1 if begins else True
    assert ids.count(last) == 1 if finishes else True
    assert bool(document.remarks) == (tokenizer.is_fast and (begins or finishes))  # ByT5 leaves one out by itself
    if begins:
        literal_query, _ = split(tokenizer, tokenizer.decode([first]) + "The keeper", " sleeps.")
        assert literal_query.count(first) == 1
        assert prompt_tokens(tokenizer, tokenizer.decode([first]) + "The keeper").count(first) == 1


def test_no_document_is_changed_that_needs_no_change(tokenizer):
    for text in TEXTS:
        document = tokenised_document(tokenizer, Document("d", "s", text, ""), 512)
        assert document.tokens.tolist() == tokenizer(text)["input_ids"]
        assert document.remarks == ()
