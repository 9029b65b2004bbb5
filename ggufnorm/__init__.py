"""ggufnorm: does a GGUF model still compute what its source computed, and if not, where?

    >>> import ggufnorm
    >>> report = ggufnorm.drift("model-f16.gguf", "model-Q4_K_M.gguf")  # doctest: +SKIP
    >>> report.logits.mean_kld, report.culprit                          # doctest: +SKIP

Names are imported when they are first used, so that ``import ggufnorm`` is quick and
works without llama.cpp.
"""

from __future__ import annotations

from ggufnorm.version import __version__ as __version__

TYPE_CHECKING = False  # a Ctrl-C while typing is imported would be a traceback
if TYPE_CHECKING:
    from typing import Any

    from ggufnorm.analysis.attribution.recipe import recipe
    from ggufnorm.analysis.attribution.run import attribute
    from ggufnorm.analysis.audit.run import audit
    from ggufnorm.analysis.crosscheck.run import compare_frameworks
    from ggufnorm.analysis.diff.run import diff
    from ggufnorm.analysis.drift.run import drift
    from ggufnorm.analysis.inspection import inspect
    from ggufnorm.analysis.preprocessing.audio.run import audio
    from ggufnorm.analysis.preprocessing.image.run import pixels
    from ggufnorm.analysis.trace.run import compare, trace
    from ggufnorm.core.attribution import AttributionReport
    from ggufnorm.core.audio_report import AudioReport
    from ggufnorm.core.audit import AuditReport, Finding
    from ggufnorm.core.diff import DiffReport
    from ggufnorm.core.drift import DriftReport
    from ggufnorm.core.frameworks import FrameworksReport
    from ggufnorm.core.model import Inspection, NormSite
    from ggufnorm.core.norms import group_norm, l2_norm, layer_norm, rms_norm
    from ggufnorm.core.pixel_report import PixelReport
    from ggufnorm.core.recipe import RecipeReport
    from ggufnorm.errors import EngineError, GGUFError, GgufnormError, InputError
    from ggufnorm.report.faces import load, save
    from ggufnorm.report.fragment import to_fragment as to_fragment
    from ggufnorm.report.frames import to_dataframe

__all__ = [
    "AttributionReport",
    "AudioReport",
    "AuditReport",
    "DiffReport",
    "DriftReport",
    "EngineError",
    "Finding",
    "FrameworksReport",
    "GGUFError",
    "GgufnormError",
    "InputError",
    "Inspection",
    "NormSite",
    "PixelReport",
    "RecipeReport",
    "attribute",
    "audio",
    "audit",
    "compare",
    "compare_frameworks",
    "diff",
    "drift",
    "group_norm",
    "inspect",
    "l2_norm",
    "layer_norm",
    "load",
    "pixels",
    "recipe",
    "rms_norm",
    "save",
    "to_dataframe",
    "trace",
]

_HOMES = {
    "AttributionReport": "ggufnorm.core.attribution",
    "AudioReport": "ggufnorm.core.audio_report",
    "AuditReport": "ggufnorm.core.audit",
    "DiffReport": "ggufnorm.core.diff",
    "DriftReport": "ggufnorm.core.drift",
    "EngineError": "ggufnorm.errors",
    "Finding": "ggufnorm.core.audit",
    "FrameworksReport": "ggufnorm.core.frameworks",
    "GGUFError": "ggufnorm.errors",
    "GgufnormError": "ggufnorm.errors",
    "InputError": "ggufnorm.errors",
    "Inspection": "ggufnorm.core.model",
    "NormSite": "ggufnorm.core.model",
    "PixelReport": "ggufnorm.core.pixel_report",
    "RecipeReport": "ggufnorm.core.recipe",
    "attribute": "ggufnorm.analysis.attribution.run",
    "audio": "ggufnorm.analysis.preprocessing.audio.run",
    "audit": "ggufnorm.analysis.audit.run",
    "compare": "ggufnorm.analysis.trace.run",
    "compare_frameworks": "ggufnorm.analysis.crosscheck.run",
    "diff": "ggufnorm.analysis.diff.run",
    "drift": "ggufnorm.analysis.drift.run",
    "group_norm": "ggufnorm.core.norms",
    "inspect": "ggufnorm.analysis.inspection",
    "l2_norm": "ggufnorm.core.norms",
    "layer_norm": "ggufnorm.core.norms",
    "load": "ggufnorm.report.faces",
    "pixels": "ggufnorm.analysis.preprocessing.image.run",
    "recipe": "ggufnorm.analysis.attribution.recipe",
    "rms_norm": "ggufnorm.core.norms",
    "save": "ggufnorm.report.faces",
    "to_dataframe": "ggufnorm.report.frames",
    "to_fragment": "ggufnorm.report.fragment",
    "trace": "ggufnorm.analysis.trace.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
