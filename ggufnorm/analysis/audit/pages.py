"""The rules' documentation, from their docstrings.

``python -m ggufnorm.analysis.audit.pages docs/rules`` writes it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ggufnorm.analysis.audit.registry import SECTIONS, Rule
from ggufnorm.analysis.audit.rules import FAMILIES, RULES


def page(rule: Rule) -> str:
    """A rule as a Markdown page."""
    return "\n\n".join(_parts(rule)) + "\n"


def _parts(rule: Rule) -> Iterator[str]:
    yield f"# {rule.id}: {rule.name}"
    yield f"**{rule.severity}**: {_markdown(rule.summary)}"
    sections = rule.sections
    for heading in SECTIONS:
        yield f"## {heading}"
        yield _markdown(sections[heading])


def index() -> str:
    """All rules as a Markdown page, family by family."""
    lines = [
        "# Rules of `ggufnorm audit`",
        "",
        "Made from the rules' docstrings by `python -m ggufnorm.analysis.audit.pages docs/rules`.",
    ]
    for letter, family in FAMILIES.items():
        rules = [r for r in RULES if r.id.startswith(letter)]
        if not rules:
            continue
        lines += ["", f"## {letter}: {family}", "", "| rule | severity | what is wrong |"]
        lines.append("|---|---|---|")
        lines += [
            f"| [{r.id} {r.name}]({file_name(r)}) | {r.severity} | {r.summary} |" for r in rules
        ]
    return "\n".join(lines) + "\n"


def _index_row(rule: Rule) -> str:
    return f"| [{rule.id} {rule.name}]({file_name(rule)}) | {rule.severity} | {rule.summary} |"


def file_name(rule: Rule) -> str:
    """The name of a rule's page."""
    return f"{rule.id}-{rule.name}.md"


def all_pages() -> dict[str, str]:
    """File name to text of the index and of every rule's page."""
    return {"README.md": index(), **{file_name(r): page(r) for r in RULES}}


def write_pages(folder: Path) -> None:
    """Write all pages, and remove those of rules that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = all_pages()
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def _markdown(text: str) -> str:
    """Literals as Markdown writes them, each on one line."""
    joined = re.sub(r"``(.+?)``", lambda m: " ".join(m[0].split()), text, flags=re.DOTALL)
    return joined.replace("``", "`")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
