"""Jinja2's sandbox as chat templates expect it: the room of Jinja2 outside the reports."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TODAY = datetime(2026, 1, 15)
"""What ``strftime_now`` says: the same text every day, so that runs can be compared."""

Unknown = dict[tuple[str, int | None], None]
"""Names that were printed though they are not defined, and the lines where they were."""


def environment(unknown: Unknown) -> ImmutableSandboxedEnvironment:
    """A sandbox with what templates call.

    Args:
        unknown: gets the names that a template prints and that are not defined.
    """
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        undefined=_recording(unknown),
    )
    found.filters["tojson"] = _to_json
    found.globals["raise_exception"] = _raise
    found.globals["strftime_now"] = TODAY.strftime
    return found


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant says; here it says nothing."""

    tags = {"generation"}  # noqa: RUF012 (Jinja2's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between it and its end."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja2's own filter escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _recording(unknown: Unknown) -> type[Undefined]:
    """Jinja2's lenient undefined value, which says where it was printed."""

    class Recording(Undefined):
        def __str__(self) -> str:
            unknown.setdefault((self._undefined_name or "", _line()))
            return ""

    return Recording


def _line() -> int | None:
    """The line that the innermost template is at."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        template = frame.f_globals.get("__jinja_template__")
        if template is not None:
            return int(template.get_corresponding_lineno(frame.f_lineno))
        frame = frame.f_back
    return None
