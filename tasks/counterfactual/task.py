"""The steps of the room as Prefect tasks."""

from dataworth.tasks.counterfactual import steps
from dataworth.tasks.wrapping import as_task

__all__ = [
    "attribute",
    "certify",
    "choose",
    "evaluate",
    "patch_tails",
    "sweep",
    "train_subsets",
    "train_without_best",
    "train_without_sources",
]

train_subsets = as_task(steps.train_subsets, name="train-subsets", run_name="train on random subsets")
train_without_sources = as_task(
    steps.train_without_sources, name="train-without-sources", run_name="train without each source"
)
train_without_best = as_task(
    steps.train_without_best, name="train-without-best", run_name="train without a query's best documents by {method}"
)
attribute = as_task(steps.attribute, name="attribute", run_name="score by {run.title}", on_device=True, retried=False)
certify = as_task(steps.certify, name="certify", run_name="train without documents, {count} times")
patch_tails = as_task(
    steps.patch_tails,
    name="patch-tails",
    run_name="one step on the best documents of every method",
    on_device=True,
    retried=False,
)
sweep = as_task(
    steps.sweep,
    name="sweep",
    run_name="score by {projection.kind} {projection.rank}, {curvature.kind}",
    on_device=True,
    retried=False,
)
choose = as_task(steps.choose, name="choose", run_name="choose settings", retried=False)
evaluate = as_task(steps.evaluate, name="evaluate", run_name="hold every method against the trainings", retried=False)
