"""The kinds of results: one entry here for each, and nothing else chooses by type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ggufnorm.core.attribution import AttributionReport
from ggufnorm.core.audio_report import AudioReport
from ggufnorm.core.audit import AuditReport, AuditSet
from ggufnorm.core.check import CheckReport
from ggufnorm.core.diff import DiffReport
from ggufnorm.core.drift import DriftReport, DriftSet
from ggufnorm.core.fix import FixReport
from ggufnorm.core.frameworks import FrameworksReport
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.core.onnx_drift import OnnxDriftReport
from ggufnorm.core.pixel_report import PixelReport
from ggufnorm.core.recipe import RecipeReport
from ggufnorm.core.result import Result
from ggufnorm.report.html.charts.attribute import attribution_charts
from ggufnorm.report.html.charts.audio import audio_charts
from ggufnorm.report.html.charts.diff import diff_charts
from ggufnorm.report.html.charts.drift import drift_charts
from ggufnorm.report.html.charts.drift_set import drift_set_charts
from ggufnorm.report.html.charts.inspect import inspect_charts
from ggufnorm.report.html.charts.parts import Charts
from ggufnorm.report.html.charts.pixels import pixel_charts
from ggufnorm.report.html.charts.recipe import recipe_charts
from ggufnorm.report.view import Report
from ggufnorm.report.views.attribute import attribution_view
from ggufnorm.report.views.audio import audio_view
from ggufnorm.report.views.audit import audit_set_view, audit_view
from ggufnorm.report.views.check import check_view
from ggufnorm.report.views.diff import diff_view
from ggufnorm.report.views.drift import drift_view
from ggufnorm.report.views.drift_set import drift_set_view
from ggufnorm.report.views.fix import fix_view
from ggufnorm.report.views.frameworks import frameworks_view
from ggufnorm.report.views.inspect import inspection_set_view, inspection_view
from ggufnorm.report.views.onnx_drift import onnx_drift_view
from ggufnorm.report.views.pixels import pixel_view
from ggufnorm.report.views.recipe import recipe_view


@dataclass(frozen=True)
class Kind:
    """A kind of result.

    Attributes:
        name: of its document, the value of ``schema``.
        result: its type.
        view: what it says: a report, or several one after the other.
        main: the table that CSV and data frames hold unless another is asked for.
        charts: of each of its reports, by the names that their sections call them.
    """

    name: str
    result: type[Result]
    view: Callable[[Any], tuple[Report, ...]]
    main: str
    charts: Callable[[Any], tuple[Charts, ...]] = lambda _result: ()


def _one(charts: Callable[[Any], Charts]) -> Callable[[Any], tuple[Charts, ...]]:
    return lambda result: (charts(result),)


KINDS = (
    Kind("ggufnorm/inspect", Inspection, inspection_view, "norms", _one(inspect_charts)),
    Kind(
        "ggufnorm/inspect-set",
        InspectionSet,
        inspection_set_view,
        "norms",
        lambda result: tuple(map(inspect_charts, result.models)),
    ),
    Kind("ggufnorm/drift", DriftReport, drift_view, "operations", _one(drift_charts)),
    Kind("ggufnorm/drift-set", DriftSet, drift_set_view, "reports", _one(drift_set_charts)),
    Kind("ggufnorm/drift-onnx", OnnxDriftReport, onnx_drift_view, "operations"),
    Kind("ggufnorm/diff", DiffReport, diff_view, "tensors", _one(diff_charts)),
    Kind("ggufnorm/audit", AuditReport, audit_view, "findings"),
    Kind("ggufnorm/audit-set", AuditSet, audit_set_view, "findings"),
    Kind("ggufnorm/check", CheckReport, check_view, "suspects"),
    Kind("ggufnorm/fix", FixReport, fix_view, "mended"),
    Kind("ggufnorm/attribute", AttributionReport, attribution_view, "shares",
         _one(attribution_charts)),
    Kind("ggufnorm/recipe", RecipeReport, recipe_view, "choices", _one(recipe_charts)),
    Kind("ggufnorm/frameworks", FrameworksReport, frameworks_view, "sites"),
    Kind("ggufnorm/pixels", PixelReport, pixel_view, "pipelines", _one(pixel_charts)),
    Kind("ggufnorm/audio", AudioReport, audio_view, "pipelines", _one(audio_charts)),
)  # fmt: skip

BY_NAME = {kind.name: kind for kind in KINDS}
_BY_RESULT = {kind.result: kind for kind in KINDS}


def kind_of(result: Result) -> Kind:
    """The kind of a result.

    Raises:
        TypeError: it is none that can be shown.
    """
    kind = _BY_RESULT.get(type(result))
    if kind is None:
        raise TypeError(f"no view of {type(result).__name__}")
    return kind


def reports_of(result: Result) -> tuple[Report, ...]:
    """What a result says."""
    return kind_of(result).view(result)
