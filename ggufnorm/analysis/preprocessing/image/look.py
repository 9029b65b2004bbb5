"""One pipeline's pixels: which picture they show, and what was done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.preprocessing.image.matching import best_match
from ggufnorm.core.pixel_report import Pipeline
from ggufnorm.core.pixels import (
    TOP_LEVEL,
    Affine,
    Explanation,
    Normalization,
    Three,
    explain,
    explain_alone,
    fit,
)
from ggufnorm.engines.images import Levels, resizes, thumbnail
from ggufnorm.errors import MissingPackageError

Values = NDArray[np.floating]

_BINS = 32
_LONGEST = 192
"""Pixels of a thumbnail's longer edge."""
_USUAL = 12
"""Ways to resize that a whole picture is told from its parts by."""


@dataclass(frozen=True)
class Fed:
    """What a pipeline feeds.

    Attributes:
        name: the pipeline's.
        source: what decides what it does.
        pictures: of ``(height, width, 3)`` each; more than one if the picture was cut.
        levels: the same before they were scaled, None if they are not known.
    """

    name: str
    source: str
    pictures: Sequence[Values]
    levels: Sequence[Values] | None = None


@dataclass(frozen=True)
class Seen:
    """A pipeline's picture, explained.

    Attributes:
        fed: the pipeline.
        values: of the picture looked at, ``(height, width, 3)``.
        pipeline: what is known of it.
        affine: what made the values of levels, None if that is not known.
    """

    fed: Fed
    values: Values
    pipeline: Pipeline
    affine: Affine | None


def look_at_all(fed: Sequence[Fed], levels: Levels | None, expected: Normalization) -> list[Seen]:
    """Explain what each pipeline feeds.

    Of several pictures of the first pipeline the one is taken that shows all of the
    original, of the others the one that shows the same.

    Args:
        fed: at least one pipeline.
        levels: the original picture, None if there is none.
        expected: how pixels should be normalized.
    """
    first = fed[0].pictures[_whole(fed[0].pictures, levels)]
    return [_look_at(f, _like(first, f.pictures), levels, expected) for f in fed]


def _whole(pictures: Sequence[Values], levels: Levels | None) -> int:
    """Which of several shows all of the original, 0 if that cannot be told."""
    finite = [i for i, p in enumerate(pictures) if _is_finite(p).all()]
    if levels is None or len(pictures) == 1:
        return 0

    def distance(i: int) -> float:
        height, width, _channels = pictures[i].shape
        usual = islice(resizes(levels, height, width), _USUAL)
        return best_match(usual, pictures[i]).residual

    return min(finite, key=distance, default=0)


def _like(picture: Values, others: Sequence[Values]) -> int:
    """Which of several shows the same part of the original, 0 if that cannot be told."""
    same = [i for i, o in enumerate(others) if o.shape == picture.shape]
    finite = [i for i in same if _is_finite(others[i]).all() and _is_finite(picture).all()]
    # A tile of one value is fitted by anything.
    varied = [i for i in finite if np.ptp(others[i], axis=(0, 1)).all()]
    return min(varied, key=lambda i: fit(picture, others[i]).residual, default=0)


def _look_at(fed: Fed, index: int, levels: Levels | None, expected: Normalization) -> Seen:
    values = fed.pictures[index]
    finite = _is_finite(values)
    if not finite.all():
        n = int((~finite).sum())
        text = f"{n:,} of {values.size:,} values are NaN or infinite"
        explanation, how, how_far = Explanation(("non-finite",), text, None, None), None, None
    elif levels is None:
        explanation, how, how_far = explain_alone(values, expected), None, None
    else:
        explanation, how, how_far = _with_picture(fed, index, levels, expected)
    mean, std = _used(explanation.affine)
    height, width, channels = values.shape
    pipeline = Pipeline(
        name=fed.name,
        source=fed.source,
        shape=(len(fed.pictures), height, width, channels),
        mean=_numbers(values.mean((0, 1), np.float64)) if finite.all() else None,
        std=_numbers(values.std((0, 1), np.float64)) if finite.all() else None,
        minimum=_numbers(values.min((0, 1))) if finite.all() else None,
        maximum=_numbers(values.max((0, 1))) if finite.all() else None,
        histogram=_histogram(values) if finite.all() else (),
        picture=how,
        picture_residual=how_far,
        normalization=explanation.text,
        mistakes=explanation.mistakes,
        told=explanation.told,
        mean_used=mean,
        std_used=std,
        residual=explanation.residual,
        thumbnail=_shown(values, expected) if finite.all() else None,
    )
    return Seen(fed, values, pipeline, explanation.affine)


def _with_picture(
    fed: Fed, index: int, levels: Levels, expected: Normalization
) -> tuple[Explanation, str | None, float | None]:
    """What was done to levels, how they were resized, and how sure that is."""
    values = fed.pictures[index]
    height, width, _channels = values.shape
    if fed.levels is None:
        match = best_match(resizes(levels, height, width), values)
        explanation = explain(*match.pair(values), expected)
    else:
        before = fed.levels[index]
        match = best_match(resizes(levels, height, width), before)
        explanation = explain(before, values, expected)
    if explanation.told:
        return explanation, str(match.resized), match.residual
    alone = explain_alone(values, expected)
    text = f"{alone.text}; {explanation.text}"
    return (
        Explanation(alone.mistakes, text, alone.affine, explanation.residual, bool(alone.mistakes)),
        None,
        match.residual,
    )


def _shown(values: Values, expected: Normalization) -> str | None:
    """A thumbnail of the levels that the values stand for if they are as expected."""
    with np.errstate(over="ignore"):
        levels = np.clip(expected.affine.undo(values), 0, TOP_LEVEL)
    try:
        return thumbnail(np.round(levels).astype(np.uint8), _LONGEST)
    except MissingPackageError:
        return None


def _used(affine: Affine | None) -> tuple[Three | None, Three | None]:
    """Mean and deviation of pixels from 0 to 1 that a function of levels comes to."""
    if affine is None or 0 in affine.gain:
        return None, None
    std = [1 / (gain * TOP_LEVEL) for gain in affine.gain]
    a, b, c = (-offset * s for offset, s in zip(affine.offset, std, strict=True))
    return (a, b, c), (std[0], std[1], std[2])


def _is_finite(values: Values) -> NDArray[np.bool_]:
    """Of each value, as the float32 that a model gets."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))


def _numbers(of_channels: Values) -> Three:
    red, green, blue = map(float, of_channels)
    return red, green, blue


def _histogram(values: Values) -> tuple[tuple[int, ...], ...]:
    channels = (values[..., c] for c in range(3))
    return tuple(tuple(np.histogram(c, bins=_BINS)[0].tolist()) for c in channels)
