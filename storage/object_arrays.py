"""Zarr groups on an object store: zarr's own store on obstore, with this project's errors and locks."""

from collections.abc import AsyncGenerator
from typing import Any

import obstore
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from storage.leases import check_leases
from storage.objects import client, told

__all__ = ["ArrayObjects"]


class ArrayObjects(ObjectStore[Any]):
    """All arrays of a bucket.

    Args:
        bucket: its name.
        read_only: refuse to write.
    """

    def __init__(self, bucket: str, *, read_only: bool = False) -> None:
        super().__init__(client(bucket), read_only=read_only)
        self._bucket = bucket

    def with_read_only(self, read_only: bool = False) -> "ArrayObjects":
        return type(self)(self._bucket, read_only=read_only)

    def __str__(self) -> str:
        return f"s3://{self._bucket}"

    def __reduce__(self) -> Any:
        """Another process makes its own client, of its own environment: no credential travels."""
        return _reopened, (self._bucket, self.read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with told(f"{self}/{key}"):
            return await super().get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        with told(f"{self}/{key}"):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        check_leases(self._bucket, key)
        with told(f"{self}/{key}"):
            # In one request, however large a shard is: of one that was begun and never ended the bucket keeps nothing.
            await obstore.put_async(self.store, key, value.as_buffer_like(), use_multipart=False)

    async def delete(self, key: str) -> None:
        check_leases(self._bucket, key)
        with told(f"{self}/{key}"):
            await super().delete(key)

    async def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        with told(f"{self}/{prefix}"):
            async for key in super().list_prefix(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        with told(f"{self}/{prefix}"):
            async for key in super().list_dir(prefix):
                yield key


def _reopened(bucket: str, read_only: bool) -> ArrayObjects:
    return ArrayObjects(bucket, read_only=read_only)
