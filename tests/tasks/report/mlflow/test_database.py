"""MLflow's database is made whole or not at all, by processes that are killed and by several at once."""

import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import closing, suppress

import pytest
from mlflow.tracking import MlflowClient

from dataworth.tasks.report.mlflow.database import HALF_MADE, database_file, make_database

SPAWN = multiprocessing.get_context("spawn")


def experiments(path):
    return [each.name for each in MlflowClient(f"sqlite:///{path}").search_experiments()]


def half_made(path, *tables):
    with closing(sqlite3.connect(path)) as database:
        for table in (f"{HALF_MADE}tags", "alembic_version", *tables):
            database.execute(f"CREATE TABLE {table} (id INTEGER)")
        database.commit()


def test_a_process_that_is_killed_leaves_nothing_under_its_name(tmp_path):
    """Killed as soon as MLflow has begun with the tables, the next one makes them."""
    path = tmp_path / "mlflow" / "mlflow.db"
    process = SPAWN.Process(target=make_database, args=(path,))
    process.start()
    while not (begun := list(path.parent.glob(".staging-*/mlflow.db"))) or not begun[0].stat().st_size:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not path.exists()
    make_database(path)
    assert experiments(path) == ["Default"]
    assert [each.name for each in path.parent.iterdir() if "staging" in each.name] == []


def test_several_at_once_make_one(tmp_path):
    path = tmp_path / "mlflow.db"
    processes = [SPAWN.Process(target=make_database, args=(path,)) for _ in range(3)]
    for process in processes:
        process.start()
    made = None
    while any(process.is_alive() for process in processes):
        with suppress(FileNotFoundError):
            made = made or path.stat().st_ino
        time.sleep(0.05)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert path.stat().st_ino == made
    assert experiments(path) == ["Default"]


@pytest.mark.parametrize("tables", [(), ("runs",)])
def test_one_that_was_broken_off_before_a_run_is_made_anew(tmp_path, tables):
    path = tmp_path / "mlflow.db"
    half_made(path, *tables)
    make_database(path)
    assert experiments(path) == ["Default"]


def test_an_empty_file_is_no_database(tmp_path):
    (tmp_path / "mlflow.db").touch()
    make_database(tmp_path / "mlflow.db")
    assert experiments(tmp_path / "mlflow.db") == ["Default"]


def test_what_holds_a_run_stays(tmp_path):
    path = tmp_path / "mlflow.db"
    half_made(path, "runs")
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO runs VALUES (1)")
        database.commit()
    before = path.read_bytes()
    make_database(path)
    assert path.read_bytes() == before
    (tmp_path / "other.db").write_bytes(b"no database at all")
    make_database(tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == b"no database at all"


def test_only_an_address_of_sqlite_has_a_file():
    assert str(database_file("sqlite:////a/b.db?timeout=30")) == "/a/b.db"
    assert str(database_file("sqlite:///b.db")) == "b.db"
    assert database_file("sqlite://") is None
    assert database_file("http://127.0.0.1:5000") is None
    assert database_file("postgresql://u@h/d") is None
