"""What a type checker sees of the public API: mypy --strict checks this file, nothing runs it."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import assert_type

import ggufnorm
from ggufnorm.core.audit import AuditSet
from ggufnorm.core.model import InspectionSet
from ggufnorm.core.trace import TraceFacts

PATH = Path("model.gguf")


def files() -> None:
    assert_type(ggufnorm.inspect("m.gguf"), ggufnorm.Inspection)
    assert_type(ggufnorm.inspect(PATH, tensors=True), ggufnorm.Inspection)
    assert_type(ggufnorm.inspect(["m.gguf", "models"]), InspectionSet)
    assert_type(ggufnorm.inspect((PATH, "m.onnx")), InspectionSet)
    assert_type(ggufnorm.audit("m.gguf", source="hf://org/repo"), ggufnorm.AuditReport)
    assert_type(ggufnorm.audit([PATH], select=["N"]), AuditSet)
    assert_type(ggufnorm.diff(PATH, "b.gguf"), ggufnorm.DiffReport)


def runs() -> None:
    drift = ggufnorm.drift("a.gguf", PATH, chunks=1)
    assert_type(drift, ggufnorm.DriftReport)
    assert_type(ggufnorm.trace("hf:DIR", "out.safetensors", trust_remote_code=True), TraceFacts)
    compared = ggufnorm.compare("hf:DIR", PATH, "m.onnx", n_tokens=32)
    assert_type(compared, ggufnorm.DriftReport | ggufnorm.FrameworksReport)
    of_onnx = ggufnorm.drift_onnx("a.onnx", PATH, inputs="x.npz", chunks=1)
    assert_type(of_onnx, ggufnorm.OnnxDriftReport)
    across = ggufnorm.compare_frameworks("hf:DIR", ["m.gguf"])
    assert_type(across, ggufnorm.FrameworksReport)
    assert_type(ggufnorm.attribute("a.gguf", PATH, by="layer"), ggufnorm.AttributionReport)
    assert_type(ggufnorm.quants("a.gguf", [PATH, "b.gguf"]), ggufnorm.QuantsReport)
    assert_type(ggufnorm.recipe("a.gguf", PATH, max_growth=0.03), ggufnorm.RecipeReport)


def preprocessing() -> None:
    assert_type(ggufnorm.pixels(PATH, mmproj="mmproj.gguf"), ggufnorm.PixelReport)
    assert_type(ggufnorm.audio(PATH, mmproj="mmproj.gguf"), ggufnorm.AudioReport)


def mistakes() -> None:
    ggufnorm.inspect(7)  # type: ignore[call-overload]
    ggufnorm.drift("a.gguf")  # type: ignore[call-arg]
    ggufnorm.trace("m.gguf", "out", dtype="f64")  # type: ignore[arg-type]
