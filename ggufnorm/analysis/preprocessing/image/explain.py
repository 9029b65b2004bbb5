"""One pipeline's pixels: which picture they show, and what was done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from ggufnorm.analysis.preprocessing.image.matching import Match, best_match, match_picture
from ggufnorm.analysis.preprocessing.pipelines import (
    BINS,
    Diagnosis,
    PipelineOutput,
    Values,
    is_finite,
    not_finite,
    optional_thumbnail,
)
from ggufnorm.core.feed import Explanation
from ggufnorm.core.pixel_report import Pipeline
from ggufnorm.core.pixels import (
    TOP_LEVEL,
    Affine,
    Normalization,
    Three,
    explain,
    explain_alone,
    fit,
)
from ggufnorm.core.tolerances import ROUNDED_PICTURE
from ggufnorm.engines.images import Levels, resizes

_LONGEST = 192
"""Pixels of a thumbnail's longer edge."""
_USUAL = 20
"""Ways to resize that a whole picture is told from its parts by."""


PixelDiagnosis = Diagnosis[Pipeline, Affine]


def diagnose_all(
    outputs: Sequence[PipelineOutput], levels: Levels | None, expected: Normalization
) -> list[PixelDiagnosis]:
    """Explain what each pipeline feeds.

    Of several pictures of the first pipeline the one is taken that shows all of the
    original, of the others the one that shows the same.

    Args:
        outputs: of at least one pipeline.
        levels: the original picture, None if there is none.
        expected: how pixels should be normalized.
    """
    first = outputs[0].inputs[_whole(outputs[0].inputs, levels)]
    return [_diagnose(o, _like(first, o.inputs), levels, expected) for o in outputs]


def _whole(pictures: Sequence[Values], levels: Levels | None) -> int:
    """Which of several shows all of the original, 0 if that cannot be told."""
    finite = [i for i, p in enumerate(pictures) if is_finite(p).all()]
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
    finite = [i for i in same if is_finite(others[i]).all() and is_finite(picture).all()]
    # A tile of one value is fitted by anything.
    varied = [i for i in finite if np.ptp(others[i], axis=(0, 1)).all()]
    return min(varied, key=lambda i: fit(picture, others[i]).residual, default=0)


def _diagnose(
    output: PipelineOutput, index: int, levels: Levels | None, expected: Normalization
) -> PixelDiagnosis:
    values = output.inputs[index]
    finite = is_finite(values)
    if not finite.all():
        explanation, how, how_far = not_finite(finite), None, None
    elif levels is None:
        explanation, how, how_far = explain_alone(values, expected), None, None
    else:
        explanation, how, how_far = _with_picture(output, index, levels, expected)
    mean, std = _used(explanation.transform)
    height, width, channels = values.shape
    pipeline = Pipeline(
        name=output.name,
        source=output.source,
        shape=(len(output.inputs), height, width, channels),
        mean=_numbers(values.mean((0, 1), np.float64)) if finite.all() else None,
        std=_numbers(values.std((0, 1), np.float64)) if finite.all() else None,
        minimum=_numbers(values.min((0, 1))) if finite.all() else None,
        maximum=_numbers(values.max((0, 1))) if finite.all() else None,
        histogram=_histogram(values) if finite.all() else (),
        picture=how,
        picture_residual=how_far,
        normalization=explanation.text,
        mistakes=explanation.mistakes,
        told=explanation.identified,
        mean_used=mean,
        std_used=std,
        residual=explanation.residual,
        thumbnail=_shown(values, expected) if finite.all() else None,
    )
    return Diagnosis(values, pipeline, explanation.transform)


def _with_picture(
    output: PipelineOutput, index: int, levels: Levels, expected: Normalization
) -> tuple[Explanation[Affine], str | None, float | None]:
    """What was done to levels, how they were resized, and how sure that is."""
    values = output.inputs[index]
    if output.levels is None:
        match = match_picture(levels, values)
        explanation = _explained(match, values, expected)
    else:
        before = output.levels[index]
        match = match_picture(levels, before)
        explanation = explain(before, values, expected)
    if explanation.identified:
        return explanation, str(match.resized), match.residual
    alone = explain_alone(values, expected)
    text = f"{alone.text}; {explanation.text}"
    mistakes, residual = alone.mistakes, explanation.residual
    both = Explanation(mistakes, text, alone.transform, residual, identified=bool(mistakes))
    return both, None, match.residual


def _explained(match: Match, values: Values, expected: Normalization) -> Explanation[Affine]:
    """The normalization; by means over blocks where the resize is not recognized."""
    whole = explain(*match.pair(values), expected)
    means = match.means(values) if match.residual > ROUNDED_PICTURE else None
    if means is None or not whole.identified or "constant" in whole.mistakes:
        return whole
    found = explain(*means, expected)
    if not found.identified or (found.residual or 0.0) > (whole.residual or 0.0):
        return whole
    return replace(found, residual=whole.residual)


def _shown(values: Values, expected: Normalization) -> str | None:
    """A thumbnail of the levels that the values stand for if they are as expected."""
    with np.errstate(over="ignore"):
        levels = np.clip(expected.affine.undo(values), 0, TOP_LEVEL)
    return optional_thumbnail(levels, _LONGEST)


def _used(affine: Affine | None) -> tuple[Three | None, Three | None]:
    """Mean and deviation of pixels from 0 to 1 that a function of levels comes to."""
    if affine is None or 0 in affine.gain:
        return None, None
    std = [1 / (gain * TOP_LEVEL) for gain in affine.gain]
    a, b, c = (-offset * s for offset, s in zip(affine.offset, std, strict=True))
    return (a, b, c), (std[0], std[1], std[2])


def _numbers(of_channels: Values) -> Three:
    red, green, blue = map(float, of_channels)
    return red, green, blue


def _histogram(values: Values) -> tuple[tuple[int, ...], ...]:
    channels = (values[..., c] for c in range(3))
    return tuple(tuple(np.histogram(c, bins=BINS)[0].tolist()) for c in channels)
