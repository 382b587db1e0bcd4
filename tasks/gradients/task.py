"""The steps of the room as Prefect tasks."""

from dataworth.tasks.gradients import directions, steps
from dataworth.tasks.wrapping import as_task

__all__ = ["index_gradients", "make_directions"]

index_gradients = as_task(steps.index_gradients, name="index-gradients", run_name="gradients of {what}", on_device=True)
make_directions = as_task(
    directions.make_directions, name="make-directions", run_name="directions of the queries", on_device=True
)
