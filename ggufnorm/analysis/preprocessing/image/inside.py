"""What an ONNX model does to pixels itself, and what is left for a pipeline to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ggufnorm.analysis.preprocessing.image.explain import PixelDiagnosis
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.pixel_report import ExpectedPixels
from ggufnorm.core.pixels import TOP_LEVEL, Affine, Normalization, Three, whose_model
from ggufnorm.engines.onnx.front import Front, read_front
from ggufnorm.engines.onnx.model import OnnxModel

TWICE = "normalized-inside-and-outside"
_PLAIN = Affine((1.0,) * 3, (0.0,) * 3)


@dataclass(frozen=True)
class Inside:
    """What a model does to its pixels.

    Attributes:
        path: of the model.
        front: what it does.
        expected: what the pixels are to be inside, behind it.
        fed: what they are to be fed as.
    """

    path: str
    front: Front
    expected: Normalization
    fed: Normalization

    @property
    def findings(self) -> tuple[FeedFinding, ...]:
        """Constants of the model that are not the ones expected."""
        own = _own(self.front)
        if own is None or own.comes_to(self.expected):
            return ()
        whose = f"the constants of {whose_model(own.owner or '')}"
        message = f"{self.path} normalizes itself ({self.front}), with {whose}: not those expected"
        return (FeedFinding("error", "constants-differ", None, message),)

    def sources(self, expected: ExpectedPixels) -> ExpectedPixels:
        """What is expected of a pipeline, and why."""
        source = f"{expected.source}, of which {self.path} does itself: {self.front}"
        return ExpectedPixels(source, self.fed.owner, self.fed)

    def judged(
        self, outside: Sequence[PixelDiagnosis], fed: Sequence[PixelDiagnosis]
    ) -> list[PixelDiagnosis]:
        """Each pipeline's diagnosis: the array's by what the model is to be fed.

        Args:
            outside: by what is expected of pixels, whoever normalizes them.
            fed: by what the model is to be fed.
        """
        n = len(outside)
        # The array is what the model is fed; without one, what the pipelines make is.
        only = n if any(d.pipeline.name == "array" for d in outside) else -1
        return [
            d if only == n and d.pipeline.name != "array" else self._judged(d, f)
            for d, f in zip(outside, fed, strict=True)
        ]

    def _judged(self, outside: PixelDiagnosis, fed: PixelDiagnosis) -> PixelDiagnosis:
        pipeline = outside.pipeline
        if not fed.pipeline.mistakes or pipeline.mistakes or not pipeline.told:
            return fed
        text = f"normalized, though {self.path} does so itself ({self.front})"
        mistaken = replace(fed.pipeline, normalization=text, mistakes=(TWICE,))
        return replace(fed, pipeline=mistaken)


def look_inside(path: str | os.PathLike[str], expected: Normalization | None) -> Inside | None:
    """What a model does to its pixels; None if nothing, or if what it does cannot be made up for.

    Args:
        path: of the ONNX file.
        expected: how pixels should be normalized; None for what the model itself does, where
            those are known constants.

    Raises:
        InputError: the file cannot be read.
    """
    front = read_front(OnnxModel(path))
    if front is None or front.affine.order != _PLAIN.order:
        return None
    own = _own(front)
    if own is not None:
        wanted = expected or own
        return Inside(os.fspath(path), front, wanted, _levels(own.scale))
    if expected is None:
        return None
    return Inside(os.fspath(path), front, expected, _left(expected, front.affine))


def _own(front: Front) -> Normalization | None:
    """The whole normalization, where a model does that with known constants."""
    gain, offset = np.array(front.affine.gain), np.array(front.affine.offset)
    if not offset.any():
        return None  # a scale is what comes before a mean and a deviation
    std, mean = _three(1 / gain), _three(-offset / gain)
    for scale in (1.0, 1 / TOP_LEVEL):
        found = Normalization(mean, std, scale)
        if found.owner is not None:
            return found
    return None


def _levels(scale: float) -> Normalization:
    """Levels from 0 to 255, scaled and no more."""
    return Normalization((0.0,) * 3, _three(np.full(3, 1 / TOP_LEVEL / scale)))


def _left(expected: Normalization, inside: Affine) -> Normalization:
    """What is to be done before a model does its part."""
    whole = expected.affine
    gain = np.array(whole.gain) / inside.gain
    offset = (np.array(whole.offset) - inside.offset) / inside.gain
    std = 1 / (gain * TOP_LEVEL)
    return Normalization(_three(-offset * std), _three(std))


def _three(values: np.ndarray) -> Three:
    a, b, c = values.tolist()
    return a, b, c
