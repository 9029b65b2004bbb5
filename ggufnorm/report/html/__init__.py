"""Results as one self-contained HTML file."""

from __future__ import annotations

from ggufnorm.core.result import Result
from ggufnorm.report.html.charts import charts_of, library
from ggufnorm.report.html.page import fill
from ggufnorm.report.outline import outlines


def to_html(result: Result) -> str:
    """A page that asks nothing of the network: style, script and data are in it.

    Its names come from files: Jinja2 escapes them, and the page's security policy lets no
    script run but its own.
    """
    return fill(outlines(result), charts_of(result), library())
