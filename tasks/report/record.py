"""`valuation.json`: what declares a results folder whole, and all that an MLflow run needs beside its tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.schema import CAUSES
from dataworth.tasks.report.results.parameters import of_the_valuation
from dataworth.tasks.report.results.summary import Summary
from dataworth.tasks.report.results.valuation import CheckpointParts, ValuationParts, game_notes, versions
from dataworth.tasks.report.runs import LoggedRun

__all__ = ["mlflow_record", "record", "valuation_fingerprint", "with_run"]


def record(parts: ValuationParts, gathered: Summary) -> dict[str, Any]:
    """The content of `valuation.json` of a valuation that is not logged yet."""
    fingerprints = {
        "model": parts.model_fingerprint,
        "corpus": parts.corpus.fingerprint,
        "queries": parts.queries.fingerprint,
        "gradients": _fingerprints([each.gradients for each in parts.checkpoints] or [parts.gradients]),
        "curvature": _fingerprints([each.curvature for each in parts.checkpoints] or [parts.curvature]),
        "scores": parts.scores.fingerprint,
        "values": parts.values.fingerprint,
        **({} if parts.candidates is None else {"candidates": parts.candidates.scores.fingerprint}),
    }
    return {
        "made": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "title": parts.title,
        "fingerprint": valuation_fingerprint(fingerprints, parts.parameters, parts.prefect_run),
        "model": parts.model_name,
        "fingerprints": fingerprints,
        "stores": {
            "corpus": parts.corpus.location,
            "queries": parts.queries.location,
            "gradients": parts.gradients.location,
            "scores": parts.scores.location,
            "values": {_grouping(ref): ref.location for ref in (parts.values, *parts.further_values)},
            **({} if parts.candidates is None else {"candidates": parts.candidates.corpus.location}),
        },
        "checkpoints": [_checkpoint(each) for each in parts.checkpoints],  # none where there is one
        "counts": _counts(parts, gathered),
        "parameters": parts.parameters,
        "game": game_notes(parts),
        "certificate": None if gathered.certificate is None else gathered.certificate.facts(),
        "account": asdict(gathered.account),
        "standard_errors": {  # of all queries together
            row["source"]: {cause: _finite(row[f"error_{cause}"]) for cause in CAUSES} for row in gathered.sources
        },
        "versions": versions(),
        "seconds": parts.timings,
        "started": {
            step: datetime.fromtimestamp(start, UTC).isoformat(timespec="milliseconds")
            for step, start in parts.started.items()
        },
        "prefect": {"flow_run_id": parts.prefect_run, "url": parts.prefect_url},
        "mlflow": None,
    }


def valuation_fingerprint(
    fingerprints: Mapping[str, str | None], parameters: Mapping[str, Any], prefect_run: str | None
) -> str:
    """Of one valuation: the same in a copy of its folder and after a retry of its flow run, another next week."""
    kept = of_the_valuation(parameters)
    return fingerprint({"fingerprints": dict(fingerprints), "parameters": kept, "prefect_run": prefect_run})


def with_run(content: Mapping[str, Any], logged: LoggedRun) -> dict[str, Any]:
    """The same record, with the MLflow run that it was logged as."""
    return {**content, "mlflow": mlflow_record(logged)}


def mlflow_record(logged: LoggedRun) -> dict[str, Any]:
    """Where a run was logged, as records keep it."""
    return {
        "run_id": logged.run_id,
        "experiment_id": logged.experiment_id,
        "series_run_id": logged.series_run_id,
        "tracking_uri": logged.tracking_uri,
        "url": logged.url,
    }


def _fingerprints(stores: Sequence[StoreRef | None]) -> str | None:
    """Of a store of each checkpoint, joined by commas; None where there is none."""
    return ", ".join(each.fingerprint for each in stores if each is not None) or None


def _checkpoint(parts: CheckpointParts) -> dict[str, Any]:
    """One of several checkpoints: its weights, and the stores it was valued by."""
    stores = {
        "gradients": parts.gradients,
        "query_gradients": parts.query_gradients,
        "curvature": parts.curvature,
        "scores": parts.scores,
        "values": parts.values,
    }
    made = {name: ref for name, ref in stores.items() if ref is not None}
    return {
        "model": parts.model_name,
        "fingerprints": {"model": parts.model_fingerprint} | {name: ref.fingerprint for name, ref in made.items()},
        "stores": {name: ref.location for name, ref in made.items()},
    }


def _counts(parts: ValuationParts, gathered: Summary) -> dict[str, int]:
    corpus = CorpusStore.open(parts.corpus)
    gradients: GradientStore | LayerStore = GradientStore.open(parts.gradients)
    if isinstance(gradients, GradientStore) and gradients.along is not None and parts.curvature is not None:
        gradients = LayerStore.open(parts.curvature)  # the rows are scores
    return {
        "n_documents": corpus.n_documents,
        "n_examples": corpus.n_examples,
        "n_tokens": corpus.n_tokens,
        "n_queries": len(gathered.queries),
        "n_sources": len(gathered.sources),
        "n_layers": len(gradients.layers),
        "n_columns": sum(layer.n_columns for layer in gradients.layers),
    }


def _grouping(values: StoreRef) -> str:
    """Who is valued: `source`, `publisher>section`."""
    return str(CoalitionStore.open(values).values.column("grouping")[0].as_py())


def _finite(value: float | None) -> float | None:
    """JSON has no infinity, which an error is where too few coalitions were sampled to tell."""
    return value if value is not None and math.isfinite(value) else None
