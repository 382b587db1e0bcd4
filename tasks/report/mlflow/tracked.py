"""A results folder as MLflow gets it: runs, parameters, metrics, tables. Nothing but the folder is read."""

from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import AwareDatetime, BaseModel, ValidationError

from dataworth.storage.errors import InputError
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.report.account import Account
from dataworth.tasks.report.markdown import markdown_sources
from dataworth.tasks.report.results.folder import Results, whole_values
from dataworth.tasks.report.results.parameters import flat, of_the_valuation
from dataworth.tasks.report.runs import MachineSample, TrackedStep, TrackedValuation, metric_name

__all__ = ["NOTE_ROWS", "tracked_valuation"]

# MLflow holds 8,000 characters of a description: the largest sources, each at most 200.
NOTE_ROWS = 25

MAX_TITLE_CHARACTERS = 250

# Steps with runs of their own: the parameters they have, and what they counted.
FILES = ("report.html", "sources.csv", "sources.parquet", "documents.parquet")
CANDIDATES = "candidates.parquet"
STEPS = {
    "fit": (("projection", "curvature"), ("n_documents", "n_examples", "n_tokens", "n_layers")),
    "index": (
        ("corpus", "projection", "gradients"),
        ("n_documents", "n_examples", "n_tokens", "n_layers", "n_columns"),
    ),
    "score": (("scoring", "cluster"), ("n_queries", "n_documents")),
    "value": (("sources",), ("n_sources", "n_queries")),
    "certify": (("training",), ("n_documents",)),
}


class _Record(BaseModel):
    """What is needed of `valuation.json`."""

    made: AwareDatetime
    title: str
    fingerprint: str
    model: str
    fingerprints: dict[str, str | None]
    stores: dict[str, Any]
    counts: dict[str, int]
    parameters: dict[str, Any]
    game: dict[str, Any]
    seconds: dict[str, float]
    started: dict[str, AwareDatetime]
    prefect: dict[str, str | None]


def tracked_valuation(results: Results, series: str | None) -> TrackedValuation:
    """All that MLflow gets of a valuation.

    Args:
        results: a published valuation.
        series: the valuations it belongs to; None: those of its title, which names model and corpus.

    Raises:
        InputError: the folder is of a version that did not record what MLflow needs.
    """
    known, folder = _known(results), Path(results.name).absolute()
    sources = whole_values(results.sources)
    account = Account.read(results.record)
    values = _of_sources(sources, account)
    return TrackedValuation(
        fingerprint=known.fingerprint,
        name=known.title[:MAX_TITLE_CHARACTERS],
        series=(series or known.title)[:MAX_TITLE_CHARACTERS],
        made=_milliseconds(known.made),
        started=min(map(_milliseconds, known.started.values()), default=_milliseconds(known.made)),
        params=flat(of_the_valuation(known.parameters)),
        values=values,
        metrics={name: float(count) for name, count in known.counts.items()}
        | _of_account(account)
        | _of_candidates(results.candidates)
        | _of_certificate(results.record.get("certificate") or {})
        | {f"seconds/{metric_name(step)}": seconds for step, seconds in known.seconds.items()},
        datasets={
            name: (name, str(known.stores.get(name)), str(known.fingerprints.get(name)))
            for name in ("corpus", "queries")
        },
        tags={
            "dataworth.model": known.model,
            "dataworth.model_fingerprint": str(known.fingerprints.get("model")),
            "dataworth.store": str(known.stores.get("gradients")),
            "dataworth.results": str(folder),
            "prefect.flow_run_id": known.prefect.get("flow_run_id") or "",
            "prefect.flow_run_url": known.prefect.get("url") or "",
        },
        note=_note(known, sources, account),
        files=tuple(folder / name for name in (*FILES, *([] if results.candidates is None else [CANDIDATES]))),
        folders=(folder / "figures",),
        tables={
            "sources": _columns(_of_all(results.sources)),
            "documents": _columns(results.documents),
            **({} if results.candidates is None else {"candidates": _columns(_of_all(results.candidates))}),
        },
        steps=tuple(_step(name, known) for name in STEPS if name in known.seconds),
        machine=() if results.machine is None else _machine(results.machine, folder / "machine.csv"),
    )


