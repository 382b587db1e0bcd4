"""The weight files of a checkpoint: safetensors in its own folder, and nothing else."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

__all__ = ["refuse_large_settings", "refuse_many_layers", "refuse_missing", "refuse_pickled"]

INDEX = "model.safetensors.index.json"
# Files of settings, which are read as a whole; an index of ten thousand shards and weights has a tenth of
# that. Tokenizers are tried elsewhere.
SETTINGS = ("*config.json", "special_tokens_map.json", "added_tokens.json", "*.index.json")
MAX_SETTINGS_BYTES = 2**25
# Ten times those of the deepest in use.
MAX_LAYERS = 2000


def refuse_large_settings(folder: Path) -> None:
    """Refuse a file of settings that is as large as weights are.

    Raises:
        ValueError: there is one.
    """
    for path in sorted({path for pattern in SETTINGS for path in folder.glob(pattern)}):
        if path.is_file() and path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ValueError(f"its {path.name} has more than {MAX_SETTINGS_BYTES:,} bytes, as no file of settings has")


def refuse_many_layers(architecture: Any) -> None:
    """Refuse an architecture that would take hours to be put together, whatever is in the files of weights.

    Raises:
        ValueError: it is.
    """
    n_layers = getattr(architecture.get_text_config(), "num_hidden_layers", None)
    if isinstance(n_layers, int) and n_layers > MAX_LAYERS:
        raise ValueError(f"its config.json says {n_layers:,} layers, and no model has more than {MAX_LAYERS:,}")


def refuse_pickled(name: str, architecture: Any) -> None:
    """Refuse what would make transformers read pickled weights, or files of another folder, in spite of its options.

    Args:
        name: Hugging Face name or local folder.
        architecture: its configuration.

    Raises:
        ValueError: an index names such a file.
    """
    if getattr(architecture, "transformers_weights", None) is not None:
        raise ValueError("its config.json names weight files of its own, expected model.safetensors")
    for path in _indexes(name):
        for file in _named(path):
            if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
                raise ValueError(
                    f"{path.name} names {file!r}, expected safetensors files beside it; pickled weights are never read"
                )


def _indexes(name: str) -> Iterator[Path]:
    if Path(name).is_dir():
        yield from sorted(Path(name).glob("*.index.json"))
        return
    path = cached_file(name, INDEX, _raise_exceptions_for_missing_entries=False)
    if path is not None:
        yield Path(path)


def _named(path: Path) -> list[Any]:
    index = json.loads(path.read_bytes())
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        raise ValueError(f"{path.name} has no weight_map")
    return list(index["weight_map"].values())


def refuse_missing(keys: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks weights: transformers would draw them at random.

    Args:
        keys: names of the parameters that are not in its files.

    Raises:
        ValueError: there is one.
    """
    missing = sorted(keys)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"its files lack the weights {missing[0]}{more}")
