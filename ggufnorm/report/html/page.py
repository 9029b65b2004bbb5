"""The page: the template filled, and its policy."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from ggufnorm.report.formatting import printable
from ggufnorm.report.html.charts.library import library
from ggufnorm.report.html.charts.parts import Charts
from ggufnorm.report.view import MARKS, Report
from ggufnorm.version import __version__


def to_html(reports: Sequence[Report], charts: Sequence[Charts]) -> str:
    """A page that needs no network.

    Names in it come from files: Jinja2 escapes them, and the page's security policy lets no
    script run but its own.

    Args:
        reports: one after the other.
        charts: of each, by the names that its sections call them; may be fewer.
    """
    parts: list[dict[str, Any]] = []
    data: dict[str, Any] = {"charts": {}, "datasets": {}}
    nothing = Charts({}, {})
    for n, report in enumerate(reports):
        drawn = charts[n] if n < len(charts) else nothing
        ids = {name: f"{name}-{n}" for name in drawn.charts}
        parts.append({"n": n, "report": report, "charts": drawn.charts, "ids": ids})
        data["charts"] |= {ids[name]: c.spec for name, c in drawn.charts.items()}
        data["datasets"][str(n)] = drawn.datasets
    bundle, script = _inline(library()), _inline(_text("page.js"))
    return _template().render(
        parts=parts,
        data=htmlsafe_json_dumps(data, dumps=_compact),
        style=Markup(_text("page.css")),
        library=Markup(bundle),
        script=Markup(script),
        policy=_policy(bundle, script),
        version=__version__,
        marks=MARKS,
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(_text("page.html.j2"))


def _shown(value: Any) -> Any:
    """Names from files without control characters; markup is the page's own."""
    return printable(value) if type(value) is str else value


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _text(name: str) -> str:
    return (files("ggufnorm.report.html") / name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """A script that may stand between script tags."""
    return script.replace("</script", r"<\/script").replace("<!--", r"\x3C!--")


def _policy(*scripts: str) -> str:
    """Nothing is loaded, and these scripts alone may run; Vega compiles its expressions."""
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval';"
        " style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
