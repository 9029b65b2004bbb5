"""The view of a file that was made again."""

from __future__ import annotations

from pathlib import Path

from ggufnorm.core.verify import TensorProof, VerifyReport
from ggufnorm.report.formatting import counted, number
from ggufnorm.report.view import (
    Cell,
    Column,
    Columns,
    Report,
    Section,
    Sentence,
    Status,
    facts,
    table,
)
from ggufnorm.report.views.common import model_facts, sentences, skipped_section

_MOST = 8


def verify_view(report: VerifyReport) -> tuple[Report, ...]:
    """Whether it is what it is said to be, and the tensors that are not."""
    status: Status = "ok" if report.is_derived else "error"
    return (
        Report(
            f"{Path(report.quant.path).name} from {Path(report.source.path).name}",
            subject=report.quant.path,
            headline=_headline(report),
            status=status,
            verdict=(Sentence(report.verdict, status),),
            facts=Section("How it was made again", table=facts("how", _facts(report)), folded=True),
            sections=(
                Section(
                    f"Tensors: {len(report.tensors)}",
                    table=table(
                        "tensors", _COLUMNS, _worst_first(report), most=_MOST,
                        status=lambda t: "error" if t.outcome == "differs" else "neutral",
                    ),
                ),
                Section(
                    "Keys that differ",
                    sentences=sentences(
                        *(f"{d.key}: {d.a} in the source, {d.b} in the file"
                          for d in report.metadata)
                    ),
                    most=_MOST,
                ),
                skipped_section(report.skipped),
            ),
        ),
    )  # fmt: skip


def _worst_first(report: VerifyReport) -> tuple[TensorProof, ...]:
    return (*report.differing, *(t for t in report.tensors if t.outcome != "differs"))


def _headline(report: VerifyReport) -> str:
    if report.is_derived:
        return "Exactly what its source gives"
    n = len(report.differing)
    return f"{counted(n, 'tensor')} not what the source gives" if n else "Not all was made again"


def _facts(report: VerifyReport) -> list[tuple[str, str]]:
    return [
        *model_facts("source", report.source),
        *model_facts("file", report.quant),
        ("engine", report.engine),
        ("importance matrix", report.imatrix or "none"),
    ]


_COLUMNS: Columns[TensorProof] = (
    Column("Tensor", lambda t: t.tensor, left=True),
    Column("Type", lambda t: f"{t.dtype_from}→{t.dtype}", left=True, priority=1),
    Column("Outcome", lambda t: Cell(t.outcome, status=_status(t)), left=True),
    Column("Blocks", lambda t: Cell(f"{t.n_blocks:,}", t.n_blocks), priority=3),
    Column("Differing", lambda t: Cell(f"{t.n_differing:,}", t.n_differing)),
    Column("Row", lambda t: "" if t.first_row is None else Cell(str(t.first_row), t.first_row),
           priority=2),
    Column("Relative L2", lambda t: Cell(number(t.rel_l2), t.rel_l2)),
)  # fmt: skip


def _status(t: TensorProof) -> Status:
    return "error" if t.outcome == "differs" else "ok"
