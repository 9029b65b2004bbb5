"""Outputs in pages are real: they are written by ``make outputs``, and compared by test_docs.py.

Above a block with an output stands ``<!-- output: N lines -->``: it holds the first N lines that
the command in the block before it prints, and an ellipsis if it prints more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_SHOWN = re.compile(
    r"(?P<before>^```(?:console|)\n(?:\$ )?(?P<line>ggufnorm [^\n]*)\n```\n+"
    r"<!-- output: (?P<n>\d+) lines -->\n```text\n)(?P<output>.*?)(?P<after>^```$)",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
_TOLERANCE = 0.05
"""Relative: kernels of another processor sum in another order."""


def shown_by(page: Path, line: str) -> Iterator[str]:
    """The outputs of a command that a page shows."""
    for found in _SHOWN.finditer(page.read_text(encoding="utf-8")):
        if found["line"] == line:
            yield found["output"]


def cut(output: str, n: int) -> str:
    """The first lines of an output, as a page shows them."""
    lines = [text.rstrip() for text in output.splitlines()]
    return "\n".join([*lines[:n], *(["…"] if len(lines) > n else [])]) + "\n"


def require_same(shown: str, output: str) -> None:
    """Hold that a page shows the first lines of an output; numbers may differ a little."""
    n = len(shown.splitlines()) - shown.endswith("…\n")
    real = cut(output, n)
    assert _NUMBER.sub("#", real) == _NUMBER.sub("#", shown), "run make outputs"
    for a, b in zip(_numbers(real), _numbers(shown), strict=True):
        assert abs(a - b) <= _TOLERANCE * max(abs(a), abs(b)), f"{a} is not {b}: run make outputs"


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def rewritten(text: str, printed: Callable[[str], str]) -> str:
    """A page with the outputs that its commands print now.

    Args:
        text: of the page.
        printed: what a command line prints.
    """

    def fresh(found: re.Match[str]) -> str:
        return found["before"] + cut(printed(found["line"]), int(found["n"])) + found["after"]

    return _SHOWN.sub(fresh, text)


def main() -> None:
    """Write the pages that are named, or all."""
    from tests.docs.test_docs import PAGES, a_folder, an_environment, run

    with a_folder() as folder, an_environment(folder) as environment:
        for page in map(Path, sys.argv[1:]) if sys.argv[1:] else PAGES:
            text = page.read_text(encoding="utf-8")
            made = rewritten(text, lambda line: run(line, folder, environment).stdout)
            if made != text:
                page.write_text(made, encoding="utf-8")
                print(f"wrote {page}")


if __name__ == "__main__":
    main()
