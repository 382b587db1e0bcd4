"""Steps that are linear in the gradients once their second moments are known: SGD's, and Adam's and AdamW's."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from dataworth.storage.errors import InputError

__all__ = ["is_decoupled", "refuse_unless_linear", "step_parts"]


def refuse_unless_linear(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, (SGD, Adam)):
        raise InputError(
            f"{type(optimizer).__name__}: a ledger can be kept of steps of torch's SGD, Adam and AdamW, which are "
            "linear in the gradients"
        )
    for name in ("amsgrad", "maximize", "dampening"):
        if any(group.get(name) for group in optimizer.param_groups):
            raise InputError(f"{type(optimizer).__name__}: no ledger can be kept of steps with {name}")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise InputError("a ledger is kept in one process: other processes' gradients would be nobody's")


def is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Is decay added to the weights, not to the gradients?"""
    return isinstance(optimizer, Adam) and bool(group.get("decoupled_weight_decay"))


def step_parts(
    optimizer: Optimizer,
    books: Mapping[object, Tensor],
    fresh: Mapping[object, Tensor],
    weight: Tensor,
    group: Mapping[str, Any],
) -> Iterator[tuple[object, Tensor]]:
    """Each one's part of the step that a weight has just made, for a learning rate of 1; the books are carried on.

    Args:
        optimizer: that made it.
        books: momenta, by whose they are.
        fresh: gradients of this step; who is not among them moves by momentum alone.
        weight: it.
        group: its settings.
    """
    if isinstance(optimizer, SGD):
        return _sgd_parts(books, fresh, group)
    return _adam_parts(books, fresh, optimizer.state[weight], group)


def _adam_parts(
    books: Mapping[object, Tensor], fresh: Mapping[object, Tensor], state: Mapping[str, Any], group: Mapping[str, Any]
) -> Iterator[tuple[object, Tensor]]:
    """As `step_parts`."""
    beta1, beta2 = group["betas"]
    n_steps = int(state["step"])
    first, second = 1 - beta1**n_steps, 1 - beta2**n_steps
    for name, book in books.items():
        book.mul_(beta1)
        if name in fresh:
            book.add_(fresh[name].to(book), alpha=1 - beta1)
        spread = (state["exp_avg_sq"].to(book).sqrt() / second**0.5).add_(group["eps"])
        yield name, book / spread / first


def _sgd_parts(
    books: Mapping[object, Tensor], fresh: Mapping[object, Tensor], group: Mapping[str, Any]
) -> Iterator[tuple[object, Tensor]]:
    """As `step_parts`."""
    for name, book in books.items():
        book.mul_(group["momentum"])
        if name in fresh:
            book.add_(fresh[name].to(book))
        if not group["nesterov"]:
            yield name, book
        else:
            yield name, book * group["momentum"] + (fresh[name].to(book) if name in fresh else 0.0)
