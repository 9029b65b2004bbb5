"""How processor time and memory grow with the text and with the model, over two decades of each.

    python -m benchmarks.bench_growth [--picture docs/images/growth.svg]

With the text: ``drift`` of the bundled sample against its own Q4_K_M, with the pinned replica, as
a whole process. With the model: random Llamas (:mod:`benchmarks.bench_drift`), one chunk of 512
tokens in lockstep beside plain decodes, and ``diff`` of the same two files. Processor time, which
other work on the machine hardly changes. Prints Markdown tables, with the power of size that time
grows with, and draws them.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ggufnorm
from benchmarks import bench_drift
from ggufnorm.engines import worker
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.samples import default_text, sample_model

CHUNK = 128
CHUNKS = (4, 13, 40, 126, 400)
MODELS = ((1, 256), (1, 512), (1, 1024), (3, 1024), (2, 2048))
"""Layers and width."""
N_VOCAB = 512


@dataclass(frozen=True)
class Point:
    """What a size takes.

    Attributes:
        size: tokens or weights.
        seconds: processor time, by what is done.
        memory: at its peak, in MB; None where that is not looked at.
    """

    size: int
    seconds: dict[str, float]
    memory: float | None = None


def by_tokens(folder: Path) -> list[Point]:
    """Drift runs of longer and longer texts."""
    quant = folder / "sample.gguf"
    quantize(sample_model(), quant, "Q4_K_M")
    found = []
    for chunks in CHUNKS:
        text = default_text() * (1 + chunks // 60)
        before = processor_time()
        report = ggufnorm.drift(sample_model(), quant, text=text, n_ctx=CHUNK, chunks=chunks)
        seconds = processor_time() - before
        tokens = report.run.n_chunks * CHUNK
        assert report.cost
        memory = (report.cost.peak_memory or 0) / 1e6
        found.append(Point(tokens, {"`drift`": seconds}, memory))
    return found


def processor_time() -> float:
    """Seconds that this process and those that it has waited for have computed."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def by_weights(folder: Path) -> list[Point]:
    """One chunk in larger and larger models."""
    found = []
    for layers, width in MODELS:
        reference, quant = folder / "f16.gguf", folder / "q4.gguf"
        n = bench_drift.write_model(reference, layers, width, 3 * width, N_VOCAB)
        quantize(reference, quant, "Q4_K_M")
        job = bench_drift.BenchJob(str(reference), str(quant), 2, 2, N_VOCAB)
        timings = worker.call(bench_drift.measure, job)
        plain = timings.cpu["plain_ref"] + 2 * timings.cpu["plain_quant"]
        found.append(
            Point(
                n,
                {
                    "`drift`, a chunk": timings.cpu["pinned"] / job.chunks,
                    "plain decodes": plain / job.chunks,
                    "`diff`": min(diffed(reference, quant) for _ in range(5)),
                },
            )
        )
    return found


def diffed(a: Path, b: Path) -> float:
    """Seconds of the processors that a comparison takes."""
    before = time.process_time()
    ggufnorm.diff(a, b)
    return time.process_time() - before


def power(points: Sequence[Point], name: str) -> float:
    """The exponent with which time grows from the second smallest size to the largest."""
    first, last = points[1], points[-1]
    return math.log(last.seconds[name] / first.seconds[name]) / math.log(last.size / first.size)


def show(title: str, unit: str, points: Sequence[Point]) -> None:
    """A table, and how each column grows."""
    names = list(points[0].seconds)
    has_memory = points[0].memory is not None
    print(f"\n{title}\n")
    heads = [unit, *(f"{n}, s" for n in names), *(["peak memory, MB"] if has_memory else [])]
    print(f"| {' | '.join(heads)} |\n|{'---:|' * len(heads)}")
    for p in points:
        cells = [f"{p.size:,}", *(f"{p.seconds[n]:.3g}" for n in names)]
        cells += [] if p.memory is None else [f"{p.memory:.0f}"]
        print(f"| {' | '.join(cells)} |")
    grows = ", ".join(f"{n} with the power {power(points, n):.2f}" for n in names)
    print(f"\nFrom the second size on time grows thus: {grows}.")


def picture(tokens: Sequence[Point], weights: Sequence[Point]) -> str:
    """Both as an SVG drawing."""
    from vl_convert import vegalite_to_svg

    def panel(title: str, x: str, y: str, rows: list[dict[str, Any]], flat: bool) -> dict[str, Any]:
        scale = {"type": "linear", "zero": True} if flat else {"type": "log"}
        return {
            "title": title, "width": 220, "height": 200, "data": {"values": rows},
            "mark": {"type": "line", "point": True},
            "encoding": {
                "x": {"field": "size", "type": "quantitative", "title": x,
                      "scale": {"type": "log"}, "axis": {"tickCount": 4, "format": "~s"}},
                "y": {"field": "value", "type": "quantitative", "title": y, "scale": scale},
                "color": {"field": "what", "type": "nominal", "title": None,
                          "legend": {"orient": "bottom", "columns": 1}},
            },
        }  # fmt: skip

    def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
        return [
            {"size": p.size, "value": seconds, "what": name.replace("`", "")}
            for p in points
            for name, seconds in p.seconds.items()
        ]

    memory = [{"size": p.size, "value": p.memory, "what": "drift"} for p in tokens]
    panels = [
        panel("Time with the text", "tokens", "processor time, s", rows(tokens), False),
        panel("Memory with the text", "tokens", "peak memory, MB", memory, True),
        panel("Time with the model", "weights", "processor time, s", rows(weights), False),
    ]
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "hconcat": panels, "background": "white",
        "resolve": {"scale": {"color": "independent"}},
    }  # fmt: skip
    return str(vegalite_to_svg(spec))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="where to draw it, as SVG")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ggufnorm-bench-") as folder:
        tokens, weights = by_tokens(Path(folder)), by_weights(Path(folder))
    show("With the text: a model of two million weights.", "tokens", tokens)
    show("With the model: a chunk of 512 tokens.", "weights", weights)
    if args.picture is not None:
        args.picture.write_text(picture(tokens, weights))


if __name__ == "__main__":
    main()
