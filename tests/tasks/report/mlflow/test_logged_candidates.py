"""Documents that were not trained on, in the run of a valuation."""

import json
from pathlib import Path

import pandas as pd
from mlflow.tracking import MlflowClient

from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.report.mlflow.steps import log_results
from tests.harness.results import results_folder

EVIL = "<script>alert(1)</script> \"&' | [x](http://x) `y` {{ 7 * 7 }}"


def test_candidates_are_logged_beside_the_sources(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    folder = results_folder(tmp_path / "out", {"news": 3.0})
    row = {"value": 2.0, "nats_per_query": 2.0, "measured": 1.5, "measured_per_query": 1.5}
    rows = [{"query_id": query, "source": name, **row} for query in ("q0", "*") for name in (EVIL, "new")]
    rows[-1]["measured_per_query"] = float("nan")
    pd.DataFrame(rows).to_parquet(folder / "candidates.parquet")
    logged = log_results(str(folder), TrackingConfig(uri=uri))
    client = MlflowClient(uri)
    metrics = client.get_run(logged.run_id).data.metrics
    assert metrics["candidate/new"] == 2.0
    assert "candidate measured/new" not in metrics
    assert sorted(metrics.values()).count(1.5) == 1
    assert "candidates.parquet" in {entry.path for entry in client.list_artifacts(logged.run_id)}
    table = json.loads(Path(client.download_artifacts(logged.run_id, "tables/candidates.json")).read_text())
    assert [row[:2] for row in table["data"]] == [["*", EVIL], ["*", "new"]]
