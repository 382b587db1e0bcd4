"""Folders of LoRA adapters, known before anything is loaded."""

import importlib.util
import json
from pathlib import Path

__all__ = ["is_adapter", "put_on"]

SETTINGS = "adapter_config.json"
MAX_BYTES = 2**20


def is_adapter(name: str) -> bool:
    """Is it a folder of adapters, and of no whole model?"""
    try:
        return (Path(name) / SETTINGS).is_file() and not (Path(name) / "config.json").is_file()
    except (OSError, ValueError):  # no name of a folder, or none that may be looked into
        return False


def put_on(name: str) -> str:
    """The checkpoint that a folder of adapters says it was trained on.

    Raises:
        ValueError: it says none, its settings are none, its weights are pickled.
        ImportError: it needs a package that is not there.
    """
    path = Path(name) / SETTINGS
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"its {SETTINGS} has more than {MAX_BYTES:,} bytes, as no file of settings has")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        settings = None
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise ValueError(f"its {SETTINGS} names no base model")
    if not (Path(name) / "adapter_model.safetensors").is_file():
        raise ValueError("the adapter has no adapter_model.safetensors, and pickled weights are never read")
    if importlib.util.find_spec("peft") is None:
        raise ImportError("a LoRA adapter needs the package peft: pip install peft")
    return base
