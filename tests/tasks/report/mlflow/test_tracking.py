"""Valuations in MLflow: what a run holds, once however often it is logged, and what happens where MLflow is away."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.tracking import MlflowClient

from dataworth.storage.errors import InputError
from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.report.mlflow.steps import NotLoggedError, log_results
from dataworth.tasks.report.results.machine import MAX_SAMPLES, SECONDS_BETWEEN_SAMPLES, MachineSamples
from dataworth.tasks.report.runs import LoggedRun, metric_name
from tests.harness.results import results_folder

EVIL = "<script>alert(1)</script> \"&' | [x](http://x) `y` {{ 7 * 7 }}"
NAMES = [EVIL, "..", "a//b", "a/../b", "=1+1", "x" * 9000, "new\nline", "\x00", "é", ".", " ", "-", "a b", "a:b", "a?b"]


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"


def runs_of(uri, kind):
    client = MlflowClient(uri)
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(every, f"tags.`dataworth.kind` = '{kind}'"))


def experiment_of(uri, run):
    return MlflowClient(uri).get_experiment(run.info.experiment_id).name


def history(uri, run_id, name):
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, name)]


def record(folder):
    return json.loads((folder / "valuation.json").read_text())


@contextmanager
def silent_server():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def refused_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_run_and_its_steps(uri, tmp_path):
    folder = results_folder(tmp_path / "out", {"news": 3.0, "books": 1.0, "harm": -1.0})
    logged = log_results(str(folder), TrackingConfig(uri=uri))
    client = MlflowClient(uri)
    run = client.get_run(logged.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "m on c"
    assert run.data.params["projection.rank"] == "4"
    assert not {name for name in run.data.params if name.startswith(("results", "tracking"))}
    assert run.data.metrics["of positive values/news"] == 0.75
    assert run.data.metrics["value/harm"] == -1.0
    assert run.data.metrics["n_documents"] == 6
    assert run.data.tags["dataworth.model_fingerprint"] == "0" * 32
    assert {(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs} == {
        ("corpus", "1" * 32), ("queries", "2" * 32),
    }  # fmt: skip
    assert {entry.tags[0].value for entry in run.inputs.dataset_inputs} == {"corpus", "queries"}
    assert {entry.path for entry in client.list_artifacts(logged.run_id)} == {
        "report.html", "sources.csv", "sources.parquet", "documents.parquet", "tables", "figures",
    }  # fmt: skip
    table = json.loads(Path(client.download_artifacts(logged.run_id, "tables/sources.json")).read_text())
    assert table["columns"][:3] == ["query_id", "source", "value"]
    assert [row[1:3] for row in table["data"]] == [["news", 3.0], ["books", 1.0], ["harm", -1.0]]
    assert history(uri, logged.run_id, "system/cpu_utilization_percentage") == [(0, 10.0), (1, 90.0)]
    assert record(folder)["mlflow"]["run_id"] == logged.run_id

    steps = {run.info.run_name: run for run in runs_of(uri, "step")}
    assert steps.keys() == {"fit", "index", "score", "value"}
    assert {step.data.tags["mlflow.parentRunId"] for step in steps.values()} == {logged.run_id}
    assert steps["index"].data.params == {
        "corpus.files": "c", "projection.rank": "4", "gradients.dtype": "float16",
    }  # fmt: skip
    assert steps["index"].data.metrics == {
        "seconds": 40.0, "n_documents": 6, "n_examples": 8, "n_tokens": 90, "n_layers": 3, "n_columns": 48,
    }  # fmt: skip
    assert steps["index"].info.end_time - steps["index"].info.start_time == 40_000
    assert steps["value"].data.metrics["game/missed"] == 0.25
    assert "game/reliable" not in steps["value"].data.metrics


def test_a_series_draws_shares_over_days(uri, tmp_path):
    days = {"2026-11-02": 3.0, "2026-11-09": 1.0, "2026-11-16": 7.0}
    for day, value in days.items():
        log_results(str(results_folder(tmp_path / day, {"news": value, "books": 1.0}, day)), TrackingConfig(uri=uri))
    log_results(
        str(results_folder(tmp_path / "x", {"news": 1.0}, flow_run="x", title="other")), TrackingConfig(uri=uri)
    )
    series = {run.data.tags["dataworth.series"]: run for run in runs_of(uri, "series")}
    assert series.keys() == {"m on c", "other"}
    for kind in ("series", "valuation", "step"):
        assert all(experiment_of(uri, run) == run.data.tags["dataworth.series"] for run in runs_of(uri, kind))
    expected = [
        (date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal(), value / (value + 1))
        for day, value in days.items()
    ]
    assert history(uri, series["m on c"].info.run_id, "of positive values/news") == expected
    runs = [run for run in runs_of(uri, "valuation") if run.data.tags["dataworth.series"] == "m on c"]
    found = [point for run in runs for point in history(uri, run.info.run_id, "of positive values/news")]
    assert sorted(found) == expected
    assert {run.data.tags["dataworth.series_run_id"] for run in runs} == {series["m on c"].info.run_id}
    assert series["m on c"].info.run_id in runs[0].data.tags["mlflow.note.content"]


def everything(uri):
    """All runs with their tags, points and inputs, without what is written at the time of logging."""
    client = MlflowClient(uri)
    found = {}
    for kind in ("series", "valuation", "step"):
        for run in runs_of(uri, kind):
            points = {name: history(uri, run.info.run_id, name) for name in run.data.metrics}
            inputs = sorted(entry.dataset.digest for entry in run.inputs.dataset_inputs)
            files = sorted(entry.path for entry in client.list_artifacts(run.info.run_id))
            found[run.info.run_id] = (run.info.status, run.data.params, run.data.tags, points, inputs, files)
    return found


def test_logged_twice_is_logged_once(uri, tmp_path):
    folder = results_folder(tmp_path / "out", {"news": 3.0, "books": 1.0})
    first = log_results(str(folder), TrackingConfig(uri=uri))
    before = everything(uri)
    again = log_results(str(folder), TrackingConfig(uri=uri))
    assert (again, everything(uri)) == (first, before)
    shutil.copytree(folder, tmp_path / "copy")
    assert log_results(str(tmp_path / "copy"), TrackingConfig(uri=uri)) == first
    assert len(everything(uri)) == len(before) == 6


def test_a_run_that_broke_off_is_completed(uri, tmp_path, monkeypatch):
    folder = results_folder(tmp_path / "out", {"news": 3.0, "books": 1.0})
    original = MlflowClient.log_artifact

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    with pytest.raises(NotLoggedError, match="No space left on device"):
        log_results(str(folder), TrackingConfig(uri=uri))
    (broken,) = runs_of(uri, "valuation")
    assert broken.info.status == "FAILED"
    monkeypatch.setattr(MlflowClient, "log_artifact", original)
    logged = log_results(str(folder), TrackingConfig(uri=uri))
    assert logged.run_id == broken.info.run_id
    assert {run.info.status for kind in ("valuation", "step", "series") for run in runs_of(uri, kind)} == {"FINISHED"}


@pytest.mark.parametrize("address", ["refused", "hangs", "no such scheme", "not a folder"])
def test_away_and_published_later(address, uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = results_folder(tmp_path / "the out", {"news": 3.0, "books": 1.0})
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (tmp_path / "file").write_text("")
    start = time.monotonic()
    with silent_server() as hanging:
        wrong = {
            "refused": refused_address(), "hangs": hanging, "no such scheme": "htp://127.0.0.1:1",
            "not a folder": f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}",
        }[address]  # fmt: skip
        with pytest.raises(NotLoggedError) as caught:
            log_results(str(folder), TrackingConfig(uri=wrong))
    assert time.monotonic() - start < 60
    sentence = str(caught.value)
    assert sentence.startswith(f"MLflow at {wrong} did not take the run (")
    assert f"`dataworth publish --results '{folder}'` logs it later" in sentence
    assert "\n" not in sentence
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    logged = log_results(str(folder), TrackingConfig(uri=uri))
    (run,) = runs_of(uri, "valuation")
    assert run.info.run_id == logged.run_id
    assert run.data.metrics["of positive values/news"] == 0.75


def test_processes_at_once_leave_one_run(uri, tmp_path):
    folders = [results_folder(tmp_path / "one", {"news": 3.0, "books": 1.0})]
    folders += [shutil.copytree(folders[0], tmp_path / "two")]
    MlflowClient(uri)  # the database is there
    script = (
        "import sys; from dataworth.tasks.report.mlflow.steps import log_results; "
        "from dataworth.tasks.report.config import TrackingConfig; "
        "print(log_results(sys.argv[1], TrackingConfig(uri=sys.argv[2])).run_id)"
    )
    commands = [[sys.executable, "-c", script, str(folder), uri] for folder in folders]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    printed = [process.communicate(timeout=600)[0].split()[-1] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len(set(printed)) == 1
    assert [run.info.run_id for run in runs_of(uri, "valuation")] == printed[:1]
    assert sorted(run.data.tags["dataworth.step"] for run in runs_of(uri, "step")) == ["fit", "index", "score", "value"]
    (series,) = runs_of(uri, "series")
    assert len(history(uri, series.info.run_id, "of positive values/news")) == 1


def test_runs_made_at_the_same_moment_become_one(uri, tmp_path, monkeypatch):
    """Both look before either has made a run: the barrier is the worst moment."""
    folder = results_folder(tmp_path / "out", {"news": 3.0, "books": 1.0})
    made, barrier = MlflowClient.create_run, threading.Barrier(2)
    waited = threading.local()

    def create_run(self, experiment_id, *args, **kwargs):
        kind = kwargs["tags"]["dataworth.kind"]
        if kind in ("series", "valuation") and kind not in waited.__dict__:
            setattr(waited, kind, True)
            barrier.wait(600)
        return made(self, experiment_id, *args, **kwargs)

    MlflowClient(uri).create_experiment("m on c", artifact_location=(tmp_path / "artifacts").as_uri())
    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(log_results(str(folder), TrackingConfig(uri=uri))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert len(found) == 2
    assert found[0].run_id == found[1].run_id
    assert [len(runs_of(uri, kind)) for kind in ("series", "valuation", "step")] == [1, 1, 4]


@pytest.mark.parametrize("later", [-1, 1])
def test_what_a_failed_process_left_goes_with_the_next(uri, tmp_path, later):
    """A second run of the same valuation, made before or after the first, whose process could not remove it."""
    folder = results_folder(tmp_path / "out", {"news": 3.0, "books": 1.0})
    client, first = MlflowClient(uri), log_results(str(folder), TrackingConfig(uri=uri))
    known = client.get_run(first.run_id)
    names = ("dataworth.kind", "dataworth.valuation")
    left = client.create_run(
        known.info.experiment_id, known.info.start_time + later, {name: known.data.tags[name] for name in names}
    )
    client.set_terminated(left.info.run_id, "FAILED")
    logged = log_results(str(folder), TrackingConfig(uri=uri))
    (run,) = runs_of(uri, "valuation")
    assert run.info.run_id == logged.run_id == record(folder)["mlflow"]["run_id"]
    assert run.info.status == "FINISHED"
    assert {step.data.tags["mlflow.parentRunId"] for step in runs_of(uri, "step")} == {logged.run_id}


def test_valuations_of_one_corpus_at_the_same_moment(uri, tmp_path, monkeypatch):
    """Both look for the corpus among MLflow's datasets before either has inserted it."""
    folders = [results_folder(tmp_path / day, {"news": 1.0}, day) for day in ("2026-11-02", "2026-11-09")]
    MlflowClient(uri).create_experiment("m on c", artifact_location=(tmp_path / "artifacts").as_uri())
    log_inputs, barrier = MlflowClient.log_inputs, threading.Barrier(2)
    waited = threading.local()

    def at_once(self, *args, **kwargs):
        if not hasattr(waited, "already"):
            waited.already = True
            barrier.wait(600)
        return log_inputs(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_inputs", at_once)
    with ThreadPoolExecutor(2) as pool:
        logged = list(pool.map(lambda folder: log_results(str(folder), TrackingConfig(uri=uri)), folders))
    for run in logged:
        digests = {entry.dataset.digest for entry in MlflowClient(uri).get_run(run.run_id).inputs.dataset_inputs}
        assert digests == {"1" * 32, "2" * 32}
    (series,) = runs_of(uri, "series")
    assert len(history(uri, series.info.run_id, "of positive values/news")) == 2


@pytest.mark.parametrize("clock", [-3_600_000, 3_600_000])
def test_a_series_made_by_another_between_looking_and_making_loses_no_point(uri, tmp_path, monkeypatch, clock):
    """The second process looked before the first had made the series; its clock is an hour off."""
    folders = [results_folder(tmp_path / day, {"news": 1.0}, day) for day in ("2026-11-02", "2026-11-09")]
    log_results(str(folders[0]), TrackingConfig(uri=uri))
    search, looked, make = MlflowClient.search_runs, [], MlflowClient.create_run

    def looked_before(self, ids, condition, **kwargs):
        looked.append(condition)
        return [] if len(looked) == 1 else search(self, ids, condition, **kwargs)

    def create_run(self, experiment_id, start_time, **kwargs):
        return make(self, experiment_id, start_time=start_time + clock, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "search_runs", looked_before)
        patched.setattr(MlflowClient, "create_run", create_run)
        log_results(str(folders[1]), TrackingConfig(uri=uri))
    assert "'series'" in looked[0]
    (series,) = runs_of(uri, "series")
    assert len(history(uri, series.info.run_id, "of positive values/news")) == 2


def test_a_refused_dataset_is_no_collision_for_good(uri, tmp_path, monkeypatch):
    folder, tried = results_folder(tmp_path / "out", {"news": 1.0}), []

    def refuse(code):
        def log_inputs(*_, **__):
            tried.append(code)
            raise MlflowException("no", error_code=code)

        monkeypatch.setattr(MlflowClient, "log_inputs", log_inputs)
        with pytest.raises(NotLoggedError, match="no"):
            log_results(str(folder), TrackingConfig(uri=uri))

    refuse(BAD_REQUEST)
    refuse(INTERNAL_ERROR)
    assert tried == [BAD_REQUEST] * 5 + [INTERNAL_ERROR]


def test_names_of_sources_are_valid_and_kept_apart(uri, tmp_path):
    values = {name: float(number + 1) for number, name in enumerate([*NAMES, metric_name(EVIL)])}
    folder = results_folder(tmp_path / "out", values, title=EVIL)
    logged = log_results(str(folder), TrackingConfig(uri=uri, experiment=EVIL))
    run = MlflowClient(uri).get_run(logged.run_id)
    assert run.info.status == "FINISHED"
    assert sorted(v for name, v in run.data.metrics.items() if name.startswith("value/")) == sorted(values.values())
    assert run.data.metrics["value/a b"] == values["a b"]
    names = [metric_name(name) for name in values]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w\-. ]{1,250}", name, re.ASCII) and not name.startswith(".") for name in names)
    assert len(runs_of(uri, "series")) == 1


