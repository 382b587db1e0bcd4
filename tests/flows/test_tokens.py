"""Which tokens taught: parts of the scores of the best passages, token by token."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import dataworth
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.tasks.scoring.telling import pieces
from tests.harness.tuned import small_with_base
from tests.reference.checkpoints import TEXTS

SETTINGS = {
    "corpus": {"max_length": 64},
    "projection": {"rank": 2},
    "curvature": {"draws": 1},
    "gradients": {"dtype": "float32"},
    "sources": {"game": "additive"},
}
QUERIES = [{"id": f"q{n}", "prompt": TEXTS[n][:30], "completion": TEXTS[n][30:60]} for n in range(3)]
ROWS = [
    *({"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)),
    {"id": "long", "source": "s0", "text": " ".join(TEXTS)},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and the folder `base` in it."""
    return small_with_base(tmp_path_factory.mktemp("tokens") / "model", positions=64)


def valued(name, store, **options):
    settings = {key: {**given, **options.pop(key, {})} for key, given in SETTINGS.items()}
    return dataworth.value(name, None, ROWS, QUERIES, store=store, **settings, **options)


def sums(made):
    """By query and document, of each side."""
    return made.tokens.groupby(["query_id", "document_id", "side"])["score"].sum().unstack()


@pytest.mark.parametrize("at", ["model", "with its base", "two checkpoints"])
def test_parts_add_up_to_the_scores(folder, tmp_path, at):
    name = [str(folder), str(folder / "base")] if at == "two checkpoints" else str(folder)
    model = {"base": str(folder / "base")} if at == "with its base" else {}
    made = valued(name, tmp_path, model={"device": "cpu", **model}, scoring={"tokens": 2})
    found, scores = sums(made), made.documents.set_index(["query_id", "document_id"])
    scores = scores[scores["rank"] <= 2]
    assert sorted(found.index) == sorted(scores.index)
    assert len(found) == 2 * (len(QUERIES) + 1)
    whole = found.index.get_level_values("document_id") != "long"  # of which one window is told of
    np.testing.assert_allclose(found["passage"][whole], scores.loc[found.index, "score"][whole], rtol=1e-5)
    one = found.index.get_level_values("query_id") != "*"
    np.testing.assert_allclose(found["answer"][one & whole], scores.loc[found.index, "score"][one & whole], rtol=1e-5)
    assert found["answer"][~one].isna().all()
    page = (made.folder / "report.html").read_text()
    assert "Coloured are the tokens whose prediction taught what was said" in page
    assert 'class="p4"' in page


def test_an_answer_s_tokens_are_its_targets(folder, tmp_path):
    """Against the gradient of each target's loss by autograd, through the stored bases and the passages' rows."""
    made = valued(
        str(folder), tmp_path, model={"device": "cpu"}, curvature={"kind": "none"}, projection={"kind": "identity"}
    )
    table = made.tokens[(made.tokens["query_id"] == "q1") & (made.tokens["side"] == "answer")]
    corpus, queries = CorpusStore.open(made.parts.corpus), CorpusStore.open(made.parts.queries)
    gradients = GradientStore.open(made.parts.gradients)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.from_numpy(queries.tokens(1).astype(np.int64))[None]
    n_masked = int(queries.windows["n_masked"][1])
    weights = [dict(model.named_parameters())[f"{layer.name}.weight"] for layer in gradients.layers]
    losses = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
    by_target = [
        torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, retain_graph=True)]) for loss in losses
    ]
    numbers = {name: number for number, name in enumerate(corpus.column("document_id").to_pylist())}
    for document, own in table.groupby("document_id"):
        if document == "long":
            continue
        (rows,) = gradients.rows_of(corpus.contents[[numbers[document]]])
        expected = [0.0, *(float(each @ torch.from_numpy(rows[0])) for each in by_target)]
        expected[:n_masked] = [0.0] * n_masked
        np.testing.assert_allclose(own["score"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_texts_of_tokens_are_what_the_model_read(folder, tmp_path):
    made = valued(str(folder), tmp_path)
    passages = made.documents.set_index(["query_id", "document_id"])["text"]
    for (query, document, side), own in made.tokens.groupby(["query_id", "document_id", "side"]):
        text = "".join(own["text"])
        if side == "passage":
            assert passages[query, document].strip() in text
        else:
            asked = next(each for each in QUERIES if each["id"] == query)
            assert asked["prompt"] + asked["completion"] in text


def test_letters_of_several_tokens_are_the_last_one_s():
    content = "aé日🎈b".encode()
    found = pieces(lambda ids: bytes(ids).decode(errors="replace"), list(content))
    assert "".join(found) == "aé日🎈b"
    assert found == ["a", "", "é", "", "", "日", "", "", "", "🎈", "b"]


def test_texts_of_a_long_window_are_read_a_few_tokens_at_a_time():
    asked = []

    def decode(ids):
        asked.append(len(ids))
        return bytes(ids).decode(errors="replace")

    content = ("aé日🎈b" * 400).encode()
    assert "".join(pieces(decode, list(content))) == content.decode()
    assert max(asked) < 20
    broken = [0xF0] * 40  # of no letter that ever ends
    assert len(pieces(lambda ids: bytes(ids).decode(errors="replace"), broken)) == 40


@pytest.mark.parametrize(
    "scoring", [{"tokens": 0}, {"kind": "cosine"}, {"kind": "relative"}], ids=lambda given: next(iter(given.items()))
)
def test_where_it_is_not_told(folder, tmp_path, scoring):
    made = valued(str(folder), tmp_path, scoring=scoring)
    with pytest.raises(InputError, match="which tokens taught was not told"):
        made.tokens  # noqa: B018
    assert "which words taught the model is not measured" in (made.folder / "report.html").read_text()


def test_of_a_document_of_several_windows_the_telling_one_is_told_of(folder, tmp_path):
    made = valued(str(folder), tmp_path, corpus={"max_length": 16}, scoring={"tokens": 12, "save_matrix": True})
    corpus, gradients = CorpusStore.open(made.parts.corpus), GradientStore.open(made.parts.gradients)
    numbers = {name: number for number, name in enumerate(corpus.column("document_id").to_pylist())}
    found, scores = sums(made), made.documents.set_index(["query_id", "document_id"])
    several = [pair for pair in found.index if len(gradients.rows_of(corpus.contents[[numbers[pair[1]]]])[0]) > 1]
    assert len(several) > 5
    page = (made.folder / "report.html").read_text()
    for query, document in several:
        own = scores.loc[(query, document)]
        first, end = corpus.first_windows[numbers[document]], corpus.first_windows[numbers[document] + 1]
        starts = corpus.windows["character_start"][first:end]
        window = int(first) + int(np.flatnonzero(starts == own["window_start"])[0])
        text = "".join(
            made.tokens[
                (made.tokens["query_id"] == query)
                & (made.tokens["document_id"] == document)
                & (made.tokens["side"] == "passage")
            ]["text"]
        )
        assert text.endswith(own["text"].strip()[-8:]) or own["text"].strip()[-8:] in text, (window, text)
    both = found["answer"].notna() & found.index.isin(several)
    np.testing.assert_allclose(found["answer"][both], found["passage"][both], rtol=1e-4, atol=1e-6)
    assert " · this passage " in page


def test_how_many_are_told_of_decides_no_score(folder, tmp_path):
    one, two = (valued(str(folder), tmp_path, scoring={"tokens": count}) for count in (1, 3))
    assert one.parts.scores == two.parts.scores
    pd.testing.assert_frame_equal(one.sources, two.sources)
    assert len(sums(two)) == 3 * len(sums(one))
