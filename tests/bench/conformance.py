"""Every architecture that transformers can build, against autograd and against the kept table."""

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.conformance.table import kept, outcomes, row_of

__all__ = ["rows"]


def rows() -> Iterator[dict[str, Any]]:
    """One row a task.

    Raises:
        AssertionError: an architecture is wrong, or is not as the table says.
    """
    warnings.simplefilter("ignore")  # of transformers, while it builds them
    start, table = time.perf_counter(), kept()
    counts: dict[str, Counter[str]] = {}
    largest: dict[str, float] = {}
    for task, kind, outcome in outcomes():
        assert row_of(outcome) == table[task][kind], (task, kind, outcome)
        counts.setdefault(task, Counter())[outcome.status] += 1
        largest[task] = max(largest.get(task, 0.0), outcome.error)
    for task, found in counts.items():
        yield {"task": task, **found, "largest error": f"{largest[task]:.0e}"}
    yield {"task": "all", "seconds": round(time.perf_counter() - start)}
