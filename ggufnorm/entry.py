"""The ``ggufnorm`` command: next to nothing is imported before a Ctrl-C is provided for."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit."""
    try:
        import signal

        from ggufnorm.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        run()
    finally:  # nothing is left to clear up: a Ctrl-C now just ends the process
        signal.signal(signal.SIGINT, signal.SIG_DFL)
