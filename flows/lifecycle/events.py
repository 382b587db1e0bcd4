"""Events an automation can hang on: a valuation has finished; a source's share has moved since the last one."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.events import emit_event

from dataworth.storage.errors import InputError
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.results.folder import read_sources
from dataworth.tasks.report.runs import LoggedRun
from dataworth.tasks.visible import visible

__all__ = ["FINISHED", "MOVED", "Shares", "emit_finished", "emit_moved", "published_shares"]

FINISHED = "dataworth.valuation.finished"
MOVED = "dataworth.share.moved"

# (grouping, level, source) → share of all queries together.
Shares = Mapping[tuple[str, int, str], float]


def published_shares(results: str) -> Shares:
    """The shares of the valuation in a results folder; empty where there is none."""
    if not (Path(results) / "valuation.json").is_file():
        return {}
    try:
        rows = read_sources(results)
    except InputError as error:  # damaged, or of an early version: this valuation takes its place
        run_logger().warning("no share is said to have moved since the valuation before: %s", error)
        return {}
    rows = rows[rows["query_id"] == ALL_QUERIES]
    named = zip(rows["grouping"], rows["level"], rows["source"], rows["share"].astype(float), strict=True)
    return {(str(grouping), int(level), str(source)): share for grouping, level, source, share in named}


def emit_finished(results: str, title: str, logged: LoggedRun | None) -> None:
    """Emit the event that a valuation is finished, with its MLflow run if it was logged."""
    run_id, url = (None, None) if logged is None else (logged.run_id, logged.url)
    payload = {"results": results, "mlflow_run_id": run_id, "mlflow_url": url}
    emit_event(FINISHED, resource=_resource(results, title), payload=payload)


def emit_moved(results: str, title: str, before: Shares, after: Shares, least: float) -> None:
    """Emit an event for each source whose share moved by more than `least` since the previous valuation.

    A source that has come or gone moves from or to 0; without an earlier valuation, none does.
    """
    if not before:
        return
    groupings = {key[:2] for key in before}
    for key in sorted({*before, *after}):
        earlier, now = before.get(key, 0.0), after.get(key, 0.0)
        moved = now - earlier
        if key[:2] not in groupings or math.isnan(moved) or abs(moved) <= least:
            continue
        grouping, level, source = key
        run_logger().info("the share of %s moved from %.1f %% to %.1f %%", visible(source), 100 * earlier, 100 * now)
        payload = {"source": source, "grouping": grouping, "level": level, "before": earlier, "after": now}
        emit_event(MOVED, resource=_resource(results, title), payload={**payload, "results": results})


def _resource(results: str, title: str) -> dict[str, Any]:
    return {"prefect.resource.id": f"dataworth.valuation.{results}", "prefect.resource.name": title}
