"""The steps of a valuation as Prefect's tasks."""

from typing import Any

from dataworth.preparing import Steps
from dataworth.tasks.coalitions.task import average_values, value_sources
from dataworth.tasks.corpus.task import prepare_corpus, prepare_queries
from dataworth.tasks.counterfactual.task import certify
from dataworth.tasks.curvature.task import fit_covariances, fit_matrices, fit_query_factors, fit_source_sums
from dataworth.tasks.gradients.task import index_gradients, make_directions
from dataworth.tasks.projection.task import make_bases
from dataworth.tasks.scoring.task import average_scores, replayed_scores, score_corpus, tell_tokens
from dataworth.tasks.training.task import replay_training, train_on_candidates

__all__ = ["TASKED", "TASKS"]

TASKS: dict[str, Any] = {
    "prepare_corpus": prepare_corpus,
    "prepare_queries": prepare_queries,
    "fit_covariances": fit_covariances,
    "make_bases": make_bases,
    "fit_matrices": fit_matrices,
    "fit_source_sums": fit_source_sums,
    "fit_query_factors": fit_query_factors,
    "index_gradients": index_gradients,
    "make_directions": make_directions,
    "score_corpus": score_corpus,
    "average_scores": average_scores,
    "tell_tokens": tell_tokens,
    "replay_training": replay_training,
    "replayed_scores": replayed_scores,
    "train_on_candidates": train_on_candidates,
    "value_sources": value_sources,
    "average_values": average_values,
    "certify": certify,
}
TASKED = Steps(**TASKS)
