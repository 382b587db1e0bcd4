"""Dense oracles: per-example gradients by autograd on the weights, the Fisher and the scores by plain formulas."""

import numpy as np
import torch

__all__ = [
    "dense_factors",
    "dense_gradients",
    "dense_scores",
    "layer_gradient",
    "negative_log_likelihood",
    "projected_dense",
]


def negative_log_likelihood(model, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over target tokens of -log p of ONE example, written out token by token; no padding, no mask."""
    log_p = model(input_ids=input_ids[None]).logits[0].log_softmax(-1)
    total = log_p.new_zeros(())
    for place in range(1, len(labels)):
        if labels[place] != -100:
            total = total - log_p[place - 1, labels[place]]
    return total


def layer_gradient(module, weight_gradient: torch.Tensor, bias_gradient: torch.Tensor | None) -> torch.Tensor:
    """(n_outputs, n_inputs [+ 1]) gradient of a Linear or a Conv1D; the bias is the last column."""
    gradient = weight_gradient if isinstance(module, torch.nn.Linear) else weight_gradient.T
    return gradient if bias_gradient is None else torch.cat([gradient, bias_gradient[:, None]], dim=1)


def dense_gradients(model, modules, examples) -> list[list[torch.Tensor]]:
    """For each example (input_ids, labels) and each module the full gradient, through autograd on the weights."""
    found = []
    for input_ids, labels in examples:
        parameters = [p for module in modules for p in module.parameters(recurse=False)]
        for parameter in parameters:
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(negative_log_likelihood(model, input_ids, labels), parameters)
        for parameter in parameters:
            parameter.requires_grad_(False)
        by_parameter = dict(zip(map(id, parameters), gradients, strict=True))
        found.append(
            [
                layer_gradient(
                    module,
                    by_parameter[id(module.weight)],
                    None if module.bias is None else by_parameter[id(module.bias)],
                )
                for module in modules
            ]
        )
    return found


def projected_dense(gradient: torch.Tensor, projection) -> torch.Tensor:
    """B G A^T of a full gradient, with the bases of a projection; an identity side has none."""
    output_basis = getattr(projection.output_side, "basis", None)
    input_basis = getattr(projection.input_side, "basis", None)
    if output_basis is not None:
        gradient = output_basis @ gradient
    return gradient if input_basis is None else gradient @ input_basis.T


def dense_scores(queries, examples, fisher, damping: float | None, ratio: float | None = None) -> np.ndarray:
    """(n_queries, n_examples): sum over layers of g(q)^T (H + lambda I)^-1 g(z), by a dense solve in float64.

    Args:
        queries, examples: per item a list of flat gradients, one a layer.
        fisher: per layer the matrix H; None for plain dot products.
        damping: lambda of every layer, or
        ratio: lambda as a multiple of the mean of the eigenvalues above 1e-6 of the largest.
    """
    total = np.zeros((len(queries), len(examples)))
    for layer in range(len(queries[0])):
        q = np.stack([item[layer] for item in queries])
        z = np.stack([item[layer] for item in examples])
        if fisher is not None:
            strength = damping
            if ratio is not None:
                eigenvalues = np.linalg.eigvalsh(fisher[layer])
                strength = ratio * eigenvalues[eigenvalues > 1e-6 * eigenvalues.max()].mean()
            q = np.linalg.solve(fisher[layer] + strength * np.eye(len(fisher[layer])), q.T).T
        total += q @ z.T
    return total


def dense_factors(model, modules, examples) -> list[tuple[np.ndarray, np.ndarray]]:
    """KFAC's (A, S) of each module: means over tokens of x x^T (with the trailing 1 of a bias) and of d d^T.

    Each example runs by itself, without padding; activations and output gradients are read off the graph.
    """
    vectors = [([], []) for _ in modules]
    for input_ids, labels in examples:
        seen = {}

        def keep(module, inputs, output, seen=seen):
            output.requires_grad_(True).retain_grad()
            seen[module] = (inputs[0].detach(), output)

        handles = [module.register_forward_hook(keep) for module in modules]
        negative_log_likelihood(model, input_ids, labels).backward()
        for handle in handles:
            handle.remove()
        for (inputs, outputs), module in zip(vectors, modules, strict=True):
            x, y = seen[module]
            x = x.reshape(-1, x.shape[-1])
            if module.bias is not None:
                x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
            inputs.append(x.numpy())
            outputs.append(y.grad.reshape(-1, y.shape[-1]).numpy())
    means = []
    for inputs, outputs in vectors:
        x, d = np.concatenate(inputs), np.concatenate(outputs)
        means.append((x.T @ x / len(x), d.T @ d / len(d)))
    return means
