"""What a command does as a process: its standard streams, its signals, its faults."""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import click

from ggufnorm.core.printable import printable
from ggufnorm.errors import OutputError
from ggufnorm.version import __version__

DEBUG = "GGUFNORM_DEBUG"
"""An environment variable: 1 prints the traceback of an unexpected error."""


class Terminated(BaseException):
    """The process was told to end, by SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


# -- signals -----------------------------------------------------------------------------


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what runs by an exception, so that it clears up.

    A second signal cannot stop the clearing up. What is ignored (``nohup``) stays ignored.
    """
    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    former = {n: signal.getsignal(n) for n in numbers if n is not None}
    heeded = [n for n, handler in former.items() if handler is not signal.SIG_IGN]

    def end(number: int, _frame: FrameType | None) -> None:
        for n in heeded:
            signal.signal(n, signal.SIG_IGN)
        raise Terminated(number)

    for n in heeded:
        signal.signal(n, end)
    try:
        yield
    finally:
        for n in heeded:
            signal.signal(n, former[n])


# -- standard streams --------------------------------------------------------------------


class _Stream(io.FileIO):
    """A standard stream that remembers why it could not be written, and never raises.

    Attributes:
        failure: the first error, None as long as all went well. A reader that has seen
            enough (``| head``) is one of standard error's only.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return len(memoryview(data))


def mend_streams() -> None:
    """Make standard output and error streams that can be written whatever they are.

    One that is closed becomes one to which no byte can be written, so that no file that is
    opened later takes its number. Characters that an encoding lacks are replaced.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest free number is the one that is missing
            os.open(os.devnull, os.O_RDONLY)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and os.name == "posix"):
            setattr(sys, name, _mended(stream, number))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SIMPLER)


def _mended(stream: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
    if stream is not None:
        with suppress(OSError):
            stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(number, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors=_SIMPLER,
        line_buffering=number == 2 or bool(stream and stream.isatty()),
    )


def _failure(stream: object) -> OSError | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Stream) else None


def check_output() -> None:
    """Make sure that all that was printed has arrived.

    Raises:
        OutputError: standard output could not be written. A reader that had seen enough is
            no error.
    """
    with suppress(OSError):
        sys.stdout.flush()
    failure = _failure(sys.stdout)
    if failure is None or failure.errno == errno.EPIPE:
        return
    closed = failure.errno == errno.EBADF
    reason = "it is closed" if closed else failure.strerror
    raise OutputError(f"cannot write to standard output: {reason}")


def complain(text: str, **style: Any) -> None:
    """Say on standard error what went wrong, and if it is closed on standard output."""
    text = click.style(text, **style) if style else text
    click.echo(text, err=True)
    if _failure(sys.stderr) is not None:
        click.echo(text)


_SIMPLER = "ggufnorm.simpler"
_STAND_INS = str.maketrans(
    "▁▂▃▄▅▆▇█·–—…→✓✗×±Δ²√∞‖≤≥≈─│━┃═°µ",
    "12345678.--~>+!x+d2v8|<>~-|-|=ou",
)
"""Characters of reports, and what stands for them in cp1252, Latin-1 and ASCII; each one
character, so that columns stay."""


def _simpler(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: by a similar character, or else by its escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end].translate(_STAND_INS)
    return found.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(_SIMPLER, _simpler)


# -- faults ------------------------------------------------------------------------------


def fault(error: Exception) -> str:
    """An error that nobody foresaw, and what to report, in a few lines.

    The traceback is written to a temporary file, or is in the text if ``GGUFNORM_DEBUG=1``.
    """
    import platform  # only a fault needs these: they cost milliseconds at every start
    import traceback

    lines = traceback.format_exception(error)
    what = printable(f"{type(error).__name__}: {error}".rstrip(": "), 300)
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    said = [
        f"error: ggufnorm failed in a way that was not foreseen: {what}",
        f"  at {_place(error)}",
        "This is a fault of ggufnorm's, not a finding. Please report these lines with what"
        " `ggufnorm doctor` prints.",
        f"ggufnorm {__version__}, {system}",
    ]
    if os.environ.get(DEBUG) == "1":
        return "\n".join([*said, "", *lines]).rstrip()
    kept = _keep("".join(lines))
    where = f"The traceback is in {kept}" if kept else "No traceback could be kept"
    return "\n".join([*said, f"{where}; {DEBUG}=1 prints it."])


def _place(error: Exception) -> str:
    """The innermost line of ggufnorm's own."""
    import traceback
    from pathlib import Path

    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    own = [f for f in frames if Path(f.filename).is_relative_to(package)] or frames
    if not own:
        return "an unknown place"
    path = Path(own[-1].filename)
    name = path.relative_to(package.parent) if path.is_relative_to(package) else path
    return f"{name}, line {own[-1].lineno}, in {own[-1].name}"


def _keep(text: str) -> str | None:
    import tempfile

    try:
        number, path = tempfile.mkstemp(".txt", "ggufnorm-traceback-")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return None
    return path
