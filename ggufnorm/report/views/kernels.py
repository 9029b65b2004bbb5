"""What a drift report says of two engines that ran one file."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.core.drift import DriftReport
from ggufnorm.core.engine import Circumstance, Engine, KernelError
from ggufnorm.report.formatting import counted, numeric
from ggufnorm.report.view import Column, Columns, Section, table

_KERNELS: Columns[KernelError] = (
    Column("Operation", lambda k: k.op, left=True),
    Column("Type", lambda k: k.dtype or "–", left=True),
    Column("Number", lambda k: numeric(k.n)),
    Column("NMSE", lambda k: numeric(k.nmse, 2)),
    Column("Allowed", lambda k: numeric(k.limit, 1)),
    Column("Largest at", lambda k: k.worst, left=True),
    Column("First beyond", lambda k: k.first or "–", left=True, priority=1),
)

_CIRCUMSTANCES: Columns[Circumstance] = (
    Column("Batches of", lambda c: numeric(c.batch)),
    Column("Watched", lambda c: "each operation" if c.alone else "as above", left=True),
    Column("Number", lambda c: numeric(c.n)),
    Column("First beyond", lambda c: c.op or "–", left=True),
    Column("Type", lambda c: c.dtype or "–", left=True),
    Column("At", lambda c: c.at or "–", left=True, priority=1),
    Column("NMSE", lambda c: numeric(c.nmse, 2)),
    Column("Logits", lambda c: numeric(c.watched, 2), priority=2),
    Column("Unwatched", lambda c: numeric(c.whole, 2), priority=2),
)


def kernel_sections(report: DriftReport) -> Iterator[Section]:
    """The kinds of operations, and the same in other batches."""
    if report.kernels:
        yield Section(
            "Kernels: one file in two engines, each operation given the reference's input, beside"
            " what llama.cpp's test-backend-ops allows",
            table=table(
                "kernels",
                _KERNELS,
                report.kernels,
                status=lambda k: "error" if k.first else "neutral",
            ),
        )
    if report.circumstances:
        yield Section(
            "The text's first tokens in other batches, and with each operation by itself; NMSE of"
            " logits where operations are watched, and where none is",
            table=table(
                "circumstances",
                _CIRCUMSTANCES,
                report.circumstances,
                status=lambda c: "error" if c.op else "neutral",
            ),
        )


def issue_text(report: DriftReport) -> str:
    """What can be pasted into an issue of llama.cpp, in Markdown.

    Nothing of it tells whose machine, file or text it was: no path, name, fingerprint or token.
    """
    run = report.run
    lines = ["### One file in two engines", "", report.verdict, ""]
    for name, engine in (("reference", run.engine_ref), ("under test", run.engine_quant)):
        lines.append(f"- {name}: {_engine(engine)}")
    lines += [
        f"- model: {report.quant.architecture}, {report.quant.file_type or 'type not stated'}",
        f"- options: {run.n_ctx} tokens a chunk, {counted(run.n_threads, 'thread')}, flash"
        f" attention {run.reference.flash_attention} and {run.quant.flash_attention}, K/V cache"
        f" {run.quant.cache_type_k}/{run.quant.cache_type_v}",
        "",
        "| operation | type | n | NMSE | allowed | first beyond |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {k.op} | {k.dtype or '–'} | {k.n} | {_number(k.nmse)} | {k.limit:g} |"
        f" {k.first or '–'} |"
        for k in report.kernels
    ]
    lines += [
        "",
        "| batches of | watched | first beyond | type | at | NMSE |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.batch} | {'each operation' if c.alone else 'as above'} | {c.op or '–'} |"
        f" {c.dtype or '–'} | {c.at or '–'} | {_number(c.nmse) if c.op else '–'} |"
        for c in report.circumstances
    ]
    lines += [
        "",
        "Each operation got the reference's input; NMSE as in test-backend-ops. By ggufnorm:",
        "`ggufnorm drift model.gguf model.gguf --ref-llama-cpp GOOD --llama-cpp BAD`",
        "",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "NaN or infinity" if value is None else f"{value:.2g}"


def _engine(engine: Engine | None) -> str:
    if engine is None:
        return "not llama.cpp"
    b = engine.build
    seen = dict.fromkeys(device.partition("[")[0] for device in engine.devices)  # no servers
    devices = ", ".join(seen) or "devices that were not seen"
    ggml = "" if b.ggml in b.name else f", {b.ggml}"
    return f"{b.name}{ggml}, libraries {b.digest[:12]}, on {devices}"
