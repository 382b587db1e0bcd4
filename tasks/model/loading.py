"""Loading a checkpoint that nobody has to trust: safetensors only, no code from the hub."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.model.adapter_folders import is_adapter, put_on
from dataworth.tasks.model.adapters import begin_again
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.examination import embedded_ids, examined
from dataworth.tasks.model.experts import experts_as_layers
from dataworth.tasks.model.halves import Halves, halves, whole
from dataworth.tasks.model.layers import TrackedLayer, tracked_layers
from dataworth.tasks.model.reading import Reading
from dataworth.tasks.model.sharding import shard
from dataworth.tasks.model.trials import TOKENIZER_FILES, forerunner, tried
from dataworth.tasks.model.weights import refuse_large_settings, refuse_many_layers, refuse_missing, refuse_pickled

__all__ = [
    "LoadedModel",
    "base_weights",
    "checkpoint_weights",
    "fingerprint_of",
    "load",
    "model_fingerprint",
    "tokenizer_fingerprint",
    "vocabulary",
]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in evaluation mode, with what the rooms need to know of it.

    Args:
        model: no parameter requires a gradient.
        tokenizer: the checkpoint's own.
        layers: the tracked layers.
        left_out: names of layers that would be, but have no part in the loss of a text.
        halves: body and head.
        reading: how examples are put together.
        sharded: the weights are spread over several processes, which must run their passes in step.
        labels: names of a classifier's classes, in their order; None for a language model.
        fingerprint: of architecture, weights and data type.
        tokenizer_fingerprint: of the tokenizer's files.
        max_positions: most tokens the model reads; None if it states none.
        n_embedded: token ids that it knows, from 0; a tokenizer may have more, as long as no text needs them. None
            where there is no table of them.
    """

    model: PreTrainedModel
    tokenizer: Any
    layers: tuple[TrackedLayer, ...]
    left_out: tuple[str, ...]
    halves: Halves
    reading: Reading
    sharded: bool
    labels: tuple[str, ...] | None
    fingerprint: str
    tokenizer_fingerprint: str
    max_positions: int | None
    n_embedded: int | None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def free_memory(self) -> int:
        """Bytes that are free where the model is: of its GPU, or of the machine."""
        if self.device.type == "cuda":
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return int(torch.cuda.mem_get_info(self.device)[0]) + unused
        return int(psutil.virtual_memory().available)

    @property
    def n_classes(self) -> int | None:
        """Classes of a classifier; None for a language model."""
        return None if self.labels is None else len(self.labels)


def load(config: ModelConfig, towards_base: float = 0.0) -> LoadedModel:
    """Load a checkpoint, once for the same parameters and the same files in one process.

    Args:
        config: the checkpoint; where its `point` is the base, that.
        towards_base: 0 the checkpoint itself, 1 the one its training began from, between them their weights' mean.

    Raises:
        InputError: no such checkpoint, neither a causal language model nor a classifier of one class an example, no
            safetensors, unknown device; no base, or one of another shape.
    """
    files = _files_state(config.name)
    if config.tokenizer is not None:
        files += _files_state(config.tokenizer)
    if config.point == "base":
        towards_base = 1.0
    config = config.model_copy(update={"point": "auto"})
    if towards_base == 0.0:
        # The base changes nothing of the checkpoint itself: what was made of it is found again with and without one.
        return _loaded(config.model_copy(update={"base": None}).model_dump_json(), files, 0.0)
    if config.base is None:
        raise InputError(f"{setting('model.base')}: not given, so that nothing is known of where training began")
    return _loaded(config.model_dump_json(), files + _files_state(config.base), towards_base)


def vocabulary(config: ModelConfig) -> tuple[str, tuple[str, ...] | None]:
    """Fingerprint of a checkpoint's tokenizer, and the classes of a classifier; no weights are read.

    Raises:
        InputError: no such checkpoint.
    """
    with _loading(config.name):
        labels = _labels(AutoConfig.from_pretrained(_base_name(config.name), trust_remote_code=False))
    return tokenizer_fingerprint(_tokenizer(config.tokenizer or config.name)), labels


