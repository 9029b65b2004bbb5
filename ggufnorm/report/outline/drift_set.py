"""The outline of several drift reports."""

from __future__ import annotations

from pathlib import Path

from ggufnorm.core.drift import DriftSet
from ggufnorm.report.outline.drift import QUOTED_KLD, largest_errors, mood
from ggufnorm.report.outline.parts import Outline, Section, Table
from ggufnorm.report.text import counted, side_by_side_row


def drift_set_outline(result: DriftSet) -> Outline:
    """The models under test side by side, then what each report says."""
    reports = result.reports
    wrong = frozenset(i for i, r in enumerate(reports) if r.culprit is not None)
    table = Table(
        tuple(map(side_by_side_row, reports)), left=("Model", "By layer", "Culprit"), marked=wrong
    )
    notes = [f"Mean KL divergence of {QUOTED_KLD}."]
    if len({r.reference.fingerprint for r in reports}) > 1:
        notes.append("The references differ: figures of different references do not compare.")
    if len({(r.run.text, r.run.n_ctx, r.run.n_chunks) for r in reports}) > 1:
        notes.append("The runs differ in text, context or chunks: figures compare only roughly.")
    moods = {mood(r) for r in reports}
    return Outline(
        f"{counted(len(reports), 'model')} under test, side by side",
        headline=f"{len(wrong) or 'None'} of {len(reports)} out of line",
        mood="wrong" if wrong else "sound" if moods <= {"sound"} else "neutral",
        sections=(
            Section("", tuple(notes), ("depths",), table=table if reports else None),
            *(
                Section(Path(r.quant.path).name, (r.verdict, *errors.lines), table=errors.table)
                for r in reports
                for errors in [largest_errors(r)]
            ),
        ),
    )
