"""What a long sum has come to, kept now and then, so that a killed run goes on from there."""

import json
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from storage.locations import Location, Place

__all__ = ["PartialSums"]


class PartialSums:
    """Named arrays and how many steps are in them, in one file that is replaced as a whole.

    Args:
        folder: of the finished results; the file is hidden in it.
        fingerprint: hash of what is summed and in which steps.
    """

    def __init__(self, folder: Place, fingerprint: str) -> None:
        self._path = Location.of(folder) / f".partial-{fingerprint}.safetensors"

    def load(self) -> tuple[int, dict[str, np.ndarray]]:
        """Steps done and the arrays; nothing done where there is no file, or none that can be read."""
        try:
            with self._path.as_file() as path, safe_open(str(path), "numpy") as file:
                steps = int(json.loads((file.metadata() or {})["steps"]))
                return steps, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return 0, {}

    def save(self, steps: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace what was kept."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self._path.write_whole(save(contiguous, {"steps": json.dumps(steps)}))

    def remove(self) -> None:
        """The result is finished."""
        self._path.remove()
