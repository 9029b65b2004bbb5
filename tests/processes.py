"""ggufnorm in processes of its own: what they print, exit with and import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def ggufnorm(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ggufnorm.cli.main import main; main()"]
    command += [str(a) for a in arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


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
