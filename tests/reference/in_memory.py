"""Small models and examples in memory, and what methods of attribution make of them by dense formulas in float64."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dataworth.tasks.corpus.batches import n_targets, padded_batch
from dataworth.tasks.corpus.draws import label_uniforms
from dataworth.tasks.corpus.examples import TensorExamples
from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.model.plain import PlainModel
from dataworth.tasks.model.reading import Reading

__all__ = [
    "CLASSES",
    "FrozenModel",
    "TokenExamples",
    "dense_curvature",
    "dense_rows",
    "small_classifier",
    "table",
    "texts",
]

FEATURES, CLASSES = 5, 4


def small_classifier(seed=0, hidden=6):
    """(n, 5) → 4 classes, float64; 64 weights with six hidden units."""
    torch.manual_seed(seed)
    return PlainModel(
        nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES)).double(), CLASSES
    )


def table(n, seed):
    """Drawn rows with a drawn class each."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64)
    return TensorExamples(inputs, torch.randint(0, CLASSES, (n,), generator=generator))


def _linear(model):
    return [layer for layer in model.model.modules() if isinstance(layer, nn.Linear)]


def _joined(model, gradients):
    """Gradients by parameter, weight and bias of layer after layer, in the layout of a row."""
    pairs = zip(gradients[::2], gradients[1::2], strict=True)
    return torch.cat([torch.cat([w, b[:, None]], dim=1).flatten() for w, b in pairs])


def _loss(model, parameters, x, y):
    """-log p(y | x) of a chain of linear layers and tanh, of given weights and biases."""
    state = x
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        state = torch.tanh(state) if state is not x else state
        state = state @ weight.T + bias
    return -state.log_softmax(-1)[y]


def dense_rows(model, examples, labels=None):
    """(n, D): layer by layer the weight with its bias as last column, flattened; one backward pass an example."""
    parameters = tuple(p.detach().clone().requires_grad_() for layer in _linear(model) for p in layer.parameters())
    return np.stack(
        [
            _joined(model, torch.autograd.grad(_loss(model, parameters, x, y), parameters)).numpy()
            for x, y in zip(examples.inputs, examples.labels if labels is None else labels, strict=True)
        ]
    )


def dense_curvature(model, examples, kind="gauss_newton"):
    """(D, D) mean over examples of the Gauss-Newton matrix (every class with its probability), or of the Hessian."""
    if kind == "gauss_newton":
        chances = model.model(examples.inputs).softmax(-1).detach().numpy()
        total = 0.0
        for label in range(CLASSES):
            rows = dense_rows(model, examples, torch.full((examples.n_examples,), label))
            total = total + (rows * chances[:, label, None]).T @ rows
        return total / examples.n_examples
    layers = _linear(model)
    shapes = [layer.weight.shape for layer in layers]
    sizes = [out * (inputs + 1) for out, inputs in shapes]

    def mean_loss(flat):
        parameters = []
        for part, (out, inputs) in zip(flat.split(sizes), shapes, strict=True):
            matrix = part.view(out, inputs + 1)
            parameters += [matrix[:, :-1], matrix[:, -1]]
        rows = zip(examples.inputs, examples.labels, strict=True)
        return torch.stack([_loss(model, parameters, x, y) for x, y in rows]).mean()

    flat = _joined(model, [p.detach() for layer in layers for p in layer.parameters()])
    return torch.autograd.functional.hessian(mean_loss, flat).numpy()


@dataclass(frozen=True)
class FrozenModel:
    """A causal language model of transformers, in whatever precision it is.

    Args:
        model: frozen, in evaluation mode.
        include: patterns of the layers to track.
    """

    model: nn.Module
    include: tuple[str, ...] = ()

    @property
    def layers(self):
        return tuple(tracked_layers(self.model, include=self.include))

    @property
    def halves(self):
        return halves(self.model)

    @property
    def n_classes(self):
        return None

    @property
    def device(self):
        return torch.device("cpu")

    @property
    def reading(self):
        return Reading()


@dataclass(frozen=True)
class TokenExamples:
    """Rows of token ids, each a document; the first tokens of a row may carry no loss."""

    rows: tuple[np.ndarray, ...]
    n_masked: int = 0

    @property
    def n_examples(self):
        return len(self.rows)

    @property
    def lengths(self):
        return np.array([len(row) for row in self.rows], np.int64)

    @property
    def documents(self):
        return np.arange(len(self.rows))

    @property
    def n_documents(self):
        return len(self.rows)

    def batch(self, numbers, device, pad_token):
        masked = np.full(self.n_examples, self.n_masked)[numbers]
        arrays = padded_batch([self.rows[number] for number in numbers], masked, pad_token)
        return tuple(torch.from_numpy(array).to(device) for array in arrays)

    def uniforms(self, numbers: np.ndarray, labels: Tensor, draws: int, seed: int):
        contents = [self.rows[number].tobytes() for number in numbers]
        return label_uniforms(contents, [0] * len(contents), n_targets(labels).tolist(), draws, seed)


def texts(n, seed, vocabulary=100):
    """Drawn token rows of 5 to 9 tokens, of which the first two carry no loss."""
    rng = np.random.default_rng(seed)
    return TokenExamples(tuple(rng.integers(2, vocabulary, rng.integers(5, 10)) for _ in range(n)), 2)
