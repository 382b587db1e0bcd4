"""The layer store: float matrices by layer, written once. Holds bases and curvature."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from dataworth.storage.checked_arrays import checked_arrays
from dataworth.storage.layer_table import Layer, layers_of
from dataworth.storage.locations import Place, location_of
from dataworth.storage.manifest import Store, new_store, write_manifest
from dataworth.storage.ref import StoreRef
from dataworth.storage.zarr_arrays import array_at

__all__ = ["LayerStore"]


class LayerStore(Store):
    """Matrices by (layer, name), with the layer table and attributes.

    Raises:
        StoreIncompleteError: the folder holds no finished store.
    """

    def __init__(self, path: Place) -> None:
        super().__init__(path)
        with self.files.reading("zarr.json"):
            self._group = zarr.open_group(checked_arrays(self.files), mode="r", use_consolidated=False)
        self._numbers = {layer.name: number for number, layer in enumerate(self.layers)}

    @classmethod
    def write(
        cls,
        root: Place,
        fingerprint: str,
        layers: Sequence[Layer],
        matrices: Sequence[Mapping[str, np.ndarray]],
        attributes: Mapping[str, Any],
    ) -> StoreRef:
        """Write one mapping of matrices for each layer; the store appears whole or not at all.

        Args:
            root: folder of all layer stores.
            fingerprint: hash of what the matrices were made from.
            layers: the layer table.
            matrices: name → array, one mapping a layer in the same order; of an array with three axes each entry of the
                first can be read alone.
            attributes: JSON-serialisable; how they were made.
        """
        target = location_of(root) / fingerprint
        with new_store(target) as folder:
            group = zarr.open_group(folder, mode="w", zarr_format=3)
            for number, by_name in enumerate(matrices):
                subgroup = group.create_group(_layer_path(number))
                for name, matrix in by_name.items():
                    array = subgroup.create_array(
                        name,
                        shape=matrix.shape,
                        chunks=_chunks(matrix.shape),
                        dtype=matrix.dtype,
                        compressors=[Crc32cCodec()],
                        serializer=BytesCodec(),
                        config={"write_empty_chunks": True},
                    )
                    array[...] = matrix
            paths = [f"{_layer_path(number)}/{name}" for number, of_layer in enumerate(matrices) for name in of_layer]
            write_manifest(
                folder,
                {
                    "fingerprint": fingerprint,
                    "layers": [asdict(layer) for layer in layers],
                    "matrices": sorted(paths),
                    "attributes": dict(attributes),
                },
            )
        return StoreRef(kind="layers", location=str(target), fingerprint=fingerprint)

    @property
    def layers(self) -> list[Layer]:
        return layers_of(self)

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self.entry("attributes"))

    def names(self, layer: str) -> list[str]:
        """The names of a layer's matrices."""
        prefix = f"{_layer_path(self._numbers[layer])}/"
        return sorted(path.removeprefix(prefix) for path in self.entry("matrices") if path.startswith(prefix))

    def matrix(self, layer: str, name: str, entry: int | None = None) -> np.ndarray:
        """One stored matrix, or one entry of its first axis.

        Raises:
            KeyError: no such layer.
            StoreDamagedError: it is gone, or its bytes do not match their checksum.
        """
        path = f"{_layer_path(self._numbers[layer])}/{name}"
        with self.files.reading(path):
            array = array_at(self._group, path)
            # Of a store of schema version 1, whose files are not listed, zarr would take a missing one for zeros.
            if self.files.expected is None and array.nchunks_initialized != array.nchunks:
                raise self.files.damaged(path, "is gone")
            return np.asarray(array[...] if entry is None else array[entry])


def _layer_path(number: int) -> str:
    return f"layer_{number:04d}"


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    whole = tuple(max(1, size) for size in shape)
    return (1, *whole[1:]) if len(whole) == 3 else whole
