"""The Dask cluster that scoring and games over sources use, and what is said when it is lost."""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from dataworth.storage.errors import DataworthError, InputError, WorkersLostError
from dataworth.storage.spelling import setting
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.progress import run_logger, show_link
from dataworth.tasks.visible import without_password

__all__ = ["MAX_LOSSES", "cluster_address", "dask_client", "named_losses", "wants_cluster", "windowed"]

# Workers that may die in one pass, each with what it held, before the pass is given up.
MAX_LOSSES = 3
SECONDS_TO_CONNECT = 20
SECONDS_BETWEEN_LOOKS = 0.02
Work = TypeVar("Work")
IMPORTED_ONCE = ["distributed.nanny", "distributed.worker", "numcodecs", "dataworth.tasks.scoring.shards"]


def cluster_address(config: ClusterConfig) -> str | None:
    """Of the scheduler to be used; None where a local cluster is."""
    return config.address or os.environ.get("DATAWORTH_DASK") or None


def wants_cluster(config: ClusterConfig) -> bool:
    """Whether one was asked for: an address, or two workers and more. Little work is done without one else."""
    return cluster_address(config) is not None or (config.workers or 1) > 1


@contextmanager
def dask_client(config: ClusterConfig, n_parts: int) -> Iterator[Any]:
    """A client of the scheduler at the address, else of a local cluster that ends with the block.

    Args:
        config: of the cluster.
        n_parts: of the work, which more local workers than that would not speed up.

    Raises:
        DataworthError: no scheduler answers at the address.
        InputError: TLS is asked for and one of its files is missing.
    """
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.WARNING)  # after the import, which sets its own level
    # Where the scheduler is gone it writes tracebacks of its attempts to find it; `named_losses` says it in a sentence.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)

    address = cluster_address(config)
    if address:
        security = _security(config, address)
        try:
            client = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False, security=security)
        except (OSError, ValueError, RuntimeError) as error:
            said = without_password(f"no Dask scheduler answers at {address} ({error or type(error).__name__})")
            raise DataworthError(said) from None
        with client:
            show_link("dask-dashboard", client.dashboard_link, "The Dask dashboard")
            yield client
        return
    n_workers = config.workers or (max(1, min(n_parts, os.cpu_count() or 1)) if config.processes else 1)
    # Its pages have a port of their own all the same: without an address it would be the one that others take.
    local: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    if config.processes:
        # The environment as it is now: the process that workers are forked from may be of an earlier one.
        local = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "env": dict(os.environ)}
    with _forked_workers():
        with _interrupts_held():
            started = LocalCluster(
                n_workers=n_workers, threads_per_worker=config.threads or 1, processes=config.processes, **local
            )
        with started as cluster, Client(cluster, set_as_default=False) as client:
            if config.processes:
                show_link("dask-dashboard", client.dashboard_link, "The Dask dashboard, while the cluster works")
            yield client


@contextmanager
def _forked_workers() -> Iterator[None]:
    """Workers begun in the block are forked from one process that has imported what they need, once for all of them.

    That process has no threads of ours, ends with this one, and serves this one's later clusters, too.
    """
    import dask
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(IMPORTED_ONCE)
        yield


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A terminal's Ctrl-C comes when the block has ended; threads and processes begun in it never get it.

    Workers are ended by who began them. Interrupted themselves, they would say so, too, with a traceback each.
    """
    resource_tracker.ensure_running()  # which, where it begins one, lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _security(config: ClusterConfig, address: str) -> Any:
    """TLS for a scheduler elsewhere, where its files are named; never without where they are, nor the reverse."""
    from distributed.security import Security

    paths = {"tls_ca": config.tls_ca, "tls_certificate": config.tls_certificate, "tls_key": config.tls_key}
    encrypted = address.startswith(("tls://", "wss://"))
    if not any(paths.values()) and not encrypted:
        return None
    if not encrypted:
        raise InputError(
            f"{setting('cluster.address')} {without_password(address)}: expected tls://, since TLS files are given"
        )
    for name, path in paths.items():
        if path is None or not Path(path).is_file():
            raise InputError(f"{setting(f'cluster.{name}')}: {path or 'not given'}; TLS needs all three files")
    return Security(
        require_encryption=True,
        tls_ca_file=config.tls_ca,
        tls_client_cert=config.tls_certificate,
        tls_client_key=config.tls_key,
    )


@contextmanager
def named_losses(doing: str, client: Any) -> Iterator[None]:
    """Dask's errors about lost workers and schedulers as one sentence each.

    Args:
        doing: what was going on, as in "scoring".
        client: of the scheduler.

    Raises:
        WorkersLostError: workers or scheduler were lost in the block.
    """
    from distributed import CancelledError, KilledWorker
    from distributed.comm.core import CommClosedError

    address = without_password(client.scheduler.addr)
    gone = f"the Dask scheduler at {address} went away while {doing}: run again once it is back"
    try:
        yield
    except KilledWorker as error:
        raise WorkersLostError(f"the Dask workers died while {doing}, out of memory or killed ({error})") from error
    except (CancelledError, CommClosedError, TimeoutError) as error:
        raise WorkersLostError(gone) from error
    except OSError as error:  # of a part of the work, or of an attempt to find the scheduler again
        if client.status == "running":
            raise
        raise WorkersLostError(gone) from error


def windowed(
    client: Any,
    doing: str,
    works: Iterable[Work],
    submit: Callable[[Work, Sequence[Any]], Any],
    n_ahead: int,
    *,
    shared: Sequence[Any] = (),
    ordered: bool = True,
) -> Iterator[tuple[Work, Any]]:
    """Each work and its result from a cluster, at most `n_ahead` of them handed out at a time.

    A worker that dies takes its copy of what is shared with it; where it held the last one, that and the works under
    way are handed out again.

    Args:
        client: of the cluster.
        doing: what goes on, as in "scoring".
        works: one after another.
        submit: hands a work out, from it and what is shared: futures, in the order of `shared`.
        n_ahead: so that memory stays bounded.
        shared: goes to every worker once.
        ordered: results in the order of the works; else as they come.

    Raises:
        WorkersLostError: more than MAX_LOSSES workers died with what they held, or the scheduler is gone.
    """
    from distributed import CancelledError

    todo, waiting = deque(works), dict[Any, Work]()
    held: list[Any] | None = None
    n_lost = 0
    with named_losses(doing, client):
        while todo or waiting:
            try:
                if held is None:
                    held = [client.scatter(item, broadcast=True, hash=False) for item in shared]
                while todo and len(waiting) < n_ahead:
                    future = submit(todo[0], held)
                    waiting[future] = todo.popleft()
                future = next(iter(waiting)) if ordered else _first_done(waiting)
                result = future.result()
            except CancelledError:
                n_lost += 1
                if n_lost > MAX_LOSSES or client.status != "running":
                    raise
                run_logger().warning("a Dask worker died with what it held: handing its part out again")
                todo.extendleft(reversed(waiting.values()))
                waiting.clear()
                held = None
                continue
            yield waiting.pop(future), result


def _first_done(futures: Iterable[Any]) -> Any:
    while True:
        for future in futures:
            if future.done():
                return future
        time.sleep(SECONDS_BETWEEN_LOOKS)
