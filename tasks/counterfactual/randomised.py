"""A control: models that keep the sizes of all their parameters and know nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from dataworth.tasks.model.plain import Model

__all__ = ["randomised"]


@contextmanager
def randomised(models: Sequence[Model], seed: int) -> Iterator[None]:
    """The entries of every parameter in a random order of their own while the block lasts; afterwards as they were.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), "Sanity checks": a method that says the same of a model with random
    weights says nothing of the model.

    Args:
        models: whose parameters are permuted, a weight that several layers share once.
        seed: of the orders.
    """
    parameters = [parameter for model in models for parameter in model.model.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for parameter in parameters:
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
