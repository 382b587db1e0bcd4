"""The problem that an audit's configuration names: checkpoints, the digits, the demo, or one of your own."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from prefect import task

from dataworth.config import AuditRunConfig, run_title
from dataworth.storage.durable import replace_file
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.stdlib import held_out, standard_library_documentation
from dataworth.tasks.corpus.task import prepare_corpus, prepare_queries
from dataworth.tasks.counterfactual.problem import CheckpointProblem, NamedProblem, ProblemPlace
from dataworth.tasks.model.alike import refuse_other_tokenizers, refuse_same_weights
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.small_model import SmallModel
from dataworth.tasks.training.task import train_small_model

__all__ = ["PACKAGES", "documentation_problem", "problem_place"]

DIGITS = "dataworth.tasks.counterfactual.digits:digits"
# Of the demo's corpus: what a model is trained on first, and the packages that it is then trained on again and again.
GENERAL = 800
PACKAGES = ("email", "http", "logging", "unittest", "xml")
PER_PACKAGE, QUERIES_PER_PACKAGE = 40, 5
MAX_TOKENS = 256
# A query with more characters may have more tokens than the model reads.
QUERY_CHARACTERS = 500
EPOCHS, RATE, DECAY = 3, 1e-3, 0.0


def problem_place(config: AuditRunConfig, store: str) -> ProblemPlace:
    """The problem, with its stores made where they are not there yet.

    Raises:
        InputError: a file, a model or a function cannot be used.
    """
    name = config.audit.problem
    if name == "demo":
        folder = Path(config.results).absolute() / "demo"
        return documentation_problem(folder, store, config.audit.seed, PACKAGES, "the demo's language model")
    if name is not None:
        return NamedProblem(DIGITS if name == "digits" else name)
    if config.model is None or config.corpus is None or config.queries is None:
        raise ValueError("an audit without a problem's name needs model, corpus and queries")
    title = run_title(config.model.name, config.corpus.files)
    refuse_other_tokenizers(config.model.checkpoints)
    refuse_same_weights(config.model.checkpoints)
    return _of_checkpoints(store, config.model.checkpoints, config.corpus, config.queries, config.training, title)


def _of_checkpoints(
    store: str,
    checkpoints: tuple[ModelConfig, ...],
    corpus: CorpusConfig,
    queries: QueriesConfig,
    training: TrainingConfig,
    title: str,
) -> CheckpointProblem:
    documents = prepare_corpus(store, checkpoints[0], corpus)
    asked = prepare_queries(store, checkpoints[0], queries, corpus.chat_template)
    return CheckpointProblem(checkpoints, documents, asked, training, title)


def documentation_problem(
    folder: Path, store: str, seed: int, packages: Sequence[str], title: str
) -> CheckpointProblem:
    """A model trained on most packages of the demo's corpus, then fine-tuned on passages of a few others.

    Args:
        folder: of the corpora, the base and the model; what is there already is not made again.
        store: root of the stores.
        seed: of the passages, the weights and the order of training.
        packages: whose documentation is valued.
        title: in a few words.
    """
    write_audited_corpus(str(folder), seed, packages)
    general, corpus = (
        CorpusConfig(files=[str(folder / name)], max_length=MAX_TOKENS) for name in ("general.jsonl", "corpus.jsonl")
    )
    settings = SmallModel(seed=seed)
    base = train_small_model(str(folder / "base"), general, settings)
    tuning = replace(settings, epochs=EPOCHS, learning_rate=RATE, weight_decay=DECAY)
    model = train_small_model(str(folder / "model"), corpus, tuning, base)
    training = TrainingConfig(
        epochs=EPOCHS, batch_tokens=settings.batch_tokens, learning_rate=RATE, weight_decay=DECAY, seed=settings.seed
    )
    checkpoint = ModelConfig(name=model, base=f"{model}/base", device="cpu")
    queries = QueriesConfig(file=str(folder / "queries.jsonl"))
    return _of_checkpoints(store, (checkpoint,), corpus, queries, training, title)


@task(name="write-audited-corpus", task_run_name="read the standard library's documentation")
def write_audited_corpus(folder: str, seed: int, packages: Sequence[str]) -> None:
    """Write `general.jsonl`, `corpus.jsonl` and `queries.jsonl` to the folder."""
    passages, generator = standard_library_documentation(), np.random.default_rng(seed)
    split = held_out([row for row in passages if row["source"] in packages], QUERIES_PER_PACKAGE, seed)
    documents = []
    for package in packages:
        own = [row for row in split.corpus if row["source"] == package]
        documents += [own[number] for number in np.sort(generator.permutation(len(own))[:PER_PACKAGE])]
    others = [row for row in passages if row["source"] not in packages]
    general = [others[number] for number in np.sort(generator.permutation(len(others))[:GENERAL])]
    asked = [row for row in split.queries if len(row["prompt"]) + len(row["completion"]) <= QUERY_CHARACTERS]
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, rows in (("general", general), ("corpus", documents), ("queries", asked)):
        replace_file(target / f"{name}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).encode())
