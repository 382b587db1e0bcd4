"""A whole run where the environment is against it: a proxy that does not answer, a terminal of few characters."""

import json

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.system]

NOWHERE = "http://127.0.0.1:9"


def test_a_dead_proxy_and_an_ascii_terminal(script, checkpoints, tmp_path):
    """The Prefect server that it starts for itself is asked directly, and what it says is escaped."""
    rows = [{"id": f"é{n}", "source": "sé", "text": "The river runs down to the sea."} for n in range(3)]
    (tmp_path / "é.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    words = ("--model", checkpoints["llama"], "--corpus", "é.jsonl", "--store", "stö", "--projection.rank", 2)
    done = script(
        "index", *words, "--corpus.max_length", 32,
        environment={**proxies, "PYTHONIOENCODING": "ascii", "NO_PROXY": "", "no_proxy": ""}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "gradient store: " in done.stdout
    assert "/st\\xf6/gradients/" in done.stdout
    assert "Traceback" not in done.stderr
