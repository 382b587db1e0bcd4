"""The demo by its console script and its own Prefect server, from nothing, and again: a second run reuses it all.

Of fewer documents and epochs; tests.bench.demo runs the whole against its limits of time.
"""

import re

import pandas as pd
import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]


EPOCHS, DOCUMENTS = 2, 400


def test_the_demo(script, dataworth, tmp_path):
    words = ("demo", "--results", tmp_path / "demo", "--epochs", EPOCHS, "--documents", DOCUMENTS)
    first = script(*words)
    assert first.returncode == 0, first.stderr
    documents, sources, queries = map(
        int,
        re.match(r"(\d+) documents of (\d+) sources, (\d+) held-out", first.stdout).groups(),
    )
    assert documents + queries == DOCUMENTS
    assert sources >= 12
    assert queries >= sources
    rates = {row[0]: row[1:] for row in re.findall(r"^(influence|BM25|chance) +(\d+)% +(\d+)%", first.stdout, re.M)}
    assert int(rates["influence"][0]) >= 5 * int(rates["chance"][0])
    assert first.stdout.count("\nQuery ") == 3
    for place in ("report ", "MLflow ", "store "):
        assert f"\n{place}" in first.stdout
    made = pd.read_parquet(tmp_path / "demo" / "results" / "sources.parquet")
    again = dataworth(*words)
    assert again.returncode == 0, again.stderr
    assert "the model is there already" in again.stderr
    assert re.search(r"the corpus: 0 of [\d,]+ examples", again.stderr)
    pd.testing.assert_frame_equal(made, pd.read_parquet(tmp_path / "demo" / "results" / "sources.parquet"))
    rows_of = [text.split("\nreport ")[0] for text in (first.stdout, again.stdout)]
    assert rows_of[0] == rows_of[1]
