"""The ledger of a training by transformers.Trainer, or one of its kind."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from dataworth.storage.durable import replace_file
from dataworth.storage.errors import InputError
from dataworth.tasks.capture.losses import IGNORED, next_tokens
from dataworth.tasks.corpus.batches import n_targets
from dataworth.tasks.model.loading import model_fingerprint
from dataworth.tasks.training.ledger import Credits, Ledger, evaluated

__all__ = ["LedgerCallback"]

BOOKS = "ledger.pt"  # in the folder of a checkpoint
SOURCES = "dataworth_sources"  # of the examples of a batch
# Losses of a batch as a whole and of its parts together may differ by rounding, in bfloat16, too.
ALIKE = 1e-2


class LedgerCallback(TrainerCallback):
    """A callback of transformers.Trainer that keeps what each source's examples took off the losses of some queries.

        ledger = LedgerCallback(queries)
        trainer = Trainer(model=model, args=args, train_dataset=documents, callbacks=[ledger])
        ledger.watch(trainer)
        trainer.train()
        ledger.credits().table()

    Every example of the training set has a field that names its source. A batch is propagated source by source, with
    the same sum of gradients; accumulation, clipping, mixed precision, schedules and adapters are the Trainer's. The
    books are saved in its checkpoints, and a training that is resumed goes on with them. Memory and time: see `Ledger`.

    Args:
        queries: examples without padding, as the model reads them: `input_ids`, and `labels`, whose entry for a token
            without loss is -100 (a single number for a classifier).
        source: the field.
        every: steps of an interval between two looks at the queries.
    """

    def __init__(self, queries: Sequence[Mapping[str, Any]], source: str = "source", every: int = 1) -> None:
        if len(queries) == 0:
            raise InputError("queries: a ledger needs at least one")
        self._queries = [{name: torch.as_tensor(query[name]) for name in ("input_ids", "labels")} for query in queries]
        self._source, self._every = source, every
        self._watched = self._open = False
        self._weighs: Weighs | None = None
        self._ledger: Ledger | None = None

    def watch(self, trainer: Any) -> None:
        """Take sources out of the trainer's batches, and propagate each batch source by source."""
        if trainer.args.world_size > 1 or trainer.args.n_gpu > 1:
            raise InputError("a ledger is kept in one process and on one device")
        trainer._set_signature_columns_if_needed()
        if self._source not in trainer._signature_columns:
            trainer._signature_columns.append(self._source)
        loader, step, backward = trainer.get_train_dataloader, trainer.training_step, trainer.accelerator.backward

        def get_train_dataloader() -> Any:
            collator = trainer.data_collator
            trainer.data_collator = _Collated(collator, self._source)
            try:
                return loader()
            finally:
                trainer.data_collator = collator

        def training_step(model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
            names = _unspelled(inputs.pop(SOURCES))
            if len(inputs["input_ids"]) != len(names):
                raise InputError(
                    f"a batch has {len(inputs['input_ids'])} rows of {len(names)} examples: packed ones cannot be told "
                    "apart, switch packing and padding-free batches off"
                )
            batch, losses = trainer._prepare_inputs(inputs), []
            by_source = {name: _rows(batch, [name == each for each in names]) for name in dict.fromkeys(names)}
            weighs = self._weighs
            if weighs is None and len(by_source) > 1:
                fitting = _weighing(trainer, model, batch, list(by_source.values()), num_items_in_batch)
                weighs = fitting[0]
                if len(fitting) == 1:  # else of this batch alone: another tells which of them
                    self._weighs = weighs
            for name, own in by_source.items():
                part = 1.0 if len(by_source) == 1 or weighs is None else weighs(own, batch)
                trainer.accelerator.backward = self._backward_of(name, part, trainer.accelerator)
                try:
                    losses.append(step(model, own, num_items_in_batch) * part)
                finally:
                    trainer.accelerator.backward = backward
            return torch.stack(losses).sum()

        trainer.get_train_dataloader, trainer.training_step = get_train_dataloader, training_step
        self._watched = True

    def _backward_of(self, name: str, part: float, accelerator: Any) -> Callable[..., None]:
        def backward(loss: Tensor, **_: Any) -> None:
            scaler = getattr(accelerator, "scaler", None)
            self._books().backward((loss if scaler is None else scaler.scale(loss)) * part, name)

        return backward

    def credits(self) -> Credits:
        """What was credited until now."""
        return self._books().credits()

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The books are opened."""
        if not self._watched:
            raise InputError("a ledger that does not watch its trainer: call `watch(trainer)` before `train()`")
        self._close(None)  # of a training that ended by an error
        model, optimizer = given["model"], given["optimizer"]
        ledger = Ledger(
            model, getattr(optimizer, "optimizer", optimizer), lambda: self._losses(model), every=self._every
        )
        if state.global_step:
            books = _books_of(args, state)
            if not books.is_file():
                raise InputError(f"{books}: not there, and without the books of the steps before no ledger goes on")
            kept = torch.load(books, weights_only=True, map_location="cpu")
            if kept["model"] != model_fingerprint(model):
                raise InputError(f"{books}: of another model than the training goes on with")
            ledger.load_state_dict(kept["books"])
        self._ledger, self._open = ledger.__enter__(), True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last interval is counted while the weights are those of its end."""
        if state.global_step >= state.max_steps or control.should_training_stop:
            self._close(state)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The books are kept beside the weights."""
        written = io.BytesIO()
        torch.save({"model": model_fingerprint(given["model"]), "books": self._books().state_dict()}, written)
        replace_file(_books_of(args, state), written.getvalue())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closed, where the training was stopped between steps."""
        self._close(state)

    def _close(self, state: Any) -> None:
        if self._ledger is not None and self._open:
            error = None if state is not None else InputError("ended")
            self._ledger.__exit__(None if error is None else type(error), error, None)
            self._open = False

    def _books(self) -> Ledger:
        if self._ledger is None:
            raise InputError("a ledger without a training: call `train()` of the trainer that it watches")
        return self._ledger

    def _losses(self, model: nn.Module) -> Iterator[Tensor]:
        """The loss of one query after another, nats summed over its targets."""
        device = next(model.parameters()).device
        for query in self._queries:
            labels = query["labels"].to(device)
            logits = model(input_ids=query["input_ids"].to(device)[None]).logits.float()
            targets = labels.flatten() if labels.dim() == 0 else next_tokens(labels[None]).flatten()
            yield cross_entropy(logits.flatten(0, -2), targets, ignore_index=IGNORED, reduction="sum")


class _Collated:
    """A collator that is not shown the sources, which stand spelled out beside what it makes of the rest.

    Args:
        collator: the trainer's own.
        source: field of the sources.
    """

    def __init__(self, collator: Any, source: str) -> None:
        self._collator, self._source = collator, source

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if any(self._source not in example for example in examples):
            raise InputError(f"an example of the training set has no field {self._source!r}, which names its source")
        batch = self._collator([{k: v for k, v in example.items() if k != self._source} for example in examples])
        return {**batch, SOURCES: _spelled([str(example[self._source]) for example in examples])}


def _spelled(names: Sequence[str]) -> Tensor:
    """(n, most bytes) uint8: a batch is of tensors, and workers that collate share no table of names."""
    rows = [torch.tensor(list(name.encode()), dtype=torch.uint8) for name in names]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _unspelled(rows: Tensor) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode() for row in rows.cpu().tolist()]


