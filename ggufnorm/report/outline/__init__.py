"""Results as outlines: what Markdown, HTML and notebooks have in common.

A kind of result joins by one function, from the result to its :class:`Outline`.
"""

from __future__ import annotations

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
from ggufnorm.report.outline.attribute import attribution_outline
from ggufnorm.report.outline.audio import audio_outline
from ggufnorm.report.outline.audit import audit_outline, audit_set_outlines
from ggufnorm.report.outline.diff import diff_outline
from ggufnorm.report.outline.drift import drift_outline
from ggufnorm.report.outline.drift_set import drift_set_outline
from ggufnorm.report.outline.frameworks import frameworks_outlines
from ggufnorm.report.outline.inspect import inspect_outline
from ggufnorm.report.outline.parts import Outline, unread_outline
from ggufnorm.report.outline.pixels import pixel_outline
from ggufnorm.report.outline.recipe import recipe_outline


def outlines(result: Result) -> tuple[Outline, ...]:
    """A result as one outline, or as several, one after the other.

    Raises:
        TypeError: results of that kind have none.
    """
    if isinstance(result, Inspection):
        return (inspect_outline(result),)
    if isinstance(result, InspectionSet):
        return (*map(inspect_outline, result.models), *unread_outline(result.failed))
    if isinstance(result, DriftReport):
        return (drift_outline(result),)
    if isinstance(result, DriftSet):
        return (drift_set_outline(result),)
    if isinstance(result, DiffReport):
        return (diff_outline(result),)
    if isinstance(result, AuditReport):
        return (audit_outline(result),)
    if isinstance(result, AuditSet):
        return audit_set_outlines(result)
    if isinstance(result, AttributionReport):
        return (attribution_outline(result),)
    if isinstance(result, RecipeReport):
        return (recipe_outline(result),)
    if isinstance(result, FrameworksReport):
        return frameworks_outlines(result)
    if isinstance(result, PixelReport):
        return (pixel_outline(result),)
    if isinstance(result, AudioReport):
        return (audio_outline(result),)
    raise TypeError(f"no outline of {type(result).__name__}")
