"""`dataworth what-if` as a person runs it, over valuations made by the tasks' bodies."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dataworth.command.cli import main
from dataworth.storage.checksums import sealed
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.games.portions import all_but, divided
from dataworth.tasks.coalitions.games.step_games import EvaluatedGame
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.curvature.steps import fit_query_factors, fit_source_sums
from dataworth.tasks.model.loading import load
from dataworth.tasks.report.results.valuation import ValuationParts
from dataworth.tasks.report.steps import publish_valuation
from dataworth.what_if import valued
from tests.harness.pipeline import Pipeline
from tests.reference.checkpoints import TEXTS

SAMPLED = CurvatureConfig(kind="none", draws=1, seed=5)


@pytest.fixture(scope="module")
def run(checkpoints, tmp_path_factory):
    """Three sources of two documents each, and two queries."""
    folder = tmp_path_factory.mktemp("valued")
    documents = [
        {"id": f"d{n}", "source": f"s{n % 3}", "publisher": "pq"[n // 3], "text": text}
        for n, text in enumerate(TEXTS[:6])
    ]
    queries = [{"id": f"q{n}", "prompt": TEXTS[n][:20], "completion": TEXTS[n][20:40]} for n in (1, 2)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    projection = {"kind": "random", "rank": 2}
    files = (folder / "corpus.jsonl", folder / "queries.jsonl")
    return Pipeline(folder / "store", checkpoints["llama"], *files, projection, SAMPLED, fields=["publisher"])


@pytest.fixture(scope="module")
def scores(run):
    return run.scores()


@pytest.fixture(scope="module")
def parts(run, checkpoints, tmp_path_factory):
    """What games of the run are made of, with a base near the checkpoint."""
    base = tmp_path_factory.mktemp("base")
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.97)
    model.save_pretrained(base)
    config = run.model.model_copy(update={"base": str(base)})
    return GameParts(
        model=config,
        queries=run.queries,
        query_gradients=run.query_gradients,
        bases=run.bases,
        sums=fit_source_sums(run.store, config, run.corpus, run.bases, run.gradients, SAMPLED, 96),
        factors=fit_query_factors(run.store, config, run.queries, run.bases, SAMPLED),
        damping=DampingConfig(),
        corpus=run.corpus,
        gradients=run.gradients,
        curvature=run.curvature_config,
    )


@pytest.fixture(scope="module")
def published(run, scores, tmp_path_factory):
    """Values the sources, writes a results folder, and returns it."""

    def publish(parts=None, further=(), **sources):
        values = value_sources(run.store, scores, SourcesConfig(**sources), parts)
        made = ValuationParts(
            title="a test",
            parameters={},
            corpus=run.corpus,
            queries=run.queries,
            gradients=run.gradients,
            curvature=run.curvature,
            scores=scores,
            values=values,
            further_values=further,
            model_name=run.model.name,
            model_fingerprint=load(run.model).fingerprint,
            query_gradients=run.query_gradients,
            command="dataworth value",
            timings={},
            prefect_run="none",
            prefect_url=None,
        )
        folder = tmp_path_factory.mktemp("results")
        publish_valuation(str(folder), made, 0.95)
        return folder

    return publish


@pytest.fixture(scope="module")
def played(published, parts):
    """A valuation by newton, all coalitions evaluated."""
    return published(parts, game="newton", fallback=False)


@pytest.fixture(scope="module")
def added(published, run):
    """A valuation by the additive game, of sources and of those within publishers."""
    nested = value_sources(run.store, run.scores(grouping="publisher>source"), SourcesConfig())
    return published(further=(nested,))


@pytest.fixture
def dataworth(monkeypatch, capsys):
    """Runs the command line in this process: exit code, output, what it complains of."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["dataworth", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return ended.value.code, said.out, said.err

    return command


def rows(text):
    """Cells of every line of tables, by the first."""
    lines = [line.split("  ") for line in text.splitlines() if "  " in line]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: line[1:] for line in cells}


def test_absent_and_split_sources_under_every_game(played, dataworth):
    words = ("--without", "s1", "--split", "s0", "--split", "s2", "--parts", 3)
    code, said, complaint = dataworth("what-if", "--results", played, *words)
    assert code == 0, complaint
    absence, *splits = said.split("were ")
    assert "had s1 been absent (newton, evaluated, all queries together)" in absence
    found = valued(played, None)
    shares = rows(absence)
    assert shares["s1"][1] == "0.0%"
    assert [shares[name][0] for name in found.names] == [f"{share:.1%}" for share in found.shares]
    for text in splits:
        gains = rows(text)
        assert gains.keys() >= {"additive", "interaction", "newton, evaluated", "path"}
        for game in ("additive", "interaction", "path"):
            assert gains[game][2:4] == ["0", "0.0%"]
    for game in found.games:
        whole = found.estimate(game, np.eye(3)).values[-1]
        in_parts = found.estimate(game, divided(3, 0, 3)).values[-1]
        assert in_parts.sum() == pytest.approx(whole.sum(), rel=1e-6)
        if game.game in ("additive", "path"):
            assert in_parts[[0, 3, 4]].sum() == pytest.approx(whole[0], rel=1e-9)


