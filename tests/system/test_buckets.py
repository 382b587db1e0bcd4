"""The commands with `--store s3://…`: a real server in a process of its own, real stops, real refusals."""

import re
import signal
import time

import pandas as pd
import pytest

from dataworth.storage.locations import location_of
from tests.harness.objects import SECRET, new_bucket, object_server, refusing

pytestmark = [pytest.mark.system, pytest.mark.slow]

OPTIONS = ("--projection.rank", "4", "--corpus.max_length", "32", "--curvature.draws", "2")


def stored(place) -> dict[str, bytes]:
    """Relative name → content of every file, but for locks."""
    root = location_of(place)
    return {name: (root / name).read_bytes() for name in root.files() if not name.endswith(".lock")}


def sentence(result, code: int) -> str:
    """The last line of what was said, with neither a traceback nor a secret anywhere."""
    said = result.stdout + result.stderr
    assert result.returncode == code, said
    assert "Traceback" not in said
    assert SECRET not in said
    return result.stderr.strip().splitlines()[-1]


def test_index_value_and_verify(dataworth, bucket, checkpoints, corpus_file, queries_file, tmp_path):
    given = ("--model", checkpoints["neox"], "--corpus", corpus_file, *OPTIONS)
    asked = ("--queries", queries_file, "--scoring.save_matrix")
    indexed = dataworth("index", *given, "--store", bucket)
    assert indexed.returncode == 0, indexed.stderr
    assert f"gradient store: {bucket}/gradients/" in indexed.stdout
    for store, results in ((bucket, "remote"), (tmp_path / "store", "local")):
        valued = dataworth("value", *given, *asked, "--store", store, "--results", tmp_path / results)
        assert valued.returncode == 0, valued.stderr
        assert SECRET not in valued.stdout + valued.stderr
    assert stored(bucket) == stored(tmp_path / "store")
    for name in ("sources.parquet", "documents.parquet"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / where / name) for where in ("remote", "local")))
    for path in (tmp_path / "remote").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    verified = dataworth("verify", "--store", bucket)
    assert verified.returncode == 0, verified.stderr
    assert "0 damaged" in verified.stdout

    whole = stored(bucket)
    name = min(name for name in whole if re.search(r"gradients/[^/]*/[^/]*/gradients/c/0/0$", name))
    (bucket / name).write_whole(whole[name][:9] + bytes([whole[name][9] ^ 4]) + whole[name][10:])
    verified = dataworth("verify", "--store", bucket)
    assert "shard 0: its bytes changed; set aside" in verified.stdout
    assert "1 of" in sentence(verified, 1)
    again = dataworth("value", *given, *asked, "--store", bucket, "--results", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert (bucket / name).read_bytes() == whole[name]


def test_indexing_that_is_killed_goes_on(dataworth, stopped_dataworth, bucket, checkpoints, corpus_file, tmp_path):
    given = ("index", "--model", checkpoints["neox"], "--corpus", corpus_file, *OPTIONS, "--gradients.batch_tokens", 32)
    code, _, left = stopped_dataworth(*given, "--store", bucket, when="examples to compute", kind=signal.SIGKILL)
    assert (code, left) == (-signal.SIGKILL, [])
    for store in (bucket, tmp_path / "store"):
        finished = dataworth(*given, "--store", store)
        assert finished.returncode == 0, finished.stderr
    assert stored(bucket) == stored(tmp_path / "store")


def test_what_is_wrong_is_a_sentence(dataworth, bucket, checkpoints, corpus_file):
    given = ("index", "--model", checkpoints["neox"], "--corpus", corpus_file, *OPTIONS)
    told = sentence(dataworth(*given, "--store", "s3://no-such-bucket/x"), 2)
    assert told.startswith("dataworth: --store s3://no-such-bucket/x: ")
    assert "NoSuchBucket" in told
    assert "credentials come from" in sentence(dataworth(*given, "--store", f"s3://id:{SECRET}@bucket/x"), 2)
    assert "expected s3://bucket/prefix" in sentence(dataworth("verify", "--store", "s3:/bucket/x"), 2)
    assert "no such folder" in sentence(dataworth("verify", "--store", bucket / "nowhere"), 2)
    gone = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    assert "Connection refused" in sentence(dataworth(*given, "--store", bucket, environment=gone), 2)


def test_a_server_that_refuses_and_then_goes_away(dataworth, started_dataworth, bucket, checkpoints, corpus_file):
    with object_server() as address:
        environment = {"AWS_ENDPOINT_URL": address}
        place = f"s3://{new_bucket(address)}/x"
        with refusing(address):
            told = dataworth("verify", "--store", place, environment=environment)
            assert "InvalidAccessKeyId" in sentence(told, told.returncode)
        process, log, _ = started_dataworth(
            *("index", "--model", checkpoints["neox"], "--corpus", corpus_file, *OPTIONS),
            *("--store", place),
            environment=environment,
        )
        while process.poll() is None and "cut the corpus" not in log.read_text():
            time.sleep(0.02)
    assert process.wait(600) == 1, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("dataworth: s3://")
    assert "the same command goes on from there" in said
