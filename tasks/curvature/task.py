"""The steps of the room as Prefect tasks."""

from dataworth.tasks.curvature import steps
from dataworth.tasks.wrapping import as_task

__all__ = ["fit_covariances", "fit_matrices", "fit_query_factors", "fit_source_sums"]

fit_covariances = as_task(
    steps.fit_covariances,
    name="fit-covariances",
    run_name="fit the covariances of inputs and output gradients",
    on_device=True,
)
fit_matrices = as_task(
    steps.fit_matrices, name="fit-curvature", run_name="fit the {curvature.labels} {curvature.kind}", on_device=True
)
fit_source_sums = as_task(
    steps.fit_source_sums, name="fit-source-sums", run_name="sum gradients and curvature by source", on_device=True
)
fit_query_factors = as_task(
    steps.fit_query_factors, name="fit-query-factors", run_name="curvature of the queries", on_device=True
)
