"""ggufnorm in processes of its own: what they print, exit with and import."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def ggufnorm(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ggufnorm.cli.main import main; main()"]
    command += [str(a) for a in arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@contextlib.contextmanager
def interruptible(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on beside the test and heeds SIGINT, killed in the end."""
    # A shell lets what it starts in the background ignore SIGINT, and Python keeps to that.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{heeding}; from ggufnorm.cli.main import main; main()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process: subprocess.Popen[bytes], when: Callable[[], bool] = lambda: True) -> str:
    """What a command prints on stderr when it has ended as one that Ctrl-C stopped.

    Args:
        process: the command.
        when: tells that it has come so far.
    """
    while not when() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    return stderr.decode()


def one_line_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


def loaded_after(statement: str) -> set[str]:
    """The modules and top-level packages that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.splitlines()[-1].split()
    return {*names, *(name.partition(".")[0] for name in names)}
