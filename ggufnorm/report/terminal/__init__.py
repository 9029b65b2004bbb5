"""Results as text for a terminal. The only room that knows rich."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console, RenderableType

from ggufnorm.core.attribution import AttributionReport
from ggufnorm.core.audio_report import AudioReport
from ggufnorm.core.audit import AuditReport, AuditSet
from ggufnorm.core.diff import DiffReport
from ggufnorm.core.drift import DriftReport, DriftSet
from ggufnorm.core.frameworks import FrameworksReport
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.core.pixel_report import PixelReport
from ggufnorm.core.recipe import RecipeReport
from ggufnorm.core.result import Result
from ggufnorm.report.terminal.attribute import attribution_parts
from ggufnorm.report.terminal.audio import audio_parts
from ggufnorm.report.terminal.audit import audit_parts, audit_set_parts
from ggufnorm.report.terminal.diff import diff_parts
from ggufnorm.report.terminal.drift import drift_parts, drift_set_parts
from ggufnorm.report.terminal.frameworks import frameworks_parts
from ggufnorm.report.terminal.inspect import inspection_parts
from ggufnorm.report.terminal.pixels import pixel_parts
from ggufnorm.report.terminal.recipe import recipe_parts
from ggufnorm.report.text import number, printable

__all__ = ["WIDTH", "number", "printable", "render"]

WIDTH = 100
"""Columns when the output is not a terminal."""


def render(result: Result, *, width: int = WIDTH, color: bool = False) -> str:
    """A result as text.

    Args:
        result: what to show.
        width: columns to keep to.
        color: whether to colour with ANSI escapes.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
    )
    for part in _parts(result, width):
        console.print(part)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _parts(result: Result, width: int) -> Iterable[RenderableType]:
    if isinstance(result, Inspection):
        yield from inspection_parts(result, width)
    elif isinstance(result, InspectionSet):
        for i, model in enumerate(result.models):
            if i:
                yield ""
            yield from inspection_parts(model, width)
    elif isinstance(result, DriftReport):
        yield from drift_parts(result, width)
    elif isinstance(result, DriftSet):
        yield from drift_set_parts(result, width)
    elif isinstance(result, DiffReport):
        yield from diff_parts(result, width)
    elif isinstance(result, AttributionReport):
        yield from attribution_parts(result, width)
    elif isinstance(result, RecipeReport):
        yield from recipe_parts(result)
    elif isinstance(result, PixelReport):
        yield from pixel_parts(result)
    elif isinstance(result, AudioReport):
        yield from audio_parts(result)
    elif isinstance(result, AuditReport):
        yield from audit_parts(result)
    elif isinstance(result, AuditSet):
        yield from audit_set_parts(result)
    elif isinstance(result, FrameworksReport):
        yield from frameworks_parts(result)
