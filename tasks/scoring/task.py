"""The steps of the room as Prefect tasks."""

from dataworth.tasks.scoring import steps, token_steps
from dataworth.tasks.wrapping import as_task

__all__ = ["average_scores", "replayed_scores", "score_corpus", "tell_tokens"]

score_corpus = as_task(steps.score_corpus, name="score-corpus", run_name="score every document for every query")
average_scores = as_task(steps.average_scores, name="average-scores", run_name="the mean of the scores")
replayed_scores = as_task(steps.replayed_scores, name="replayed-scores", run_name="scores by the training itself")
tell_tokens = as_task(
    token_steps.tell_tokens, name="tell-tokens", run_name="which tokens of the best passages taught", on_device=True
)
