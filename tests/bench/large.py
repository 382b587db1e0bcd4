"""A Llama-3-8B-shaped model with random weights on a GPU: passes with and without weight gradients, indexing, LogIX.

Sequence length 1024, bfloat16, weights built on the device. Without a GPU nothing is measured. LogIX (`logix-ai`) has
rows of its own where it is installed: it asks for Python < 3.11, pip's option --ignore-requires-python gets it.
"""

import contextlib
import gc
import importlib.util
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dataworth.tasks.capture.losses import example_losses
from dataworth.tasks.capture.passes import backward_losses
from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.projection.config import ProjectionConfig
from tests.bench.indexing import FrozenPass, Indexer
from tests.bench.machine import interleaved, ratio

__all__ = ["LLAMA_3_8B", "Shape", "measured", "rows"]


@dataclass(frozen=True)
class Shape:
    """Of a Llama, and of the batch it is measured on."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tokens: int
    batch: int
    rounds: int
    dtype: torch.dtype


LLAMA_3_8B = Shape(4096, 14336, 32, 32, 8, 128256, tokens=1024, batch=4, rounds=7, dtype=torch.bfloat16)


def model_on(device: torch.device, shape: Shape) -> LlamaForCausalLM:
    """A model with random weights, made on the device."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.tokens,
        use_cache=False,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    try:
        with device:
            return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def weight_gradient_pass(model: LlamaForCausalLM, batch: tuple[torch.Tensor, ...]) -> None:
    """Forward and backward with the gradients of the tracked layers' weights."""
    weights = [layer.module.weight for layer in tracked_layers(model)]
    for weight in weights:
        weight.requires_grad_(True)
    backward_losses(*halves(model), *batch)
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None


class LogixPass:
    """LogIX logging the same layers of the same model at one rank, to disk."""

    def __init__(self, model: LlamaForCausalLM, batch: tuple[torch.Tensor, ...], rank: int, folder: Path) -> None:
        import logix

        config = folder / "logix.yaml"
        config.write_text(f"root_dir: {folder}\nlora:\n  init: random\n  rank: {rank}\n")
        self.model, self.batch, self.number = model, batch, 0
        self.run = logix.LogIX(project=f"rank-{rank}", config=str(config))
        names = [layer.name for layer in tracked_layers(model)]
        self.run.watch(model, type_filter=[nn.Linear], name_filter=names)
        self.run.add_lora()
        self.run.setup({"grad": ["log"]})

    def __call__(self) -> None:
        input_ids, mask, labels = self.batch
        self.number += 1
        names = [f"{self.number}-{row}" for row in range(len(input_ids))]
        with self.run(data_id=names, mask=mask, save=True):
            example_losses(self.model(input_ids=input_ids, attention_mask=mask).logits, labels).sum().backward()
        self.model.zero_grad()


def peak_bytes(work: Callable[[], None], device: torch.device) -> int | None:
    """Bytes a pass takes on a GPU beyond what is resident; None on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    resident = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - resident


def measured(device: torch.device, shape: Shape) -> Iterator[dict[str, Any]]:
    """Tokens per second, ratio to the frozen pass, and peak memory of each way, interleaved.

    Args:
        device: to measure on.
        shape: of model and batch.
    """
    model = model_on(device, shape)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, shape.vocabulary, (shape.batch, shape.tokens), generator=generator).to(device)
    batch = (input_ids, torch.ones_like(input_ids), input_ids.clone())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works: dict[str, Callable[[], None]] = {
            "frozen": FrozenPass(model, batch),
            "weight gradients": lambda: weight_gradient_pass(model, batch),
        }
        works |= {
            f"indexing rank {rank}": Indexer(model, batch, ProjectionConfig(rank=rank), folder) for rank in (16, 64)
        }
        yield from table(works, device, shape)
        del works
        # LogIX changes the model it watches: its rows come last, each beside the frozen pass of the model's twin.
        for rank in (16, 64) if importlib.util.find_spec("logix") else ():
            del model
            gc.collect()
            model = model_on(device, shape)
            frozen = FrozenPass(model, batch)
            with contextlib.redirect_stdout(io.StringIO()):
                peer = LogixPass(model_on(device, shape), batch, rank, folder)
            yield from list(table({"frozen": frozen, f"LogIX rank {rank}": peer}, device, shape))[1:]


def table(works: dict[str, Callable[[], None]], device: torch.device, shape: Shape) -> Iterator[dict[str, Any]]:
    """One row a work; the first is the limit."""
    peaks = {name: peak_bytes(work, device) for name, work in works.items()}
    seconds = interleaved(works, shape.rounds)
    limit = next(iter(works))
    for name in works:
        middle, low, high = ratio(seconds[limit], seconds[name])
        row = {
            "work": name,
            "tokens/s": round(shape.batch * shape.tokens * len(seconds[name]) / sum(seconds[name])),
            "of frozen": middle,
            "quartiles": f"{low} … {high}",
        }
        peak, frozen = peaks[name], peaks[limit]
        if peak is not None and frozen is not None:
            row |= {"peak GB": round(peak / 2**30, 2), "peak of frozen": round(peak / frozen, 3)}
        yield row


def rows() -> Iterator[dict[str, Any]]:
    """The table of a GPU, where there is one."""
    if not torch.cuda.is_available():
        yield {"large": "no GPU here, nothing measured"}
        return
    yield from measured(torch.device("cuda"), LLAMA_3_8B)
