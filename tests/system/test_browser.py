"""What a person sees: Prefect's form, the run and its artifact; in MLflow the sources' table, a figure, the report.

And how `dataworth ui` ends: after Ctrl-C nothing is left, and nobody was told its key.
"""

import json
import signal

import httpx
import pandas as pd
import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.harness.api import migrated_home, served, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

RUN_SECONDS = 600_000


def field(page: Page, group: str, label: str):
    """The number box of a property in a group of the form."""
    named = page.get_by_text(label, exact=True)
    own = page.locator(".schema-form-property", has=page.get_by_text(group, exact=True)).filter(has=named).last
    return own.locator(".schema-form-property", has=named).last.locator("input").first


def assert_nobody_is_told(key, folder, log):
    """No file and no command holds the key, but for what was printed in the terminal: databases, logs, results.

    This user's other commands find it in a file that nobody else can read.
    """
    told = {path for path in folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()}
    (record,) = told - {log}
    assert record.name == "server.json"
    assert record.stat().st_mode & 0o077 == 0
    assert log.read_text().count(key) == 2  # in the address, and for other terminals
    assert not any(key in word for process in psutil.process_iter() for word in command_of(process))


def command_of(process):
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def look_at_the_run(page, made, sources, screenshot):
    """MLflow's page of it: the steps' runs, the table of sources, a figure, the report."""
    page.get_by_role("link", name=made["mlflow"]["run_id"]).evaluate("link => link.removeAttribute('target')")
    page.get_by_role("link", name=made["mlflow"]["run_id"]).click()
    for step in ("fit", "index", "score", "value"):
        page.get_by_role("link", name=step, exact=True).wait_for()
    screenshot("mlflow")
    page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).first.click()
    largest = sources[sources["query_id"] == "*"].nlargest(1, "value")["source"].item()
    page.get_by_text("tables", exact=True).first.click()
    page.get_by_text("sources.json", exact=True).first.click()
    page.get_by_text(largest, exact=True).first.wait_for()
    screenshot("mlflow-table")
    page.get_by_text("figures", exact=True).first.click()
    page.get_by_text("shares.png", exact=True).first.click()
    picture = page.locator("img[src*='shares.png'], img[src^='blob:'], img[src^='data:image/png']").first
    picture.wait_for()
    wait_until(lambda: picture.evaluate("image => image.complete && image.naturalWidth") > 300, "no figure")
    screenshot("mlflow-figure")
    page.get_by_text("report.html", exact=True).first.click()
    report = page.frame_locator("iframe").first
    report.get_by_text("The river runs").first.wait_for()
    screenshot("mlflow-report")


def test_from_the_form_to_the_report(
    started_dataworth, checkpoints, corpus_file, queries_file, tmp_path, page, screenshot
):
    own = {"PREFECT_HOME": migrated_home(tmp_path / "prefect"), "DATAWORTH_HOME": str(tmp_path / "home")}
    process, log, left = started_dataworth(
        "ui", "--prefect-port", "0", "--mlflow-port", "0", environment=own, script=True
    )
    ui = served(process, log)
    api = ui.api
    assert len(api.deployments()) == 5
    deployment = api.deployment("value-corpus")["id"]
    schema = api.deployment("value-corpus")["parameter_openapi_schema"]
    offered = schema["definitions"]["ProjectionConfig"]["properties"]["rank"]
    assert offered["maximum"] == 4096
    assert offered["description"] == "Dimensions kept on each side of a layer."
    config = {
        "model": {"name": str(checkpoints["llama"])},
        "corpus": {"files": [str(corpus_file)], "max_length": 32},
        "queries": {"file": str(queries_file)},
        "store": str(tmp_path / "store"),
        "results": str(tmp_path / "out"),
        "tracking": {"experiment": "from the form"},
    }
    api.take(deployment, config)
    start, wrong = f"/deployments/{deployment}/create_flow_run", {**config, "projection": {"rank": 99_999}}
    refused = api.answer("POST", start, {"parameters": {"config": wrong}})
    assert refused.status_code == 409, refused.text
    assert "99999 is greater than the maximum of 4096" in refused.text

    page.goto(ui.page("/deployments"))
    page.get_by_text("value-corpus").first.wait_for()
    screenshot("deployments")
    page.goto(f"{ui.prefect}/deployments/deployment/{deployment}/run")
    rank = field(page, "Projection (Optional)", "Rank (Optional)")
    rank.fill("4")
    rank.scroll_into_view_if_needed()
    screenshot("form")
    page.get_by_role("button", name="Submit").click()

    page.wait_for_url("**tab=Runs**")
    page.locator("a[href*='flow-run/']").first.click()
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=RUN_SECONDS)
    screenshot("run")
    made = json.loads((tmp_path / "out" / "valuation.json").read_text())
    assert made["parameters"]["projection"]["rank"] == 4
    page.get_by_text("Artifacts", exact=True).last.click()
    page.locator("a[href*='/artifacts/artifact/']", has=page.get_by_text("What each source is worth")).click()
    expect(page.get_by_role("cell", name="s0", exact=True)).to_be_visible()
    screenshot("artifact")

    look_at_the_run(page, made, pd.read_parquet(tmp_path / "out" / "sources.parquet"), screenshot)
    named = {"experiment_name": "from the form"}
    found = httpx.get(f"{ui.mlflow}/api/2.0/mlflow/experiments/get-by-name", params=named).json()
    assert found["experiment"]["name"] == "from the form"
    assert_nobody_is_told(ui.key, tmp_path, log)
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 130
    assert left() == []
