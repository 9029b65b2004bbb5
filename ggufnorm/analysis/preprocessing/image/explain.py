"""One pipeline's pixels: which picture they show, and what was done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ggufnorm.analysis.preprocessing.image.matching import (
    Match,
    best_match,
    match_picture,
    rough_match,
)
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
from ggufnorm.core.tolerances import (
    MUCH_NEARER,
    ROUNDED_PICTURE,
    UNRECOGNIZED_PICTURE,
)
from ggufnorm.engines.images import Levels, resizes
from ggufnorm.engines.takes import Take, takes_of

_LONGEST = 192
"""Pixels of a thumbnail's longer edge."""
_USUAL = 20
"""Ways to resize that a whole picture is told from its parts by."""


PixelDiagnosis = Diagnosis[Pipeline, Affine]


def diagnose_all(
    outputs: Sequence[PipelineOutput],
    levels: Levels | None,
    expected: Normalization,
    takes: Sequence[Take] = (),
) -> list[PixelDiagnosis]:
    """Explain what each pipeline feeds.

    Of several pictures of the first pipeline the one is taken that shows all of the
    original, of the others the one that shows the same.

    Args:
        outputs: of at least one pipeline.
        levels: the original picture, None if there is none.
        expected: how pixels should be normalized.
        takes: other pictures that a pipeline may have read out of the file.
    """
    first = outputs[0].inputs[_whole(outputs[0].inputs, levels)]
    return [_diagnose(o, _like(first, o.inputs), levels, expected, takes) for o in outputs]


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
    output: PipelineOutput,
    index: int,
    levels: Levels | None,
    expected: Normalization,
    takes: Sequence[Take],
) -> PixelDiagnosis:
    values = output.inputs[index]
    finite, shown = is_finite(values), _Shown()
    if not finite.all():
        explanation: Explanation[Affine] = not_finite(finite)
    elif levels is None:
        explanation = explain_alone(values, expected)
    else:
        explanation, shown = _with_picture(output, index, levels, expected, takes)
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
        picture=shown.text,
        picture_residual=shown.residual,
        normalization=explanation.text,
        mistakes=explanation.mistakes,
        told=explanation.identified,
        mean_used=mean,
        std_used=std,
        residual=explanation.residual,
        thumbnail=_thumbnail(values, expected) if finite.all() else None,
        picture_mistakes=shown.mistakes,
    )
    return Diagnosis(values, pipeline, explanation.transform)


@dataclass(frozen=True)
class _Shown:
    """Which picture values show.

    Attributes:
        text: how it was brought to its size, None if that is not known.
        residual: of the nearest picture known.
        mistakes: names of what is not as expected in it.
    """

    text: str | None = None
    residual: float | None = None
    mistakes: tuple[str, ...] = ()


def _with_picture(
    output: PipelineOutput,
    index: int,
    levels: Levels,
    expected: Normalization,
    takes: Sequence[Take],
) -> tuple[Explanation[Affine], _Shown]:
    """What was done to levels, and which picture they show."""
    values = output.inputs[index]
    before = values if output.levels is None else output.levels[index]
    match, take = _match(levels, before, takes)
    if output.levels is None:
        explanation = _explained(match, values, expected)
    else:
        explanation = explain(before, values, expected)
    if explanation.identified:
        text = str(match.resized)
        if take is None:
            return explanation, _Shown(text, match.residual)
        return explanation, _Shown(f"{take.text}; {text}", match.residual, (take.mistake,))
    alone = explain_alone(values, expected)
    text = f"{alone.text}; {explanation.text}"
    mistakes, residual = alone.mistakes, explanation.residual
    both = Explanation(mistakes, text, alone.transform, residual, identified=bool(mistakes))
    return both, _Shown(None, match.residual)


def _match(levels: Levels, values: Values, takes: Sequence[Take]) -> tuple[Match, Take | None]:
    """The picture that values show; another than the expected only if it is much nearer."""
    match = match_picture(levels, values)
    if match.residual <= UNRECOGNIZED_PICTURE:
        return match, None
    rough = [(rough_match(t.levels, values).residual, i, t) for i, t in
             enumerate((*takes, *takes_of(levels)))]  # fmt: skip
    residual, _i, take = min(rough)
    if residual >= MUCH_NEARER * match.residual:
        return match, None
    return match_picture(take.levels, values), take


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


def _thumbnail(values: Values, expected: Normalization) -> str | None:
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
