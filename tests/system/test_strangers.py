"""Strangers: a page of another origin in the user's own browser, and who may press Run but not read the machine.

Every way in that is refused is also tried on a Prefect server that stands open, where it works.
"""

import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest
from mlflow.server.security_utils import get_default_allowed_hosts, is_allowed_host_header

from tests.harness.api import Api, migrated_home, served, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("strangers")]  # one set of servers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `dataworth ui` is started: with inputs, somebody's module, and a link that leaves the inputs."""
    root = tmp_path_factory.mktemp("ui")
    (root / "inputs").mkdir()
    (root / "inputs" / "link.jsonl").symlink_to("/etc/passwd")
    (root / "uploaded.py").write_text(f"open({str(root / 'it-ran')!r}, 'w').close()\ndef problem(): pass\n")
    return root


@pytest.fixture(scope="module")
def ui(forked, folder):
    homes = {"PREFECT_HOME": migrated_home(folder / "prefect"), "DATAWORTH_HOME": str(folder / "home")}
    limits = {"DATAWORTH_INPUTS": str(folder / "inputs"), "DATAWORTH_RESULTS": str(folder / "results")}
    settings = {"PREFECT_WORKER_QUERY_SECONDS": "2", "PYTHONUNBUFFERED": "1"}
    log = folder / "log"
    with log.open("wb") as file:
        words = ["ui", "--prefect-port", "0", "--mlflow-port", "0"]
        process = forked.start(words, {**os.environ, **homes, **limits, **settings}, folder, file, file)
    yield served(process, log)
    process.terminate()
    process.wait(600)