def test_an_experiment_of_ones_own_choice(uri, tmp_path):
    folders = [results_folder(tmp_path / title, {"news": 1.0}, title=title) for title in ("one", "two")]
    for folder in folders:
        log_results(str(folder), TrackingConfig(uri=uri, experiment="all", series=f"series of {folder.name}"))
    assert {experiment_of(uri, run) for run in runs_of(uri, "valuation")} == {"all"}
    assert {run.data.tags["dataworth.series"] for run in runs_of(uri, "series")} == {"series of one", "series of two"}


def test_pages_and_addresses():
    page = "http://h/#/experiments/1/runs/r?workflowType=machine_learning"
    assert LoggedRun("r", "1", "http://h/").url == page
    assert LoggedRun("r", "1", "sqlite:///x.db").url is None
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        TrackingConfig(uri="https://me:secret@host")


def test_a_password_in_the_environment_is_not_said(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = refused_address().replace("http://", "http://me:secret@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    folder = results_folder(tmp_path / "out", {"news": 3.0})
    with pytest.raises(NotLoggedError) as caught:
        log_results(str(folder), TrackingConfig())
    assert "secret" not in str(caught.value)


def test_folders_of_older_versions_and_damaged_ones(uri, tmp_path):
    folder = results_folder(tmp_path / "out", {"news": 3.0})
    known = record(folder)
    (folder / "valuation.json").write_text(json.dumps({k: v for k, v in known.items() if k != "fingerprint"}))
    with pytest.raises(InputError, match="written by an older version"):
        log_results(str(folder), TrackingConfig(uri=uri))
    (folder / "valuation.json").write_text(json.dumps({**known, "counts": {"n_documents": "many"}}))
    with pytest.raises(InputError, match=r"field 'counts.n_documents': is damaged"):
        log_results(str(folder), TrackingConfig(uri=uri))
    assert not (tmp_path / "mlflow").exists()


def test_samples_of_the_machine(monkeypatch):
    samples = MachineSamples(seconds=0.01)
    with samples.watching():
        time.sleep(0.1)
    assert samples.missing == ""
    assert 3 <= len(samples.rows) <= MAX_SAMPLES
    assert all(0 <= row["cpu_utilization_percentage"] <= 100 for row in samples.rows)
    times = [row["time"] for row in samples.rows]
    assert times == sorted(times)
    monkeypatch.setitem(sys.modules, "psutil", None)
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics.metrics.")]:
        monkeypatch.delitem(sys.modules, name)
    without = MachineSamples()
    with without.watching():
        pass
    assert (without.rows, without.missing) == ([], "no system metrics of this run: psutil is not installed")


def test_samples_stay_few():
    samples = MachineSamples()
    samples._monitors = samples._monitors[:1]
    for _ in range(2 * MAX_SAMPLES):
        samples._take()
    assert MAX_SAMPLES // 2 <= len(samples.rows) <= MAX_SAMPLES
    assert samples._seconds == 4 * SECONDS_BETWEEN_SAMPLES
