"""The flow `demo`: a small model trained on Python's documentation, and what each package of it is worth."""

import json
from pathlib import Path
from typing import Any, cast

from prefect import flow, task

from dataworth.command.finished import sources_table
from dataworth.command.terminal import mlflow_place, passages, table
from dataworth.config import DemoConfig, ValueConfig
from dataworth.lifecycle.permissions import check_permitted
from dataworth.lifecycle.runs import announce
from dataworth.lifecycle.turns import in_turn, results_turn
from dataworth.storage.durable import replace_file
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.stdlib import fewer, held_out, standard_library_documentation
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.model.config import ModelsConfig
from dataworth.tasks.report.numbers import percent
from dataworth.tasks.training.small_model import SmallModel
from dataworth.tasks.training.task import train_small_model
from dataworth.value_corpus import value_corpus

__all__ = ["demo", "demo_report"]

QUERIES_PER_SOURCE = 6
SHOWN_QUERIES = 3


@task(name="write-demo-corpus", task_run_name="read the standard library's documentation")
def write_demo_corpus(folder: str, seed: int, documents: int | None) -> None:
    """Write `corpus.jsonl`, `queries.jsonl` and `query_sources.json` to the folder."""
    passages = standard_library_documentation()
    split = held_out(passages if documents is None else fewer(passages, documents), QUERIES_PER_SOURCE, seed)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus.jsonl", split.corpus), ("queries.jsonl", split.queries)):
        replace_file(target / name, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    replace_file(target / "query_sources.json", json.dumps(split.sources, indent=1).encode())


@flow(name="demo", description="Trains a small model on Python's own documentation and values its packages.")
def demo(config: DemoConfig) -> dict[str, Any]:
    """Make the corpus, train the model, value the corpus for held-out passages; wait for a demo in the same folder.

    Returns:
        What `value-corpus` returns, and `folder`.
    """
    announce()
    check_permitted(config)
    folder = Path(config.results).absolute()
    turn = results_turn(str(folder / "store"), str(folder))
    # Both wait for other runs, so that neither is skipped.
    return cast(dict[str, Any], in_turn(turn, "wait", lambda: _made_and_valued(config, folder)))


def _made_and_valued(config: DemoConfig, folder: Path) -> dict[str, Any]:
    write_demo_corpus(str(folder), config.seed, config.documents)
    corpus = CorpusConfig(files=[str(folder / "corpus.jsonl")], max_length=256)
    settings = SmallModel(seed=config.seed, epochs=config.epochs)
    model = train_small_model(str(folder / "model"), corpus, settings)
    valuation = value_corpus(
        ValueConfig(
            model=ModelsConfig(name=[model], base=f"{model}/base", device="cpu"),
            corpus=corpus,
            queries=QueriesConfig(file=str(folder / "queries.jsonl")),
            curvature=CurvatureConfig(fraction=0.5, seed=config.seed),
            store=str(folder / "store"),
            results=str(folder / "results"),
        )
    )
    return {"folder": str(folder), **cast(dict[str, Any], valuation)}


def demo_report(outcome: dict[str, Any]) -> str:
    """What the demo prints: how often a query's own source comes first, the sources, three queries, and the places."""
    import numpy as np
    import pandas as pd

    from dataworth.storage.schema import ALL_QUERIES
    from dataworth.tasks.attribution.baselines import bm25_scores, first_rate, source_sums
    from dataworth.tasks.report.account import Account
    from dataworth.tasks.report.results.folder import read_results

    folder = Path(outcome["folder"])
    corpus = pd.read_json(folder / "corpus.jsonl", lines=True)
    queries = pd.read_json(folder / "queries.jsonl", lines=True)
    own_source = json.loads((folder / "query_sources.json").read_text())
    own = [own_source[name] for name in queries["id"]]
    valuation = read_results(outcome["results"])
    values, documents, account = valuation.sources, valuation.documents, Account.read(valuation.record)
    names = sorted(set(corpus["source"]))
    matrix = values.pivot(index="query_id", columns="source", values="value").loc[queries["id"], names].to_numpy()
    by_passage = documents[documents["rank"] == 1].set_index("query_id").loc[queries["id"], "source"]
    bm25 = bm25_scores(corpus["text"].to_list(), (queries["prompt"] + queries["completion"]).to_list())
    bm25_first = corpus["source"].to_numpy()[bm25.argmax(axis=1)]
    sizes = corpus["text"].str.len().groupby(corpus["source"]).sum().loc[names].to_numpy(np.float64)
    size_row = np.broadcast_to(sizes, (len(queries), len(names)))
    rates = [
        ("influence", first_rate(matrix, names, own), float(np.mean(by_passage.to_numpy() == own))),
        ("BM25", first_rate(source_sums(bm25, corpus["source"], names), names, own), float(np.mean(bm25_first == own))),
        ("largest source", first_rate(size_row, names, own), float("nan")),
        ("chance", 1 / len(names), 1 / len(names)),
    ]
    cells = [[name, percent(value, 0), percent(passage, 0)] for name, value, passage in rates]
    blocks = [
        f"{len(corpus):,} documents of {len(names)} sources, {len(queries)} held-out passages as queries",
        "",
        "How often a query's own source comes first",
        table(["", "value of source", "best passage"], cells),
        "",
        "Sources, all queries together",
        "\n".join(account.sentences()),
        sources_table(values[values["query_id"] == ALL_QUERIES], account),
    ]
    shown = queries.iloc[:: max(1, len(queries) // SHOWN_QUERIES)].head(SHOWN_QUERIES)
    for query in shown.to_dict("records"):
        best = documents[documents["query_id"] == query["id"]].head(3)
        text = " ".join(f"{query['prompt']}⟦{query['completion']}⟧".split())
        blocks += ["", f"Query {query['id']}", f"  {text[:300]}", passages(best.to_dict("records"))]
    blocks += [
        "",
        f"report   {outcome['results']}/report.html",
        f"MLflow   {mlflow_place(outcome['mlflow_url'], outcome['mlflow_run_id'])}",
        f"store    {folder / 'store'}",
    ]
    return "\n".join(blocks)
