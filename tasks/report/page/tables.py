"""The tables a valuation leaves, safe to open in a spreadsheet."""

import csv
import io
import re

import pandas as pd

__all__ = ["safe_csv"]

# The wide signs are those of Japanese and Chinese keyboards, which spreadsheets take for the narrow ones.
FORMULA = re.compile(r"[\s\x00]*[=+\-@＝＋－＠]|[\t\r\n]")


def safe_csv(table: pd.DataFrame) -> str:
    """CSV in which no text cell can start a formula: such a cell gets an apostrophe in front."""
    safe = table.copy()
    for name in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[name]):
            safe[name] = [f"'{cell}" if FORMULA.match(str(cell)) else cell for cell in safe[name]]
    buffer = io.StringIO()
    # Python quotes a cell for a line end only where that is the table's own: "a\r=1" would start a row with a formula.
    safe.to_csv(buffer, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\r\n")
    return buffer.getvalue()
