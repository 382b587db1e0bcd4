"""A classifier's corpus from file to scores, with the exact Fisher, against autograd on its weights."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.corpus.windows import class_number
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.layers import tracked_layers
from tests.harness.pipeline import Pipeline, assert_same_scores, document_scores, in_nats, matrix_by_id
from tests.reference.checkpoints import TEXTS
from tests.reference.dense import dense_scores

LABELS = ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.fixture
def labelled(tmp_path):
    rows = [
        {"id": f"d{n}", "source": f"s{n % 2}", "text": text, "label": LABELS[n % 3] if n % 2 else n % 3}
        for n, text in enumerate(TEXTS[:8])
    ]
    corpus, queries = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"
    corpus.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = [{"id": "q0", "prompt": "The river runs", "completion": "LABEL_2"}, {"id": "q1", "prompt": TEXTS[9]}]
    queries.write_text("".join(f"{json.dumps(row)}\n" for row in asked))
    return rows, corpus, queries


def gradients(model, layers, ids, label):
    model.zero_grad()
    (-model(input_ids=ids[None]).logits[0].log_softmax(-1)[label]).backward()
    found = []
    for layer in layers:
        module = layer.module
        found.append(torch.cat([module.weight.grad, module.bias.grad[:, None]], dim=1).flatten().numpy())
    return found


@pytest.mark.parametrize("name", ["bert classifier", "distilbert classifier"])
def test_scores_of_a_classifier_equal_the_dense_computation(tmp_path, checkpoints, labelled, name):
    rows, corpus, queries = labelled
    exclude = ["*intermediate*", "*output*", "*ffn*"]  # small enough for the dense Fisher
    curvature = CurvatureConfig(labels="exact", damping=DampingConfig(rule="absolute", value=0.1))
    model_names = exclude[:2] if name.startswith("bert") else exclude[2:]
    pipeline = Pipeline(
        tmp_path / "store", checkpoints[name], corpus, queries, {"kind": "identity", "exclude": model_names}, curvature
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[name])
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[name], dtype=torch.float64).eval()
    layers = tracked_layers(model, exclude=model_names)
    texts = [torch.tensor(tokenizer(row["text"])["input_ids"][:24]) for row in rows]
    labels = [n % 3 for n in range(len(rows))]
    examples = [gradients(model, layers, ids, label) for ids, label in zip(texts, labels, strict=True)]
    fisher = [np.zeros((len(block), len(block))) for block in examples[0]]
    for ids in texts:
        for label, probability in enumerate(model(input_ids=ids[None]).logits[0].softmax(-1).tolist()):
            for total, block in zip(fisher, gradients(model, layers, ids, label), strict=True):
                total += probability * np.outer(block, block) / len(texts)
    asked = [(torch.tensor(tokenizer("The river runs")["input_ids"]), 2)]
    ids = torch.tensor(tokenizer(TEXTS[9])["input_ids"])
    asked.append((ids, int(model(input_ids=ids[None]).logits[0].argmax())))
    scores = dense_scores([gradients(model, layers, *query) for query in asked], examples, fisher, 0.1)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, in_nats(pipeline, scores)))
    said = CorpusStore.open(pipeline.queries).column("text").to_pylist()
    assert said == [f"The river runs\n→ {LABELS[2]}", f"{TEXTS[9]}\n→ {LABELS[asked[1][1]]}"]


def test_documents_without_a_known_class_are_refused(tmp_path, checkpoints, labelled):
    _, corpus, _ = labelled
    model = ModelConfig(name=str(checkpoints["bert classifier"]))

    def prepared(**fields):
        return prepare_corpus(
            str(tmp_path / "store"), model, CorpusConfig(files=[str(corpus)], max_length=24, **fields)
        )

    with pytest.raises(InputError, match=r"corpus.jsonl.*line 1, field 'class': missing"):
        prepared(label="class")
    with pytest.raises(InputError, match=r"line 1, field 'source': the model has no class 's0'; it knows LABEL_0"):
        prepared(label="source")
    folder = tmp_path / "texts" / "one"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("words")
    with pytest.raises(InputError, match="a folder of text says no classes"):
        prepare_corpus(str(tmp_path / "store"), model, CorpusConfig(files=[str(folder.parent)], max_length=24))
    queries = tmp_path / "wrong.jsonl"
    queries.write_text('{"id": "q", "prompt": "words", "completion": "joy"}\n')
    with pytest.raises(InputError, match=r"field 'completion': the model has no class 'joy'"):
        prepare_queries(str(tmp_path / "store"), model, QueriesConfig(file=str(queries)))


@pytest.mark.parametrize(
    ("labels", "given", "meant"),
    [
        (["LABEL_0", "LABEL_1"], "1", 1),
        (["bad", "good"], "good", 1),
        (["0", "1", "2"], "2", 2),
        (["1", "2", "3"], "3", 2),
        (["1", "2", "3"], "0", 0),
        (["1", "2", "3"], "#1", 1),
        (["a", "a"], "#1", 1),
        (["#1", "b"], "#1", 1),
    ],
)
def test_a_class_by_its_name_or_its_number(labels, given, meant):
    assert class_number(given, labels, "f") == meant


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        (["1", "2", "3"], "1", r"'1' may be class 0 \('1'\) or class 1 \('2'\) of the model; write #0 or #1"),
        (["1", "0"], "0", r"'0' may be class 0 \('1'\) or class 1 \('0'\)"),
        (["a", "a", "A"], "a", r"'a' may be class 0 \('a'\) or class 1 \('a'\)"),
        (["a", "b"], "#2", "the model has no class '#2'; it knows a, b, or 0 to 1"),
    ],
)
def test_a_class_that_may_be_another_is_refused(labels, given, message):
    """Stars from one to five are classes 0 to 4: a number says two things."""
    with pytest.raises(InputError, match=message):
        class_number(given, labels, "f")
