"""The console script. What is imported before it can be interrupted is this module alone."""

import os
import sys

__all__ = ["main"]

INTERRUPTED = b"dataworth: interrupted; what was finished is kept, the same command goes on from there\n"


def main() -> None:
    """Entry point; see flows.cli.main."""
    try:
        from flows.cli import main as command
        from flows.interrupts import keep_quiet_from_now_on
    except KeyboardInterrupt:
        os.write(sys.stderr.fileno(), INTERRUPTED)
        os._exit(130)
    try:
        command()
    finally:
        keep_quiet_from_now_on()
