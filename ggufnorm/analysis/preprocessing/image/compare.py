"""Two pipelines, value by value: what is the normalization's part of their difference?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufnorm.analysis.preprocessing.image.explain import PixelDiagnosis
from ggufnorm.analysis.preprocessing.pipelines import explain_difference
from ggufnorm.core.metrics import finite_relative_l2
from ggufnorm.core.pixel_report import PixelComparison
from ggufnorm.core.tolerances import SAME_LEVELS


def compare(a: PixelDiagnosis, b: PixelDiagnosis) -> PixelComparison:
    """How far ``b`` is from ``a``, and how far when it is normalized as ``a`` is."""
    names = a.pipeline.name, b.pipeline.name
    if a.values.shape != b.values.shape:
        sizes = " and ".join(f"{w}×{h}" for h, w, _c in (a.values.shape, b.values.shape))
        why = f"their pictures are of different sizes: {sizes}"
        return PixelComparison(*names, None, why, None, None)
    rel_l2 = finite_relative_l2(a.values, b.values)
    residual = largest = None
    if a.transform is not None and b.transform is not None and rel_l2 is not None:
        levels = b.transform.undo(b.values)
        residual = finite_relative_l2(a.values, a.transform.apply(levels))
        largest = float(np.abs(a.transform.undo(a.values) - levels).max())
    rest = _pictures_differ(a, b, largest)
    why = explain_difference(a, b, rel_l2, rest, undefined="all zero")
    return PixelComparison(*names, rel_l2, why, residual, largest)


def _pictures_differ(a: PixelDiagnosis, b: PixelDiagnosis, largest: float | None) -> Iterator[str]:
    ways = [d.pipeline.picture for d in (a, b)]
    if largest is not None and largest < SAME_LEVELS:
        yield f"their pictures differ by {largest:.1g} levels of 255 at most"
    elif ways[0] != ways[1] and all(ways):
        yield f"the picture is {ways[0]} in {a.pipeline.name}, {ways[1]} in {b.pipeline.name}"
    else:
        yield "their pictures are resized, cropped or padded in different ways"
