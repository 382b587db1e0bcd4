"""Gradients as they are stored: float32, float16, bfloat16 (its bits), or int8 with a scale for each row and layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from dataworth.storage.errors import RowRangeError
from dataworth.storage.spelling import setting

__all__ = ["STORED", "EncodedRows", "decoded", "encoded"]

# Name of the data type → what the array on disk holds. Zarr has no bfloat16: its bits are kept as uint16.
STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
}
LARGEST_INT8 = 127


@dataclass(frozen=True)
class EncodedRows:
    """Rows as they go to disk.

    Args:
        rows: (n, n_columns) of the stored data type.
        scales: (n, n_layers) float32 for int8, else None.
    """

    rows: np.ndarray
    scales: np.ndarray | None


def encoded(rows: np.ndarray, dtype: str, layers: Sequence[slice]) -> EncodedRows:
    """Rows in a stored data type, rounded to nearest.

    Args:
        rows: (n, n_columns) float32.
        dtype: one of STORED.
        layers: columns of each layer.

    Raises:
        RowRangeError: a row is not finite, or does not fit the data type.
    """
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise RowRangeError(int(np.argmin(finite)), "is not finite")
    if dtype == "int8":
        scales = np.empty((len(rows), len(layers)), np.float32)
        stored = np.empty(rows.shape, np.int8)
        for number, columns in enumerate(layers):
            largest = np.abs(rows[:, columns]).max(axis=1, initial=0.0)
            scales[:, number] = largest / LARGEST_INT8
            divisor = np.where(scales[:, number] > 0, scales[:, number], 1.0)
            stored[:, columns] = np.rint(rows[:, columns] / divisor[:, None])
        return EncodedRows(stored, scales)
    if dtype == "bfloat16":
        return EncodedRows(rows.astype(ml_dtypes.bfloat16).view(np.uint16), None)
    with np.errstate(over="ignore"):
        stored = rows.astype(STORED[dtype])
    fits = np.isfinite(stored).all(axis=1)
    if not fits.all():
        raise RowRangeError(
            int(np.argmin(fits)), f"does not fit {dtype}: pass {setting('gradients.dtype')} bfloat16 or float32"
        )
    return EncodedRows(stored, None)


def decoded(stored: np.ndarray, scales: np.ndarray | None, dtype: str, layers: Sequence[slice]) -> np.ndarray[Any, Any]:
    """Rows to compute with: float16 and float32 as they are, the others in float32; arguments as in `encoded`."""
    if dtype == "bfloat16":
        return stored.view(ml_dtypes.bfloat16).astype(np.float32)
    if dtype != "int8":
        return stored
    rows = stored.astype(np.float32)
    for number, columns in enumerate(layers):
        rows[:, columns] *= (scales if scales is not None else np.ones((1, len(layers))))[:, number : number + 1]
    return rows
