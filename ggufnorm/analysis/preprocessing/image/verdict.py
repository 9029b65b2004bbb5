"""What is wrong with the pixels, and how grave that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggufnorm.analysis.preprocessing.findings import by_severity, pipeline_findings, summarize
from ggufnorm.core.audit import Severity
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.pixel_report import (
    ExpectedPixels,
    ModelInput,
    Pipeline,
    PixelComparison,
)
from ggufnorm.core.pixels import Normalization, whose_model
from ggufnorm.core.tolerances import SAME_LEVELS

MILD = frozenset({"alpha", "depth"})
"""Other pictures that are a warning: what is meant by transparent parts is not in the file."""


@dataclass(frozen=True)
class Evidence:
    """All that a judgement rests on.

    Attributes:
        expected: how pixels should be normalized.
        pipelines: what each feeds.
        comparisons: of pairs.
        model_input: what an ONNX model takes, None without one.
        of_file: the constants in the encoder's file, None without a file, or if it has none.
        turned: whether the picture was turned as its EXIF data say, for llama.cpp too.
        inside: what is wrong with what the ONNX model does to its pixels itself.
    """

    expected: ExpectedPixels
    pipelines: tuple[Pipeline, ...]
    comparisons: tuple[PixelComparison, ...]
    model_input: ModelInput | None
    of_file: Normalization | None
    turned: bool
    inside: tuple[FeedFinding, ...] = ()


def judge(evidence: Evidence) -> tuple[tuple[FeedFinding, ...], str]:
    """The findings, the most severe first, and all of it in a sentence."""
    found = [
        *_of_constants(evidence),
        *evidence.inside,
        *(f for p in evidence.pipelines for f in pipeline_findings(p, "processor-differs")),
        *(f for p in evidence.pipelines for f in _of_picture(p)),
        *(finding for c in evidence.comparisons for finding in _of_pair(c)),
        *_of_model(evidence),
        *_of_orientation(evidence),
    ]
    findings = by_severity(found)
    return findings, summarize(evidence.pipelines, findings, "pixels")


def _of_constants(evidence: Evidence) -> Iterator[FeedFinding]:
    here, expected = evidence.of_file, evidence.expected
    if here is not None and not here.comes_to(expected.normalization):
        message = (
            f"the encoder's file has {constants_in_words(here)}; expected"
            f" ({expected.source}): {constants_in_words(expected.normalization)}"
        )
        yield FeedFinding("error", "constants-differ", None, message)


def _of_picture(p: Pipeline) -> Iterator[FeedFinding]:
    for mistake in p.picture_mistakes:
        severity: Severity = "warning" if mistake in MILD else "error"
        yield FeedFinding(severity, mistake, p.name, f"{p.name}: the picture is {p.picture}")


def _of_pair(c: PixelComparison) -> Iterator[FeedFinding]:
    if c.rel_l2 is None:
        yield FeedFinding("warning", "pictures-differ", c.b, f"{c.a} and {c.b}: {c.explanation}")
    elif c.residual is not None and c.largest is not None and c.largest > SAME_LEVELS:
        message = (
            f"{c.a} and {c.b} show the model different pictures (relative L2 {c.residual:.3g}"
            f" if normalized alike): {c.explanation}"
        )
        yield FeedFinding("warning", "pictures-differ", c.b, message)


def _of_model(evidence: Evidence) -> Iterator[FeedFinding]:
    model = evidence.model_input
    if model is None:
        return
    if model.dtype not in ("float", "float16", "bfloat16"):
        message = f"{model.name} of the ONNX model takes {model.dtype}, pixels are float"
        yield FeedFinding("error", "model-input-type", None, message)
    for p in evidence.pipelines:
        _n, height, width, channels = p.shape
        layouts = ((channels, height, width), (height, width, channels))
        if not any(_fits(model.shape[1:], layout) for layout in layouts):
            message = (
                f"{p.name} feeds {channels} channels of {width}×{height}, {model.name} of the"
                f" ONNX model takes {'×'.join(model.shape)}"
            )
            yield FeedFinding("error", "model-input-shape", p.name, message)


def _fits(dimensions: tuple[str, ...], sizes: tuple[int, ...]) -> bool:
    """Whether all sizes are those of the model; what is no number, or 0, is any size."""
    return all(
        not d.isdecimal() or int(d) in (0, n) for d, n in zip(dimensions, sizes, strict=True)
    )


def _of_orientation(evidence: Evidence) -> Iterator[FeedFinding]:
    if evidence.turned:
        message = (
            "the picture's EXIF data turn it: Transformers' load_image does so, llama.cpp's own"
            " reader (stb_image) does not; here both got it turned"
        )
        yield FeedFinding("warning", "orientation", None, message)


def constants_in_words(n: Normalization) -> str:
    """Whose constants they are, and the constants."""
    of = f" ({whose_model(n.owner)})" if n.owner else ""
    mean, std = (", ".join(f"{x:.4g}" for x in numbers) for numbers in (n.mean, n.std))
    return f"mean {mean} and std {std}{of}"
