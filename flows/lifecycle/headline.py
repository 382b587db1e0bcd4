"""What a run shows in Prefect's own pages: its table, and where everything is."""

from prefect.artifacts import create_markdown_artifact

from dataworth.tasks.report.markdown import inert
from dataworth.tasks.report.runs import LoggedRun

__all__ = ["show_headline"]


def show_headline(
    key: str, description: str, title: str, said: str, results: str, logged: LoggedRun | None, problem: str
) -> None:
    """Show what a run made in Prefect's pages, as an artifact of the flow run.

    Args:
        key: of the artifact.
        description: of what it shows.
        title: of the run, with names as they were given.
        said: Markdown, whose names are inert.
        results: folder.
        logged: the MLflow run, if there is one.
        problem: why there is none.
    """
    run = problem
    if logged is not None:
        run = f"[{logged.run_id}]({logged.url})" if logged.url else f"`{logged.run_id}`"
    create_markdown_artifact(
        key=key,
        markdown=f"{inert(title)}\n\n{said}\n\nMLflow run: {run}\n\nResults: {inert(results)}\n",
        description=description,
    )
