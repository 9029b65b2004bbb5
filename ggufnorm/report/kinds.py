"""The kinds of results: one entry here for each, and nothing else chooses by type.

A view, and what it imports, is loaded when a result of its kind is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ggufnorm.core.result import Result
from ggufnorm.report.view import Report

if TYPE_CHECKING:
    from ggufnorm.report.html.charts.parts import Charts


@dataclass(frozen=True)
class Kind:
    """A kind of result.

    Attributes:
        name: of its document, the value of ``schema``.
        result_at: its type, ``MODULE:NAME`` in :mod:`ggufnorm.core`.
        view_at: the function of what it says, in :mod:`ggufnorm.report.views`: a report, or
            several one after the other.
        main: the table that CSV and data frames hold unless another is asked for.
        charts_at: the function of its charts, by the names that its sections call them, in
            :mod:`ggufnorm.report.html.charts`, or of each of its reports'; empty for none.
        tables_at: the function of its tables in full, where its view leaves out some of many
            models; empty for the view.
    """

    name: str
    result_at: str
    view_at: str
    main: str
    charts_at: str = ""
    tables_at: str = ""

    @cached_property
    def result(self) -> type[Result]:
        """Its type."""
        found: type[Result] = _load("ggufnorm.core", self.result_at)
        return found

    @cached_property
    def view(self) -> Callable[[Any], tuple[Report, ...]]:
        """What a result says: a report, or several one after the other."""
        found: Callable[[Any], tuple[Report, ...]] = _load("ggufnorm.report.views", self.view_at)
        return found

    def tables(self, result: Result) -> tuple[Report, ...]:
        """What a result says, with all tables in full."""
        at = self.tables_at or self.view_at
        found: tuple[Report, ...] = _load("ggufnorm.report.views", at)(result)
        return found

    def charts(self, result: Result) -> tuple[Charts, ...]:
        """The charts of each of its reports."""
        if not self.charts_at:
            return ()
        found = _load("ggufnorm.report.html.charts", self.charts_at)(result)
        return found if isinstance(found, tuple) else (found,)


def _load(package: str, place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"{package}.{module}"), name)


KINDS = (
    Kind("ggufnorm/inspect", "model:Inspection", "inspect:inspection_view", "norms",
         "inspect:inspect_charts"),
    Kind("ggufnorm/inspect-set", "model:InspectionSet", "inspect:inspection_set_view", "norms",
         "inspect:inspection_set_charts"),
    Kind("ggufnorm/drift", "drift:DriftReport", "drift:drift_view", "operations",
         "drift:drift_charts"),
    Kind("ggufnorm/drift-set", "drift:DriftSet", "drift_set:drift_set_view", "reports",
         "drift_set:drift_set_charts"),
    Kind("ggufnorm/quants", "quants:QuantsReport", "quants:quants_view", "files",
         "quants:quants_charts"),
    Kind("ggufnorm/drift-onnx", "onnx_drift:OnnxDriftReport", "onnx_drift:onnx_drift_view",
         "operations"),
    Kind("ggufnorm/diff", "diff:DiffReport", "diff:diff_view", "tensors", "diff:diff_charts"),
    Kind("ggufnorm/audit", "audit:AuditReport", "audit:audit_view", "findings"),
    Kind("ggufnorm/audit-set", "audit:AuditSet", "audit:audit_set_view", "findings",
         tables_at="audit:audit_set_tables"),
    Kind("ggufnorm/check", "check:CheckReport", "check:check_view", "suspects"),
    Kind("ggufnorm/fix", "fix:FixReport", "fix:fix_view", "mended"),
    Kind("ggufnorm/attribute", "attribution:AttributionReport", "attribute:attribution_view",
         "shares", "attribute:attribution_charts"),
    Kind("ggufnorm/recipe", "recipe:RecipeReport", "recipe:recipe_view", "choices",
         "recipe:recipe_charts"),
    Kind("ggufnorm/verify", "verify:VerifyReport", "verify:verify_view", "tensors"),
    Kind("ggufnorm/frameworks", "frameworks:FrameworksReport", "frameworks:frameworks_view",
         "sites"),
    Kind("ggufnorm/pixels", "pixel_report:PixelReport", "pixels:pixel_view", "pipelines",
         "pixels:pixel_charts"),
    Kind("ggufnorm/audio", "audio_report:AudioReport", "audio:audio_view", "pipelines",
         "audio:audio_charts"),
)  # fmt: skip

BY_NAME = {kind.name: kind for kind in KINDS}
_BY_RESULT = {kind.result_at: kind for kind in KINDS}


def kind_of(result: Result) -> Kind:
    """The kind of a result.

    Raises:
        TypeError: it is none that can be shown.
    """
    made = type(result)
    place = f"{made.__module__.removeprefix('ggufnorm.core.')}:{made.__qualname__}"
    kind = _BY_RESULT.get(place)
    if kind is None:
        raise TypeError(f"no view of {made.__name__}")
    return kind


def reports_of(result: Result) -> tuple[Report, ...]:
    """What a result says."""
    return kind_of(result).view(result)
