"""A valuation that keeps no gradients says what one that keeps them says."""

import numpy as np
import pytest

import dataworth
from dataworth.storage.errors import InputError
from tests.harness.tuned import small_with_base
from tests.reference.checkpoints import TEXTS

SETTINGS = {
    "corpus": {"max_length": 64},
    "projection": {"kind": "identity"},
    "curvature": {"kind": "ekfac", "draws": 1},
    "gradients": {"dtype": "float32", "query_error": 0},
    "sources": {"game": "additive"},
}
QUERIES = [{"id": f"q{n}", "prompt": TEXTS[n][:30], "completion": TEXTS[n][30:60]} for n in range(3)]
ROWS = [{"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)]
NEW = [{"id": f"n{n}", "source": f"new{n % 2}", "text": text[10:]} for n, text in enumerate(TEXTS[:4])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and the folder `base` in it."""
    return small_with_base(tmp_path_factory.mktemp("nothing") / "model", positions=64)


def valued(name, store, keep, **options):
    settings = {key: {**given, **options.pop(key, {})} for key, given in SETTINGS.items()}
    settings["gradients"]["keep"] = keep
    return dataworth.value(name, None, ROWS, QUERIES, store=store, **settings, **options)


def by_query_and_rank(made):
    return made.documents.set_index(["query_id", "rank"]).sort_index()


@pytest.mark.parametrize("at", ["model", "with its base", "two checkpoints"])
def test_the_same_answer(folder, tmp_path, at):
    name = [str(folder), str(folder / "base")] if at == "two checkpoints" else str(folder)
    model = {"device": "cpu"} | ({"base": str(folder / "base")} if at == "with its base" else {})
    options = {"model": model, "scoring": {"tokens": 2}, "candidates": {"files": NEW}}
    rows, none = (valued(name, tmp_path, keep, **options) for keep in ("rows", "none"))
    one, other = (each.sources.set_index(["query_id", "source"]) for each in (rows, none))
    for column in ("value", "low", "high"):
        largest = one[column].abs().max()
        np.testing.assert_allclose(other.loc[one.index, column], one[column], atol=1e-4 * largest)
    one, other = by_query_and_rank(rows), by_query_and_rank(none)
    np.testing.assert_allclose(other["score"], one["score"], atol=1e-4 * one["score"].abs().max())
    assert (other["text"] == one.loc[other.index, "text"]).mean() > 0.9  # near ties may change places
    assert other["relative_score"].isna().all()
    parts = none.tokens.groupby(["query_id", "document_id", "side"])["score"].sum().unstack()
    assert list(parts.columns) == ["passage"]
    scores = none.documents[none.documents["rank"].between(1, 2)].set_index(["query_id", "document_id"])["score"]
    np.testing.assert_allclose(parts["passage"], scores.loc[parts.index], rtol=1e-4, atol=1e-7)
    columns = ["query_id", "source", "value"]
    one, other = (each.candidates[columns].set_index(columns[:2])["value"] for each in (rows, none))
    np.testing.assert_allclose(other.loc[one.index], one, atol=1e-4 * one.abs().max())


def test_a_cut_is_near(folder, tmp_path):
    whole = valued(str(folder), tmp_path, "none", scoring={"save_matrix": True})
    cut = valued(str(folder), tmp_path, "none", scoring={"save_matrix": True}, gradients={"query_error": 0.1})
    one, other = whole.scores.to_pandas(), cut.scores.to_pandas()
    lost = np.linalg.norm(other.loc[one.index] - one) / np.linalg.norm(one)
    assert 0 < lost < 0.3


REFUSED = {
    "lengths": ({"scoring": {"kind": "cosine"}}, "scores alone are kept"),
    "layers": ({"scoring": {"by_layer": True}}, "scores alone are kept"),
    "a sketch": ({"projection": {"kind": "factgrass"}, "curvature": {"kind": "fisher"}}, "both sides of a layer apart"),
    "an unknown loss": ({"curvature": {"kind": "fisher"}, "gradients": {"query_error": 0.1}}, "of two sides"),
    "a game of gradients": ({"sources": {"game": "newton"}, "model": {"base": "base"}}, "is made of gradients"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_gradients_is_refused(folder, tmp_path, name):
    options, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        valued(str(folder), tmp_path, "none", **options)


def test_nothing_is_indexed_without_queries(folder, tmp_path):
    with pytest.raises(InputError, match="whose queries come first"):
        dataworth.index(str(folder), None, ROWS, store=tmp_path, gradients={"keep": "none"})
