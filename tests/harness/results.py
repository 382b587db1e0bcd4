"""A results folder as `dataworth value` leaves one, made by hand."""

import json
from pathlib import Path

import pandas as pd

from dataworth.storage.schema import PASSAGES, VALUES
from dataworth.tasks.report.record import valuation_fingerprint

__all__ = ["results_folder"]


def results_folder(
    folder: Path, values: dict[str, float], day: str = "2026-11-02", flow_run: str | None = None, title: str = "m on c"
) -> Path:
    """A finished valuation of sources with these values, made at nine on a day."""
    (folder / "figures").mkdir(parents=True)
    total = sum(value for value in values.values() if value > 0)
    rows = [
        {
            "query_id": query, "source": source, "value": value, "standard_error": 0.1, "low": None, "high": None,
            "share": max(value, 0.0) / total, "n_documents": 2, "n_tokens": 9, "game": "additive",
            "semivalue": "shapley", "grouping": "source", "level": 1,
        }
        for query in ("q0", "*")
        for source, value in values.items()
    ]  # fmt: skip
    pd.DataFrame(rows, columns=VALUES.names).to_parquet(folder / "sources.parquet")
    (folder / "sources.csv").write_text("source\n")
    passage = {
        "query_id": "*", "rank": 1, "document_id": "d", "source": next(iter(values)), "score": 1.0,
        "relative_score": 0.5, "window_start": 0, "text": "t",
    }  # fmt: skip
    pd.DataFrame([passage], columns=PASSAGES.names).to_parquet(folder / "documents.parquet")
    (folder / "report.html").write_text("<!doctype html><title>r</title><h1>The report</h1>")
    (folder / "figures" / "shares.png").write_bytes(b"an image")
    samples = {"time": [1e12, 1e12 + 2000], "cpu_utilization_percentage": [10.0, 90.0]}
    pd.DataFrame(samples).to_csv(folder / "machine.csv", index=False)
    fingerprints = {"model": "0" * 32, "corpus": "1" * 32, "queries": "2" * 32, "values": None}
    parameters = {
        "model": {"name": "m"}, "corpus": {"files": ["c"]}, "projection": {"rank": 4}, "curvature": {"kind": "fisher"},
        "gradients": {"dtype": "float16"}, "scoring": {"kind": "dot"}, "sources": {"game": "additive"},
        "results": str(folder), "tracking": {"uri": None, "experiment": None, "series": None},
    }  # fmt: skip
    record = {
        "made": f"{day}T09:00:00.000+00:00",
        "title": title,
        "fingerprint": valuation_fingerprint(fingerprints, parameters, flow_run or day),
        "model": "m",
        "fingerprints": fingerprints,
        "stores": {"corpus": "/gone/corpus", "queries": "/gone/queries", "gradients": "/gone/gradients"},
        "counts": {
            "n_documents": 2 * len(values), "n_examples": 8, "n_tokens": 90, "n_queries": 1, "n_sources": len(values),
            "n_layers": 3, "n_columns": 48,
        },
        "parameters": parameters,
        "game": {"missed": 0.25, "reliable": True, "error": "documents"},
        "seconds": {"prepare": 1.0, "fit": 2.5, "index": 40.0, "score": 4.0, "value": 0.5},
        "started": {step: f"{day}T08:5{n}:00+00:00" for n, step in enumerate(("prepare", "fit", "index", "score"))},
        "prefect": {"flow_run_id": "p", "url": None},
        "mlflow": None,
    }  # fmt: skip
    (folder / "valuation.json").write_text(json.dumps(record))
    return folder