def base_weights(config: ModelConfig, names: Sequence[str]) -> dict[str, Tensor]:
    """Parameters of the checkpoint that training began from, float32 on the CPU, by name.

    Raises:
        InputError: there is none, or it lacks one of them.
    """
    if config.base is None:
        raise InputError(f"{setting('model.base')}: not given, so that nothing is known of where training began")
    if is_adapter(config.name):  # what they are put on stays; of two matrices, one begins as zero
        begun = {name: "lora_B" not in name.split(".") for name in names}
        return {name: tensor * begun[name] for name, tensor in _weights(config, names).items()}
    found = _weights(config.model_copy(update={"name": config.base}), names)
    return _complete(found, names, f"{setting('model.base')} {config.base}", f"base of {config.name}")


def checkpoint_weights(config: ModelConfig, names: Sequence[str]) -> dict[str, Tensor]:
    """Parameters of a checkpoint, float32 on the CPU, by name.

    Raises:
        InputError: it lacks one of them.
    """
    return _complete(_weights(config, names), names, config.name, "checkpoint of this training")


def _weights(config: ModelConfig, names: Sequence[str]) -> dict[str, Tensor]:
    state = _pretrained(config, torch.device("cpu"))[0].state_dict()
    found = {name: _of_state(state, name) for name in names}
    return {name: tensor.detach().float() for name, tensor in found.items() if tensor is not None}


def _complete(found: dict[str, Tensor], names: Sequence[str], which: str, what: str) -> dict[str, Tensor]:
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{which}: has no parameter {missing[0]}, so it is no {what}")
    return found


def _of_state(state: dict[str, Tensor], name: str) -> Tensor | None:
    """A parameter by its name, or the part of one expert of it."""
    above, _, number = name.rpartition(".")
    if name in state or above not in state or not number.isdecimal():
        return state.get(name)
    return state[above][int(number)]


def _files_state(name: str) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a local checkpoint's files, so that a changed folder is loaded again.

    Of an adapter's folder with those of the checkpoint that it is put on.
    """
    with _loading(name):
        refuse_large_settings(Path(name))
        folders = [Path(each) for each in dict.fromkeys((name, _base_name(name)))]
        for folder in folders:
            refuse_large_settings(folder)
    return tuple(
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for folder in folders
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.is_file()
    )


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """What can go wrong while a checkpoint is loaded, as one sentence."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # a checkpoint's files decide which of all errors transformers meets
        raise InputError(f"{setting('model.name')} {name}: cannot be loaded ({_first_sentence(error)})") from error


