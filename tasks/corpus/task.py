"""The steps of the room as Prefect tasks."""

from dataworth.tasks.corpus import steps
from dataworth.tasks.wrapping import as_task

__all__ = ["prepare_corpus", "prepare_queries"]

prepare_corpus = as_task(steps.prepare_corpus, name="prepare-corpus", run_name="read and cut the corpus")
prepare_queries = as_task(steps.prepare_queries, name="prepare-queries", run_name="read and complete the queries")
