"""Partial sums of a long computation, saved now and then, so that a killed run goes on from there."""

import json
from collections.abc import Mapping

import google_crc32c
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dataworth.storage.locations import Place, location_of

__all__ = ["PartialSums"]

CHECKSUM = "crc32c"
BYTES_AT_ONCE = 2**24


class PartialSums:
    """Named arrays and how many steps are in them, in one file that is replaced as a whole.

    Args:
        folder: of the finished results; the file is hidden in it.
        fingerprint: hash of what is summed and in which steps.
    """

    def __init__(self, folder: Place, fingerprint: str) -> None:
        self._path = location_of(folder) / f".partial-{fingerprint}.safetensors"

    def load(self) -> tuple[int, dict[str, np.ndarray]]:
        """Steps done and the arrays; no steps and no arrays if the file is missing or damaged."""
        try:
            with self._path.as_file() as path, safe_open(str(path), "numpy") as file:
                metadata = file.metadata() or {}
                steps = int(json.loads(metadata["steps"]))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
                return (steps, arrays) if metadata[CHECKSUM] == _crc32c(steps, arrays) else (0, {})
        except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
            return 0, {}

    def save(self, steps: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace what was kept."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self._path.write_whole(save(contiguous, {"steps": json.dumps(steps), CHECKSUM: _crc32c(steps, contiguous)}))

    def remove(self) -> None:
        """Remove the file, once the result is finished."""
        self._path.remove()


def _crc32c(steps: int, arrays: Mapping[str, np.ndarray]) -> str:
    """Of all that is read back."""
    checksum = google_crc32c.Checksum(str(steps).encode())
    for name in sorted(arrays):
        array = arrays[name]
        checksum.update(repr((name, array.dtype.str, array.shape)).encode())
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), BYTES_AT_ONCE):
            checksum.update(flat[start : start + BYTES_AT_ONCE])
    return str(checksum.hexdigest().decode())
