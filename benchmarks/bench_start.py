"""How fast the commands start, as whole processes.

    python -m benchmarks.bench_start

``ggufnorm --help`` against importing click; ``ggufnorm inspect`` of a file with a
vocabulary of 262,144 tokens against gguf-py's ``gguf-dump --no-tensors``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench_header import write_model

GGUFNORM = [sys.executable, "-c", "from ggufnorm.cli.main import main; main()"]
DUMP = [sys.executable, "-c", "from gguf.scripts.gguf_dump import main; main()", "--no-tensors"]


def timed(command: list[str], repetitions: int, bytecode: Path) -> float:
    """Median seconds of a whole process, its modules compiled as an installed package's are."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    taken = []
    for _ in range(repetitions + 1):  # the first one compiles
        started = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, bytecode = Path(folder) / "vocabulary.gguf", Path(folder) / "bytecode"
        write_model(path)
        click = timed([sys.executable, "-c", "import click"], 11, bytecode)
        numpy = timed([sys.executable, "-c", "import click, numpy"], 11, bytecode)
        start = timed([*GGUFNORM, "--help"], 11, bytecode)
        inspect = timed([*GGUFNORM, "inspect", str(path)], 11, bytecode)
        dump = timed([*DUMP, str(path)], 1, bytecode)
    print("| process | seconds | |")
    print("|---|---:|---|")
    print(f"| `python -c 'import click'` | {click:.3f} | |")
    print(f"| `python -c 'import click, numpy'` | {numpy:.3f} | |")
    print(f"| `ggufnorm --help` | {start:.3f} | {1000 * (start - click):+.0f} ms |")
    print(f"| `ggufnorm inspect`, 262,144 tokens | {inspect:.3f} | |")
    print(f"| `gguf-dump --no-tensors` of the same file | {dump:.1f} | × {dump / inspect:.0f} |")


if __name__ == "__main__":
    main()
