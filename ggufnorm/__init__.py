"""ggufnorm: does a GGUF model still compute what its source computed, and if not, where?

    >>> import ggufnorm
    >>> report = ggufnorm.drift("model-f16.gguf", "model-Q4_K_M.gguf")  # doctest: +SKIP
    >>> report.logits.mean_kld, report.culprit                          # doctest: +SKIP

Names are imported when they are first used, so that ``import ggufnorm`` is quick and
works without llama.cpp.
"""

from ggufnorm import _search_path as _search_path  # before anything else is imported

# isort: split

from ggufnorm.core import result as _result
from ggufnorm.version import __version__ as __version__

TYPE_CHECKING = False  # a Ctrl-C while typing is imported would be a traceback
if TYPE_CHECKING:
    from typing import Any

    from ggufnorm.api import (
        attribute,
        audio,
        audit,
        audit_each,
        check,
        compare,
        compare_frameworks,
        diff,
        drift,
        drift_onnx,
        fix,
        inspect,
        pixels,
        quants,
        recipe,
        trace,
        verify,
    )
    from ggufnorm.core.attribution import AttributionReport
    from ggufnorm.core.audio_report import AudioReport
    from ggufnorm.core.audit import AuditReport, Finding
    from ggufnorm.core.check import CheckReport
    from ggufnorm.core.diff import DiffReport
    from ggufnorm.core.drift import DriftReport
    from ggufnorm.core.fix import FixReport
    from ggufnorm.core.frameworks import FrameworksReport
    from ggufnorm.core.model import Inspection, NormSite
    from ggufnorm.core.norms import group_norm, l2_norm, layer_norm, rms_norm
    from ggufnorm.core.onnx_drift import OnnxDriftReport
    from ggufnorm.core.pixel_report import PixelReport
    from ggufnorm.core.quants import QuantsReport
    from ggufnorm.core.recipe import RecipeReport
    from ggufnorm.core.verify import VerifyReport
    from ggufnorm.errors import EngineError, GGUFError, GgufnormError, InputError
    from ggufnorm.report.dataframe import to_dataframe
    from ggufnorm.report.formats import load, save
    from ggufnorm.report.notebook import to_fragment as to_fragment

__all__ = [
    "AttributionReport",
    "AudioReport",
    "AuditReport",
    "CheckReport",
    "DiffReport",
    "DriftReport",
    "EngineError",
    "Finding",
    "FixReport",
    "FrameworksReport",
    "GGUFError",
    "GgufnormError",
    "InputError",
    "Inspection",
    "NormSite",
    "OnnxDriftReport",
    "PixelReport",
    "QuantsReport",
    "RecipeReport",
    "VerifyReport",
    "attribute",
    "audio",
    "audit",
    "audit_each",
    "check",
    "compare",
    "compare_frameworks",
    "diff",
    "drift",
    "drift_onnx",
    "fix",
    "group_norm",
    "inspect",
    "l2_norm",
    "layer_norm",
    "load",
    "pixels",
    "quants",
    "recipe",
    "rms_norm",
    "save",
    "to_dataframe",
    "trace",
    "verify",
]

_HOMES = {
    "AttributionReport": "ggufnorm.core.attribution",
    "AudioReport": "ggufnorm.core.audio_report",
    "AuditReport": "ggufnorm.core.audit",
    "CheckReport": "ggufnorm.core.check",
    "DiffReport": "ggufnorm.core.diff",
    "DriftReport": "ggufnorm.core.drift",
    "EngineError": "ggufnorm.errors",
    "Finding": "ggufnorm.core.audit",
    "FixReport": "ggufnorm.core.fix",
    "FrameworksReport": "ggufnorm.core.frameworks",
    "GGUFError": "ggufnorm.errors",
    "GgufnormError": "ggufnorm.errors",
    "InputError": "ggufnorm.errors",
    "Inspection": "ggufnorm.core.model",
    "NormSite": "ggufnorm.core.model",
    "OnnxDriftReport": "ggufnorm.core.onnx_drift",
    "PixelReport": "ggufnorm.core.pixel_report",
    "QuantsReport": "ggufnorm.core.quants",
    "RecipeReport": "ggufnorm.core.recipe",
    "VerifyReport": "ggufnorm.core.verify",
    "attribute": "ggufnorm.api",
    "audio": "ggufnorm.api",
    "audit": "ggufnorm.api",
    "audit_each": "ggufnorm.api",
    "check": "ggufnorm.api",
    "compare": "ggufnorm.api",
    "compare_frameworks": "ggufnorm.api",
    "diff": "ggufnorm.api",
    "drift": "ggufnorm.api",
    "drift_onnx": "ggufnorm.api",
    "fix": "ggufnorm.api",
    "group_norm": "ggufnorm.core.norms",
    "inspect": "ggufnorm.api",
    "l2_norm": "ggufnorm.core.norms",
    "layer_norm": "ggufnorm.core.norms",
    "load": "ggufnorm.report.formats",
    "pixels": "ggufnorm.api",
    "quants": "ggufnorm.api",
    "recipe": "ggufnorm.api",
    "rms_norm": "ggufnorm.core.norms",
    "save": "ggufnorm.report.formats",
    "to_dataframe": "ggufnorm.report.dataframe",
    "to_fragment": "ggufnorm.report.notebook",
    "trace": "ggufnorm.api",
    "verify": "ggufnorm.api",
}


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


_result.register(__getattr__)
