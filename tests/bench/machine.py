"""What a measurement was taken on, and how measurements are taken."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["interleaved", "machine", "ratio"]


def machine() -> dict[str, str]:
    """Device, processor and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions = {package: version(package) for package in ("torch", "transformers", "numpy", "zarr")}
    return {
        "device": device,
        "processor": f"{name}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **versions,
    }


def interleaved(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, round by round, measured in turn so that a slow moment of the machine meets all of them.

    Args:
        works: name → what to run; each is run once before, unmeasured.
        rounds: measurements of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        names = list(works) if number % 2 else list(reversed(works))
        for name in names:
            _synchronize()
            start = time.perf_counter()
            works[name]()
            _synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(limit: list[float], work: list[float]) -> tuple[float, float, float]:
    """Median over rounds of limit / work (1 is as fast as the limit), and the quartiles."""
    ratios = [one / two for one, two in zip(limit, work, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return round(middle, 3), round(low, 3), round(high, 3)
