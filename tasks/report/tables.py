"""The tables a valuation leaves, safe to open in a spreadsheet."""

import csv
import io

import pandas as pd

__all__ = ["safe_csv"]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def safe_csv(table: pd.DataFrame) -> str:
    """CSV in which no text cell can start a formula: such a cell gets an apostrophe in front."""
    safe = table.copy()
    for name in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[name]):
            safe[name] = [f"'{cell}" if str(cell).startswith(FORMULA_STARTS) else cell for cell in safe[name]]
    buffer = io.StringIO()
    safe.to_csv(buffer, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    return buffer.getvalue()