def _known(results: Results) -> _Record:
    if "fingerprint" not in results.record:
        raise InputError(
            f"{results.name}/valuation.json: was written by an older version, which did not record what an MLflow run "
            "needs; run `dataworth value` again"
        )
    try:
        return _Record.model_validate(results.record)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{results.name}/valuation.json, field {field!r}: is damaged; run `dataworth value` again"
        ) from None


def _of_sources(sources: pd.DataFrame, account: Account) -> dict[str, float]:
    """Nats a query of each source, and its share or part, under names that MLflow takes."""
    metrics = {}
    for row in sources.to_dict("records"):
        name = metric_name(row["source"])
        metrics[f"value/{name}"] = float(row["value"]) / account.n_queries
        part = account.part_of(row["value"], row["share"])
        if part is not None:
            metrics[f"{'share' if account.shared else account.part}/{name}"] = float(part)
    return metrics


def _of_all(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of all queries together."""
    return rows[rows["query_id"] == ALL_QUERIES]


def _of_candidates(candidates: pd.DataFrame | None) -> dict[str, float]:
    """Nats a query that each would take off, where they are nats, and took off where that was measured."""
    if candidates is None:
        return {}
    found: dict[str, float] = {}
    whole = _of_all(candidates)
    for what, column in (("candidate", "nats_per_query"), ("candidate measured", "measured_per_query")):
        known = whole.dropna(subset=column)
        named = map(metric_name, known["source"])
        found |= {f"{what}/{name}": float(nats) for name, nats in zip(named, known[column], strict=True)}
    return found


def _of_account(account: Account) -> dict[str, float]:
    """Nats a query of the model and its base, and how much of their difference the values account for."""
    if account.model is None or not account.in_nats:
        return {}
    known = {"nats a query/model": account.model / account.n_queries}
    if account.total is not None:
        known["nats a query/base"] = (account.model + account.total) / account.n_queries
        known["nats a query/taken off by training"] = account.total / account.n_queries
        if account.total > 0:
            known["accounted for"] = account.values / account.total
    return known


def _of_certificate(certificate: Mapping[str, Any]) -> dict[str, float]:
    """How well scores predicted removals; what is not known is left out."""
    known = {name: value for name, value in certificate.items() if _is_number(value) and value == value}
    return {f"certificate/{name}": float(value) for name, value in known.items()}


def _note(known: _Record, sources: pd.DataFrame, account: Account) -> str:
    page, run = known.prefect.get("url"), known.prefect.get("flow_run_id")
    prefect = f"[{run}]({page})" if page else f"`{run}`"
    table = markdown_sources(sources.to_dict("records"), account, NOTE_ROWS)
    return f"Prefect flow run: {prefect}\n\nReport: `report.html`, under Artifacts\n\n{table}"


def _step(name: str, known: _Record) -> TrackedStep:
    groups, counted = STEPS[name]
    params = {group: known.parameters[group] for group in groups if group in known.parameters}
    metrics = {count: float(known.counts[count]) for count in counted if count in known.counts}
    if name == "value":
        metrics |= {f"game/{metric_name(key)}": float(said) for key, said in known.game.items() if _is_number(said)}
    started = _milliseconds(known.started.get(name, known.made))
    return TrackedStep(name, flat(params), metrics, started, known.seconds[name])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _machine(content: bytes, path: Path) -> tuple[MachineSample, ...]:
    """Samples of the machine."""
    try:
        table = pd.read_csv(BytesIO(content))
        rows: list[Mapping[Any, Any]] = list(table.astype(float).to_dict("records"))
        return tuple(
            MachineSample(int(row["time"]), {str(k): float(v) for k, v in row.items() if k != "time" and v == v})
            for row in rows
        )
    except (ValueError, KeyError):
        raise InputError(f"{path}: cannot be read as CSV; remove it, and nothing but system metrics is lost") from None


def _columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    return {str(name): table[name].astype(object).where(table[name].notna(), None).to_list() for name in table}


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
