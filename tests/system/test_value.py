"""`dataworth value` as a person runs it: a checkpoint and a corpus it has never seen, real servers, real stops."""

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from mlflow.tracking import MlflowClient
from transformers import AutoModelForCausalLM

from dataworth.storage.schema import CAUSES
from dataworth.tasks.training.small_model import SmallModel, train_language_model
from tests.reference.checkpoints import TEXTS

pytestmark = [pytest.mark.system, pytest.mark.slow]

OPTIONS = ("--projection.rank", "4", "--corpus.max_length", "32", "--curvature.draws", "2")


def files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.endswith(".lock")
    }


def mlflow_client() -> MlflowClient:
    return MlflowClient(f"sqlite:///{os.environ['DATAWORTH_HOME']}/mlflow/mlflow.db")


def test_a_valuation_and_all_it_leaves(dataworth, prefect_server, checkpoints, corpus_file, queries_file, tmp_path):
    given = ("--model", checkpoints["neox"], "--corpus", corpus_file, "--queries", queries_file, *OPTIONS)
    given += ("--store", tmp_path / "store", "--results", tmp_path / "out", "--scoring.save_matrix")
    first = dataworth("value", *given, "--tracking.experiment", "first of all")
    assert first.returncode == 0, first.stderr
    assert "s0" in first.stdout
    assert "report.html" in first.stdout
    out = tmp_path / "out"
    names = {"sources.parquet", "sources.csv", "documents.parquet", "scores.zarr", "report.html", "valuation.json"}
    names |= {"figures", "machine.csv", "tokens.parquet"}
    assert {path.name for path in out.iterdir()} == names

    sources = pd.read_parquet(out / "sources.parquet")
    assert list(sources.columns) == [
        "query_id", "source", "value", "standard_error", "low", "high", "share", "n_documents", "n_tokens", "game",
        "semivalue", "grouping", "level", "error_coalitions", "error_documents", "error_queries",
        "error_projection", "error_checkpoint", "kind", "total", "place_best", "place_worst",
        "nats_per_query", "nats_per_token",
    ]  # fmt: skip
    assert set(sources["query_id"]) == {"q0", "q1", "*"}
    group = zarr.open_group(out / "scores.zarr", mode="r")
    assert group["scores"].shape == (3, 12)
    documents = pd.read_parquet(out / "documents.parquet")
    by_id = dict(zip(group["document_id"][...].tolist(), group["scores"][...].T, strict=True))
    for row in documents[documents["query_id"] == "q0"].itertuples():
        assert row.score == pytest.approx(float(by_id[row.document_id][0]), rel=1e-5)

    _check_mlflow_and_prefect(out, sources, prefect_server)

    again = dataworth("value", *given, "--tracking.experiment", "first of all")
    assert again.returncode == 0, again.stderr
    assert re.search(r"corpus: 0 of \d+ examples to compute", again.stderr)
    assert "there already" in again.stderr
    pd.testing.assert_frame_equal(sources, pd.read_parquet(out / "sources.parquet"))

    top = dataworth("top", "--results", out, "--query", "q0", "--count", "2")
    best = documents[(documents["query_id"] == "q0") & (documents["rank"] == 1)].iloc[0]
    assert top.returncode == 0
    assert best["document_id"] in top.stdout
    missing = dataworth("top", "--results", out, "--query", "nope")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert missing.stderr.startswith("dataworth: --query nope: not in this valuation, which has q0")


def test_sources_are_grouped_in_several_ways(dataworth, checkpoints, corpus_file, queries_file, tmp_path):
    rows = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["publisher"] = "pq"[number % 2]
    corpus_file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = ("--model", checkpoints["neox"], "--corpus", corpus_file, "--queries", queries_file, *OPTIONS)
    given += ("--store", tmp_path / "store", "--results", tmp_path / "out")
    given += ("--sources.by", "publisher>source", "source", "--sources.payout.rule", "tokens")
    result = dataworth("value", *given)
    assert result.returncode == 0, result.stderr
    assert all(title in result.stdout for title in ("publisher > source", "p > s0"))
    sources = pd.read_parquet(tmp_path / "out" / "sources.parquet")
    tables = {key: rows.set_index("source") for key, rows in sources[sources["query_id"] == "*"].groupby(
        ["grouping", "level"])}  # fmt: skip
    assert tables.keys() == {("publisher>source", 1), ("publisher>source", 2), ("source", 1)}
    nested = tables["publisher>source", 2]["value"]
    publishers, names = tables["publisher>source", 1]["value"], tables["source", 1]["value"]
    for name, value in publishers.items():
        assert value == pytest.approx(nested[nested.index.str.startswith(f"{name} > ")].sum())
    for name, value in names.items():
        assert value == pytest.approx(nested[nested.index.str.endswith(f" > {name}")].sum(), rel=1e-5)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<th>payout</th>" in page
    assert "clipped mass, all queries together" in result.stderr
    assert "By publisher<" in page
    assert "By source<" in page


