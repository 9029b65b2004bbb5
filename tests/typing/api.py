"""Public functions as a type checker sees them: checked by ``make lint``, never run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import ggufnorm
from ggufnorm.core.model import NormKind

inspection = ggufnorm.inspect(Path("model.gguf"))
assert_type(inspection, ggufnorm.Inspection)
assert_type(inspection.norms[0], ggufnorm.NormSite)
assert_type(inspection.norms[0].kind, NormKind | None)
assert_type(inspection.norms[0].epsilon, float | None)

audited = ggufnorm.audit("model.gguf", source="hf:checkpoint", run=True)
assert_type(audited, ggufnorm.AuditReport)
assert_type(audited.findings[0], ggufnorm.Finding)

report = ggufnorm.drift("f16.gguf", "q4.gguf", n_ctx=512, chunks=4)
assert_type(report, ggufnorm.DriftReport)
assert_type(report.verdict, str)
if report.logits is not None:
    assert_type(report.logits.mean_kld, float | None)

assert_type(ggufnorm.diff("f16.gguf", "q4.gguf"), ggufnorm.DiffReport)
assert_type(ggufnorm.attribute("f16.gguf", "q4.gguf", budget=60.0), ggufnorm.AttributionReport)
assert_type(ggufnorm.recipe("f16.gguf", "q4.gguf", target_kld=0.01), ggufnorm.RecipeReport)
assert_type(ggufnorm.pixels("cat.png", mmproj="mmproj.gguf"), ggufnorm.PixelReport)
assert_type(ggufnorm.audio("dog.wav", mmproj="mmproj.gguf"), ggufnorm.AudioReport)

x = np.ones((2, 8), np.float32)
assert_type(ggufnorm.rms_norm(x, epsilon=1e-5), NDArray[np.float32])

report.save("report.json")
ggufnorm.save(report, Path("report.html"))
