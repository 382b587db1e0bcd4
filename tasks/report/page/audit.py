"""An audit as people read it: a page, a figure, a table for the terminal, and what is logged to MLflow."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dataworth.storage.checksums import is_sealed, sealed, unsealed
from dataworth.storage.durable import replace_file
from dataworth.storage.errors import InputError
from dataworth.storage.ref import fingerprint
from dataworth.storage.spelling import setting
from dataworth.tasks.report.page.figures import GOOD, INK, UNKNOWN, drawing, empty_figure, label, png
from dataworth.tasks.report.page.html import audit_page
from dataworth.tasks.report.results.parameters import flat
from dataworth.tasks.report.runs import TrackedStep, TrackedValuation, metric_name

__all__ = [
    "Audit",
    "as_json",
    "audit_figure",
    "audit_html",
    "audit_table",
    "method_text",
    "read_audit",
    "tracked_audit",
    "write_audit",
]

# Of a normal distribution, for intervals of 95 %.
REACH = 1.959963984540054
HEADER = ["method", "LDS", "±", "below the first", "sources", "removal", "patch", "seconds", "memory"]
COLUMNS = (
    *("method", "control", "lds", "standard_error", "error_subsets", "error_queries", "below_first"),
    *("below_first_low", "below_first_high", "tied_with_first", "sources", "sources_error", "removal"),
    *("removal_error", "patch", "patch_error", "seconds", "bytes"),
)


@dataclass(frozen=True)
class Audit:
    """Everything an audit says, as `audit.json` keeps it.

    Args:
        title: model and corpus.
        made, started: milliseconds since 1970.
        parameters: as configured.
        findings: as the task `evaluate` returns them.
        notes: sentences on what was left out and why.
        trials: of a sweep.
        tuned: the settings it chose, as a configuration.
        command: that makes it again.
        fingerprints: of what decides it.
        versions: of the libraries.
        mlflow: where it is logged.
    """

    title: str
    made: int
    started: int
    parameters: Mapping[str, Any]
    findings: Mapping[str, Any]
    notes: Sequence[str]
    trials: Sequence[Mapping[str, Any]] = ()
    tuned: Mapping[str, Any] | None = None
    command: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    mlflow: Mapping[str, Any] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row a method."""
        return list(self.findings["rows"])

    @property
    def table(self) -> pd.DataFrame:
        """`methods.parquet`."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    def sentences(self) -> list[str]:
        """What it comes to: the ceiling, the best, the ties, the controls."""
        findings = self.findings
        ceiling, rows = findings["ceiling"], [row for row in self.rows if not row["control"]]
        best = max(rows, key=lambda row: row["lds"])
        first = rows[0]
        said = [
            f"Linear datamodeling scores over {findings['n_subsets']} subsets of {findings['n_documents']:,} documents "
            f"and {findings['n_queries']} queries.",
            "No noise ceiling: it takes two seeds or more."
            if ceiling["lds"] is None
            else f"Noise ceiling {_score(ceiling)}: a prediction without any error would reach it, for the trainings "
            "themselves scatter by their seed.",
            f"Best: {best['method']}, {_score(best)}"
            + ("." if ceiling["lds"] is None else f", {best['lds'] / ceiling['lds']:.0%} of the ceiling."),
        ]
        tied = [row["method"] for row in rows if row["tied_with_first"] and row is not first]
        if tied:
            said.append(f"Not told apart from {first['method']} at 95 %: {', '.join(tied)}.")
        controls = [f"{row['method']} {_score(row)}" for row in self.rows if row["control"]]
        if controls:
            said.append(f"Controls, which should be near zero or far below: {'; '.join(controls)}.")
        return [*said, *self.notes]


def _score(row: Mapping[str, Any]) -> str:
    return f"{row['lds']:.3f} ± {row['standard_error']:.3f}"


def method_text(row: Mapping[str, Any]) -> list[str]:
    """The cells of one method."""

    def with_error(name: str, digits: int) -> str:
        value, error = row[name], row[f"{name}_error"]
        if value is None or value != value:
            return ""
        return f"{value:.{digits}f}" + ("" if error is None or error != error else f" ± {error:.{digits}f}")

    below = f"{row['below_first']:+.3f} ({row['below_first_low']:+.3f} … {row['below_first_high']:+.3f})"
    return [
        row["method"],
        f"{row['lds']:.3f}",
        f"{row['standard_error']:.3f}",
        "" if row["below_first"] == 0 and row["below_first_high"] == 0 else below,
        with_error("sources", 2),
        with_error("removal", 3),
        with_error("patch", 4),
        f"{row['seconds']:.1f}",
        f"{row['bytes'] / 2**20:,.0f} MB",
    ]


def audit_table(audit: Audit) -> tuple[list[str], list[list[str]]]:
    """Header and cells, best methods first, controls last."""
    return HEADER, [method_text(row) for row in _ordered(audit)]


def audit_html(audit: Audit) -> str:
    """The page."""
    header, cells = audit_table(audit)
    trials = [
        [json.dumps(trial["projection"]), json.dumps(trial["curvature"]), _score(trial)]
        for trial in sorted(audit.trials, key=lambda trial: -trial["lds"])
    ]
    return audit_page(
        title=f"Audit: {audit.title}",
        sentences=audit.sentences(),
        header=header,
        cells=cells,
        bars=_bars(audit),
        trials=trials,
        tuned=None if audit.tuned is None else json.dumps(audit.tuned, indent=1),
        parameters=sorted(flat(audit.parameters).items()),
        command=audit.command,
    )


def audit_figure(audit: Audit) -> bytes:
    """Bars of the scores with whiskers of 95 %, and the ceiling as a band, as a PNG file."""
    rows, ceiling = _ordered(audit), audit.findings["ceiling"]
    places = list(range(len(rows)))
    with drawing():
        figure, axes = empty_figure(8.0, 1.2 + 0.27 * len(rows))
        colours = [UNKNOWN if row["control"] else GOOD for row in rows]
        reaches = [REACH * row["standard_error"] for row in rows]
        axes.barh(places, [row["lds"] for row in rows], xerr=reaches, color=colours, ecolor=INK, height=0.62, capsize=3)
        if ceiling["lds"] is not None:
            reach = REACH * ceiling["standard_error"]
            axes.axvspan(ceiling["lds"] - reach, ceiling["lds"] + reach, color=INK, alpha=0.15)
            axes.axvline(ceiling["lds"], color=INK, linewidth=1.0, linestyle="--")
        axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.set_yticks(places, [label(row["method"]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("linear datamodeling score, with interval of 95 %; dashed: noise ceiling")
        return png(figure)


def _ordered(audit: Audit) -> list[dict[str, Any]]:
    """Best methods first, controls last."""
    return sorted(audit.rows, key=lambda row: (bool(row["control"]), -row["lds"]))


def _bars(audit: Audit) -> list[dict[str, Any]]:
    """Places of bars, whiskers and ceiling in per cent of the axis from the lowest to the highest end drawn."""
    rows, ceiling = _ordered(audit), audit.findings["ceiling"]
    ends = [(row["lds"] - REACH * row["standard_error"], row["lds"] + REACH * row["standard_error"]) for row in rows]
    lowest = min(0.0, *(low for low, _ in ends))
    highest = max(1.0, *(high for _, high in ends))

    def place(value: float) -> float:
        return 100.0 * (value - lowest) / (highest - lowest)

    return [
        {
            "method": row["method"],
            "control": row["control"],
            "text": f"{row['lds']:.2f}",
            "first": place(min(0.0, row["lds"])),
            "length": place(abs(row["lds"])) - place(0.0),
            "low": place(low),
            "high": place(high),
            "zero": place(0.0),
            "ceiling": None if ceiling["lds"] is None else place(ceiling["lds"]),
        }
        for row, (low, high) in zip(rows, ends, strict=True)
    ]


def tracked_audit(audit: Audit, folder: Path, series: str | None) -> TrackedValuation:
    """What is logged of an audit.

    Args:
        audit: all of it.
        folder: of the results.
        series: its name, where it is given.
    """
    scores = {f"lds/{metric_name(row['method'])}": row["lds"] for row in audit.rows}
    ceiling = (
        {} if audit.findings["ceiling"]["lds"] is None else {"lds/noise ceiling": audit.findings["ceiling"]["lds"]}
    )
    metrics = {}
    for row in audit.rows:
        for name in ("standard_error", "sources", "removal", "patch", "seconds", "bytes"):
            if row[name] is not None and row[name] == row[name]:
                metrics[f"{name}/{metric_name(row['method'])}"] = float(row[name])
    names = ("report.html", "audit.json", "methods.csv", "methods.parquet", "tuned.yaml")
    table = audit.table.astype(object).where(audit.table.notna(), None)
    return TrackedValuation(
        fingerprint=fingerprint({"audit": audit.made, **audit.fingerprints}),
        name=audit.title,
        series=series or f"audit: {audit.title}",
        made=audit.made,
        started=audit.started,
        params={name: str(value)[:500] for name, value in flat(audit.parameters).items()},
        values={**scores, **ceiling},
        metrics=metrics,
        datasets={},
        tags={f"dataworth.fingerprint.{name}": value for name, value in audit.fingerprints.items()},
        note="\n\n".join(audit.sentences()),
        files=tuple(folder / name for name in names if (folder / name).is_file()),
        tables={"methods": {str(name): table[name].tolist() for name in table.columns}},
        folders=(folder / "figures",),
        steps=tuple(_trial(number, trial, audit) for number, trial in enumerate(audit.trials)),
        kind="audit",
    )


def _trial(number: int, trial: Mapping[str, Any], audit: Audit) -> TrackedStep:
    params = flat({"projection": trial["projection"], "curvature": trial["curvature"]})
    return TrackedStep(
        name=f"trial {number:02d}",
        params={name: str(value)[:500] for name, value in params.items()},
        metrics={"lds": float(trial["lds"]), "standard_error": float(trial["standard_error"])},
        started=audit.started,
        seconds=0.0,
    )


def read_audit(folder: Path) -> Audit:
    """The audit of a results folder.

    Raises:
        InputError: it holds none that is finished, or a damaged one.
    """
    path = folder / "audit.json"
    if not path.is_file():
        raise InputError(f"{setting('results')} {folder}: holds no finished audit (no audit.json)")
    try:
        made = json.loads(path.read_bytes())
        if not is_sealed(made):
            raise ValueError(path)
        return Audit(**unsealed(made))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{setting('results')} {folder}: audit.json is damaged; run `dataworth audit` again") from None


def as_json(audit: Audit) -> str:
    """`audit.json`."""
    return json.dumps(asdict(audit), indent=1)


def write_audit(folder: Path, audit: Audit) -> None:
    """Write `audit.json`, at once or not at all, with its checksum."""
    replace_file(folder / "audit.json", json.dumps(sealed(asdict(audit)), indent=1).encode())