def _check_mlflow_and_prefect(out: Path, sources: pd.DataFrame, prefect_server: str) -> None:
    """The MLflow run and the Prefect artifact hold the same values and point to each other."""
    made = json.loads((out / "valuation.json").read_text())
    run = mlflow_client().get_run(made["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["projection.rank"] == "4"
    assert run.data.params["curvature.damping.rule"] == "relative"
    whole = sources[sources["query_id"] == "*"].set_index("source")
    assert run.data.metrics["value/s1"] == pytest.approx(whole.loc["s1", "nats_per_query"])
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"corpus", "queries"}
    assert {entry.dataset.digest for entry in run.inputs.dataset_inputs} >= {made["fingerprints"]["queries"]}
    artifacts = {entry.path for entry in mlflow_client().list_artifacts(run.info.run_id)}
    assert artifacts == {"report.html", "sources.csv", "sources.parquet", "documents.parquet", "tables", "figures"}
    assert run.data.tags["prefect.flow_run_id"] == made["prefect"]["flow_run_id"]
    assert made["prefect"]["url"] in run.data.tags["mlflow.note.content"]

    made_here = {"flow_runs": {"id": {"any_": [made["prefect"]["flow_run_id"]]}}}
    found = httpx.post(f"{prefect_server}/artifacts/filter", json=made_here).json()
    (table,) = [item for item in found if item["key"] == "sources"]
    assert run.info.run_id in table["data"]
    assert "| s1 |" in table["data"]
    (flow_run,) = httpx.post(f"{prefect_server}/flow_runs/filter", json=made_here).json()
    assert flow_run["state"]["name"] == "Completed"
    tasks = httpx.post(f"{prefect_server}/task_runs/filter", json=made_here).json()
    assert {"gradients of the queries", "value the sources (additive)", "log to MLflow"} <= {t["name"] for t in tasks}


def test_a_game_in_which_copies_share(dataworth, checkpoints, corpus_file, queries_file, tmp_path):
    """From the command line to the files: values, what is known beside them, overlaps; a second run evaluates none."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.97)
    model.save_pretrained(tmp_path / "base")
    given = ("--model", checkpoints["llama"], "--model.base", tmp_path / "base", "--corpus", corpus_file)
    given += ("--queries", queries_file, "--store", tmp_path / "store", "--corpus.max_length", "32")
    given += ("--projection", "pca", "--projection.rank", "8", "--game", "newton", "--no-sources.fallback")
    first = dataworth("value", *given, "--results", tmp_path / "out")
    assert first.returncode == 0, first.stderr
    assert "without single sources, predicted changes miss the measured ones by" in first.stderr
    sources = pd.read_parquet(tmp_path / "out" / "sources.parquet")
    assert set(sources["game"]) == {"newton"}
    made = json.loads((tmp_path / "out" / "valuation.json").read_text())
    notes = made["game"]
    assert all(set(errors) == set(CAUSES) for errors in made["standard_errors"].values())
    assert all(errors["checkpoint"] is None for errors in made["standard_errors"].values())  # of one alone, unknown
    assert (notes["ended by"], notes["utility"]) == ("exact", "evaluated")
    assert "8 coalitions were asked for now" in first.stderr
    whole = sources[sources["query_id"] == "*"]
    assert whole["value"].sum() == pytest.approx(notes["v(all)"] - notes["v(none)"], rel=1e-4)
    assert len(pd.read_parquet(tmp_path / "out" / "overlap.parquet")) == 3
    assert "game: v(none), measured" in (tmp_path / "out" / "report.html").read_text()
    again = dataworth("value", *given, "--sources.semivalue", "banzhaf", "--results", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert "sums of 0 of 3 sources to compute" in again.stderr
    assert "0 coalitions were asked for now" in again.stderr
    asked = dataworth("what-if", "--results", tmp_path / "out", "--without", "s0", "--split", "s1", "--parts", "3")
    assert asked.returncode == 0, asked.stderr
    assert "had s0 been absent (newton, evaluated, all queries together)" in asked.stdout
    assert "were s1 split in 3 parts" in asked.stdout


def sentence(result) -> str:
    """The last line of the log, which must be the only one of the project, with no traceback before it."""
    assert "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_everything_a_user_can_get_wrong_is_a_sentence(dataworth, checkpoints, corpus_file, queries_file, tmp_path):
    given = {
        "--model": checkpoints["llama"],
        "--corpus": corpus_file,
        "--queries": queries_file,
        "--results": tmp_path / "out",
        "--corpus.max_length": 32,
    }
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "a", "source": "s", "text": "fine"}\n{"id": "b", "source": "s", "text": ""}\n')
    (tmp_path / "file").write_text("x")
    wrong = {
        ("--corpus", broken): (2, f"dataworth: {broken}, line 2, field 'text': empty"),
        ("--corpus", tmp_path / "gone.jsonl"): (2, f"dataworth: {tmp_path / 'gone.jsonl'}: no such file"),
        ("--model", tmp_path / "nothing"): (2, f"dataworth: --model {tmp_path / 'nothing'}: cannot be loaded"),
        ("--corpus.max_length", 100): (2, "dataworth: --corpus.max_length 100: the model reads at most 64 tokens"),
        ("--model.include", "*.nothing"): (2, "dataworth: the pattern '*.nothing' matches none"),
        ("--projection", "psychic"): (2, "dataworth: Invalid value for '--projection'"),
        ("--no-such-option", "x"): (2, "dataworth: No such option"),
        ("--cluster.address", "tcp://127.0.0.1:9"): (1, "dataworth: no Dask scheduler answers at tcp://127.0.0.1:9"),
        ("--results", tmp_path / "file"): (2, f"dataworth: --results {tmp_path / 'file'}: {tmp_path / 'file'} is not"),
        ("--store", tmp_path / "file" / "x"): (2, f"dataworth: --store {tmp_path / 'file' / 'x'}: {tmp_path / 'file'}"),
    }

    def refused(entry):
        (flag, value), (code, message) = entry
        own = {**given, "--store": tmp_path / f"store of {flag}", flag: value}
        result = dataworth("value", *(str(word) for pair in own.items() for word in pair))
        assert result.returncode == code, (flag, result.stderr)
        assert sentence(result).startswith(message), (flag, result.stderr)
        return result

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(refused, wrong.items()))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def long_corpus(tmp_path):
    """Enough documents that a run can be stopped in the middle of its shards."""
    path = tmp_path / "long.jsonl"
    generator = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    rows = [
        {"id": f"d{n}", "source": f"s{n % 4}", "text": " ".join(generator.choice(words, 12))} for n in range(4000)
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_nothing_in_the_way(
    dataworth, stopped_dataworth, checkpoints, long_corpus, queries_file, tmp_path, kind
):
    """Ctrl-C and kill -9 in the middle of indexing: no process stays, and the next run ends as if nothing happened."""

    def given(name):
        return (
            *("value", "--model", checkpoints["llama"], "--corpus", long_corpus, "--queries", queries_file),
            *("--store", tmp_path / name, "--results", tmp_path / f"{name}-out", "--corpus.max_length", "32"),
            *("--projection.rank", "16", "--curvature", "none"),
        )

    # Ctrl-C meets the console script, as a person starts it.
    by_hand = kind == signal.SIGINT
    code, log, left = stopped_dataworth(*given("stopped"), when="examples to compute", kind=kind, script=by_hand)
    assert left == []
    if kind == signal.SIGINT:
        assert code == 130, log
        assert "Traceback" not in log
        assert log.strip().splitlines()[-1].startswith("dataworth: interrupted")
    assert not (tmp_path / "stopped-out").exists()
    resumed = dataworth(*given("stopped"))
    assert resumed.returncode == 0, resumed.stderr
    straight = dataworth(*given("straight"))
    assert straight.returncode == 0, straight.stderr
    assert files(tmp_path / "stopped") == files(tmp_path / "straight")
    for name in ("sources.csv", "documents.parquet"):
        one, two = (tmp_path / f"{store}-out" / name for store in ("stopped", "straight"))
        assert one.read_bytes() == two.read_bytes()


def test_interrupted_while_scoring_no_worker_stays(
    stopped_dataworth, dataworth, checkpoints, long_corpus, queries_file, tmp_path
):
    words = ("value", "--model", checkpoints["gpt2"], "--corpus", long_corpus, "--queries", queries_file, *OPTIONS)
    words += ("--store", tmp_path / "store", "--results", tmp_path / "out")
    code, log, left = stopped_dataworth(*words, when="score every document", kind=signal.SIGINT)
    assert (code, left) == (130, []), log
    resumed = dataworth(*words)
    assert resumed.returncode == 0, resumed.stderr


def test_two_runs_on_one_store_the_second_is_refused(
    dataworth, prefect_server, checkpoints, long_corpus, corpus_file, tmp_path
):
    from dataworth.storage.gradients import GradientStore
    from dataworth.storage.manifest import writer_lock

    words = ("index", "--model", checkpoints["llama"], "--corpus", long_corpus, "--store", tmp_path / "store")
    words += ("--corpus.max_length", "32", "--projection.rank", "2")
    assert dataworth(*words).returncode == 0
    (path,) = (tmp_path / "store" / "gradients").glob("[0-9a-f]*")
    assert GradientStore(path).segments()
    other = [corpus_file if word == long_corpus else word for word in words]
    with writer_lock(path):
        again, refused = dataworth(*words, "--overlap", "refuse"), dataworth(*other, "--overlap", "refuse")
    assert again.returncode == 0  # all is there: nothing to write
    assert refused.returncode == 1
    assert "another run is writing" in sentence(refused)


TRAINING = {"epochs": 3, "batch_tokens": 128, "learning_rate": 6e-3, "weight_decay": 0.1}


@pytest.fixture
def of_a_trained_model(tmp_path, corpus_file, queries_file):
    """Options of a valuation of a model trained on the corpus, whose base is kept."""
    small = SmallModel(vocabulary=300, hidden=16, layers=1, heads=2, intermediate=24, positions=32, **TRAINING)
    texts = [json.loads(line)["text"] for line in corpus_file.read_text().splitlines()]
    train_language_model(texts, tmp_path / "model", small, lambda *_: None)
    given = ("--model", tmp_path / "model", "--corpus", corpus_file, "--queries", queries_file, *OPTIONS)
    return (*given, "--store", tmp_path / "store", "--results", tmp_path / "out")


def test_sources_are_trained_again(dataworth, of_a_trained_model, tmp_path):
    """The game retrain from the command line, on two workers; without a base it is refused."""
    given = of_a_trained_model
    refused = dataworth("value", *given, "--sources.game", "retrain")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--model.base" in refused.stderr
    training = [word for name, value in TRAINING.items() for word in (f"--training.{name}", value)]
    base = ("--model.base", tmp_path / "model" / "base", "--sources.game", "retrain", "--cluster.workers", "2")
    trained = dataworth("value", *given, *base, *training)
    assert trained.returncode == 0, trained.stderr
    notes = json.loads((tmp_path / "out" / "valuation.json").read_text())["game"]
    sources = pd.read_parquet(tmp_path / "out" / "sources.parquet")
    assert set(sources["game"]) == {"retrain"}
    whole = sources.loc[sources["query_id"] == "*", "value"].sum()
    assert whole == pytest.approx(notes["v(all)"] - notes["v(none)"], rel=1e-6)
    assert notes["reach"] == pytest.approx(1, abs=0.05)
    assert "training again goes" in (tmp_path / "out" / "report.html").read_text()


def test_values_are_averaged_over_projections(dataworth, of_a_trained_model, tmp_path):
    """Over three; of principal components there is one only."""
    given = of_a_trained_model
    seeds = dataworth("value", *given, "--sources.projection_seeds", "3")
    assert seeds.returncode == 0, seeds.stderr
    mean = pd.read_parquet(tmp_path / "out" / "sources.parquet").set_index(["query_id", "source"])
    assert (mean["error_projection"] > 0).all()
    single = []
    for seed in range(3):
        assert dataworth("value", *given, "--projection.seed", seed).returncode == 0
        single.append(pd.read_parquet(tmp_path / "out" / "sources.parquet").set_index(["query_id", "source"])["value"])
    np.testing.assert_allclose(mean["value"], np.mean(single, axis=0), rtol=1e-9)
    pca = dataworth("value", *given, "--sources.projection_seeds", "3", "--projection.kind", "pca")
    assert (pca.returncode, pca.stderr.count("\n")) == (2, 1)
