"""What a valuation left in its results folder, read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from dataworth.storage.checked_files import CheckedFiles
from dataworth.storage.checksums import file_checksum, is_sealed, sealed
from dataworth.storage.durable import replace_file
from dataworth.storage.errors import InputError
from dataworth.storage.locations import location_of
from dataworth.storage.schema import ALL_QUERIES, LATER_VALUES, PASSAGES, VALUES
from dataworth.tasks.report.account import Account

__all__ = [
    "Results",
    "read_account",
    "read_candidates",
    "read_documents",
    "read_record",
    "read_results",
    "read_sources",
    "read_tokens",
    "whole_values",
    "write_record",
]

RECORD = "valuation.json"
# What commands read of a folder again; the other files are for people, who may change them.
READ_BACK = ("sources.parquet", "documents.parquet", "candidates.parquet", "tokens.parquet", "machine.csv")
REMEDY = "run `dataworth value` again"


@dataclass(frozen=True)
class Results:
    """A published valuation.

    Args:
        name: the folder, as it was given.
        title: of its report.
        parameters: the whole configuration.
        fingerprints: of model, corpus, queries and what was made of them.
        sources: rows of VALUES.
        documents: rows of PASSAGES, the best of each query.
        record: the whole content of `valuation.json`.
        machine: content of `machine.csv`, if samples of the machine were taken.
        candidates: content of `candidates.parquet`, where there were some.
    """

    name: str
    title: str
    parameters: Mapping[str, Any]
    fingerprints: Mapping[str, str | None]
    sources: pd.DataFrame
    documents: pd.DataFrame
    record: Mapping[str, Any] = field(default_factory=dict)
    machine: bytes | None = None
    candidates: pd.DataFrame | None = None


def read_record(name: str) -> dict[str, Any]:
    """`valuation.json` of a results folder.

    Raises:
        InputError: there is none, or it is not what was written.
    """
    path = Path(name) / RECORD
    if not path.is_file():
        raise InputError(f"{name}: holds no finished valuation (no {RECORD})")
    try:
        made = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{name}/{RECORD}: is not valid JSON; {REMEDY}") from None
    except OSError as error:
        raise InputError(f"{name}/{RECORD}: cannot be read ({error.strerror})") from None
    groups = ("parameters", "fingerprints")
    if not isinstance(made, dict) or not all(isinstance(made.get(group), dict) for group in groups):
        raise InputError(f"{name}/{RECORD}: has no parameters and fingerprints; {REMEDY}")
    if not is_sealed(made):
        raise InputError(f"{name}/{RECORD}: its bytes changed; {REMEDY}")
    return made


def read_results(name: str) -> Results:
    """Read a results folder.

    Raises:
        InputError: it holds no finished valuation, or one that is not what was written.
    """
    made = read_record(name)
    files = _files(name, made)
    return Results(
        name=name,
        title=str(made.get("title", name)),
        parameters=made["parameters"],
        fingerprints=made["fingerprints"],
        sources=_table(files, "sources.parquet", VALUES),
        documents=_table(files, "documents.parquet", PASSAGES),
        record=made,
        machine=files.content("machine.csv") if files.has("machine.csv") else None,
        candidates=_candidates(files),
    )


def read_sources(name: str) -> pd.DataFrame:
    """`sources.parquet` of a results folder alone; raises InputError as `read_results`."""
    return _table(_files(name, read_record(name)), "sources.parquet", VALUES)


def read_candidates(name: str) -> pd.DataFrame | None:
    """`candidates.parquet` of a results folder, None where there were none; raises InputError as `read_record`."""
    return _candidates(_files(name, read_record(name)))


def read_tokens(name: str) -> pd.DataFrame | None:
    """`tokens.parquet` of a results folder, None where it was not told; raises InputError as `read_record`."""
    files = _files(name, read_record(name))
    return files.table("tokens.parquet").to_pandas() if files.has("tokens.parquet") else None


def read_account(name: str) -> Account:
    """What the numbers of a results folder are; raises InputError as `read_record`."""
    return Account.read(read_record(name))


def read_documents(name: str) -> pd.DataFrame:
    """`documents.parquet` of a results folder alone; raises InputError as `read_results`."""
    return _table(_files(name, read_record(name)), "documents.parquet", PASSAGES)


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `valuation.json`, at once or not at all, with its checksum and those of the files that commands read."""
    files = {name: file_checksum(folder / name) for name in READ_BACK if (folder / name).is_file()}
    replace_file(folder / RECORD, json.dumps(sealed({"files": files, **content}), indent=2).encode())


def whole_values(sources: pd.DataFrame) -> pd.DataFrame:
    """Rows of all queries together, first grouping and its finest level, largest value first, NaN as None."""
    whole = sources[sources["query_id"] == ALL_QUERIES]
    key = ["grouping", "level"]
    chosen = whole[(whole[key] == whole[key].iloc[0]).all(axis=1)] if len(whole) else whole
    ordered = chosen.sort_values("value", ascending=False, kind="stable").astype(object)
    return ordered.where(ordered.notna(), None)


def _candidates(files: CheckedFiles) -> pd.DataFrame | None:
    return files.table("candidates.parquet").to_pandas() if files.has("candidates.parquet") else None


def _files(name: str, record: Mapping[str, Any]) -> CheckedFiles:
    return CheckedFiles(location_of(name), record.get("files"), {}, REMEDY, InputError)


def _table(files: CheckedFiles, name: str, schema: pa.Schema) -> pd.DataFrame:
    table = files.table(name)
    for column in LATER_VALUES:
        if column in schema.names and column not in table.column_names:
            field = schema.field(column)
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    missing = [column for column in schema.names if column not in table.column_names]
    if missing:
        raise files.damaged(name, f"has no column {missing[0]!r}")
    return table.to_pandas()
