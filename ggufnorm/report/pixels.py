"""Words and tables of a comparison of pixels, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ggufnorm.core.pixel_report import ExpectedPixels, Pipeline, PixelReport
from ggufnorm.core.pixels import whose_model
from ggufnorm.report.markdown import escape, table
from ggufnorm.report.text import number, printable, sparkline

PIPELINE_COLUMNS = ("Pipeline", "Size", "", "Mean", "Std", "Min", "Max", "Mean used", "Std used",
                    "Values")  # fmt: skip
PIPELINE_LEFT = ("Pipeline", "", "Values")
PAIR_COLUMNS = ("Pipelines", "Rel L2", "Rest", "Difference")
PAIR_LEFT = ("Pipelines", "Difference")
_SURE = 0.02
"""Residual up to which a picture is said to be the one."""
_CHANNELS = ("red", "green", "blue")


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
    for c, channel in enumerate(_CHANNELS):
        figures = (p.mean, p.std, p.minimum, p.maximum, p.mean_used, p.std_used)
        yield (
            "" if c else p.name,
            "" if c else size,
            channel,
            *(number(None if f is None else f[c]) for f in figures),
            sparkline(_halved(p.histogram[c])) if p.histogram else "",
        )


def _halved(histogram: Sequence[int]) -> list[int]:
    """A histogram of half as many bins."""
    return [a + b for a, b in zip(histogram[::2], histogram[1::2], strict=True)]


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
        yield f"{c.a}, {c.b}", number(c.rel_l2), number(c.residual), printable(c.explanation)


def model_line(report: PixelReport) -> str | None:
    """What the ONNX model takes."""
    m = report.model_input
    if m is None:
        return None
    return printable(f"ONNX: {m.name} takes {m.dtype}, {'×'.join(m.shape)} ({m.path})")


def to_markdown(report: PixelReport) -> str:
    """Tables of the pipelines and their differences, and the findings."""
    return "\n".join(_markdown(report)) + "\n"


def _markdown(report: PixelReport) -> Iterator[str]:
    yield f"## Pixels of {escape(printable(report.image or report.pipelines[0].source))}"
    yield from ("", f"Expected: {escape(expected_line(report.expected))}", "")
    rows = (row for p in report.pipelines for row in pipeline_rows(p))
    yield from table(PIPELINE_COLUMNS, rows, left=PIPELINE_LEFT)
    yield ""
    yield from (f"- {escape(done_line(p))}" for p in report.pipelines)
    line = model_line(report)
    yield from [f"- {escape(line)}"] if line else []
    yield ""
    if report.comparisons:
        yield from table(PAIR_COLUMNS, pair_rows(report), left=PAIR_LEFT)
        yield ""
    yield from (f"- {f.severity}: {escape(printable(f.message))}" for f in report.findings)
    yield from [""] if report.findings else []
    yield escape(printable(report.verdict))
