"""Indexing (capture, project, write to the store) beside the frozen forward+backward of the same batches.

CPU: one thread, Llama-shaped, 6 layers. The limit back-propagates to where capture does, the first tracked outputs.
"""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataworth.storage.gradients import GradientStore
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.passes import backward_losses, gradient_rows
from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import layer_table
from tests.bench.machine import interleaved, ratio

__all__ = ["BATCH", "HIDDEN", "LAYERS", "ROUNDS", "TOKENS", "FrozenPass", "Indexer", "batch_of", "model_of", "rows"]

HIDDEN = 256
LAYERS = 6
VOCABULARY = 8192
TOKENS = 512
BATCH = 8
ROUNDS = 11
MAX_CALLS = 64


def model_of(hidden: int, layers: int) -> LlamaForCausalLM:
    """A frozen Llama-shaped model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        intermediate_size=hidden * 11 // 4,
        max_position_embeddings=TOKENS,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


class FrozenPass:
    """Forward and backward with frozen weights, back to the outputs of the first linear layers: the limit."""

    def __init__(self, model: LlamaForCausalLM, batch: tuple[torch.Tensor, ...]) -> None:
        self.halves, self.batch = halves(model), batch
        self.modules = [layer.module for layer in tracked_layers(model)]

    def __call__(self) -> None:
        handles = [module.register_forward_hook(_start) for module in self.modules]
        backward_losses(*self.halves, *self.batch)
        for handle in handles:
            handle.remove()


def _start(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
    if not output.requires_grad:
        output.requires_grad_(True)


def batch_of() -> tuple[torch.Tensor, ...]:
    """Random tokens, without padding."""
    input_ids = torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    return input_ids, torch.ones_like(input_ids), input_ids.clone()


class Indexer:
    """Capture, project, and write the rows of the same batch, each call a new shard of one planned segment.

    A shard is the rows of one batch here, smaller and so dearer by row than the shards of a real store.
    """

    def __init__(
        self, model: LlamaForCausalLM, batch: tuple[torch.Tensor, ...], config: ProjectionConfig, folder: Path
    ) -> None:
        self.halves, self.batch = halves(model), batch
        self.modules = [layer.module for layer in tracked_layers(model)]
        projections = projections_of(tracked_layers(model), config)
        table = layer_table(projections)
        self.projections = [entry.to(batch[0].device, model.dtype) for entry in projections]
        store = GradientStore.create(folder, f"{config.kind}-{config.rank}", table, "float16", {})
        n_rows = len(batch[0])
        names = np.asarray([b"%d" % row for row in range(MAX_CALLS * n_rows)], "S32")
        with patch("dataworth.storage.gradients.rows_per_shard", lambda *_: n_rows):
            (self.segment,) = store.plan(names, np.ones(len(names), np.int64))
        self.shard = 0

    def __call__(self) -> None:
        with GradientCapture(self.modules, self.projections) as capture:
            rows, losses = gradient_rows(*self.halves, capture, *self.batch)
        columns = {"n_tokens": self.batch[1].sum(dim=1).cpu().numpy(), "loss": losses.cpu().numpy()}
        self.segment.write_shard(self.shard, self.segment.encoded(rows.float().cpu().numpy()), columns)
        self.shard += 1


def rows() -> Iterator[dict[str, Any]]:
    """One row a rank: tokens per second of the limit and of indexing, and their ratio."""
    torch.set_num_threads(1)
    model = model_of(HIDDEN, LAYERS)
    batch = batch_of()
    folder = Path(tempfile.mkdtemp())
    try:
        works: dict[str, Callable[[], None]] = {"frozen": FrozenPass(model, batch)}
        works |= {f"rank {rank}": Indexer(model, batch, ProjectionConfig(rank=rank), folder) for rank in (16, 64)}
        seconds = interleaved(works, ROUNDS)
    finally:
        shutil.rmtree(folder)
    tokens = BATCH * TOKENS
    for name in ("rank 16", "rank 64"):
        middle, low, high = ratio(seconds["frozen"], seconds[name])
        yield {
            "indexing": name,
            "hidden": HIDDEN,
            "tokens/s": round(tokens / statistics.median(seconds[name])),
            "frozen tokens/s": round(tokens / statistics.median(seconds["frozen"])),
            "ratio": middle,
            "quartiles": f"{low} … {high}",
        }
