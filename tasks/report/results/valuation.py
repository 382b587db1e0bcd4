"""What one valuation was made from, and what it says."""

import platform
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.gradients import GradientStore
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import REJECTED_FILE
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.coalitions.config import PayoutConfig
from dataworth.tasks.coalitions.payout.published import published
from dataworth.tasks.counterfactual.certificate import Certificate
from dataworth.tasks.report.account import account_of
from dataworth.tasks.report.results.candidates import CandidateParts, candidates_said
from dataworth.tasks.report.results.near_copies import near_copies_sentence
from dataworth.tasks.report.results.parameters import flat
from dataworth.tasks.report.results.query_losses import mean_losses, query_losses
from dataworth.tasks.report.results.summary import Summary, strongest_overlaps, summary
from dataworth.tasks.report.results.tokens import TokenParts, tokens_told

__all__ = ["CheckpointParts", "ValuationParts", "game_notes", "published_values", "valuation_summary", "versions"]

PACKAGES = ("dataworth", "torch", "transformers", "numpy", "zarr", "dask", "prefect", "mlflow")

MAX_PAIRS = 10


class CheckpointParts(BaseModel):
    """What one of several checkpoints was valued by.

    Args:
        model_name: as given.
        model_fingerprint: of the weights.
        gradients, query_gradients, curvature, scores: its stores; curvature None for `none`.
        values: of the first grouping.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str
    model_fingerprint: str
    gradients: StoreRef
    query_gradients: StoreRef
    curvature: StoreRef | None
    scores: StoreRef
    values: StoreRef


class ValuationParts(BaseModel):
    """Everything one valuation was made from.

    Args:
        title: of the report and the MLflow run.
        parameters: the whole configuration, as JSON.
        corpus, queries, gradients, scores, values: the stores; of several checkpoints the gradients of the first, the
            means of scores and values.
        further_values: of the same sources grouped in other ways.
        payout: from values to payouts, and what is published of small sources.
        curvature: None for `none`.
        model_name: as given; several joined by commas.
        model_fingerprint: of the weights; several joined by commas.
        query_gradients: of the queries, whose losses they hold; of several checkpoints, of the first.
        checkpoints: each by itself; empty where there is one.
        command: that makes the valuation again, and the folder to run it in.
        timings: step → seconds.
        started: step → when, in seconds since 1970.
        candidates: documents that the model was not trained on; None where there are none.
        tokens: which of the best passages taught, at every point of the gradients; empty where it is not told.
        certificate: of the scores, by trainings without some documents; None where none was asked for.
        machine: what the machine did meanwhile, rows of `MachineSamples`.
        prefect_run: id of the flow run; None where no flow made it.
        prefect_url: its page, where a server shows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    title: str
    parameters: dict[str, Any]
    corpus: StoreRef
    queries: StoreRef
    gradients: StoreRef
    curvature: StoreRef | None
    scores: StoreRef
    values: StoreRef
    further_values: tuple[StoreRef, ...] = ()
    payout: PayoutConfig = PayoutConfig()
    model_name: str
    model_fingerprint: str
    query_gradients: StoreRef
    checkpoints: tuple[CheckpointParts, ...] = ()
    command: str
    timings: dict[str, float]
    started: dict[str, float] = {}
    candidates: CandidateParts | None = None
    tokens: tuple[TokenParts, ...] = ()
    certificate: StoreRef | None = None
    machine: tuple[dict[str, float], ...] = ()
    prefect_run: str | None = None
    prefect_url: str | None = None


def valuation_summary(parts: ValuationParts) -> Summary:
    """A valuation as a person reads it."""
    corpus = CorpusStore.open(parts.corpus)
    settings = flat(parts.parameters)
    stores = [each.gradients for each in parts.checkpoints] or [parts.gradients]
    copies = near_copies_sentence(parts.corpus)
    left_out = f"{corpus.n_rejected:,}, which cannot be read: {REJECTED_FILE}"
    facts = {
        "model": ", ".join(f"{name} ({weights})" for name, weights in _models(parts)),
        "corpus": f"{corpus.n_documents:,} documents, {corpus.n_examples:,} windows, {corpus.n_tokens:,} tokens "
        f"({parts.corpus.fingerprint})",
        **({"rows left out": left_out} if corpus.n_rejected else {}),
        **({"near copies": copies} if copies else {}),
        "store": ", ".join(each.location for each in stores),
        **({"Prefect flow run": parts.prefect_run} if parts.prefect_run else {}),
        **{key: value for key, value in settings.items() if not key.startswith(("model.name", "store"))},
        **{f"game: {name}": _said(value) for name, value in game_notes(parts).items()},
        **{f"seconds: {step}": f"{seconds:.1f}" for step, seconds in parts.timings.items()},
        **{f"version: {name}": number for name, number in versions().items()},
    }
    queries = CorpusStore.open(parts.queries)
    measured = [each.query_gradients for each in parts.checkpoints] or [parts.query_gradients]
    losses = mean_losses([query_losses(queries, GradientStore.open(each)) for each in measured])
    overview = summary(queries, ScoreStore.open(parts.scores), published_values(parts), facts, losses)
    overlap = CoalitionStore.open(parts.values).overlap
    names = [row["source"] for row in overview.sources]
    pairs = None if overlap is None else strongest_overlaps(overlap.to_pandas(), names, MAX_PAIRS)
    notes = game_notes(parts)
    replayed, curved = settings.get("method") == "replay", settings.get("curvature.kind") != "none"
    in_nats = settings.get("scoring.kind") == "dot" and (replayed or curved)
    account = account_of(overview.sources, losses, len(overview.queries), notes, in_nats)
    certificate = None if parts.certificate is None else Certificate.open(parts.certificate)
    if certificate is not None:
        account = replace(account, verdict=certificate.verdict, believed=certificate.believed)
    said = replace(overview, notes=notes, overlaps=pairs, account=account, command=parts.command)
    candidates = None if parts.candidates is None else candidates_said(parts.candidates, parts.corpus, account)
    told = tokens_told(parts.tokens, parts.corpus, parts.queries)
    return replace(said, certificate=certificate, candidates=candidates, told=told)


def _models(parts: ValuationParts) -> list[tuple[str, str]]:
    """Name and fingerprint of each checkpoint."""
    several = [(each.model_name, each.model_fingerprint) for each in parts.checkpoints]
    return several or [(parts.model_name, parts.model_fingerprint)]


def game_notes(parts: ValuationParts) -> dict[str, Any]:
    """What is to be known beside the values: the utility of everybody and of nobody, damping, checks."""
    notes: dict[str, Any] = CoalitionStore.open(parts.values).attributes.get("notes", {})
    return notes


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def published_values(parts: ValuationParts) -> pd.DataFrame:
    """What is published of the values of every grouping and level: see `published`."""
    refs = (parts.values, *parts.further_values)
    return published(pa.concat_tables([CoalitionStore.open(ref).values for ref in refs]).to_pandas(), parts.payout)


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
