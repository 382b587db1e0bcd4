"""The steps of the room as Prefect tasks."""

from dataworth.tasks.coalitions import steps
from dataworth.tasks.wrapping import as_task

__all__ = ["average_values", "value_sources"]

value_sources = as_task(steps.value_sources, name="value-sources", run_name="value the sources ({sources.game})")
average_values = as_task(
    steps.average_values, name="average-values", run_name="mean over the {repeated}s", retried=False
)
