"""Zarr groups on an object store, to be read: zarr's own store on obstore, with this project's errors."""

from collections.abc import AsyncGenerator
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from dataworth.storage.s3.client import client, translate_errors

__all__ = ["ArrayObjects"]


class ArrayObjects(ObjectStore[Any]):
    """All arrays of a bucket.

    Args:
        bucket: its name.
    """

    def __init__(self, bucket: str) -> None:
        super().__init__(client(bucket), read_only=True)
        self._bucket = bucket

    def __str__(self) -> str:
        return f"s3://{self._bucket}"

    def __reduce__(self) -> Any:
        """Another process makes its own client, of its own environment: no credential travels."""
        return ArrayObjects, (self._bucket,)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with translate_errors(f"{self}/{key}"):
            return await super().get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        with translate_errors(f"{self}/{key}"):
            return await super().exists(key)

    async def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        with translate_errors(f"{self}/{prefix}"):
            async for key in super().list_prefix(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        with translate_errors(f"{self}/{prefix}"):
            async for key in super().list_dir(prefix):
                yield key
