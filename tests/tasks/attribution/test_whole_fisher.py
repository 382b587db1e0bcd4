"""Influence through the Fisher of all parameters against the dense inverse, on blocks small enough for one."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.reference.in_memory import texts
from tests.reference.whole_fisher import whole_scores

DRAWS, RATIO = 2, 0.1


def norm_of(name):
    """Every norm's weights in a block of their own."""
    return name if "norm" in name else None


def gradients(model, ids, labels, names):
    """Of the loss on targets from the third token on, which carry loss."""
    log_p = model(input_ids=ids[None]).logits[0, 1:-1].log_softmax(-1)
    chosen = dict(model.named_parameters())
    loss = -log_p.gather(-1, labels[:, None]).sum()
    found = torch.autograd.grad(loss, [chosen[name] for name in names])
    return torch.cat([part.flatten() for part in found]).numpy()


def test_scores_equal_the_dense_inverse(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"], dtype=torch.float64).eval()
    taught, queries = texts(5, 0), texts(3, 1)
    names = [name for name, _ in model.named_parameters() if "norm" in name]
    generator, drawn = torch.Generator().manual_seed(0), []
    for row in taught.rows:
        ids = torch.from_numpy(row)
        chances = model(input_ids=ids[None]).logits[0, 1:-1].detach().softmax(-1)
        for _ in range(DRAWS):
            drawn.append(gradients(model, ids, torch.multinomial(chances, 1, generator=generator)[:, 0], names))
    own, asked = (
        np.stack([gradients(model, torch.from_numpy(row), torch.from_numpy(row)[2:], names) for row in side.rows])
        for side in (taught, queries)
    )
    spaces = {"jointly": lambda name: "norms" if "norm" in name else None, "each by itself": norm_of}
    found = whole_scores(model, taught, queries, spaces, [RATIO], DRAWS)
    n, size = len(own), own.shape[1]
    width = size // len(names)
    for space, step in (("jointly", size), ("each by itself", width)):
        expected = 0.0
        for first in range(0, size, step):
            rows, z, q = (side[:, first : first + step] for side in (np.stack(drawn), own, asked))
            fisher = rows.T @ rows / (n * DRAWS)
            eigenvalues = np.linalg.eigvalsh(fisher)
            damping = RATIO * eigenvalues[eigenvalues > 1e-6 * eigenvalues.max()].mean()
            expected = expected + q @ np.linalg.solve(fisher + damping * np.eye(step), z.T) / n
        assert np.abs(expected).min() > 0
        np.testing.assert_allclose(found[space, RATIO], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
