"""What a run writes on a terminal: what it does, in words; what Prefect notes of tasks and states is for its pages.

Prefect makes its handler of the class that an environment variable names, and so reads this module.
"""

import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import prefect
from prefect.logging.handlers import PrefectConsoleHandler

from dataworth.tasks.visible import visible

__all__ = ["Console"]

# Of runs; what else is logged is seen as Prefect writes it.
OF_RUNS = re.compile(r"prefect\.(flow|task)_runs")
PREFECT = f"{Path(prefect.__file__).parent}{os.sep}"


class Console(PrefectConsoleHandler):
    """A line with the time for what a run says; a warning once."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if not OF_RUNS.match(record.name):
            super().emit(record)
            return
        if record.exc_info:
            super().emit(record)
            return
        warns = record.levelno >= logging.WARNING
        if record.pathname.startswith(PREFECT) and record.levelno != logging.WARNING:
            return
        said = visible(record.getMessage())
        if warns:
            if said in self._warned:
                return
            self._warned.add(said)
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        try:
            self.console.print(f"{moment}  {'warning: ' if warns else ''}{said}", soft_wrap=True, markup=False)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)
