"""One step on a query's best documents, by hand and by the tail patch."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dataworth.tasks.counterfactual.patch import best_documents, patched_falls
from tests.reference.in_memory import dense_rows, small_classifier, table

LENGTH = 0.01


def test_the_best_come_first_and_ties_go_to_the_first():
    assert best_documents(np.array([1.0, 5.0, 5.0, -1.0]), 3).tolist() == [1, 2, 0]


def test_the_fall_is_that_of_a_step_by_hand():
    model, examples, queries = small_classifier(), table(8, 1), table(3, 2)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    falls = patched_falls(model, examples, queries, [(2, np.array([4, 1])), (0, np.array([7]))], LENGTH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())

    gradient = dense_rows(model, examples)[[4, 1]].sum(axis=0)
    layers = [layer for layer in model.model if isinstance(layer, torch.nn.Linear)]
    weights = np.concatenate([torch.cat([x.weight, x.bias[:, None]], dim=1).numpy().ravel() for x in layers])
    moved = weights - gradient / np.linalg.norm(gradient) * LENGTH * np.linalg.norm(weights)
    first = 0
    for layer in layers:
        size = layer.weight.numel() + layer.bias.numel()
        block = torch.from_numpy(moved[first : first + size]).view(len(layer.bias), -1)
        layer.weight.copy_(block[:, :-1])
        layer.bias.copy_(block[:, -1])
        first += size
    after = cross_entropy(model.model(queries.inputs[2:]), queries.labels[2:])
    model.model.load_state_dict(before)
    assert falls[0] == pytest.approx(float(cross_entropy(model.model(queries.inputs[2:]), queries.labels[2:]) - after))


def test_a_document_that_is_the_query_teaches_it():
    model, queries = small_classifier(), table(6, 2)
    falls = patched_falls(model, queries, queries, [(n, np.array([n])) for n in range(6)], LENGTH)
    assert (falls > 0).all()
