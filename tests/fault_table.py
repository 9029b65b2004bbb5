"""The table of ``docs/faults.md``: what was tried on ggufnorm, and what became of it.

A test says what it tries with a decorator, and so stands in the table::

    @fault("Reading", "a named pipe for a model", then="refused in one line")
    @pytest.mark.parametrize(…)
    def test_…

``python -m tests.fault_table`` writes the table into the document.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

DOCUMENT = Path(__file__).parents[1] / "docs" / "faults.md"
_BEGIN, _END = "<!-- faults -->\n", "<!-- end of faults -->\n"
_IMPORT = "from tests.fault_table import "

Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        area: heading under which it stands.
        what: the input or the fault.
        then: what becomes of it.
        tried: how often; None for as often as the test's parameters say.
        test: that tries it. As it passes, all tries were survived.
    """

    area: str
    what: str
    then: str
    tried: int | None
    test: Callable[..., Any]

    @property
    def n(self) -> int:
        """How many inputs were tried."""
        if self.tried is not None:
            return self.tried
        n = 1
        for mark in getattr(self.test, "pytestmark", ()):
            if mark.name == "parametrize":
                n *= len(mark.args[1])
        return n


FAULTS: list[Fault] = []


def fault(area: str, what: str, *, then: str, tried: int | None = None) -> Callable[[Test], Test]:
    """Put a test into the table. Stands above ``pytest.mark.parametrize``."""

    def register(test: Test) -> Test:
        FAULTS.append(Fault(area, what, then, tried, test))
        return test

    return register


def table() -> str:
    """All rows, from the test modules that declare some."""
    root = Path(__file__).parent
    for path in sorted(root.rglob("test_*.py")):
        if _IMPORT in path.read_text(encoding="utf-8"):
            module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
            importlib.import_module(module)
    # By module and line: the order of imports depends on which tests run.
    ordered = sorted(FAULTS, key=lambda f: (f.test.__module__, f.test.__code__.co_firstlineno))
    faults = {(f.area, f.what): f for f in ordered}
    lines = []
    for area in sorted({f.area for f in faults.values()}):
        lines += [f"## {area}", "", "| Input or fault | Tried | Survived | What becomes of it |"]
        lines += ["|---|---:|---:|---|"]
        rows = [f for f in faults.values() if f.area == area]
        lines += [f"| {f.what} | {f.n:,} | {f.n:,} | {f.then} |" for f in rows]
        lines += [""]
    return "\n".join(lines)


def written() -> str:
    """The table that the document holds."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return text.partition(_BEGIN)[2].partition(_END)[0]


def main() -> None:
    """Write the table into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    DOCUMENT.write_text(
        before + _BEGIN + table() + _END + rest.partition(_END)[2], encoding="utf-8"
    )


if __name__ == "__main__":
    # By the module that the tests know, not by __main__.
    importlib.import_module("tests.fault_table").main()
