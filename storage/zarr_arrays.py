"""Zarr nodes that must be arrays."""

from typing import Any

import zarr

from dataworth.storage.errors import StoreDamagedError

__all__ = ["array_at"]


def array_at(group: zarr.Group, path: str) -> "zarr.Array[Any]":
    """The array at a path of a group.

    Raises:
        StoreDamagedError: there is none.
    """
    try:
        node = group[path]
    except KeyError:
        node = None
    if not isinstance(node, zarr.Array):
        raise StoreDamagedError(f"{group.store_path}: the array {path!r} is gone; remove the folder, run again")
    return node
