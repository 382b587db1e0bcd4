"""Gradients, and the ledger, from anyone's training loop: context managers, and callbacks of the Trainer.

None needs a change to the model's code, a server or a corpus file. Gradients are left in a store like others.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from dataworth.storage.encoding import encoded
from dataworth.storage.errors import InputError, RowRangeError, StoreIncompleteError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import check_writable, location_of
from dataworth.storage.ref import fingerprint
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.losses import Head
from dataworth.tasks.capture.passes import Body, backward_losses
from dataworth.tasks.corpus.batches import n_targets
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.model.halves import halves, whole
from dataworth.tasks.model.layers import batch_second, tracked_layers
from dataworth.tasks.model.loading import model_fingerprint
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import layer_table, stored_projections
from dataworth.tasks.training.ledger import Credits, Ledger
from dataworth.trainer_ledger import LedgerCallback

__all__ = ["Credits", "IndexCallback", "Indexing", "Ledger", "LedgerCallback"]


class Indexing:
    """Context manager that stores the projected gradient of every example that is back-propagated inside.

        with Indexing(model, "gradients") as index:
            for batch in loader:
                loss = model(**batch).loss
                loss.backward()
                index.add(ids_of(batch), mean_over=batch["labels"])
        rows = index.rows(ids)

    Weights may be trained meanwhile or frozen; a model under `torch.compile` is compiled anew inside.

    Args:
        model: any module with linear layers.
        store: folder of gradient stores, or `s3://bucket/prefix`; this one is named after the model's weights on
            entering, and the projection.
        projection: of the gradients; pca needs `bases` made earlier.
        include, exclude, parameters: which layers (see dataworth.tasks.model.layers).
        dtype: of the stored rows: float16, bfloat16, float32 or int8.
        data: names what is indexed, such as a data set: another name is another store.

    Raises:
        InputError: the store cannot be written, no layer is left, or a gradient does not fit the data type.
    """

    def __init__(
        self,
        model: nn.Module,
        store: str | Path,
        projection: ProjectionConfig | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        parameters: Literal["linear", "all"] = "linear",
        dtype: str = "float16",
        data: str | None = None,
    ) -> None:
        config = projection or ProjectionConfig()
        self._dtype = GradientsConfig.model_validate({"dtype": dtype}).dtype
        layers = tracked_layers(model, include, exclude, parameters=parameters)
        earlier = None if config.bases is None else LayerStore(config.bases)
        if earlier is not None:
            projections = stored_projections(earlier)
        elif config.kind == "pca":
            raise InputError(
                "pca bases are fitted on a corpus: run `dataworth fit`, then pass ProjectionConfig(bases=…)"
            )
        else:
            projections = projections_of(layers, config)
        parameter = next(model.parameters())
        projections = [entry.to(parameter.device, parameter.dtype) for entry in projections]
        root = location_of(store).absolute()
        check_writable(root, "store")
        parts = {
            "model": model_fingerprint(model),
            "projection": config.model_dump() | {"bases": None if earlier is None else earlier.fingerprint},
            "layers": [layer.name for layer in layers],
            "dtype": dtype,
            **({} if data is None else {"data": data}),
        }
        table = layer_table(projections)
        self.store = GradientStore.create(root, fingerprint(parts), table, self._dtype, parts)
        self._capture = GradientCapture([layer.uses for layer in layers], projections)
        second = batch_second(model)
        if second is not None:
            self._capture.doubt(second)
        self._model = model
        self._told: list[RemovableHandle] = []
        self._looks_for_examples = parameters == "all" and second is None
        self._writer = self.store.writer()
        self._waiting: dict[bytes, tuple[np.ndarray, int, float]] = {}
        self._known: dict[bytes, bytes] | None = None

    def __enter__(self) -> Self:
        self._writer.__enter__()
        torch.compiler.reset()
        self._capture.__enter__()
        if self._looks_for_examples:  # a table of positions is looked up once for all examples
            self._told.append(self._model.register_forward_pre_hook(self._expect, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.__exit__(kind, error, trace)
        for handle in self._told:
            handle.remove()
        self._told.clear()
        try:
            self._write()  # whole rows, also where the loop was interrupted
        finally:
            self._writer.__exit__(kind, error, trace)

    def add(
        self,
        ids: Sequence[str],
        *,
        mean_over: Tensor | int | None = None,
        inputs: Sequence[Tensor | str | bytes] | Tensor | None = None,
        losses: Tensor | None = None,
        n_tokens: Tensor | None = None,
    ) -> None:
        """Take the gradients of the batch that was back-propagated just now.

        Args:
            ids: one an example, in the batch's order; an id that is stored already is not stored again.
            mean_over: what the loss is the mean of: the batch's labels, whose targets are counted, or a number; None
                for a loss that is the sum over the examples.
            inputs: what each example is, its text or its token ids, without padding (where `n_tokens` is given, what is
                behind them is left out): an id is bound to it, and refused where it comes, or is stored, with other
                inputs.
            losses: (n_examples,) nats, kept beside the rows where given.
            n_tokens: (n_examples,) kept beside the rows where given.

        Raises:
            CaptureError: nothing was back-propagated, or the examples cannot be told from their tokens.
            InputError: an id has other inputs than before.
            ValueError: not one id an example, or not one input.
        """
        rows = self._capture.rows()
        if len(ids) != len(rows):
            raise ValueError(
                f"{len(rows)} examples were back-propagated, got {len(ids)} ids; the first axis of what layers read "
                "must be the examples' (batch_first=True)"
            )
        if inputs is not None and len(inputs) != len(ids):
            raise ValueError(f"{len(ids)} examples need as many inputs, got {len(inputs)}")
        if isinstance(mean_over, Tensor):
            mean_over = int(n_targets(mean_over).sum())
        precise = (rows if mean_over is None else rows * mean_over).float().cpu().numpy()
        try:
            encoded(precise, self._dtype, [])
        except RowRangeError as error:
            raise InputError(f"the gradient of {ids[error.row]!r} {error.reason}") from None
        lengths = np.zeros(len(ids), int) if n_tokens is None else n_tokens.cpu().numpy()
        nats = np.full(len(ids), np.nan) if losses is None else losses.cpu().numpy()
        contents: list[bytes | None] = [None] * len(ids)
        if inputs is not None:
            counts = [None] * len(ids) if n_tokens is None else lengths.tolist()
            contents = [_bytes(one, count) for one, count in zip(inputs, counts, strict=True)]
        for name, content, row, length, loss in zip(ids, contents, precise, lengths, nats, strict=True):
            key = self._bound(name, content)
            if key not in self._waiting:
                self._waiting[key] = (row, int(length), float(loss))
        while len(self._waiting) >= self.store.rows_per_shard:
            self._write(self.store.rows_per_shard)

    def backward(self, body: Body, head: Head, input_ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """(n,) nats of each example of a batch, back-propagated (see dataworth.tasks.capture.passes)."""
        self._capture.expect(len(input_ids))
        return backward_losses(body, head, input_ids, mask, labels, self._capture)

    def _expect(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = next((each for each in (*inputs, *named.values()) if isinstance(each, Tensor) and each.dim()), None)
        if given is not None:
            self._capture.expect(len(given))

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """(n_ids, n_columns) float32 stored gradients, in the order of the ids.

        Raises:
            StoreIncompleteError: one of them is not stored.
        """
        known = {_of_id(key): key for key in self.store.stored().tolist()}
        missing = [name for name in ids if _of_id(_key(name)) not in known]
        if missing:
            raise StoreIncompleteError(
                f"{missing[0]!r} is not stored in {self.store.path}"
                + (f", nor are {len(missing) - 1} others" if len(missing) > 1 else "")
                + ": add it inside `with Indexing(…)`"
            )
        contents = [known[_of_id(_key(name))] for name in ids]
        return np.concatenate(self.store.rows_of(np.asarray(contents, "S32"))).astype(np.float32)

    def _bound(self, name: str, content: bytes | None) -> bytes:
        """The key of an id, the one it had before where it comes again.

        Raises:
            InputError: it was another example.
        """
        if self._known is None:
            self._known = {_of_id(key): key for key in self.store.stored().tolist()}
        key = _key(name, content)
        before = self._known.setdefault(_of_id(key), key)
        if before != key and _key(name) not in (before, key):
            raise InputError(
                f"{name!r} is stored already, with other inputs: give every example an id of its own, or another "
                f"store or `data` to what was corrected ({self.store.path})"
            )
        return before

    def _write(self, most: int | None = None) -> None:
        """Write waiting rows, the oldest first, as a segment of one shard or a few."""
        chosen = list(self._waiting)[:most]
        rows = [self._waiting.pop(content) for content in chosen]
        known = np.isin(np.asarray(chosen, "S32"), self.store.stored())
        kept = [row for row, is_known in zip(rows, known, strict=True) if not is_known]
        contents = np.asarray(chosen, "S32")[~known]
        if not kept:
            return
        for segment in self.store.plan(contents, np.ones(len(contents), np.int64)):
            order = [int(np.flatnonzero(contents == content)[0]) for content in segment.contents]
            for shard in segment.open_shards():
                part = [kept[number] for number in order[segment.rows(shard)]]
                gradients, n_tokens, losses = zip(*part, strict=True)
                columns = {"n_tokens": np.asarray(n_tokens), "loss": np.asarray(losses)}
                segment.write_shard(shard, segment.encoded(np.stack(gradients)), columns)


HASH_BYTES = 16


def _key(name: str, content: bytes | None = None) -> bytes:
    """32 bytes under which a row is stored: of its id, and of its contents where they are known."""
    of_name = hashlib.sha256(name.encode()).digest()
    return of_name if content is None else of_name[:HASH_BYTES] + hashlib.sha256(content).digest()[:HASH_BYTES]


def _of_id(key: bytes) -> bytes:
    """The part of a key that is of the id; numpy cuts off zeros at the end."""
    return key.ljust(2 * HASH_BYTES, b"\0")[:HASH_BYTES]


def _bytes(given: Tensor | str | bytes, count: int | None = None) -> bytes:
    """Type, shape and content, of a tensor its first `count` entries."""
    if isinstance(given, str):
        return given.encode()
    if isinstance(given, bytes):
        return given
    array = given[:count].detach().cpu().contiguous()
    return f"{array.dtype} {tuple(array.shape)} ".encode() + array.reshape(-1).view(torch.uint8).numpy().tobytes()


class IndexCallback(TrainerCallback):
    """A callback of transformers.Trainer that indexes the evaluation set whenever the Trainer evaluates.

        index = IndexCallback("gradients")
        trainer = Trainer(model=model, args=args, eval_dataset=data, callbacks=[index])
        trainer.evaluate()
        rows = index.stores[-1].rows(["0", "1"])

    The gradients get a pass of their own after the evaluation, with the weights frozen meanwhile; the id of an example
    is its number in the evaluation set. Each evaluation has its own store, named after the weights and the examples it
    saw: of several named evaluation sets each has one, and so has a set that was corrected.

    Args:
        store: folder of gradient stores.
        projection, include, exclude, parameters, dtype: as in Indexing.
    """

    def __init__(
        self,
        store: str | Path,
        projection: ProjectionConfig | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        parameters: Literal["linear", "all"] = "linear",
        dtype: str = "float16",
    ) -> None:
        self._store, self._projection = store, projection
        self._settings: dict[str, Any] = {"include": include, "exclude": exclude, "parameters": parameters}
        self._settings["dtype"] = dtype
        self.stores: list[Indexing] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Index what was just evaluated."""
        model, batches = given["model"], given["eval_dataloader"]
        device = next(model.parameters()).device
        first, data = 0, _digest(batches)
        with _frozen(model), Indexing(model, self._store, self._projection, data=data, **self._settings) as index:
            split = whole(model) if "ForSequenceClassification" in type(model).__name__ else halves(model)
            for batch in batches:
                input_ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
                mask = batch.get("attention_mask", torch.ones_like(input_ids)).to(device)
                ids = [str(number) for number in range(first, first + len(input_ids))]
                with torch.enable_grad():
                    losses = index.backward(*split, input_ids, mask, labels)
                index.add(ids, losses=losses, n_tokens=mask.sum(dim=1))
                first += len(input_ids)
        self.stores.append(index)


def _digest(batches: Any) -> str:
    """32 hexadecimal digits of all that the batches of an evaluation set hold."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(name for name, value in batch.items() if isinstance(value, Tensor)):
            digest.update(name.encode() + _bytes(batch[name]))
    return digest.hexdigest()[:32]


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of weights, both as they were afterwards."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode
