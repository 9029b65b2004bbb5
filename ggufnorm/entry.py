"""The ``ggufnorm`` command: next to nothing is imported before a Ctrl-C is provided for."""

from __future__ import annotations

import _thread
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def main() -> None:
    """Run the command line and exit."""
    sys.unraisablehook = _interrupt_again
    try:
        import signal

        from ggufnorm.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        run()
    finally:  # nothing is left to clear up: a Ctrl-C now just ends the process
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt_again(lost: UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that came where Python ignores exceptions.

    In a weak reference's callback, say, of which ``import`` makes some.
    """
    if issubclass(lost.exc_type, (Exception, GeneratorExit, SystemExit)):
        sys.__unraisablehook__(lost)
    else:
        _thread.start_new_thread(_interrupt_soon, ())


def _interrupt_soon() -> None:
    time.sleep(0.01)  # by then the callback has ended
    _thread.interrupt_main()
