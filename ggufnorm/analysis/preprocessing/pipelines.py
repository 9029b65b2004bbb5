"""What the pipelines that feed a model have in common, whatever they feed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.feed import Explanation
from ggufnorm.core.tolerances import SAME_FORMULA
from ggufnorm.engines.images import thumbnail
from ggufnorm.errors import MissingPackageError

Values = NDArray[np.floating]

BINS = 32
"""Of the histograms."""


class Pipeline(Protocol):
    """What is known of a pipeline."""

    @property
    def name(self) -> str:
        """``transformers``, ``numpy``, ``llama.cpp`` or ``array``."""

    @property
    def normalization(self) -> str:
        """What it did, in words."""

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Names of what is not as expected."""

    @property
    def told(self) -> bool:
        """Whether its values identify what it did."""


PipelineT = TypeVar("PipelineT", bound=Pipeline, covariant=True)
TransformT = TypeVar("TransformT", covariant=True)
ComparisonT = TypeVar("ComparisonT")
DiagnosisT = TypeVar("DiagnosisT")


@dataclass(frozen=True)
class PipelineOutput:
    """What a pipeline feeds.

    Attributes:
        name: the pipeline's.
        source: what decides what it does.
        inputs: of the model: ``(height, width, 3)`` or ``(mel bins, frames)`` each; more than
            one if the picture or the sound was cut.
        levels: a picture's inputs before they were scaled, None if they are not known.
        exchanged: whether it fed frames and mel bins, in that order.
    """

    name: str
    source: str
    inputs: Sequence[Values]
    levels: Sequence[Values] | None = None
    exchanged: bool = False


@dataclass(frozen=True)
class Diagnosis(Generic[PipelineT, TransformT]):
    """One input of a pipeline, explained.

    Attributes:
        values: of the input.
        pipeline: what is known of it.
        transform: what made the values, None if that is not known.
    """

    values: Values
    pipeline: PipelineT
    transform: TransformT | None


def is_finite(values: Values) -> NDArray[np.bool_]:
    """Of each value, as the float32 that a model gets."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))


def not_finite(finite: NDArray[np.bool_]) -> Explanation[Any]:
    """The explanation of an input of which not all values are finite."""
    text = f"{int((~finite).sum()):,} of {finite.size:,} values are NaN or infinite"
    return Explanation(("non-finite",), text, None, None)


def optional_thumbnail(pixels: NDArray[np.floating], longest: int) -> str | None:
    """A PNG in base64 of levels from 0 to 255; None if Pillow is not installed."""
    try:
        return thumbnail(np.round(pixels).astype(np.uint8), longest)
    except MissingPackageError:
        return None


def compare_with_first(
    diagnoses: Sequence[DiagnosisT], compare: Callable[[DiagnosisT, DiagnosisT], ComparisonT]
) -> tuple[ComparisonT, ...]:
    """The first pipeline beside each other one."""
    return tuple(compare(diagnoses[0], other) for other in diagnoses[1:])


def explain_difference(
    a: Diagnosis[Pipeline, Any],
    b: Diagnosis[Pipeline, Any],
    rel_l2: float | None,
    rest: Iterable[str],
    *,
    sizes: Iterable[str] = (),
    undefined: str,
) -> str:
    """What makes two pipelines' values differ, in words.

    Args:
        a: the first pipeline.
        b: the second.
        rel_l2: relative L2 distance of their values, None if it is undefined.
        rest: what else there is to say where the values differ.
        sizes: what there is to say of their sizes.
        undefined: why the values cannot be compared where ``rel_l2`` is None.
    """
    if rel_l2 is None:
        return f"they cannot be compared: values are not finite, or {undefined}"
    if rel_l2 <= SAME_FORMULA:
        return "; ".join([*sizes, "the same values"])
    mistakes = (
        f"{d.pipeline.name}: {d.pipeline.normalization}" for d in (a, b) if d.pipeline.mistakes
    )
    return "; ".join([*sizes, *mistakes, *rest])
