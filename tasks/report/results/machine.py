"""What the machine did during a valuation, sampled here and logged to MLflow once the valuation is there.

MLflow's own sampling needs a run, and so a server that answers, from the first minute; these samples are kept with
the valuation, whether or not MLflow can be reached, and go where MLflow shows system metrics.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["MachineSamples"]

SECONDS_BETWEEN_SAMPLES = 2.0

# Beyond it every second sample is dropped, and the time between samples doubles.
MAX_SAMPLES = 240


class MachineSamples:
    """Samples of CPU, memory, disk, network and GPUs while somebody is watching.

    `rows` have `time` in milliseconds since 1970 and MLflow's names of metrics; `missing` says, in a sentence, why
    there are none.
    """

    def __init__(self, seconds: float = SECONDS_BETWEEN_SAMPLES) -> None:
        self.rows: list[dict[str, float]] = []
        self.missing = ""
        self._seconds = seconds
        self._monitors: list[Any] = []
        try:
            self._monitors = _monitors()
        except ImportError as error:
            self.missing = f"no system metrics of this run: {error.name or error} is not installed"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take samples until the block ends, one at once and one at the end."""
        ended = threading.Event()

        def watch() -> None:
            while True:
                self._take()
                if ended.wait(self._seconds):
                    return

        thread = threading.Thread(target=watch, name="machine-samples", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._take()

    def _take(self) -> None:
        row = {"time": float(int(time.time() * 1000))}
        for monitor in self._monitors:
            with suppress(OSError, RuntimeError):  # a device that does not answer now
                monitor.collect_metrics()
                row |= {str(name): float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        if len(row) > 1:
            self.rows.append(row)
        if len(self.rows) > MAX_SAMPLES:
            del self.rows[1::2]
            self._seconds *= 2


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # without NVIDIA's library, or without a GPU
        monitors.append(GPUMonitor())
    for monitor in monitors:  # the first look at a CPU's load says 0
        monitor.collect_metrics()
        monitor.clear_metrics()
    return monitors
