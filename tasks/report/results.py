"""What a valuation left in its results folder, read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import InputError
from storage.schema import ALL_QUERIES, PASSAGES, VALUES

__all__ = ["Results", "read_results", "whole_values"]


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
    """

    name: str
    title: str
    parameters: Mapping[str, Any]
    fingerprints: Mapping[str, str | None]
    sources: pd.DataFrame
    documents: pd.DataFrame
    record: Mapping[str, Any] = field(default_factory=dict)


def read_results(name: str) -> Results:
    """Read a results folder.

    Raises:
        InputError: it holds no finished valuation, or one that cannot be read.
    """
    folder = Path(name)
    if not (folder / "valuation.json").is_file():
        raise InputError(f"{name}: holds no finished valuation (no valuation.json)")
    try:
        made = json.loads((folder / "valuation.json").read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{name}/valuation.json: is not valid JSON; run `dataworth value` again") from None
    except OSError as error:
        raise InputError(f"{name}/valuation.json: cannot be read ({error.strerror})") from None
    groups = ("parameters", "fingerprints")
    if not isinstance(made, dict) or not all(isinstance(made.get(group), dict) for group in groups):
        raise InputError(f"{name}/valuation.json: has no parameters and fingerprints; run `dataworth value` again")
    return Results(
        name=name,
        title=str(made.get("title", name)),
        parameters=made["parameters"],
        fingerprints=made["fingerprints"],
        sources=_table(folder / "sources.parquet", VALUES),
        documents=_table(folder / "documents.parquet", PASSAGES),
        record=made,
    )


def whole_values(sources: pd.DataFrame) -> pd.DataFrame:
    """Rows of all queries together, first grouping and its finest level, largest value first, NaN as None."""
    whole = sources[sources["query_id"] == ALL_QUERIES]
    key = ["grouping", "level"]
    chosen = whole[(whole[key] == whole[key].iloc[0]).all(axis=1)] if len(whole) else whole
    ordered = chosen.sort_values("value", ascending=False, kind="stable").astype(object)
    return ordered.where(ordered.notna(), None)


def _table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run `dataworth value` again") from None
    except (OSError, pa.ArrowException):
        raise InputError(f"{path}: cannot be read as Parquet; run `dataworth value` again") from None
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]!r}; run `dataworth value` again")
    return table.to_pandas()
