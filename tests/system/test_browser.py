"""What a person sees: Prefect's form, the run and its artifact; in MLflow the sources' table, a figure, the report."""

import json

import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from tests.harness.api import migrated_home, served, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

RUN_SECONDS = 240_000


def field(page: Page, group: str, label: str):
    """The number box of a property in a group of the form."""
    named = page.get_by_text(label, exact=True)
    own = page.locator(".schema-form-property", has=page.get_by_text(group, exact=True)).filter(has=named).last
    return own.locator(".schema-form-property", has=named).last.locator("input").first


def test_from_the_form_to_the_report(
    started_dataworth, checkpoints, corpus_file, queries_file, tmp_path, page, screenshot
):
    own = {"PREFECT_HOME": migrated_home(tmp_path / "prefect"), "DATAWORTH_HOME": str(tmp_path / "home")}
    process, log, _ = started_dataworth("ui", "--prefect-port", "0", "--mlflow-port", "0", environment=own)
    ui = served(process, log)
    api = ui.api
    deployment = api.deployment("value-corpus")["id"]
    config = {
        "model": {"name": str(checkpoints["llama"])},
        "corpus": {"files": [str(corpus_file)], "max_length": 32},
        "queries": {"file": str(queries_file)},
        "store": str(tmp_path / "store"),
        "results": str(tmp_path / "out"),
    }
    api.take(deployment, config)

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

    page.get_by_role("link", name=made["mlflow"]["run_id"]).evaluate("link => link.removeAttribute('target')")
    page.get_by_role("link", name=made["mlflow"]["run_id"]).click()
    for step in ("fit", "index", "score", "value"):
        page.get_by_role("link", name=step, exact=True).wait_for()
    screenshot("mlflow")
    page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).first.click()
    sources = pd.read_parquet(tmp_path / "out" / "sources.parquet")
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
