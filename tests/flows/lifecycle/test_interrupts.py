"""Ctrl-C at a moment when Python drops exceptions: it comes again."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from dataworth.lifecycle.interrupts import interrupted, tell_interrupts

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.2)

signal.signal(signal.SIGINT, signal.default_int_handler)
tell_interrupts()
made = Finalized()
try:
    del made
    for _ in range(6000):
        time.sleep(0.1)
except KeyboardInterrupt:
    print("ended", interrupted())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_in_a_finalizer_ends_the_program_all_the_same(name):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.stdout == "ended True\n", done.stderr
    assert "Exception ignored" not in done.stderr
