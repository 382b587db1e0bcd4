"""What a person sees: Prefect's form, the run, its artifact, and in MLflow the sources' table, a figure and the report.

Screenshots go to $DATAWORTH_SCREENSHOTS, else to the test's own folder.
"""

import json
import os
import re
import shutil
from pathlib import Path

import httpx
import pandas as pd
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.reference.api import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
SECONDS = 60_000
RUN_SECONDS = 240_000


@pytest.fixture
def page():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("no chromium: install Debian's package of that name")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(SECONDS)
        yield opened
        browser.close()


@pytest.fixture
def screenshot(page, tmp_path):
    folder = Path(os.environ.get("DATAWORTH_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def take(name):
        page.wait_for_timeout(1500)  # for what moves into its place
        page.screenshot(path=folder / f"{name}.png")

    return take


def field(page: Page, group: str, label: str):
    """The number box of a property in a group of the form."""
    named = page.get_by_text(label, exact=True)
    own = page.locator(".schema-form-property", has=page.get_by_text(group, exact=True)).filter(has=named).last
    return own.locator(".schema-form-property", has=named).last.locator("input").first


def takes(prefect, deployment, config):
    """Give a deployment its parameters; the server turns it away while its database is busy with the worker's first."""
    answer = httpx.patch(f"{prefect}/api/deployments/{deployment}", json={"parameters": {"config": config}})
    assert answer.status_code in (204, 503), answer.text
    return answer.status_code == 204


def test_from_the_form_to_the_report(
    started_dataworth, checkpoints, corpus_file, queries_file, tmp_path, page, screenshot
):
    own = {"PREFECT_HOME": str(tmp_path / "prefect"), "DATAWORTH_HOME": str(tmp_path / "home")}
    process, log, _ = started_dataworth("ui", "--prefect-port", "0", "--mlflow-port", "0", environment=own)
    wait_until(lambda: "Ctrl-C ends both" in log.read_text() or process.poll() is not None, 180, "no servers")
    prefect = re.search(r"Prefect  (\S+)/deployments", log.read_text()).group(1)
    found = httpx.post(f"{prefect}/api/deployments/filter", json={}).json()
    (deployment,) = (one["id"] for one in found if one["entrypoint"].endswith("value_corpus"))
    config = {
        "model": {"name": str(checkpoints["llama"])},
        "corpus": {"files": [str(corpus_file)], "max_length": 32},
        "queries": {"file": str(queries_file)},
        "store": str(tmp_path / "store"),
        "results": str(tmp_path / "out"),
    }
    wait_until(lambda: takes(prefect, deployment, config), 60, "the deployment takes no parameters")

    page.goto(f"{prefect}/deployments")
    page.get_by_text("value-corpus").first.wait_for()
    screenshot("deployments")
    page.goto(f"{prefect}/deployments/deployment/{deployment}/run")
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
    wait_until(lambda: picture.evaluate("image => image.complete && image.naturalWidth") > 300, 30, "no figure")
    screenshot("mlflow-figure")
    page.get_by_text("report.html", exact=True).first.click()
    report = page.frame_locator("iframe").first
    report.get_by_text("The river runs").first.wait_for()
    screenshot("mlflow-report")