@pytest.fixture(scope="module")
def api(ui):
    return ui.api


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing on the terminal."""


@pytest.fixture(scope="module")
def another_port(tmp_path_factory):
    """Of a server of empty pages."""
    pages = tmp_path_factory.mktemp("pages")
    (pages / "index.html").write_text("<!doctype html><title>a stranger's</title>")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=pages)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


TELL = "address => fetch(address, {mode: 'no-cors'}).then(() => 'told', () => 'refused')"
READ = "address => fetch(`${address}/api/health`).then(answer => answer.text(), () => 'refused')"
SEND = """([address, name]) => fetch(`${address}/api/flows/`,
    {method: 'POST', mode: 'no-cors', body: new Blob([JSON.stringify({name})])}).then(() => 0, () => 0)"""
SUBMIT = """address => { const form = document.createElement('form'); form.method = 'POST';
    form.action = `${address}/api/flows/count`; document.body.append(form); form.submit(); }"""
LISTEN = """address => new Promise(done => {
    const socket = new WebSocket(`${address.replace('http', 'ws')}/api/events/in`, 'prefect');
    socket.onopen = () => socket.send('{"type": "auth", "token": null}');
    socket.onmessage = message => done(JSON.parse(message.data).type);
    socket.onclose = socket.onerror = () => done('refused'); })"""
FRAME = """address => new Promise(done => { const frame = document.createElement('iframe');
    frame.src = `${address}/api/health`; frame.onload = () => done(); document.body.append(frame); })"""


def read(page, address, _):
    return page.evaluate(READ, address) == "true"


def send(page, address, api):
    """A request without an answer that a page may read, which says no kind: the API takes it for JSON."""
    name = f"of {urlsplit(page.url).netloc}"
    page.evaluate(SEND, [address, name])
    asked = {"flows": {"name": {"any_": [name]}}}
    return api.answer("POST", "/flows/filter", asked).json() != []


def submit(page, address, _):
    with page.expect_navigation() as navigation:
        page.evaluate(SUBMIT, address)
    return navigation.value.status == 200


def listen(page, address, _):
    return page.evaluate(LISTEN, address) == "auth_success"


def frame(page, address, _):
    page.evaluate(FRAME, address)
    return page.frames[-1].url == f"{address}/api/health" and page.frames[-1].inner_text("body") == "true"


@pytest.mark.parametrize("host", ["127.0.0.1", "stranger.example"])
@pytest.mark.parametrize("way", [read, send, submit, listen, frame])
def test_a_page_of_another_origin_gets_nowhere(ui, api, prefect_server, another_port, page, way, host):
    page.goto(ui.page("/deployments"))  # a browser that has the key
    page.get_by_text("value-corpus").first.wait_for()
    for address, asked, gets_in in (
        (prefect_server.removesuffix("/api"), Api(prefect_server), True),
        (ui.prefect, api, False),
    ):
        page.goto(f"http://{host}:{another_port}/")
        assert way(page, address, asked) is gets_in


def test_a_name_that_was_led_here_gets_nowhere(ui, prefect_server, page):
    for address, status in ((prefect_server.removesuffix("/api"), 200), (ui.prefect, 421)):
        answer = page.goto(f"http://rebound.example:{urlsplit(address).port}/api/health")
        assert answer.status == status
    assert page.inner_text("body") == (
        "This server goes by the address that `dataworth ui` printed, and by no other name."
    )


def test_mlflow_goes_by_no_name_that_looks_like_an_address(ui):
    port = urlsplit(ui.mlflow).port
    assert is_allowed_host_header(get_default_allowed_hosts(), f"10.stranger.example:{port}")  # left to itself
    for host, status in ((f"127.0.0.1:{port}", 200), (f"10.stranger.example:{port}", 403)):
        assert httpx.get(f"{ui.mlflow}/", headers={"Host": host}).status_code == status


def test_a_command_without_the_key_says_where_it_is(ui, forked, folder, checkpoints, corpus_file):
    given = ["--model", str(checkpoints["llama"]), "--corpus", str(corpus_file), "--store", str(folder / "results")]
    without = {**os.environ, "PREFECT_API_URL": f"{ui.prefect}/api", "PREFECT_HOME": str(folder / "another")}
    made = forked.run(["index", *given], without, folder, 120)
    assert made.returncode == 2
    assert made.stderr.strip().endswith(
        f"the Prefect server at {ui.prefect}/api does not take the password: set PREFECT_API_AUTH_STRING, "
        "which `dataworth ui` prints where it was started"
    )
    for environment, well in ((without, False), ({**without, **ui.environment}, True)):
        looked = forked.run(["doctor"], environment, folder, 120)
        assert (f"{ui.prefect}/api does not take the password" in looked.stdout) is not well
        assert (f"{ui.prefect}/api answers" in looked.stdout) is well


def test_pages_open_with_the_key_and_then_without(ui, api, another_port, page, screenshot):
    where = "The address that has it was printed where `dataworth ui` was started: open that."
    page.goto(f"{ui.prefect}/runs")  # as a link in a report
    assert page.inner_text("p") == f"This page opens with a key. {where}"
    page.goto(f"{ui.prefect}/deployments?key=wrong")
    assert page.inner_text("p").startswith("This is not the key of the server that runs now")
    page.goto(ui.page("/deployments"))
    page.get_by_text("value-corpus").first.wait_for()
    assert page.url == f"{ui.prefect}/deployments"
    page.goto(ui.page("/deployments").replace("127.0.0.1", "localhost"))
    page.get_by_text("value-corpus").first.wait_for()
    screenshot("deployments-with-the-key")
    stranger = f"http://stranger.example:{another_port}/"
    assert page.evaluate(TELL, stranger) == "refused"  # what is on the page
    page.goto(f"{ui.prefect}/v2/deployments")
    page.get_by_text("value-corpus").first.wait_for()
    page.goto(stranger)
    assert page.evaluate(TELL, stranger) == "told"
    run = api.start("fit-curvature", {"model": {"name": "x"}, "corpus": {"files": ["/etc/passwd"]}})
    wait_until(lambda: api.ended(run["id"]), "the run does not end")
    page.goto(f"{ui.prefect}/runs/flow-run/{run['id']}")
    page.get_by_text("Failed", exact=True).first.wait_for()
    page.get_by_text("not permitted here").first.wait_for()
    screenshot("run-with-the-key")


def test_who_may_press_run_reads_and_runs_only_what_is_listed(ui, api, folder):
    inputs, link = folder / "inputs", folder / "inputs" / "link.jsonl"
    model = {"model": {"name": str(inputs / "model")}}
    wanted = [
        (
            *("audit-valuation", {"results": str(folder / "results" / "a"), "audit": {"problem": "uploaded:problem"}}),
            "audit.problem uploaded:problem: not permitted here; DATAWORTH_PROBLEMS permits digits, demo",
        ),
        (
            *("index-corpus", {**model, "corpus": {"files": ["/etc/passwd"]}}),
            f"corpus.files /etc/passwd: not permitted here; DATAWORTH_INPUTS permits {inputs}",
        ),
        (
            *("fit-curvature", {**model, "corpus": {"files": [str(link)]}}),
            f"corpus.files {link}: not permitted here; DATAWORTH_INPUTS permits {inputs}",
        ),
    ]
    runs = [(api.start(flow, config)["id"], sentence) for flow, config, sentence in wanted]
    for run, sentence in runs:
        state = wait_until(lambda run=run: api.ended(run), "the run does not end")
        assert state["type"] == "FAILED"
        assert sentence in state["message"]
    assert not (folder / "it-ran").exists()


def test_a_run_is_given_parameters_and_no_command(ui, api):
    path = f"/deployments/{api.deployment('audit-valuation')['id']}/create_flow_run"
    asked = {"parameters": {"config": {"results": "x", "audit": {"problem": "digits"}}}}
    for variables in ({"command": "touch it-ran"}, {"env": {"PYTHONPATH": "/tmp"}}, {"working_dir": "/tmp"}):
        answer = api.answer("POST", path, {**asked, "job_variables": variables})
        assert answer.status_code == 422, answer.text
        assert "Additional properties are not allowed" in answer.text


def test_the_server_of_a_home_is_no_way_in(started_dataworth, checkpoints, corpus_file, tmp_path):
    own = {"PREFECT_API_URL": "", "PREFECT_HOME": migrated_home(tmp_path / "prefect")}
    words = ("--model", checkpoints["llama"], "--corpus", corpus_file, "--store", tmp_path / "store")
    words += ("--corpus.max_length", "32")
    process, log, _ = started_dataworth("index", *words, environment=own, script=True)

    record = tmp_path / "prefect" / "dataworth" / "server.json"
    wait_until(lambda: record.is_file() or process.poll() is not None, "no server")
    assert record.stat().st_mode & 0o077 == 0
    api = Api(f"http://127.0.0.1:{json.loads(record.read_text())['port']}/api")
    wait_until(lambda: _status(api, "GET", "/health") == 200, "the server of the home does not answer")
    # Without the key, and without what proves that no other page sent it.
    assert _status(api, "POST", "/flows/", {"name": "of a page"}) in (401, 403)
    assert _status(api, "POST", "/flows/filter", {}) in (401, 403)
    assert _status(api, "GET", "/flows/00000000-0000-0000-0000-000000000000") == 401
    assert process.wait(600) == 0, log.read_text()


def _status(api, *asked):
    try:
        return api.answer(*asked).status_code
    except httpx.TransportError:
        return None
