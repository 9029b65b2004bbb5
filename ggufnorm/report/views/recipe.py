"""The view of a recipe: what to give llama-quantize, and what it is worth."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.recipe import Choice, RecipeReport, Trial
from ggufnorm.report.formatting import (
    counted,
    layer,
    megabytes,
    model_line,
    number,
    numeric,
    plus_minus,
    printable,
)
from ggufnorm.report.view import (
    Cell,
    Column,
    Columns,
    Figure,
    Report,
    Section,
    Sentence,
    facts,
    table,
)
from ggufnorm.report.views.common import engine_facts, skipped_section

_MOST_CHANGES = 20


def recipe_view(report: RecipeReport) -> tuple[Report, ...]:
    """Which types, how to get them, and what they are worth."""
    changed = [c for c in report.choices if c.dtype != c.dtype_quant]
    changed.sort(key=lambda c: c.bytes_quant - c.bytes)
    predicted = Trial("recipe, predicted", report.bytes, report.predicted_kld, None)
    trials = (report.measured_quant, predicted, report.measured, *report.uniform)
    return (
        Report(
            f"A recipe for {Path(report.reference.path).name}",
            subject=report.reference.path,
            headline=f"{megabytes(report.bytes, 2)} MB at {number(report.predicted_kld)} nats",
            figures=tuple(_figures(report, len(changed))),
            verdict=(Sentence(report.verdict),),
            facts=Section("Task", table=facts("task", _facts(report)), folded=True),
            sections=(
                Section(
                    f"{len(changed)} of {counted(len(report.choices), 'tensor')} get another type",
                    table=table("choices", _CHOICES, changed, most=_MOST_CHANGES),
                    folded=True,
                ),
                Section("For llama-quantize", code=tuple(_command(report))),
                Section(
                    "Files",
                    charts=("trials",),
                    table=table("trials", _TRIALS, [t for t in trials if t is not None]),
                ),
                skipped_section(report.skipped),
            ),
        ),
    )


def _figures(report: RecipeReport, n_changed: int) -> Iterator[Figure]:
    yield Figure("Predicted", f"{number(report.predicted_kld)} nats", "mean KL divergence")
    if report.measured is not None:
        value = plus_minus(report.measured.kld, report.measured.kld_se, 5)
        yield Figure("Measured", f"{value} nats", counted(report.n_tokens, "position"))
    yield Figure("Tensors of another type", f"{n_changed} of {len(report.choices)}")


def _facts(report: RecipeReport) -> Iterator[tuple[str, str]]:
    yield "reference", model_line(report.reference)
    yield "quant", model_line(report.quant)
    if report.max_bytes is not None:
        yield "goal", f"the least KL divergence in {megabytes(report.max_bytes, 2)} MB"
    else:
        yield "goal", f"the smallest file of {number(report.target_kld)} nats"
    yield "shares", f"measured in {', '.join(report.anchors)}, scaled to other types"
    yield "imatrix", report.imatrix or "none"
    yield from engine_facts(report.engine, report.engine)


_CHOICES: Columns[Choice] = (
    Column("Tensor", lambda c: c.tensor, left=True, least=25),
    Column("Layer", lambda c: layer(c.layer), priority=1),
    Column("Type", lambda c: f"{c.dtype_quant}→{c.dtype}", left=True),
    Column("Bytes", lambda c: Cell(f"{c.bytes - c.bytes_quant:+,}", c.bytes - c.bytes_quant)),
    Column("Cost", lambda c: numeric(c.kld)),
)

_TRIALS: Columns[Trial] = (
    Column("File", lambda t: t.name, left=True, least=25),
    Column("MB", lambda t: Cell(megabytes(t.bytes, 2), t.bytes / 1e6)),
    Column("KL divergence", lambda t: numeric(t.kld), short="KL"),
    Column("±", lambda t: numeric(t.kld_se, 2)),
)


def _command(report: RecipeReport) -> Iterator[str]:
    """A command line to paste, broken into lines."""
    yield "llama-quantize \\"
    if report.imatrix:
        name = "IMATRIX" if report.imatrix == "auto" else shlex.quote(printable(report.imatrix))
        yield f"  --imatrix {name} \\"
    for argument in report.arguments:
        yield f"  --tensor-type {shlex.quote(printable(argument))} \\"
    reference = shlex.quote(printable(report.reference.path))
    yield f"  {reference} OUT.gguf {printable(report.file_type)}"
