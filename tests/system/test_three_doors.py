"""One corpus through the command line, the flow and the notebook's face: the same bytes."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]

FLOW = """
import json, sys
from dataworth.config import ValueConfig
from dataworth.value_corpus import value_corpus
value_corpus(ValueConfig.model_validate(json.loads(sys.argv[1])))
"""
# As a user writes it: no guard around it, which processes that import it once more would need.
FACE = """
import json, shutil, sys
import dataworth as dw
from transformers import AutoModelForCausalLM, AutoTokenizer
given = json.loads(sys.argv[1])
name = given["model"]["name"]
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
documents = [json.loads(line) for line in open(given["corpus"]["files"][0])]
queries = [json.loads(line) for line in open(given["queries"]["file"])]
options = {part: given[part] for part in ("projection", "scoring")} | {"corpus": {"max_length": 32}}
valuation = dw.value(model, tokenizer, documents, queries, **options)
shutil.copytree(valuation.folder, given["results"])
assert not {"prefect"} & set(sys.modules)
assert model.training is False and all(each.requires_grad for each in model.parameters())
"""
SAME = ("sources.parquet", "sources.csv", "documents.parquet", "scores.zarr/scores/c/0/0")


def test_the_same_bytes(dataworth, prefect_server, checkpoints, corpus_file, queries_file, tmp_path):
    given = {
        "model": {"name": str(checkpoints["llama"])},
        "corpus": {"files": [str(corpus_file)], "max_length": 32},
        "queries": {"file": str(queries_file)},
        "projection": {"rank": 4},
        "scoring": {"save_matrix": True},
    }
    for door, program in (("flow", FLOW), ("face", FACE)):
        own = {**given, "results": str(tmp_path / door), "store": str(tmp_path / f"store of {door}")}
        words = [sys.executable, "-c", program, json.dumps(own)]
        environment = {**os.environ, "PREFECT_API_URL": prefect_server}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    options = ("--corpus.max_length", 32, "--projection.rank", 4, "--scoring.save_matrix")
    inputs = ("--model", checkpoints["llama"], "--corpus", corpus_file, "--queries", queries_file)
    done = dataworth("value", *inputs, *options, "--results", tmp_path / "line", "--store", tmp_path / "store of line")
    assert done.returncode == 0, done.stderr
    for name in SAME:
        found = {(tmp_path / door / name).read_bytes() for door in ("line", "flow", "face")}
        assert len(found) == 1, name
