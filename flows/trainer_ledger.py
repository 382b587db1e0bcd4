"""The ledger of a training by transformers.Trainer, or one of its kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from dataworth.storage.errors import InputError
from dataworth.tasks.capture.losses import IGNORED, next_tokens
from dataworth.tasks.corpus.batches import n_targets
from dataworth.tasks.training.ledger import Credits, Ledger

__all__ = ["LedgerCallback"]

BOOKS = "ledger.pt"  # in the folder of a checkpoint
NUMBERS = "dataworth_players"  # of the examples of a batch


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
        self._names: dict[str, int] = {}
        self._watched = False
        self._ledger: Ledger | None = None

    def watch(self, trainer: Any) -> None:
        """Take sources out of the trainer's batches, and propagate each batch source by source."""
        if trainer.args.world_size > 1 or trainer.args.n_gpu > 1:
            raise InputError("a ledger is kept in one process and on one device")
        trainer._set_signature_columns_if_needed()
        if self._source not in trainer._signature_columns:
            trainer._signature_columns.append(self._source)
        trainer.data_collator = _Collated(trainer.data_collator, self._source, self._names)
        step, backward = trainer.training_step, trainer.accelerator.backward

        def training_step(model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
            numbers = inputs.pop(NUMBERS)
            whole = getattr(trainer, "model_accepts_loss_kwargs", False) and num_items_in_batch is not None
            summed = whole or trainer.compute_loss_func is not None
            names, losses = list(self._names), []
            for number in numbers.unique().tolist():
                own = _rows(inputs, numbers == number)
                part = 1.0 if summed else _targets(own["labels"]) / max(1, _targets(inputs["labels"]))
                trainer.accelerator.backward = self._backward_of(names[number], part, trainer.accelerator)
                try:
                    losses.append(step(model, own, num_items_in_batch) * part)
                finally:
                    trainer.accelerator.backward = backward
            return torch.stack(losses).sum()

        trainer.training_step, self._watched = training_step, True

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
        model, optimizer = given["model"], given["optimizer"]
        ledger = Ledger(
            model, getattr(optimizer, "optimizer", optimizer), lambda: self._losses(model), every=self._every
        )
        if state.global_step:
            books = Path(args.output_dir) / f"checkpoint-{state.global_step}" / BOOKS
            if not books.is_file():
                raise InputError(f"{books}: not there, and without the books of the steps before no ledger goes on")
            kept = torch.load(books, weights_only=True, map_location=next(model.parameters()).device)
            self._names.update(kept["names"])
            ledger.load_state_dict(kept["books"])
        self._ledger = ledger.__enter__()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The books are kept beside the weights."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save({"names": self._names, "books": self._books().state_dict()}, folder / BOOKS)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last interval is counted."""
        self._books().__exit__(None, None, None)

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
    """A collator that is not shown the sources, whose numbers stand beside what it makes of the rest.

    Args:
        collator: the trainer's own.
        source: field of the sources.
        names: of the sources, with their numbers; grows.
    """

    def __init__(self, collator: Any, source: str, names: dict[str, int]) -> None:
        self._collator, self._source, self._names = collator, source, names

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        missing = [number for number, example in enumerate(examples) if self._source not in example]
        if missing:
            raise InputError(f"an example of the training set has no field {self._source!r}, which names its source")
        batch = self._collator([{k: v for k, v in example.items() if k != self._source} for example in examples])
        numbers = [self._names.setdefault(str(example[self._source]), len(self._names)) for example in examples]
        return {**batch, NUMBERS: torch.tensor(numbers)}


def _rows(inputs: Mapping[str, Any], chosen: Tensor) -> dict[str, Any]:
    """Of every tensor of the batch's length the chosen examples; the rest as it is."""
    return {
        name: value[chosen.to(value.device)] if isinstance(value, Tensor) and len(value) == len(chosen) else value
        for name, value in inputs.items()
    }


def _targets(labels: Tensor) -> int:
    """Whose loss is counted: tokens, or examples of a classifier."""
    return len(labels) if labels.dim() == 1 else int(n_targets(labels).sum())
