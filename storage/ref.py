"""What passes between tasks: a reference to a store, never its content."""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from dataworth.storage.locations import location_of
from dataworth.storage.place import Location

__all__ = ["StoreRef", "fingerprint"]

StoreKind = Literal["corpus", "layers", "gradients", "scores", "coalitions"]


class StoreRef(BaseModel):
    """Where a store is, and what it must hold.

    Args:
        kind: which store class reads it.
        location: folder of the store: a path, or an address on an object store.
        fingerprint: hash of the configuration and inputs it was made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: StoreKind
    location: str
    fingerprint: str

    @property
    def path(self) -> Location:
        return location_of(self.location)


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits of the SHA-256 of a JSON-serialisable value, independent of key order.

    Raises:
        TypeError: the value has no JSON form.
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
