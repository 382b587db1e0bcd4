"""Figures of a valuation as PNG: the same values give the same bytes on the same machine."""

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.counterfactual.certificate import Certificate
from dataworth.tasks.report.page.bars import MAX_BARS, chart

__all__ = [
    "GOOD",
    "INK",
    "MAX_CELLS",
    "UNKNOWN",
    "certificate_figure",
    "drawing",
    "drawn_figures",
    "empty_figure",
    "label",
    "overlap_figure",
    "png",
    "score_figure",
    "share_figure",
    "value_figure",
]

MAX_CELLS = 40
MAX_LABEL = 36
DOTS_PER_INCH = 120
GOOD, BAD, INK, UNKNOWN = "#2868b0", "#b4552d", "#1b1f24", "#c9ced3"

# Matplotlib brings DejaVu Sans; those of the others that are installed draw what it has no glyphs for.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip

# Matplotlib's settings are of the process.
DRAWING = threading.Lock()


@cache
def _families() -> tuple[str, ...]:
    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed))


@cache
def _has_glyph(letter: str) -> bool:
    fonts = (get_font(findfont(FontProperties(family=name))) for name in _families())
    return any(font.get_char_index(ord(letter)) for font in fonts)


def label(name: str, most: int = MAX_LABEL) -> str:
    """A name on one line of at most `most` characters, its middle left out; a letter no font has is its number."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split()) or "(no name)"
    drawable = "".join(letter if _has_glyph(letter) else f"\\u{ord(letter):04x}" for letter in line)
    if len(drawable) <= most:
        return drawable
    head = (most - 1) * 2 // 3
    return f"{drawable[:head]}…{drawable[len(drawable) - (most - 1 - head) :]}"


def png(figure: Figure) -> bytes:
    """The bytes of its file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def empty_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches, and its axes."""
    padded = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=padded)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def share_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Bars of the sources with the whiskers of their intervals.

    Args:
        rows: rows of VALUES of all queries together, largest value first.
    """
    drawn = chart(rows, MAX_BARS)
    places = np.arange(len(drawn.bars))
    figure, axes = empty_figure(8.0, 1.2 + 0.27 * len(places))
    colours = [GOOD if bar.value >= 0 else BAD for bar in drawn.bars]
    axes.barh(places, [bar.value for bar in drawn.bars], color=colours, height=0.62)
    for place, bar in zip(places, drawn.bars, strict=True):
        if bar.low is not None and bar.high is not None:
            ends = np.clip([bar.low, bar.high], drawn.lowest, drawn.highest)
            axes.plot(ends, [place, place], color=INK, linewidth=1.2)
            caps = [end for end in (bar.low, bar.high) if not drawn.beyond(end)]
            axes.plot(caps, [place] * len(caps), color=INK, linestyle="", marker="|", markersize=6)
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_yticks(places, [label(bar.label) for bar in drawn.bars])
    axes.set_ylim(len(places) - 0.4, -0.6)
    margin = (drawn.highest - drawn.lowest) * 0.01
    axes.set_xlim(drawn.lowest - margin, drawn.highest + margin)
    axes.set_xticks(drawn.ticks, drawn.tick_labels)
    axes.set_xlabel("part of the positive total, with interval" if drawn.in_shares else "value, with interval")
    return figure


def _heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], largest: float | None, title: str
) -> Figure:
    """Colours centred on 0; grey where a value is not known. `largest`: that of the strongest colour."""
    figure, axes = empty_figure(3.4 + 0.24 * max(6, len(columns)), 2.6 + 0.24 * max(4, len(rows)))
    sizes = np.abs(values[np.isfinite(values)])
    limit = largest or (float(np.quantile(sizes, 0.98)) if len(sizes) else 0.0) or float(sizes.max(initial=0.0)) or 1.0
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad=UNKNOWN)
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=colours, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(np.arange(len(rows)), [label(name) for name in rows], fontsize=8)
    axes.set_xticks(np.arange(len(columns)), [label(name, 24) for name in columns], rotation=90, fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, extend="both" if sizes.max(initial=0.0) > limit else "neither", shrink=0.8)
    return figure


