"""Two pipelines, value by value: what is the normalization's part of their difference?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufnorm.core.pixel_report import PixelComparison
from ggufnorm.imaging.look import Seen, Values

ROUNDING = 1e-5
"""Relative L2 distance of float32 computations of one formula, with room to spare."""


def compare(a: Seen, b: Seen) -> PixelComparison:
    """How far ``b`` is from ``a``, and how far when it is normalized as ``a`` is."""
    names = a.fed.name, b.fed.name
    if a.values.shape != b.values.shape:
        sizes = " and ".join(f"{w}×{h}" for h, w, _c in (a.values.shape, b.values.shape))
        return PixelComparison(
            *names, None, f"their pictures are of different sizes: {sizes}", None
        )
    rel_l2 = _distance(a.values, b.values)
    left = None
    if a.affine is not None and b.affine is not None and rel_l2 is not None:
        left = _distance(a.values, a.affine.apply(b.affine.undo(b.values)))
    return PixelComparison(*names, rel_l2, "; ".join(_differences(a, b, rel_l2, left)), left)


def _distance(a: Values, b: Values) -> float | None:
    size = float(np.linalg.norm(a.astype(np.float64)))
    error = float(np.linalg.norm(b.astype(np.float64) - a))
    return error / size if size and np.isfinite(error / size) else None


def _differences(a: Seen, b: Seen, rel_l2: float | None, left: float | None) -> Iterator[str]:
    if rel_l2 is None:
        yield "they cannot be compared: values are not finite, or all zero"
        return
    if rel_l2 <= ROUNDING:
        yield "the same values"
        return
    for seen in (a, b):
        if seen.pipeline.mistakes:
            yield f"{seen.fed.name}: {seen.pipeline.normalization}"
    if left is not None and left <= ROUNDING:
        yield "the picture itself is the same"
    elif a.pipeline.picture != b.pipeline.picture and b.pipeline.picture and a.pipeline.picture:
        yield (
            f"{a.fed.name} has the picture {a.pipeline.picture}, {b.fed.name} {b.pipeline.picture}"
        )
    else:
        yield "their pictures are resized or cropped in different ways"
