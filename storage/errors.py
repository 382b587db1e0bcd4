"""Errors a person can cause or meet, each one sentence long.

DataworthError
├── InputError            (ValueError)   bad input or options: exit code 2
├── WorkersLostError                     Dask workers died, or their scheduler went away
├── ServerLostError                      the Prefect server went away
└── StoreError            (RuntimeError)
    ├── StoreBusyError                   another run is writing here
    ├── StoreIncompleteError             a run stopped before it was done
    ├── StoreDamagedError                bytes changed since they were written
    ├── StoreReadOnlyError               something is to be written where nothing may be
    ├── StoreUnreachableError            the object store does not answer or refuses
    ├── SchemaVersionError               written by a newer dataworth
    └── RowRangeError     (ValueError)   a gradient that cannot be stored
"""

__all__ = [
    "DataworthError",
    "InputError",
    "RowRangeError",
    "SchemaVersionError",
    "ServerLostError",
    "StoreBusyError",
    "StoreDamagedError",
    "StoreError",
    "StoreIncompleteError",
    "StoreReadOnlyError",
    "StoreUnreachableError",
    "WorkersLostError",
]


class DataworthError(Exception):
    """Anything this project refuses to do, with the reason as its message."""


class InputError(DataworthError, ValueError):
    """Input or options that cannot be used; the message names file, line and field."""


class WorkersLostError(DataworthError):
    """The workers that computed, or what hands them their work, are gone; the work can be begun again."""


class ServerLostError(DataworthError):
    """The Prefect server does not answer any more, or never did."""


class StoreError(DataworthError, RuntimeError):
    """A store that cannot be read or written."""


class StoreBusyError(StoreError):
    """Another process holds the store's writer lock.

    Args:
        message: one sentence.
        folder: whose lock it is, where that is known.
    """

    def __init__(self, message: str, folder: str | None = None) -> None:
        super().__init__(message)
        self.folder = folder


class StoreIncompleteError(StoreError):
    """The store has no manifest or lacks shards: the run that wrote it did not finish."""


class StoreDamagedError(StoreError):
    """Stored bytes do not match the checksum written with them."""


class StoreReadOnlyError(StoreError):
    """Something is to be written on a disk or in a folder that can only be read."""


class StoreUnreachableError(StoreError):
    """The object store that holds the store does not answer, or refuses what it was asked.

    Args:
        where: address of what was asked for.
        reason: what the object store or the system says.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}; what was finished is kept, the same command goes on from there"


class SchemaVersionError(StoreError):
    """The store was written with a schema this version does not know."""


class RowRangeError(StoreError, ValueError):
    """A row is not finite or does not fit its data type.

    Args:
        row: its number among the rows given.
        reason: what is wrong and what to do.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row} {reason}")
        self.row, self.reason = row, reason