def value_figure(values: pd.DataFrame) -> Figure | None:
    """Values of the sources (rows, those largest in size) for the queries (columns, the first asked).

    Args:
        values: rows of VALUES of one grouping and level.
    """
    single = values[values["query_id"] != ALL_QUERIES]
    if single.empty:
        return None
    table = single.pivot_table(index="source", columns="query_id", values="value", aggfunc="sum", sort=False)
    n_sources, n_queries = table.shape
    whole = values[values["query_id"] == ALL_QUERIES].groupby("source", sort=False)["value"].sum()
    order = whole.reindex(table.index).abs().sort_values(ascending=False, kind="stable").index[:MAX_CELLS]
    kept = whole.reindex(order).sort_values(ascending=False, kind="stable").index
    table = table.loc[kept].iloc[:, :MAX_CELLS]
    title = f"value of {len(table)} of {n_sources:,} sources for {table.shape[1]} of {n_queries:,} queries"
    return _heat_map(table.to_numpy(np.float64), list(table.index), list(table.columns), None, title)


def score_figure(scores: np.ndarray) -> Figure | None:
    """How the (n_documents,) scores of all queries together are distributed; documents counted on a log axis."""
    finite = scores[np.isfinite(scores)].astype(np.float64)
    if len(finite) == 0:
        return None
    counts, edges = np.histogram(finite, bins=min(60, max(5, len(finite) // 2)))
    figure, axes = empty_figure(8.0, 3.6)
    centres = (edges[:-1] + edges[1:]) / 2
    colours = [GOOD if centre >= 0 else BAD for centre in centres]
    axes.bar(centres, counts, width=np.diff(edges) * 0.96, color=colours)
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(2.0, counts.max() * 1.5))
    axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_xlabel("score of a document, all queries together")
    axes.set_ylabel("documents")
    return figure


def overlap_figure(overlap: pd.DataFrame, sources: Sequence[str]) -> Figure | None:
    """Which sources stand in for each other, from -1 to 1.

    Args:
        overlap: rows of OVERLAP.
        sources: those to show, in this order, at most MAX_CELLS of them.
    """
    known = set(overlap["source"]) | set(overlap["other"])
    names = [name for name in dict.fromkeys(sources) if name in known][:MAX_CELLS]
    if len(names) < 2:
        return None
    places = {name: place for place, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(matrix, 1.0)
    shown = overlap[overlap["source"].isin(places) & overlap["other"].isin(places)]
    one, two = shown["source"].map(places).to_numpy(int), shown["other"].map(places).to_numpy(int)
    matrix[one, two] = matrix[two, one] = shown["overlap"].to_numpy(np.float64, na_value=np.nan)
    return _heat_map(matrix, names, names, 1.0, f"overlap of {len(names)} of {len(known):,} sources")


@contextmanager
def drawing() -> Iterator[None]:
    """Settings of the person's own, LaTeX above all, stay out; a dollar in a name starts no formula."""
    with DRAWING, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.family": list(_families()), "text.parse_math": False})
        yield


def certificate_figure(certificate: Certificate) -> bytes:
    """PNG: each removal, predicted by scores and sizes against measured, nats a query, with the interval."""
    with drawing():
        measured = certificate.measured.mean(axis=1)
        predicted = certificate.calibrated(certificate.predicted.mean(axis=1), certificate.tokens)
        figure, axes = empty_figure(5.5, 4.5)
        for kind, colour in zip(dict.fromkeys(certificate.kinds), (GOOD, INK, BAD), strict=False):
            chosen = [number for number, each in enumerate(certificate.kinds) if each == kind]
            axes.plot(predicted[chosen], measured[chosen], color=colour, linestyle="", marker="o", label=kind)
        ends = np.array([min(predicted.min(), 0.0), max(predicted.max(), 0.0)])
        axes.plot(ends, ends, color=INK, linewidth=0.8)
        if certificate.within is not None:
            axes.fill_between(ends, ends - certificate.within, ends + certificate.within, color=INK, alpha=0.1)
        axes.set_xlabel("predicted from scores and sizes, nats a query")
        axes.set_ylabel("measured, nats a query")
        axes.legend(frameon=False)
        return png(figure)


def drawn_figures(
    values: pd.DataFrame, scores: np.ndarray | None = None, overlap: pd.DataFrame | None = None
) -> Mapping[str, bytes]:
    """PNG files by name; only those there are values for.

    Args:
        values: rows of VALUES of one grouping and level.
        scores: (n_documents,) of all queries together, where they were kept.
        overlap: rows of OVERLAP, where the game tells.
    """
    whole = values[values["query_id"] == ALL_QUERIES].sort_values("value", ascending=False, kind="stable")
    with drawing():
        rows = [{str(key): value for key, value in row.items()} for row in whole.to_dict("records")]
        figures = {
            "shares.png": share_figure(rows) if rows else None,
            "values.png": value_figure(values),
            "scores.png": None if scores is None else score_figure(scores),
            "overlap.png": None if overlap is None else overlap_figure(overlap, whole["source"].to_list()),
        }
        return {name: png(figure) for name, figure in figures.items() if figure is not None}
