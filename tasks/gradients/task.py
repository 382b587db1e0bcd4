"""The steps of the room as Prefect tasks."""

from dataworth.tasks.gradients import steps
from dataworth.tasks.wrapping import as_task

__all__ = ["index_gradients"]

index_gradients = as_task(steps.index_gradients, name="index-gradients", run_name="gradients of {what}", on_device=True)
