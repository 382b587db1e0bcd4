"""The console script. Until it can be interrupted properly, only this module is imported."""

import os
import sys

__all__ = ["main"]

INTERRUPTED = b"dataworth: interrupted; what was finished is kept, the same command goes on from there\n"


def main() -> None:
    """Entry point; see dataworth.command.cli.main."""
    try:
        from dataworth.command.cli import main as command
        from dataworth.lifecycle.interrupts import interrupted, keep_quiet_from_now_on
    except KeyboardInterrupt:
        os.write(sys.stderr.fileno(), INTERRUPTED)
        os._exit(130)
    try:
        command()
    except SystemExit as ended:
        keep_quiet_from_now_on()
        if interrupted():  # in the middle of an import, say, a library's own end may abort the interpreter
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code if isinstance(ended.code, int) else 130)
        raise
