"""`dataworth compare` as a person runs it: tables, a page, and one sentence for what cannot be compared."""

import json

import pytest

from dataworth.command import cli
from tests.tasks.report.page.test_comparison import FIRST, SECOND


def written(folder, results):
    folder.mkdir()
    results.sources.to_parquet(folder / "sources.parquet")
    results.documents.to_parquet(folder / "documents.parquet")
    made = {"title": "t", "parameters": results.parameters, "fingerprints": results.fingerprints}
    (folder / "valuation.json").write_text(json.dumps(made))
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    def with_arguments(*arguments):
        monkeypatch.setattr("sys.argv", ["dataworth", "compare", *map(str, arguments)])
        code = cli._exit_code()
        return (code, *capsys.readouterr())

    return with_arguments


def test_a_table_and_a_page(run, tmp_path):
    one, two = written(tmp_path / "one", FIRST), written(tmp_path / "two", SECOND)
    code, out, err = run(one, two, "--html", tmp_path / "page.html")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["a", "60.0%", "20.0%", "-40.0", "no"] in lines
    assert ["b", "30.0%", "60.0%", "+30.0", "yes"] in lines
    assert ["new", "not", "there", "10.0%", "unknown"] in lines
    assert ["projection.rank", "4", "8"] in lines
    assert ["rank", "correlation", "of", "the", "sources'", "values", "0.50"] in lines
    assert ["sources", "only", "in", "A", "gone"] in lines
    assert "<td>-40.0</td>" in (tmp_path / "page.html").read_text()


def test_what_cannot_be_compared_is_one_sentence(run, tmp_path):
    whole = written(tmp_path / "whole", FIRST)
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = written(tmp_path / "broken", FIRST)
    (broken / "valuation.json").write_text("{")
    strange = written(tmp_path / "strange", FIRST)
    (strange / "valuation.json").write_text('{"parameters": 3}')
    damaged = written(tmp_path / "damaged", FIRST)
    (damaged / "sources.parquet").write_bytes(b"PAR1 or not")
    early = written(tmp_path / "early", FIRST)
    FIRST.sources.drop(columns="level").to_parquet(early / "sources.parquet")
    lacking = written(tmp_path / "lacking", FIRST)
    (lacking / "documents.parquet").unlink()
    for other, said in (
        (tmp_path / "nowhere", "holds no finished valuation"),
        (empty, "holds no finished valuation"),
        (whole / "valuation.json", "holds no finished valuation"),
        (broken, "is not valid JSON"),
        (strange, "has no parameters and fingerprints"),
        (damaged, "sources.parquet: cannot be read ("),
        (early, "sources.parquet: has no column 'level'"),
        (lacking, "documents.parquet: is gone"),
    ):
        for given in ((whole, other), (other, whole)):
            code, out, err = run(*given)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert said in err
    for page in (tmp_path, tmp_path / "no" / "folder.html"):
        code, _, err = run(whole, whole, "--html", page)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"dataworth: --html {page}: ")
    assert run(whole)[0] == 2