def _pretrained(config: ModelConfig, device: torch.device) -> tuple[PreTrainedModel, Any]:
    """Model and architecture of a checkpoint."""
    with _loading(config.name):
        base = _base_name(config.name)
        architecture = AutoConfig.from_pretrained(base, trust_remote_code=False)
        refuse_many_layers(architecture)
        classifies = _labels(architecture) is not None
        if architecture.is_encoder_decoder and not classifies:
            raise ValueError(
                f"it is an encoder-decoder, {', '.join(architecture.architectures or ['of no stated kind'])}; give a "
                "causal language model, or a sequence classifier"
            )
        kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
        for name in {base, config.name}:
            refuse_pickled(name, architecture)
        loaded: Any = kind.from_pretrained(
            config.name,
            dtype=_dtype(config.dtype, device),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, information = loaded
        refuse_missing(information["missing_keys"])
    return model, architecture


def _tokenizer(name: str) -> Any:
    with _loading(name):
        base = _base_name(name)
        of_its_own = base == name or (Path(name) / "tokenizer_config.json").is_file()
        place = name if of_its_own else base
        if Path(place).is_dir() and not any(file for pattern in TOKENIZER_FILES for file in Path(place).glob(pattern)):
            raise ValueError(f"it has no tokenizer; pass {setting('model.tokenizer')}, the checkpoint whose it is")
        trial = tried(place)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        if trial.unusual is not None:
            tokenizer.forerunner = forerunner(tokenizer, trial.unusual)
        return tokenizer


def _move_towards(model: PreTrainedModel, config: ModelConfig, share: float) -> None:
    """Weights of the mean of a model and its base, in place."""
    if getattr(model, "is_quantized", False):
        raise InputError(
            f"{setting('model.base')}: not yet for quantised models: leave it out, or pass {setting('sources.game')} "
            "additive"
        )
    if getattr(model, "peft_config", None):
        _move_adapters(model, config, share)
        return
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for name, start in base_weights(config, list(state)).items():
        if start.shape != state[name].shape:
            raise InputError(f"{setting('model.base')} {config.base}: {name} has another shape than in {config.name}")
        state[name].copy_(torch.lerp(state[name].float(), start, share))


def _move_adapters(model: PreTrainedModel, config: ModelConfig, share: float) -> None:
    """As `_move_towards`; what they are put on stays."""
    own = put_on(config.name)
    if config.base is not None and Path(config.base).resolve() != Path(own).resolve():
        raise InputError(
            f"{setting('model.base')} {config.base}: training of the adapters {config.name} began from {own}, which "
            f"they name: leave {setting('model.base')} out"
        )
    try:
        begin_again(model, share)
    except ValueError as error:
        raise InputError(
            f"{setting('model.name')} {config.name}: {error}: pass {setting('sources.game')} additive"
        ) from error


@lru_cache(maxsize=1)
def _loaded(config_json: str, _files: tuple[tuple[str, int, int], ...], towards_base: float) -> LoadedModel:
    config = ModelConfig.model_validate_json(config_json)
    device = _device(config.device)
    model, architecture = _pretrained(config, device)
    tokenizer = _tokenizer(config.tokenizer or config.name)
    labels = _labels(architecture)
    model.requires_grad_(False).eval()
    if towards_base:
        _move_towards(model, config, towards_base)
    model.config.use_cache = False
    identity = model_fingerprint(model)
    if config.parameters == "all":
        experts_as_layers(model)
    layers = tracked_layers(model, config.include, config.exclude, config.adapters, config.parameters)
    if not config.shard and not getattr(model, "is_quantized", False):
        nn.Module.to(model, device)
    parts = whole(model) if config.shard or labels is not None else halves(model)
    try:
        examination = examined(model, tokenizer, layers, parts, classifies=labels is not None)
    except InputError as error:
        raise InputError(f"{setting('model.name')} {config.name}: {error}") from error
    if config.shard:  # only now: passes over weights that are spread must be made by all processes in step
        shard(model, device)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        layers=examination.layers,
        left_out=examination.left_out,
        halves=parts,
        reading=examination.reading,
        sharded=config.shard,
        labels=labels,
        fingerprint=_read_so(identity, examination.reading),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        max_positions=examination.max_positions,
        n_embedded=embedded_ids(model),
    )


def _base_name(name: str) -> str:
    """The checkpoint whose architecture it is: of a folder of LoRA adapters, the model they were trained on."""
    return put_on(name) if is_adapter(name) else name


def _labels(architecture: Any) -> tuple[str, ...] | None:
    """The classes of a sequence classifier, None for any other architecture."""
    if not any(name.endswith("ForSequenceClassification") for name in architecture.architectures or ()):
        return None
    if architecture.num_labels < 2 or architecture.problem_type not in (None, "single_label_classification"):
        raise ValueError("a classifier must choose one of several classes; regression and multi-label are not covered")
    return tuple(str(architecture.id2label[number]) for number in range(architecture.num_labels))


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "…"


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None:
            return torch.device("cpu")
        # Processes started together by torchrun take one device each.
        return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{setting('model.device')} {name}: not usable here ({_first_sentence(error)})") from None
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return DTYPES[name]


def fingerprint_of(model: Any) -> str:
    """Of any Model: a checkpoint's own, which says how it is read, too; else of its weights."""
    return model.fingerprint if isinstance(model, LoadedModel) else model_fingerprint(model.model)


def model_fingerprint(model: nn.Module) -> str:
    """32 hexadecimal digits that change with any weight, its data type, or the architecture."""
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        settings = {
            key: value
            for key, value in config.to_dict().items()
            if not key.startswith("_") and key not in ("transformers_version", "use_cache", "torch_dtype", "dtype")
        }
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, adapter in sorted(getattr(model, "peft_config", {}).items()):
        digest.update(json.dumps([name, adapter.to_dict()], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _read_so(identity: str, reading: Reading) -> str:
    """What was computed with other padding, or in other batches, is not found again."""
    if reading.batching == "padded" and reading.pad_token == 0 and not reading.may_idle:
        return identity
    return hashlib.sha256(f"{identity} {reading}".encode()).hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """32 hexadecimal digits that change with the vocabulary, its rules or the special tokens."""
    digest = hashlib.sha256()
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    else:
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    probe = tokenizer("a")["input_ids"]
    digest.update(json.dumps([type(tokenizer).__name__, probe, tokenizer.special_tokens_map], default=str).encode())
    return digest.hexdigest()[:32]
