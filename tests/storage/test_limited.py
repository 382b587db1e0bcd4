"""Programs under limits: what they take beyond them ends them, and is said in words."""

import signal
import sys
import time

import pytest

from dataworth.storage.limited import Ended, half_of_memory, limited_command, run_limited, sentence_of_end


def ended(tmp_path, program, seconds=60.0, **options):
    path = tmp_path / "program.py"
    path.write_text(program)
    return run_limited(limited_command(path, ["one", "two"], 2**28, **options), seconds, {"GIVEN": "value"})


def test_a_program_is_given_its_words_and_variables(tmp_path):
    found = ended(tmp_path, "import os, sys; print(__name__, sys.argv[1:], os.environ['GIVEN'])")
    assert found == Ended(0, "__main__ ['one', 'two'] value\n", "")


def test_no_module_beside_the_program_or_the_person_is_imported(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert ended(tmp_path, "import colorsys").code == 0


def test_memory_is_limited(tmp_path):
    found = ended(tmp_path, "bytearray(2**30)")
    assert found.code == 1
    assert sentence_of_end(found, 1) == "needs more memory than any should"


def test_time_is_limited(tmp_path):
    began = time.monotonic()
    found = ended(tmp_path, "import time; time.sleep(100)", 0.5)
    assert found.code is None
    assert time.monotonic() - began < 30
    assert sentence_of_end(found, 90) == "not done after 90 s"


def test_further_limits_are_set(tmp_path):
    program = f"open({str(tmp_path / 'out')!r}, 'wb').write(bytes(2**20))"
    assert ended(tmp_path, program, limits={"RLIMIT_FSIZE": 2**20}).code == 0
    found = ended(tmp_path, program, limits={"RLIMIT_FSIZE": 2**19})
    assert "File too large" in sentence_of_end(found, 1)


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (-signal.SIGABRT, "memory allocation of 9 bytes failed\nnote: more", "needs more memory than any should"),
        (-signal.SIGKILL, "", "needs more memory than any should"),
        (-signal.SIGSEGV, "", "the process that read it was ended by SIGSEGV"),
        (1, "first\nlast\nnote: run with more\n", "last"),
        (5, "", "the process that read it ended with code 5"),
    ],
)
def test_an_end_is_said_in_words(code, said, words):
    assert sentence_of_end(Ended(code, "", said), 1) == words


def test_half_of_memory_at_most():
    assert half_of_memory(1000) == 1000
    assert 2**28 < half_of_memory(2**60) < 2**50


def test_where_limits_are_unknown_the_program_runs(tmp_path):
    assert ended(tmp_path, "", limits={"RLIMIT_OF_NO_SYSTEM": 1}).code == 0
    assert sys.executable in limited_command(tmp_path, [], 1)
