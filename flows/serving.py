"""The process behind `dataworth ui`: offers every flow to the Prefect server and runs what is asked for."""

from prefect import serve

from flows.demo import demo
from flows.fit_curvature import fit_curvature
from flows.index_corpus import index_corpus
from flows.terminal import sentences_for_known_errors
from flows.value_corpus import value_corpus


def main() -> None:
    """Serve the flows until the process is asked to end."""
    sentences_for_known_errors()
    deployments = [
        flow.to_deployment(name="local", paused=False, enforce_parameter_schema=True)
        for flow in (value_corpus, index_corpus, fit_curvature, demo)
    ]
    # to_deployment is typed for callers inside an event loop, too; outside of one it never returns a coroutine.
    serve(*deployments, pause_on_shutdown=False)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
