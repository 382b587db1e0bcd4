"""From a configuration to the problem of an audit: checkpoints, the digits, the demo, or one of one's own."""

import json
from pathlib import Path

from prefect import task

from flows.config import AuditRunConfig
from flows.runs import run_title
from storage.manifest import replace_file
from tasks.corpus.config import CorpusConfig, QueriesConfig
from tasks.corpus.stdlib import held_out, standard_library_documentation
from tasks.corpus.task import prepare_corpus, prepare_queries
from tasks.counterfactual.config import TrainingConfig
from tasks.counterfactual.problem import CheckpointProblem, NamedProblem, ProblemPlace
from tasks.model.config import ModelConfig
from tasks.model.task import train_small_model
from tasks.model.training import SmallModel

__all__ = ["problem_place"]

DIGITS = "tasks.counterfactual.digits:digits"
# Of the demo's corpus so much that its model is trained in seconds, not minutes.
PACKAGES = ("email", "http", "logging", "unittest", "xml")
PER_PACKAGE, QUERIES_PER_PACKAGE = 80, 5
MOST_TOKENS = 256


def problem_place(config: AuditRunConfig, store: str) -> ProblemPlace:
    """The problem, with its stores made where they are not there yet.

    Raises:
        InputError: a file, a model or a function cannot be used.
    """
    name = config.audit.problem
    if name == "demo":
        return _demo(config, store)
    if name is not None:
        return NamedProblem(DIGITS if name == "digits" else name)
    if config.model is None or config.corpus is None or config.queries is None:
        raise ValueError("an audit without a problem's name needs model, corpus and queries")
    title = run_title(config.model.name, config.corpus.files)
    return _of_checkpoint(store, config.model, config.corpus, config.queries, config.training, title)


def _of_checkpoint(
    store: str, model: ModelConfig, corpus: CorpusConfig, queries: QueriesConfig, training: TrainingConfig, title: str
) -> CheckpointProblem:
    documents = prepare_corpus(store, model, corpus)
    asked = prepare_queries(store, model, queries)
    return CheckpointProblem((model,), documents, asked, training, title)


def _demo(config: AuditRunConfig, store: str) -> CheckpointProblem:
    """The demo's model, tokenizer and training on some packages of its corpus."""
    folder = Path(config.results).absolute() / "demo"
    write_audited_corpus(str(folder), config.audit.seed)
    corpus = CorpusConfig(files=[str(folder / "corpus.jsonl")], max_length=MOST_TOKENS)
    settings = SmallModel(seed=config.audit.seed)
    model = train_small_model(str(folder / "model"), corpus, settings)
    training = TrainingConfig(
        epochs=settings.epochs,
        batch_tokens=settings.batch_tokens,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    checkpoint = ModelConfig(name=model, base=f"{model}/base", device="cpu")
    queries = QueriesConfig(file=str(folder / "queries.jsonl"))
    return _of_checkpoint(store, checkpoint, corpus, queries, training, "the demo's language model")


@task(name="write-audited-corpus", task_run_name="read some packages of the standard library's documentation")
def write_audited_corpus(folder: str, seed: int) -> None:
    """`corpus.jsonl` and `queries.jsonl` in the folder."""
    passages = [row for row in standard_library_documentation() if row["source"] in PACKAGES]
    split = held_out(passages, QUERIES_PER_PACKAGE, seed)
    documents = [
        row for package in PACKAGES for row in [row for row in split.corpus if row["source"] == package][:PER_PACKAGE]
    ]
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus.jsonl", documents), ("queries.jsonl", split.queries)):
        replace_file(target / name, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
