"""Words and tables that the faces of a comparison of pixels share."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.core.pixel_report import ExpectedPixels, Pipeline, PixelReport
from ggufnorm.core.pixels import whose_model
from ggufnorm.report.text import halved, number, printable, sparkline

PIPELINE_COLUMNS = ("Pipeline", "Size", "Channel", "Mean", "Std", "Min", "Max", "Mean used",
                    "Std used", "Values")  # fmt: skip
PIPELINE_LEFT = ("Pipeline", "Channel", "Values")
PAIR_COLUMNS = ("Pipelines", "Rel L2", "Rest", "Difference")
PAIR_LEFT = ("Pipelines", "Difference")
_SURE = 0.02
"""Residual up to which a picture is said to be the one."""
CHANNELS = ("red", "green", "blue")


def expected_line(e: ExpectedPixels) -> str:
    """How pixels should be normalized, and who says so."""
    n = e.normalization
    of = f", the constants of {whose_model(e.owner)}" if e.owner else ""
    mean, std = (", ".join(f"{x:.6g}" for x in numbers) for numbers in (n.mean, n.std))
    scale = "level" if n.scale == 1 else f"level / {1 / n.scale:.6g}"
    return printable(f"({scale} - mean) / std with mean {mean} and std {std}{of} ({e.source})")


def pipeline_rows(p: Pipeline) -> Iterator[tuple[str, ...]]:
    """One row of :data:`PIPELINE_COLUMNS` for each channel."""
    n, height, width, _channels = p.shape
    size = f"{width}×{height}" + (f" ×{n}" if n > 1 else "")
    for c, channel in enumerate(CHANNELS):
        figures = (p.mean, p.std, p.minimum, p.maximum, p.mean_used, p.std_used)
        yield (
            "" if c else printable(p.name),
            "" if c else size,
            channel,
            *(number(None if f is None else f[c]) for f in figures),
            sparkline(halved(p.histogram[c])) if c < len(p.histogram) else "",
        )


def done_line(p: Pipeline) -> str:
    """What a pipeline did, in one line."""
    parts = [p.normalization]
    if p.residual is not None:
        parts.append(f"residual {number(p.residual)}")
    if p.picture is not None:
        known = p.picture_residual is not None and p.picture_residual < _SURE
        parts.append(f"picture {p.picture}" if known else f"picture most like {p.picture}")
    return printable(f"{p.name}: {'; '.join(parts)}")


def pair_rows(report: PixelReport) -> Iterator[tuple[str, ...]]:
    """One row of :data:`PAIR_COLUMNS` for each comparison."""
    for c in report.comparisons:
        yield (
            printable(f"{c.a}, {c.b}"),
            number(c.rel_l2),
            number(c.residual),
            printable(c.explanation),
        )


def model_line(report: PixelReport) -> str | None:
    """What the ONNX model takes."""
    m = report.model_input
    if m is None:
        return None
    return printable(f"ONNX: {m.name} takes {m.dtype}, {'×'.join(m.shape)} ({m.path})")
