"""Zarr groups whose files are compared with a manifest while zarr reads them."""

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import StorePath, WrapperStore

from dataworth.storage.checked_files import CheckedFiles

__all__ = ["checked_arrays"]


class _CheckedArrays(WrapperStore[Store]):
    """A store of zarr's in which a file that a manifest lists is what it was, or an error; others are not looked at."""

    def __init__(self, store: Store, files: CheckedFiles, group: str, below: str) -> None:
        super().__init__(store)
        self._files, self._group, self._below = files, group, below

    def _with_store(self, store: Store) -> "_CheckedArrays":
        return type(self)(store, self._files, self._group, self._below)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        name = self._below + key.removeprefix(self._group)
        expected = (self._files.expected or {}).get(name)
        if expected is None:
            return await self._store.get(key, prototype, byte_range)
        if byte_range is not None:
            raise ValueError(f"{name}: a part of a chunk was asked for, expected whole ones")
        content = await self._store.get(key, prototype)
        if content is None:
            raise self._files.damaged(name, "is gone")
        if not expected.is_of(content.as_numpy_array()):
            raise self._files.damaged(name)
        return content


def checked_arrays(files: CheckedFiles, below: str = "") -> StorePath:
    """A read-only place for zarr to open a group from, whose files are checked as they are read.

    Args:
        files: of the folder.
        below: the group's folder in it; empty for the folder itself.
    """
    plain = (files.root / below if below else files.root).array_store()
    group, name = (f"{path}/" if path else "" for path in (plain.path, below))
    return StorePath(_CheckedArrays(plain.store, files, group, name), plain.path)
