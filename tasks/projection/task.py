"""The steps of the room as Prefect tasks."""

from dataworth.tasks.projection import steps
from dataworth.tasks.wrapping import as_task

__all__ = ["make_bases"]

make_bases = as_task(steps.make_bases, name="make-bases", run_name="make {projection.kind} bases")
