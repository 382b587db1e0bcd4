"""`dataworth value --model A --model B`: what it leaves is the mean of what each leaves by itself."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import zarr
from mlflow.tracking import MlflowClient

from dataworth.tasks.training.small_model import train_tokenizer
from tests.reference.checkpoints import TEXTS, save_another, save_checkpoint

pytestmark = [pytest.mark.system, pytest.mark.slow]

OPTIONS = ("--projection.rank", "4", "--corpus.max_length", "32", "--curvature.draws", "2")
KEY = ["query_id", "source"]


@pytest.fixture
def given(corpus_file, queries_file, tmp_path):
    return ("--corpus", corpus_file, "--queries", queries_file, *OPTIONS, "--store", tmp_path / "store")


@pytest.fixture
def pair(checkpoints, tmp_path):
    return checkpoints["neox"], save_another(checkpoints["neox"], tmp_path / "step-2000")


def sources(folder):
    return pd.read_parquet(folder / "sources.parquet").set_index(KEY)


def matrix(folder):
    group = zarr.open_group(folder / "scores.zarr", mode="r")
    return dict(zip(group["document_id"][...].tolist(), group["scores"][...].T, strict=True))


def test_the_mean_of_two_checkpoints(dataworth, pair, given, tmp_path):
    kept = ("--scoring.save_matrix", "--scoring.by_layer")
    for name, models in (("a", pair[:1]), ("b", pair[1:]), ("both", pair)):
        words = [word for model in models for word in ("--model", model)]
        result = dataworth("value", *words, *given, *kept, "--results", tmp_path / name)
        assert result.returncode == 0, result.stderr
    one, two, mean = (sources(tmp_path / name) for name in ("a", "b", "both"))
    np.testing.assert_allclose(mean["value"], (one["value"] + two["value"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(mean["error_checkpoint"], (one["value"] - two["value"]).abs() / 2, rtol=1e-6)
    assert one["error_checkpoint"].isna().all()
    scores = [matrix(tmp_path / name) for name in ("a", "b", "both")]
    for document, found in scores[2].items():
        np.testing.assert_allclose(found, (scores[0][document] + scores[1][document]) / 2, rtol=1e-6, atol=1e-9)
    documents = pd.read_parquet(tmp_path / "both" / "documents.parquet")
    best = documents[(documents["query_id"] == "*") & (documents["rank"] == 1)].iloc[0]
    assert best["score"] == pytest.approx(max(found[-1] for found in scores[2].values()))
    assert (tmp_path / "both" / "layers.parquet").is_file()
    _check_record(tmp_path, pair)

    again = dataworth("value", "--model", *pair, *given, *kept, "--results", tmp_path / "both")
    assert again.returncode == 0, again.stderr
    assert re.search(r"corpus: 0 of \d+ examples to compute", again.stderr)
    pd.testing.assert_frame_equal(mean, sources(tmp_path / "both"))

    asked = dataworth("what-if", "--results", tmp_path / "both", "--without", "s0")
    assert asked.returncode == 0, asked.stderr
    left = np.maximum(mean.loc["*"].loc[["s1", "s2"], "value"], 0)
    for name, share in (left / left.sum()).items():
        (line,) = [line for line in asked.stdout.splitlines() if line.startswith(f"{name} ")]
        assert f"{share:.1%}" in line


def _check_record(tmp_path, pair):
    made = {name: json.loads((tmp_path / name / "valuation.json").read_text()) for name in ("a", "b", "both")}
    both, names = made["both"], [str(path) for path in pair]
    assert both["title"] == f"2 checkpoints ({pair[0].name}, step-2000) on corpus.jsonl"
    assert both["parameters"]["model"]["name"] == names
    assert both["model"] == ", ".join(names)
    assert both["game"]["checkpoints"] == 2
    single = [made[name]["fingerprints"] for name in ("a", "b")]
    assert both["fingerprints"]["model"] == ", ".join(each["model"] for each in single)
    assert [each["model"] for each in both["checkpoints"]] == names
    for each, own in zip(both["checkpoints"], single, strict=True):
        kinds = ("model", "gradients", "curvature", "scores", "values")
        assert {kind: each["fingerprints"][kind] for kind in kinds} == {kind: own[kind] for kind in kinds}
    assert both["fingerprints"]["scores"] not in {own["scores"] for own in single}
    assert made["a"]["checkpoints"] == []
    page = (tmp_path / "both" / "report.html").read_text()
    assert "Values are the mean over 2 checkpoints" in page
    assert f"--model {names[0]} --model {names[1]}" in page
    run = MlflowClient(f"sqlite:///{os.environ['DATAWORTH_HOME']}/mlflow/mlflow.db").get_run(both["mlflow"]["run_id"])
    assert run.data.params["model.name"] == ", ".join(names)
    assert run.info.run_name == both["title"]


@pytest.mark.long
def test_a_game_of_each_checkpoint(dataworth, pair, given, tmp_path):
    """Newton without a base, and what-if by the games of both."""
    game = ("--game", "newton", "--no-sources.fallback", "--sources.document_groups", "1")
    for name, models in (("a", pair[:1]), ("b", pair[1:]), ("both", pair)):
        result = dataworth("value", "--model", *models, *given, *game, "--results", tmp_path / name)
        assert result.returncode == 0, result.stderr
    one, two, mean = (sources(tmp_path / name) for name in ("a", "b", "both"))
    assert set(mean["game"]) == {"newton"}
    np.testing.assert_allclose(mean["value"], (one["value"] + two["value"]) / 2, rtol=1e-9)
    np.testing.assert_allclose(mean["error_checkpoint"], (one["value"] - two["value"]).abs() / 2, rtol=1e-6)
    asked = dataworth("what-if", "--results", tmp_path / "both", "--without", "s0", "--split", "s1")
    assert asked.returncode == 0, asked.stderr
    assert "means over 2 checkpoints, each played by itself" in asked.stdout
    assert "newton, evaluated" in asked.stdout
    by_name = [line.split() for line in asked.stdout.splitlines()]
    (whole,) = [line for line in by_name if line[:2] == ["newton,", "evaluated"] and len(line) > 4]
    assert float(whole[2].replace(",", "")) == pytest.approx(mean.loc[("*", "s1"), "nats_per_query"], rel=0.01)


def test_index_and_fit_take_one_after_another(dataworth, pair, given, tmp_path):
    words = [word for word in given if word not in ("--queries", given[3])]
    indexed = dataworth("index", "--model", *pair, *words)
    assert indexed.returncode == 0, indexed.stderr
    stores = re.findall(r"gradient store: (\S+)", indexed.stdout)
    assert len(set(stores)) == 2
    fitted = dataworth("fit", "--model", *pair, *words)
    assert fitted.returncode == 0, fitted.stderr
    assert len(set(re.findall(r"curvature store: (\S+)", fitted.stdout))) == 2


def test_checkpoints_that_cannot_be_averaged_are_refused(dataworth, pair, given, checkpoints, tmp_path):
    shutil.copytree(pair[0], tmp_path / "copy")
    save_checkpoint("neox", tmp_path / "foreign", train_tokenizer(TEXTS[:5], 280))
    refused = {
        ("value", tmp_path / "foreign"): "has another tokenizer than",
        ("value", tmp_path / "copy"): "holds the same weights as",
        ("value", f"{pair[0]}/"): "is given twice",
        ("value", checkpoints["gpt2"], "--scoring.by_layer"): "has other layers than",
        ("index", tmp_path / "foreign"): "has another tokenizer than",
    }
    without_queries = [word for word in given if word not in ("--queries", given[3])]
    for (command, other, *further), message in refused.items():
        words = (*given, "--results", tmp_path / "out") if command == "value" else without_queries
        result = dataworth(command, "--model", pair[0], other, *words, *further)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        said = [line for line in result.stderr.splitlines() if line.startswith("dataworth: ")]
        assert len(said) == 1
        assert message in said[0]
    assert not (tmp_path / "out").exists()
