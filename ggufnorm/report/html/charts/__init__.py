"""The charts of results, in Vega-Lite. The only room that knows the plotting library.

A kind of result joins by one function, from the result to its
:class:`~ggufnorm.report.html.charts.parts.Charts`.
"""

from __future__ import annotations

from functools import cache

import vl_convert

from ggufnorm.core.attribution import AttributionReport
from ggufnorm.core.audio_report import AudioReport
from ggufnorm.core.diff import DiffReport
from ggufnorm.core.drift import DriftReport, DriftSet
from ggufnorm.core.model import Inspection, InspectionSet
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


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def charts_of(result: Result) -> tuple[Charts, ...]:
    """The charts of each of a result's outlines, as far as they have any."""
    if isinstance(result, Inspection):
        return (inspect_charts(result),)
    if isinstance(result, InspectionSet):
        return tuple(map(inspect_charts, result.models))
    if isinstance(result, DriftReport):
        return (drift_charts(result),)
    if isinstance(result, DriftSet):
        return (drift_set_charts(result),)
    if isinstance(result, DiffReport):
        return (diff_charts(result),)
    if isinstance(result, AttributionReport):
        return (attribution_charts(result),)
    if isinstance(result, RecipeReport):
        return (recipe_charts(result),)
    if isinstance(result, PixelReport):
        return (pixel_charts(result),)
    if isinstance(result, AudioReport):
        return (audio_charts(result),)
    return ()
