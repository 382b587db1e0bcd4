"""`dataworth audit` as a person runs it: the digits, a language model of one's own, stopped and gone on with."""

import json
import os
import re
import signal
from dataclasses import replace

import httpx
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt
from mlflow.tracking import MlflowClient

from dataworth.config import ValueConfig
from dataworth.lifecycle.turns import results_turn
from dataworth.storage.manifest import writer_lock
from dataworth.tasks.training.small_model import SmallModel, train_language_model
from tests.harness.api import wait_until
from tests.reference.checkpoints import TEXTS

pytestmark = [pytest.mark.system, pytest.mark.slow]

TINY = SmallModel(vocabulary=300, hidden=16, layers=1, heads=2, intermediate=32, positions=64, epochs=2)


def runs_of_the_audit(title):
    client = MlflowClient(f"sqlite:///{os.environ['DATAWORTH_HOME']}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name(f"audit: {title}")
    found = client.search_runs([experiment.experiment_id])
    return client, {
        kind: [run for run in found if run.data.tags["dataworth.kind"] == kind] for kind in ("audit", "step")
    }


@pytest.mark.long
def test_the_digits_tuned_and_run_again(dataworth, prefect_server, tmp_path):
    methods = ("recommended", "logra-random", "dot", "bm25", "size", "random")
    given = ("audit", "--audit.problem", "digits", "--results", tmp_path / "out", "--store", tmp_path / "store")
    given += ("--audit.subsets", 12, "--audit.removal_queries", 1, "--audit.methods", *methods, "--audit.tune")
    first = dataworth(*given, timeout=900)
    assert first.returncode == 0, first.stderr
    assert "bm25 is left out: it compares texts" in first.stdout
    assert "Noise ceiling" in first.stdout
    out = tmp_path / "out"
    names = {"audit.json", "methods.csv", "methods.parquet", "report.html", "tuned.yaml", "figures"}
    assert {path.name for path in out.iterdir()} == names

    rows = pd.read_parquet(out / "methods.parquet").set_index("method")
    assert list(rows.index[:2]) == ["recommended", "tuned"]
    found = json.loads((out / "audit.json").read_text())["findings"]
    assert found["n_subsets"] == 6
    assert found["n_queries"] == 50
    # Seen without this test: .7 and more against a ceiling of .9 for the first two, .3 for dot products.
    assert rows.loc[["recommended", "tuned"], "lds"].min() > 0.45
    assert rows.loc["dot", "lds"] < rows.loc["recommended", "lds"]
    assert abs(rows.loc["random", "lds"]) < 4 * rows.loc["random", "standard_error"]
    assert found["ceiling"]["lds"] > 0.6
    assert rows.loc["recommended", "sources"] > 0.3
    assert rows.loc["recommended", "removal"] > rows.loc["random", "removal"]
    assert rows.loc["recommended, shuffled labels", "lds"] < 0.3

    tuned = yaml.safe_load((out / "tuned.yaml").read_text())
    parts = {"model": {"name": "m"}, "corpus": {"files": ["c"]}, "queries": {"file": "q"}, "results": "r"}
    assert ValueConfig.model_validate(parts | tuned).projection.kind == "pca"

    page = (out / "report.html").read_text()
    assert "Noise ceiling" in page
    assert not re.search(r"(src|href)\s*=\s*.?https?://", page)
    client, runs = runs_of_the_audit("digits, network 64-64-64-10")
    (run,) = runs["audit"]
    assert run.data.tags["mlflow.source.name"] == "dataworth audit-valuation"
    assert run.data.metrics["lds/recommended"] == pytest.approx(rows.loc["recommended", "lds"])
    assert len(runs["step"]) == len(json.loads((out / "audit.json").read_text())["trials"])
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"report.html", "figures", "tuned.yaml"}
    shown = httpx.get(f"{prefect_server}/artifacts/methods/latest").json()["data"]
    assert str(tmp_path / "out") in shown.replace("\\", "")
    tokens = MarkdownIt("commonmark").enable("table").parse(shown)
    lines = [tokens[number + 2].content for number, token in enumerate(tokens) if token.type == "tr_open"]
    assert lines[0] == "method"
    assert sorted(lines[1:]) == sorted(rows.index)

    again = dataworth(*given, timeout=900)
    assert again.returncode == 0, again.stderr
    assert "trainings to do" not in again.stderr
    assert "scores by recommended: there already" in again.stderr
    pd.testing.assert_frame_equal(rows, pd.read_parquet(out / "methods.parquet").set_index("method"))


@pytest.fixture
def own_model(tmp_path, queries_file):
    documents = [{"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)]
    corpus = tmp_path / "own.jsonl"
    corpus.write_text("".join(f"{json.dumps(row)}\n" for row in documents))
    train_language_model([row["text"] for row in documents], tmp_path / "own", replace(TINY), lambda *_: None)
    return ("--model", tmp_path / "own", "--model.base", tmp_path / "own" / "base", "--corpus", corpus,
            "--queries", queries_file, "--training.epochs", TINY.epochs, "--training.learning_rate",
            TINY.learning_rate, "--corpus.max_length", 64)  # fmt: skip


def test_a_model_of_ones_own_stopped_and_gone_on_with(dataworth, started_dataworth, own_model, tmp_path):
    given = ("audit", *own_model, "--results", tmp_path / "out", "--store", tmp_path / "store", "--audit.subsets", 10)
    given += (
        "--audit.methods",
        "recommended",
        "bm25",
        "embedding",
        "size",
        "--audit.removal_queries",
        1,
        "--audit.tune",
    )
    process, log, left = started_dataworth(*given)
    wait_until(lambda: len(list((tmp_path / "store" / "games").glob("*/*.parquet"))) > 2, "no training")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(600) == 130
    assert "what was finished is kept" in log.read_text()
    assert not left()
    kept = set((tmp_path / "store" / "games").glob("*/*.parquet"))
    with writer_lock(results_turn(str(tmp_path / "store"), str(tmp_path / "out"))):
        skipped = dataworth(*given, "--overlap", "skip")
        assert skipped.returncode == 0, skipped.stderr
        assert skipped.stdout.startswith("skipped: another run is writing")
    finished = dataworth(*given)
    assert finished.returncode == 0, finished.stderr
    to_do, in_all = map(int, re.search(r"(\d+) of (\d+) trainings to do", finished.stderr).groups())
    assert in_all == 20
    assert to_do == in_all - len(kept)
    assert kept < set((tmp_path / "store" / "games").glob("*/*.parquet"))
    rows = pd.read_parquet(tmp_path / "out" / "methods.parquet")
    assert set(rows["method"]) >= {"recommended", "tuned", "bm25", "embedding", "size"}
    tuned = yaml.safe_load((tmp_path / "out" / "tuned.yaml").read_text())
    parts = {"model": {"name": "m"}, "corpus": {"files": ["c"]}, "queries": {"file": "q"}, "results": "r"}
    assert ValueConfig.model_validate(parts | tuned).projection.kind == "pca"