def test_values_without_a_source_are_of_coalitions_the_run_evaluated(played, monkeypatch):
    found = valued(played, "source")
    known, worth = found._known(found.sources).known(3, 2)
    v = {tuple(mask): total for mask, total in zip(known.tolist(), worth.sum(axis=1), strict=True)}
    nobody, both = v[False, False, False], v[True, False, True]
    first, third = v[True, False, False], v[False, False, True]
    monkeypatch.setattr(EvaluatedGame, "utilities", lambda self, masks: pytest.fail(f"{len(masks)} evaluated again"))
    values = found.estimate(found.sources, all_but(3, [1])).values[-1]
    expected = [(first - nobody + both - third) / 2, (third - nobody + both - first) / 2]
    np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_more_than_16_players_are_sampled_with_intervals(played, dataworth):
    code, said, complaint = dataworth("what-if", "--results", played, "--split", "s0", "--parts", 15)
    assert code == 0, complaint
    gains = rows(said)
    assert gains["path"][-1] == "exact"
    assert "…" in gains["newton, evaluated"][-1]


def test_a_valuation_of_the_additive_game_says_how_to_get_the_others(added, dataworth):
    code, said, complaint = dataworth("what-if", "--results", added, "--without", "s0", "--split", "s1")
    assert code == 0, complaint
    assert "interaction" not in said
    assert "--game path" in said.splitlines()[-1]
    gains = rows(said.split("were s1 split in 2 parts")[1])
    assert gains["additive"][2:4] == ["0", "0.0%"]
    found = valued(added, None)
    left = np.maximum(found.sums, 0) * (np.arange(3) != 0)
    shares = rows(said.split("were ")[0])
    for name, share in zip(found.names, left / left.sum(), strict=True):
        assert shares[name][1] == f"{share:.1%}"


def test_sources_of_a_further_grouping(added, dataworth):
    code, said, complaint = dataworth(
        "what-if", "--results", added, "--by", "publisher > source", "--without", "q > s1"
    )
    assert code == 0, complaint
    found = valued(added, "publisher>source")
    assert found.names == ["p > s0", "p > s1", "p > s2", "q > s0", "q > s1", "q > s2"]
    left = np.where(np.array(found.names) == "q > s1", 0, np.maximum(found.sums, 0))
    shares = rows(said)
    for name, now, then in zip(found.names, found.shares, left / left.sum(), strict=True):
        assert shares[name][:2] == [f"{now:.1%}", f"{then:.1%}"]


def test_a_model_that_changed_is_refused(played, dataworth, tmp_path):
    made = json.loads((played / "valuation.json").read_text())
    made["fingerprints"]["model"] = "of other weights"
    (tmp_path / "valuation.json").write_text(json.dumps(sealed(made)))
    code, _, complaint = dataworth("what-if", "--results", tmp_path, "--without", "s0")
    assert code == 2
    assert "no longer the model that was valued" in complaint


def test_a_base_that_changed_is_refused(published, parts, dataworth, tmp_path):
    shutil.copytree(parts.model.base, tmp_path / "base")
    model = parts.model.model_copy(update={"base": str(tmp_path / "base")})
    named = parts.model_copy(update={"model": model, "base": load(model, 1.0).fingerprint})
    folder = published(named, game="newton", fallback=False)
    asked = ("what-if", "--results", folder, "--split", "s0")
    assert dataworth(*asked)[0] == 0
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1.01)
    base.save_pretrained(tmp_path / "base")
    code, _, complaint = dataworth(*asked)
    assert code == 2
    assert "no longer the base of the model that was valued" in complaint


def test_a_valuation_that_fell_back_says_so(published, parts, dataworth):
    folder = published(parts, game="newton")
    code, said, complaint = dataworth("what-if", "--results", folder, "--split", "s1")
    assert code == 0, complaint
    assert "valued by the additive game, as the check failed: newton: " in said
    assert rows(said).keys() >= {"additive", "interaction", "newton, quadratic", "path"}


def test_what_cannot_be_asked_is_a_sentence(added, dataworth, tmp_path):
    folder, other = added, tmp_path / "other"
    other.mkdir()
    damaged, earlier = tmp_path / "damaged", tmp_path / "earlier"
    for place, text in ((damaged, "{"), (earlier, '{"stores": {}, "fingerprints": {"model": "m"}, "parameters": {}}')):
        place.mkdir()
        (place / "valuation.json").write_text(text)
    wrong = {
        ("--results", other, "--without", "s0"): f"--results {other}: holds no finished valuation",
        ("--results", damaged, "--without", "s0"): f"{damaged / 'valuation.json'}: is not valid JSON",
        ("--results", earlier, "--without", "s0"): f"--results {earlier}: made by an earlier dataworth",
        ("--results", folder): "nothing to ask: pass --without SOURCE or --split SOURCE",
        ("--results", folder, "--without", "s9"): "--without s9: not in this valuation, which has s0, s1, s2",
        ("--results", folder, "--split", "s9"): "--split s9: not in this valuation, which has s0, s1, s2",
        ("--results", folder, "--split", "s0", "--parts", 1): "Invalid value for '--parts'",
        ("--results", folder, "--without", "s0", "--by", "licence"): "--by licence: not in this valuation, which has",
        ("--results", folder, "--without", "s0", "--by", ">"): "--by >: not in this valuation, which has source",
        ("--results", folder, *("--without", "s0", "--without", "s1", "--without", "s2")): "--without: names every",
    }
    for words, message in wrong.items():
        code, said, complaint = dataworth("what-if", *words)
        assert (code, said) == (2, ""), words
        assert complaint.startswith(f"dataworth: {message}"), complaint
        assert complaint.count("\n") == 1
