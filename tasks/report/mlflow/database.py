"""MLflow's database in a file: it has its name once every table is made, whoever is killed or comes at once.

MLflow makes its tables in some fifty steps under the final name and without a lock: a process that is killed in
between, or two that begin together, leave a database that MLflow refuses from then on.
"""

import logging
import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from filelock import FileLock
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url

from dataworth.storage.durable import make_folder, move_into_place, remove_dead_partials, staging_prefix

__all__ = ["database_file", "make_database", "quieten"]

# What MLflow's migrations call a table while they change it.
HALF_MADE = "_alembic_tmp_"


def database_file(address: str) -> Path | None:
    """The file of an MLflow address; None where it is not SQLite's."""
    if not address.startswith("sqlite:///"):
        return None
    named = make_url(address).database
    return Path(named) if named else None


def make_database(path: Path) -> None:
    """Make MLflow's database unless a whole one is there; of several processes at once, one makes it.

    One whose making was broken off before any run was written to it is made anew.

    Args:
        path: of the SQLite file; missing folders above it are made.

    Raises:
        OSError: the disk takes none.
    """
    if _is_whole(path):
        return
    quieten()
    make_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if _is_whole(path):  # another process was first
            return
        remove_dead_partials(path.parent, deep=False)
        with tempfile.TemporaryDirectory(prefix=staging_prefix(os.getpid()), dir=path.parent) as staging:
            made = Path(staging, path.name)
            MlflowClient(tracking_uri=f"sqlite:///{made.absolute()}").search_experiments(max_results=1)
            move_into_place(made, path)


def quieten() -> None:
    """MLflow says how it makes its tables, and much else, to nobody."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_whole(path: Path) -> bool:
    """Not in the middle of being made, or with runs in it all the same: what MLflow says of that one is passed on."""
    if not path.exists():
        return False
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables or any(name.startswith(HALF_MADE) for name in tables):
            return "runs" in tables and database.execute("SELECT count(*) FROM runs").fetchone() != (0,)
    return True
