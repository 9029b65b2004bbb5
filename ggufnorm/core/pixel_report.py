"""What several pipelines feed an image model, compared, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.pixels import Normalization, Three
from ggufnorm.core.result import Result


@dataclass(frozen=True)
class ExpectedPixels:
    """How pixels should be normalized.

    Attributes:
        source: where that is taken from.
        owner: whose constants they are, None if that is not known.
        normalization: the formula and its constants.
    """

    source: str
    owner: str | None
    normalization: Normalization


@dataclass(frozen=True)
class Pipeline:
    """What one pipeline feeds its model.

    Attributes:
        name: ``transformers``, ``numpy``, ``llama.cpp`` or ``array``.
        source: the folder or file that decides what it does.
        shape: of all it feeds, ``(pictures, height, width, channels)``.
        mean: per channel, of the picture looked at; None if a value is not finite.
        std: the same.
        minimum: the same.
        maximum: the same.
        histogram: per channel, values counted in 32 bins from its minimum to its maximum.
        picture: how the picture was brought to its size, None if that is not known.
        picture_residual: relative L2 distance of the nearest picture known, normalized as
            well as can be, from the values.
        normalization: what was done to levels, in words.
        mistakes: names of what is not as expected.
        told: whether the values could tell how they were normalized.
        mean_used: the mean that it comes to, of pixels from 0 to 1; None if not known.
        std_used: the same of the standard deviation.
        residual: relative L2 distance of ``normalization``'s result from the values.
        thumbnail: the picture looked at as the expected normalization shows it, a PNG in
            base64 of 192 pixels at most on the longer edge: what a wrong pipeline feeds
            looks wrong. None if a value is not finite or Pillow is not installed.
        picture_mistakes: names of what is not as expected in the picture itself: not turned,
            mirrored, without its colours.
    """

    name: str
    source: str
    shape: tuple[int, int, int, int]
    mean: Three | None
    std: Three | None
    minimum: Three | None
    maximum: Three | None
    histogram: tuple[tuple[int, ...], ...]
    picture: str | None
    picture_residual: float | None
    normalization: str
    mistakes: tuple[str, ...]
    told: bool
    mean_used: Three | None
    std_used: Three | None
    residual: float | None
    thumbnail: str | None = None
    picture_mistakes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PixelComparison:
    """Two pipelines, value by value.

    Attributes:
        a: name of the first.
        b: name of the second.
        rel_l2: relative L2 distance of ``b`` from ``a``; None if their sizes differ.
        explanation: what makes the difference.
        residual: the same distance with ``b`` normalized as ``a`` is: what resizing,
            cropping and padding make of it. None if it cannot be told.
        largest: the largest difference of the two pictures before they were normalized,
            in levels of 255; None if it cannot be told.
    """

    a: str
    b: str
    rel_l2: float | None
    explanation: str
    residual: float | None
    largest: float | None


@dataclass(frozen=True)
class ModelInput:
    """An input of an ONNX model.

    Attributes:
        path: the file.
        name: of the input.
        dtype: ONNX's name of its type.
        shape: a number or a symbol for each dimension.
    """

    path: str
    name: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class PixelReport(Result):
    """How an image reaches a model in each pipeline.

    Attributes:
        image: the picture's path, None without one.
        expected: how pixels should be normalized.
        pipelines: each one's values, in figures.
        comparisons: of the first pipeline with each other.
        model_input: what the ONNX model takes, None without one.
        findings: the most severe first.
        verdict: all of it in one sentence.
    """

    image: str | None
    expected: ExpectedPixels
    pipelines: tuple[Pipeline, ...]
    comparisons: tuple[PixelComparison, ...]
    model_input: ModelInput | None
    findings: tuple[FeedFinding, ...]
    verdict: str