def _rows(batch: Mapping[str, Any], chosen: Sequence[bool]) -> dict[str, Any]:
    """Of every tensor of the batch's length the chosen examples; the rest as it is."""
    return {
        name: value[torch.tensor(chosen, device=value.device)]
        if isinstance(value, Tensor) and value.dim() and len(value) == len(chosen)
        else value
        for name, value in batch.items()
    }


Weighs = Callable[[Mapping[str, Any], Mapping[str, Any]], float]


def _targets(labels: Tensor) -> int:
    """Whose loss is counted: tokens, or examples of a classifier."""
    return len(labels) if labels.dim() == 1 else int(n_targets(labels).sum())


# What a part of a batch counts in the batch's loss: that of a sum, of a mean over tokens, of a mean over examples.
WEIGHTS: tuple[Weighs, ...] = (
    lambda own, batch: 1.0,
    lambda own, batch: _targets(own["labels"]) / max(1, _targets(batch["labels"])),
    lambda own, batch: len(own["input_ids"]) / len(batch["input_ids"]),
)


@torch.no_grad()
def _weighing(
    trainer: Any, model: nn.Module, batch: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], n_items: Any
) -> list[Weighs]:
    """The weights with which the losses of parts add up to that of the batch, one at least.

    Raises:
        InputError: none do.
    """

    def loss_of(inputs: Mapping[str, Any]) -> float:
        with trainer.compute_loss_context_manager():
            return float(trainer.compute_loss(model, dict(inputs), num_items_in_batch=n_items))

    with evaluated(model):
        whole, of_parts = loss_of(batch), [loss_of(part) for part in parts]
    fitting = []
    for weighs in WEIGHTS if batch["labels"].dim() > 1 else WEIGHTS[:2]:  # of a classifier an example is a target
        added = sum(loss * weighs(part, batch) for loss, part in zip(of_parts, parts, strict=True))
        if abs(added - whole) <= ALIKE * abs(whole):
            fitting.append(weighs)
    if not fitting:
        raise InputError(
            f"the loss of a batch, {whole:.4g}, is neither the sum of its examples' nor their mean, so that no ledger "
            "can be kept of it"
        )
    return fitting


def _books_of(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / BOOKS
