"""Nothing is said of right conversions: every network, every type, beside its source.

::

    python -m tests.frameworks.right_conversions LLAMA_CPP FOLDER [NAME …]

makes a tiny checkpoint of each text network that Transformers and llama.cpp's converter share
(:mod:`tests.right_checkpoints`), lets the converter in ``LLAMA_CPP`` convert it to F32, F16, BF16
and Q8_0, llama.cpp quantize it to Q4_K_M, and runs ``audit --source``, ``check --source`` and
``compare`` on each file. All of it stays in ``FOLDER``, and a second call does what is missing.
Prints what was said, and the table of docs/detection-audit.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import ggufnorm
from ggufnorm.analysis.crosscheck import run as crosscheck
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.verbs import files
from tests import converted_checkpoints, in_process
from tests.converted_checkpoints import DONE
from tests.right_checkpoints import DIFFERENT

TYPES = (*converted_checkpoints.TYPES, "Q4_K_M")
HEADS = ("errors", "warnings", "culprits", "refused", "crashed")
_NOT_ASKED = (
    "compare the file's digest", "compare its keys with a better quant's",
    "compare its encoder's width with its own", "run it with your cache types beside f16",
    "run it beside a better quant",
)  # fmt: skip
"""Steps of ``check`` for which nothing is at hand here."""
_ENDED = json.dumps({"crashed": ["the process ended"]})
"""Of a file in which llama.cpp ended the process: the next call judges it in a child."""
TEXT = (
    "The rain in Spain stays mainly in the plain, and so it is said to be in the end. "
    "She sold 1,250 sea shells by the sea shore in 1998; he didn't, they've had none. "
)


@contextmanager
def _remembered(module: Any, name: str) -> Iterator[list[Any]]:
    """What a function of a module returns while this lasts."""
    function, returned = getattr(module, name), []

    def remembering(*args: Any, **kwargs: Any) -> Any:
        returned.append(function(*args, **kwargs))
        return returned[-1]

    with mock.patch.object(module, name, remembering):
        yield returned


def _said(source: Path, file: Path, *, apart: bool = False) -> dict[str, Any]:
    """What is said of a file: ``check`` runs every rule beside the source, and ``compare``.

    Args:
        source: the checkpoint.
        file: to judge.
        apart: run llama.cpp in children, as the commands do; it takes longer.
    """
    engine = nullcontext() if apart else in_process.engine()
    with engine, _remembered(files, "audit") as audits, \
         _remembered(crosscheck, "compare_frameworks") as compared:  # fmt: skip
        checked = ggufnorm.check(
            file, source=source, text=TEXT, n_threads=1, check_memory=False, go_on=True
        )
    findings = {f"{f.rule} {f.message}": f.severity for report in audits for f in report.findings}
    blamed = [c.verdict for report in compared for c in report.comparisons if c.first_wrong]
    accused = [s for s in checked.suspects if s.state in ("guilty", "probable")]
    return {
        "errors": [f for f, severity in findings.items() if severity == "error"],
        "warnings": [f for f, severity in findings.items() if severity == "warning"],
        "culprits": blamed + [f"{s.name} {s.state}: {s.sentence}" for s in accused],
        "refused": [f"{s.name}: {s.skipped}" for s in checked.steps
                    if s.skipped and s.name not in _NOT_ASKED],
        "verdict": [c.verdict for report in compared for c in report.comparisons],
        "answer": checked.answer,
    }  # fmt: skip


def judge(folder: Path, names: Iterable[str], types: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What is said of each file; kept beside it, and not asked twice."""
    for name, kind in product(names, types):
        here = folder / name
        file, kept = here / f"{kind}.gguf", here / f"{kind}.json"
        ended = kept.exists() and kept.read_text(encoding="utf-8") == _ENDED
        if ended or not kept.exists():
            kept.write_text(_ENDED, encoding="utf-8")
            try:
                if not file.exists():
                    quantize(here / "F32.gguf", file, kind, n_threads=1)
                said = _said(here / "hf", file, apart=ended)
            except KeyboardInterrupt:
                kept.unlink()
                raise
            except Exception:  # a fault of the package is a result, too
                said = {"crashed": [traceback.format_exc()]}
            kept.write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")
        yield {"name": name, "type": kind, **json.loads(kept.read_text(encoding="utf-8"))}


def table(said: list[dict[str, Any]]) -> str:
    """By type: files, of how many something was said, and files that truly differ."""
    lines = [f"| type | files | {' | '.join(HEADS)} | not as their source | named so |",
             "|---|" + "---:|" * (len(HEADS) + 3)]  # fmt: skip
    for kind in TYPES:
        rows = [s for s in said if s["type"] == kind]
        right = [s for s in rows if s["name"] not in DIFFERENT]
        others = [s for s in rows if s["name"] in DIFFERENT]
        named = sum(bool(s.get("errors") or s.get("warnings") or s.get("culprits")) for s in others)
        counts = [sum(bool(s.get(head)) for s in right) for head in HEADS]
        cells = map(str, (len(right), *counts, len(others), named))
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, judge it, print what was said and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    given = parser.parse_args()
    words = [sys.executable, "-m", "tests.converted_checkpoints", given.llama_cpp, given.folder]
    subprocess.run([*words, *given.names], check=True)
    made = {
        p.parent.name: json.loads(p.read_text()) for p in sorted(given.folder.glob(f"*/{DONE}"))
    }
    wanted = [n for n in made if not given.names or n in given.names]
    right = [n for n in wanted if not made[n]["failed"]]
    said = []
    for one in judge(given.folder, right, given.types):
        said.append(one)
        for what in HEADS:
            for line in one.get(what, []):
                print(f"{one['name']} {one['type']}: {what}: {line}", flush=True)
    for name in wanted:
        if made[name]["failed"]:
            print(f"{name}: {made[name]['failed']}")
    print(f"\n{len(right)} networks\n\n{table(said)}")


if __name__ == "__main__":
    main()
