"""The face for a notebook: what it takes, what it leaves alone, what it says of what it cannot take."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import dataworth as dw
from dataworth.storage.errors import InputError

SETTINGS = {"corpus": {"max_length": 24}, "projection": {"rank": 2}}


@pytest.fixture
def documents(corpus_file):
    return [json.loads(line) for line in corpus_file.read_text().splitlines()]


@pytest.fixture
def queries(queries_file):
    return [json.loads(line) for line in queries_file.read_text().splitlines()]


@pytest.fixture
def checkpoint(checkpoints):
    return str(checkpoints["llama"])


def test_rows_scores_and_values_agree(checkpoint, documents, queries, tmp_path):
    rows = dw.index(checkpoint, None, documents, **SETTINGS)
    assert len(rows) == len(documents)
    assert rows["long"].shape[0] > 1
    with pytest.raises(KeyError):
        rows["nobody"]
    scores = rows.scores(queries).to_pandas()
    assert sorted(scores.columns) == sorted(document["id"] for document in documents)
    valuation = rows.value(queries)
    together = valuation.sources.query("query_id == '*'").set_index("source")["value"]
    of = {document["id"]: document["source"] for document in documents}
    summed = scores.loc["*"].groupby(of).sum()
    np.testing.assert_allclose(together.sort_index(), summed.sort_index(), rtol=1e-4)
    assert valuation.report(tmp_path / "page.html").stat().st_size > 10_000
    assert "s0" in repr(valuation)
    assert "<table" in valuation._repr_html_()
    with pytest.raises(InputError, match="the matrix of scores was not kept"):
        _ = valuation.scores


def test_documents_in_any_form_are_the_same(checkpoint, documents, queries, corpus_file, queries_file):
    import datasets

    asked = [queries, queries_file, pd.DataFrame(queries), iter(queries)]
    forms = [documents, corpus_file, pd.DataFrame(documents), datasets.Dataset.from_list(documents)]
    found = [
        dw.value(checkpoint, None, form, query, **SETTINGS).sources for form, query in zip(forms, asked, strict=True)
    ]
    for each in found[1:]:
        pd.testing.assert_frame_equal(each, found[0])


def test_a_model_in_memory_is_left_as_it_is(checkpoint, documents):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    model.train()
    own = {"model": {"include": ["*q_proj"]}, "queries": {"max_new_tokens": 2}}
    valuation = dw.value(model, tokenizer, documents, ["The river runs", "A list of"], **SETTINGS, **own)
    assert set(valuation.sources["query_id"]) == {"q0", "q1", "*"}
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    folder = valuation.folder
    del valuation
    assert not folder.exists()


def test_a_store_that_is_named_is_kept_and_found_again(checkpoint, documents, tmp_path, caplog):
    with caplog.at_level("INFO", "dataworth"):
        for _ in range(2):
            dw.index(checkpoint, None, documents, store=tmp_path / "store", **SETTINGS)
    assert any(" 0 of " in line for line in caplog.messages)
    assert Path(tmp_path / "store" / "gradients").is_dir()


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((object(), None), {}, "model: object; expected a transformers model"),
        (("model", None), {"results": "x"}, "results: is of the command line and the flows"),
        (("model", None), {"projection": {"rank": -1}}, "projection.rank: "),
        (("model", None), {"projecton": {"rank": 1}}, "projecton: "),
    ],
)
def test_what_cannot_be_taken_is_one_sentence(documents, arguments, options, said):
    with pytest.raises(InputError, match="^" + said):
        dw.index(*arguments, documents, **options)


def test_a_model_needs_its_tokenizer(checkpoint, documents):
    with pytest.raises(InputError, match="^tokenizer: "):
        dw.index(AutoModelForCausalLM.from_pretrained(checkpoint), None, documents)


def test_settings_are_named_as_arguments(checkpoint, documents):
    exact, asked = {"curvature": {"labels": "exact"}}, [{"id": "q", "prompt": "a", "completion": " b"}]
    with pytest.raises(InputError, match=r"^`curvature\.labels` exact: .* pass `curvature\.labels` sampled$"):
        dw.value(checkpoint, None, documents, asked, **SETTINGS, **exact)


def test_a_path_that_is_none_is_no_prompt(checkpoint, documents, tmp_path):
    with pytest.raises(InputError, match="no such file|cannot be read|not there"):
        dw.value(checkpoint, None, documents, str(tmp_path / "questions.jsonl"), **SETTINGS)


def test_documents_that_are_none(checkpoint):
    with pytest.raises(InputError, match="^documents: int; expected a list of dicts"):
        dw.index(checkpoint, None, 5)
