"""Steps that publish a valuation or an audit: the results folder."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.durable import move_into_place
from dataworth.storage.manifest import staging_folder
from dataworth.storage.schema import ALL_QUERIES, REJECTED_FILE, VALUES
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.counterfactual.certificate import Certificate
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.numbers import percent
from dataworth.tasks.report.page.audit import Audit, audit_figure, audit_html, write_audit
from dataworth.tasks.report.page.figures import certificate_figure, drawn_figures
from dataworth.tasks.report.page.html import report_html
from dataworth.tasks.report.page.tables import safe_csv
from dataworth.tasks.report.record import record
from dataworth.tasks.report.results.folder import write_record
from dataworth.tasks.report.results.near_copies import NEAR_COPIES, near_copies_table
from dataworth.tasks.report.results.summary import Summary
from dataworth.tasks.report.results.tokens import tokens_table
from dataworth.tasks.report.results.valuation import ValuationParts, published_values, valuation_summary

__all__ = ["calibrated", "publish_audit", "publish_valuation"]

PLACES = ("place_best", "place_worst")
TOKENS = "tokens.parquet"
CANDIDATES = ("candidates.parquet", "candidate_documents.parquet")
REPLACED_FOLDERS = ("scores.zarr", "figures")
REPLACED_FILES = (
    "layers.parquet",
    "overlap.parquet",
    "document_values.parquet",
    "machine.csv",
    REJECTED_FILE,
    NEAR_COPIES,
    *CANDIDATES,
)


def publish_valuation(results: str, parts: ValuationParts, confidence: float) -> None:
    """Write everything a valuation leaves; `valuation.json`, which declares it whole, comes last.

    Files are made in a folder beside and moved into place, so that nothing half-written is ever seen.
    """
    folder = Path(results)
    with staging_folder(folder) as staging:
        gathered = valuation_summary(parts)
        values = _with_units(published_values(parts)[[*VALUES.names, *PLACES]], gathered)
        values.to_parquet(staging / "sources.parquet", index=False)
        (staging / "sources.csv").write_text(safe_csv(values), encoding="utf-8")
        scores = ScoreStore.open(parts.scores)
        passages = scores.passages.to_pandas()
        passages[passages["rank"] > 0].to_parquet(staging / "documents.parquet", index=False)
        if scores.layer_scores is not None:
            by_layer = scores.layer_scores.to_pandas()
            by_layer[by_layer["rank"] > 0].to_parquet(staging / "layers.parquet", index=False)
        for line in gathered.account.sentences():
            run_logger().info(line)
        run_logger().info("clipped mass, all queries together: %s", percent(gathered.clipped) or "unknown")
        valued = CoalitionStore.open(parts.values)
        overlap, of_documents = valued.overlap, valued.documents
        if of_documents is not None:
            of_documents.to_pandas().to_parquet(staging / "document_values.parquet", index=False)
        if overlap is not None:
            overlap.to_pandas().to_parquet(staging / "overlap.parquet", index=False)
        rejected = CorpusStore.open(parts.corpus).rejected()
        if rejected:
            pd.DataFrame({"reason": rejected}).to_parquet(staging / REJECTED_FILE, index=False)
        copies = near_copies_table(parts.corpus)
        if copies is not None:
            copies.to_parquet(staging / NEAR_COPIES, index=False)
        if gathered.told:
            tokens_table(gathered.told).to_parquet(staging / TOKENS, index=False)
        if gathered.candidates is not None:
            for name, table in zip(CANDIDATES, (gathered.candidates.table, gathered.candidates.documents), strict=True):
                table.to_parquet(staging / name, index=False)
        _draw(staging / "figures", values, scores, None if overlap is None else overlap.to_pandas())
        if gathered.certificate is not None:
            (staging / "figures" / "certificate.png").write_bytes(certificate_figure(gathered.certificate))
        page = report_html(parts.title, gathered, confidence)
        (staging / "report.html").write_text(page, encoding="utf-8")
        if parts.machine:
            pd.DataFrame(parts.machine).to_csv(staging / "machine.csv", index=False)
        scores.copy_matrix(staging / "scores.zarr")
        (folder / "valuation.json").unlink(missing_ok=True)
        for name in REPLACED_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in REPLACED_FILES:
            (folder / name).unlink(missing_ok=True)
        for path in sorted(staging.iterdir()):
            move_into_place(path, folder / path.name)
    write_record(folder, record(parts, gathered))


def _with_units(values: pd.DataFrame, gathered: Summary) -> pd.DataFrame:
    """Each value beside its unit: nats a query (of all together, in the mean), and nats a token where that is known."""
    targets = {query.id: query.loss.n_targets for query in gathered.queries if query.loss and not query.loss.of_class}
    targets[ALL_QUERIES] = 0 if gathered.account.of_class else gathered.account.n_targets
    n_queries = np.where(values["query_id"] == ALL_QUERIES, gathered.account.n_queries, 1)
    n_tokens = values["query_id"].map(targets).astype(float)
    certificate = gathered.certificate
    if certificate is not None and certificate.believed and not certificate.reason:
        values = calibrated(values, n_queries, certificate)
    places = {name: values[name].astype("Int64") for name in PLACES}
    nats = values["value"] if gathered.account.in_nats else values["value"] * float("nan")
    return values.assign(
        **places, nats_per_query=nats / n_queries, nats_per_token=(nats / n_tokens).where(n_tokens > 0)
    )


def calibrated(values: pd.DataFrame, n_queries: np.ndarray, certificate: Certificate) -> pd.DataFrame:
    """With what sums of scores come to when they are measured, and the certificate's interval; nats, as they are.

    Args:
        values: rows of VALUES; those of other games than the additive one get nothing.
        n_queries: (n,) queries that each is of.
        certificate: of the scores.
    """
    unknown = float("nan")
    one, all_of = (unknown if half is None else half for half in (certificate.within_query, certificate.within))
    reach = np.where(values["query_id"] == ALL_QUERIES, n_queries * all_of, one)
    middle = n_queries * certificate.calibrated(values["value"].to_numpy() / n_queries, values["n_tokens"].to_numpy())
    middle = np.where(values["game"] == "additive", middle, unknown)
    return values.assign(calibrated=middle, calibrated_low=middle - reach, calibrated_high=middle + reach)


def _draw(folder: Path, values: pd.DataFrame, scores: ScoreStore, overlap: pd.DataFrame | None) -> None:
    """The figures of the first grouping's finest level, as the report has it."""
    key = ["grouping", "level"]
    first = values[(values[key] == values[key].iloc[0]).all(axis=1)]
    folder.mkdir()
    for name, image in drawn_figures(first, scores.total_scores, overlap).items():
        (folder / name).write_bytes(image)


def publish_audit(results: str, audit: Audit) -> None:
    """Write everything an audit leaves; `audit.json`, which declares it whole, comes last."""
    folder = Path(results)
    with staging_folder(folder) as staging:
        audit.table.to_parquet(staging / "methods.parquet", index=False)
        (staging / "methods.csv").write_text(safe_csv(audit.table), encoding="utf-8")
        (staging / "report.html").write_text(audit_html(audit), encoding="utf-8")
        (staging / "figures").mkdir()
        (staging / "figures" / "lds.png").write_bytes(audit_figure(audit))
        if audit.tuned is not None:
            (staging / "tuned.yaml").write_text(yaml.safe_dump(audit.tuned, sort_keys=False), encoding="utf-8")
        for name in ("audit.json", "tuned.yaml"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "figures", ignore_errors=True)
        for path in sorted(staging.iterdir()):
            move_into_place(path, folder / path.name)
    write_audit(folder, audit)
