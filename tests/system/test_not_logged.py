"""A valuation whose MLflow server is away: kept, said in a sentence, logged later by `publish`, also without stores."""

import json
import shutil
import socket
import time

import pytest
from mlflow.tracking import MlflowClient

pytestmark = [pytest.mark.system, pytest.mark.slow]

# Three tries, with nine seconds between them, and the end of the process; MLflow's own patience is 16 minutes.
SECONDS_TO_GIVE_UP = 60.0


@pytest.fixture
def nobody():
    """An address on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_kept_and_published_later(dataworth, checkpoints, corpus_file, queries_file, tmp_path, nobody):
    given = ("--model", checkpoints["llama"], "--corpus", corpus_file, "--queries", queries_file)
    given += (
        "--projection.rank",
        "2",
        "--corpus.max_length",
        "32",
        "--curvature.draws",
        "1",
        "--store",
        tmp_path / "store",
        "--results",
        tmp_path / "out",
    )
    valued = dataworth("value", *given, "--tracking.uri", nobody)
    assert valued.returncode == 0, valued.stderr
    given_up_after = time.time() - (tmp_path / "out" / "valuation.json").stat().st_mtime
    assert given_up_after < SECONDS_TO_GIVE_UP
    assert "Traceback" not in valued.stderr
    assert f"dataworth publish --results {tmp_path / 'out'}" in valued.stderr
    assert "not logged" in valued.stdout
    out = tmp_path / "out"
    assert {"report.html", "sources.parquet", "machine.csv"} <= {path.name for path in out.iterdir()}
    assert json.loads((out / "valuation.json").read_text())["mlflow"] is None

    shutil.rmtree(tmp_path / "store")
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    for _ in range(2):
        published = dataworth("publish", "--results", out, "--tracking.uri", uri)
        assert published.returncode == 0, published.stderr
    client = MlflowClient(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.`dataworth.kind` = 'valuation'")
    assert client.get_experiment(run.info.experiment_id).name == run.data.tags["dataworth.series"]
    assert json.loads((out / "valuation.json").read_text())["mlflow"]["run_id"] == run.info.run_id
    assert any(name.startswith("of positive values/") for name in run.data.metrics)
    steps = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {"fit", "index", "score"} <= {step.data.tags["dataworth.step"] for step in steps}
    refused = dataworth("publish", "--results", out, "--tracking.uri", nobody)
    assert refused.returncode == 1
    assert refused.stderr.strip().count("\n") == 0
