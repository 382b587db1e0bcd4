"""What every document is worth along the path, to all queries together: values that add up to those of the sources."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.games.model_game import ModelSums
from dataworth.tasks.coalitions.games.path_values import path_points
from dataworth.tasks.coalitions.games.play import Play
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.corpus.batches import batches_by_length
from dataworth.tasks.corpus.groups import document_groups
from dataworth.tasks.curvature.passes import label_passes
from dataworth.tasks.curvature.source_sums import towards_base
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import progress
from dataworth.tasks.projection.logra import stored_projections

__all__ = ["path_document_values"]

BATCH_TOKENS = 2048
ROWS_AT_ONCE = 4096


def path_document_values(play: Play, game: GameParts, grouping: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of DOCUMENT_VALUES (dataworth.storage.schema), most valuable first.

    A document's curvature is that of its windows under the labels by which the sources' sums were made, so that the
    values of a source's documents add up to its own. Time: that of fitting the curvature.

    Args:
        play: of the sources.
        game: what it is made of.
        grouping, names: of the documents into players.

    Raises:
        InputError: the curvature was fitted on a share of the documents.
    """
    sums = play.sums
    if not isinstance(sums, ModelSums):
        raise TypeError("values of documents need the sums of a model")
    if game.curvature.fraction < 1:
        raise InputError(
            f"{setting('sources.document_values')}: each document needs its own curvature, leave "
            f"{setting('curvature.fraction')} out"
        )
    documents = CorpusStore.open(game.corpus)
    points = path_points(sums.layers, sums.damping, play.expansion)
    of_window = documents.windows["document"]
    values = np.zeros(len(documents.contents))
    for first in range(0, len(values), ROWS_AT_ONCE):
        part = documents.contents[first : first + ROWS_AT_ONCE]
        for number, rows in enumerate(GradientStore.open(game.gradients).rows_of(part), first):
            values[number] = points.of_gradients(sums.turned(rows)).sum()
    # What endpoint matching takes off all gradients, each document bears by its number of windows.
    n_windows = np.bincount(of_window, minlength=len(values))
    matched = np.concatenate([layer.gradients.sum(axis=0) for layer in sums.layers])
    values -= n_windows / n_windows.sum() * (values.sum() - points.of_gradients(matched[None])[0])
    between = load(game.model, towards_base(game.model))
    batches = batches_by_length(documents.windows["n_tokens"], BATCH_TOKENS, between.reading.batching)
    projections = stored_projections(LayerStore.open(game.bases))
    with progress("document values", len(batches), "batch") as bar:
        for batch, labels in zip(
            batches, label_passes(between, projections, documents, batches, game.curvature), strict=True
        ):
            for rows in labels:
                np.add.at(values, of_window[batch], points.of_factors(sums.turned(rows)))
            bar.advance()
    players = np.asarray(document_groups(documents, grouping), dtype=object)
    ids, known = documents.column("document_id").to_pylist(), set(names)
    order = np.argsort(-values, kind="stable")
    return [
        {"document_id": ids[number], "source": players[number], "value": float(values[number])}
        for number in order
        if players[number] in known and n_windows[number]
    ]
