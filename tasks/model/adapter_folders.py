"""Folders of LoRA adapters, known before anything is loaded."""

import importlib.util
import json
from pathlib import Path

__all__ = ["is_adapter", "put_on"]

SETTINGS = "adapter_config.json"


def is_adapter(name: str) -> bool:
    """Is it a folder of adapters, and of no whole model?"""
    return (Path(name) / SETTINGS).is_file() and not (Path(name) / "config.json").is_file()


def put_on(name: str) -> str:
    """The checkpoint that a folder of adapters says it was trained on.

    Raises:
        ValueError: it says none, its weights are pickled, or it needs a package that is not there.
    """
    base = json.loads((Path(name) / SETTINGS).read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError("its adapter_config.json names no base model")
    if not (Path(name) / "adapter_model.safetensors").is_file():
        raise ValueError("the adapter has no adapter_model.safetensors, and pickled weights are never read")
    if importlib.util.find_spec("peft") is None:
        raise ImportError("a LoRA adapter needs the package peft: pip install peft")
    return str(base)
