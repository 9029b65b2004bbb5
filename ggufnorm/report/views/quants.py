"""The view of several files beside one reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.quants import TOLD_APART, Contrast, QuantFile, QuantsReport
from ggufnorm.report.formatting import counted, megabytes, number, numeric, printable
from ggufnorm.report.view import (
    Cell,
    Column,
    Columns,
    Report,
    Section,
    Sentence,
    Status,
    Table,
    facts,
    table,
)
from ggufnorm.report.views.common import skipped_section
from ggufnorm.report.views.inspect import type_counts
from ggufnorm.report.views.predictions import QUOTED_KLD


def quants_view(report: QuantsReport) -> tuple[Report, ...]:
    """Which file to take, then all of them beside each other."""
    status = _status(report)
    return (
        Report(
            f"{counted(len(report.files), 'file')} beside {_name(report.reference)}",
            subject=report.reference.model.path,
            headline=_headline(report),
            status=status,
            verdict=tuple(_verdict(report, status)),
            facts=Section("How it was measured", table=facts("run", _facts(report)), folded=True),
            sections=(
                Section("", charts=("pareto",), table=card(report)),
                Section(
                    "Types inside",
                    sentences=tuple(_types(report)),
                    folded=True,
                ),
                Section(
                    "Each two files",
                    table=table("pairs", _PAIRS, report.contrasts),
                    folded=True,
                ),
                skipped_section(report.failed),
            ),
        ),
    )


def card(report: QuantsReport) -> Table:
    """The table of a model card: the reference, then the files by size."""
    rows = (report.reference, *report.files)
    return table(
        "files",
        _FILES,
        rows,
        status=lambda f: _MEANS[f.standing] if f.logits else "neutral",
        notes=tuple(map(Sentence, _footnotes(report))),
    )


def _status(report: QuantsReport) -> Status:
    if report.n_bad_reference or any(f.standing == "broken" for f in report.files):
        return "error"
    clear = report.best is not None and not (report.failed or report.notes)
    return "ok" if clear else "warning"


def _headline(report: QuantsReport) -> str:
    files = report.files
    if report.n_bad_reference:
        return "The reference is broken (NaN)"
    broken = sum(f.standing == "broken" for f in files)
    parts = [f"{broken} of {len(files)} broken (NaN)"] if broken else []
    if report.failed:
        parts.append(f"{counted(len(report.failed), 'file')} not measured")
    if report.best is None:
        return "; ".join([*parts, "nothing is ranked"]).capitalize()
    parts.append(f"best: {Path(report.best).name}")
    beaten = [f for f in files if f.standing in ("dominated", "undecided")]
    if beaten:
        parts.append(f"{len(beaten)} of {len(files)} larger than they need be")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def _verdict(report: QuantsReport, status: Status) -> Iterator[Sentence]:
    yield Sentence(report.verdict, status)
    for file in report.files:
        if file.types.mislabelled:
            yield Sentence(f"{_name(file)}: {file.types.note}", "warning")
    yield from (Sentence(f"Not measured: {s.reason}", "warning") for s in report.failed)
    yield from (Sentence(f"{Path(s.what).name}: {s.reason}", "warning") for s in report.notes)
    if report.run.cut:
        n, planned = report.run.n_chunks, report.run.n_chunks_planned
        yield Sentence(f"{n} of {planned} passages were run: {report.run.cut}.", "warning")


def _types(report: QuantsReport) -> Iterator[Sentence]:
    for file in (report.reference, *report.files):
        note = f"; {file.types.note}" if file.types.note else ""
        yield Sentence(f"{type_counts(file.types)}{note}", label=f"{_name(file)}:")


def _footnotes(report: QuantsReport) -> Iterator[str]:
    run = report.run
    n = max((f.logits.n_tokens for f in report.files if f.logits), default=0)
    what = "the assistant's tokens in" if report.scored == "assistant" else "positions in"
    yield (
        f"KL divergence (nats), top token and perplexity beside {_name(report.reference)}, over"
        f" {n:,} {what} {counted(run.n_chunks, 'passage')} of {Path(run.text).name}"
        f" (usual mean KL divergences, {QUOTED_KLD})."
    )
    yield (
        f"Tokens/s as measured in this run, with {counted(run.n_threads, 'thread')}"
        f"{f' and {run.n_gpu_layers} layers on a GPU' if run.n_gpu_layers else ''}: prompts in"
        " batches, and generation one by one. Another machine has other speeds."
    )


def _facts(report: QuantsReport) -> Iterator[tuple[str, str]]:
    run = report.run
    yield "engine", run.engine
    yield "text", f"{run.text}: {run.n_chunks} of {run.n_chunks_planned} passages"
    yield "longest passage", f"{run.n_ctx} tokens"
    yield (
        "scored",
        "the assistant's tokens"
        if report.scored == "assistant"
        else ("the second half of each passage, as llama-perplexity does"),
    )
    side = run.quant
    yield (
        "options",
        (
            f"flash attention {side.flash_attention}, K/V cache {side.cache_type_k}/"
            f"{side.cache_type_v}{', weights repacked' if side.use_extra_bufts else ''}"
        ),
    )
    yield "told apart", f"by more than {TOLD_APART:g} standard errors of the paired difference"


def _name(file: QuantFile) -> str:
    return printable(Path(file.model.path).name)


_MEANS: dict[str, Status] = {
    "frontier": "ok", "dominated": "warning", "undecided": "neutral", "broken": "error",
    "not ranked": "neutral",
}  # fmt: skip


def _kld(file: QuantFile) -> Cell:
    if file.logits is None:
        return Cell("–")
    value, error = file.logits.mean_kld, file.logits.mean_kld_se
    if value is None:
        return Cell("NaN", status="error")
    return Cell(f"{number(value)} ± {number(error, 1)}", value)


def _quantile(file: QuantFile) -> Cell:
    return numeric(file.logits.kld_percentiles.get("99") if file.logits else None)


def _same_top(file: QuantFile) -> Cell:
    value = file.logits.same_top1 if file.logits else None
    return Cell("–" if value is None else f"{value:.2%}", value)


def _perplexity(file: QuantFile) -> Cell:
    value = file.logits.ppl_ratio if file.logits else None
    return Cell("–" if value is None else f"× {value:.4f}", value)


def _speed(name: str, file: QuantFile) -> Cell:
    value = getattr(file.speed, name) if file.speed else None
    return Cell("–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}", value)


def _standing(file: QuantFile) -> Cell:
    if file.logits is None:
        return Cell("reference")
    by = Path(file.beaten_by[0]).name if file.beaten_by else ""
    words = {
        "dominated": f"dominated by {by}",
        "undecided": f"not told apart from {by}",
        "broken": "broken: NaN",
    }
    return Cell(words.get(file.standing, file.standing), status=_MEANS[file.standing])


_FILES: Columns[QuantFile] = (
    Column("File", _name, left=True, least=20),
    Column("Size", lambda f: Cell(f"{megabytes(f.model.n_bytes)} MB", f.model.n_bytes)),
    Column(
        "Bits/weight",
        lambda f: Cell(
            "–" if f.types.bits_per_weight is None else f"{f.types.bits_per_weight:.2f}",
            f.types.bits_per_weight,
        ),
        short="Bits",
        priority=2,
    ),
    Column("KL divergence", _kld),
    Column("KLD 99 %", _quantile, priority=4),
    Column("Same top", _same_top),
    Column("Perplexity", _perplexity, priority=1),
    Column("Prompt t/s", lambda f: _speed("prompt", f), priority=5),
    Column("Generation t/s", lambda f: _speed("generation", f), short="Gen. t/s", priority=3),
    Column("Types inside", lambda f: type_counts(f.types), left=True, priority=6),
    Column("Standing", _standing, left=True, least=12),
)


def _apart(c: Contrast) -> Cell:
    if c.told_apart:
        return Cell(f"{Path(c.a if c.difference < 0 else c.b).name} is closer")
    return Cell("not told apart by this text")


_PAIRS: Columns[Contrast] = (
    Column("File", lambda c: Path(c.a).name, left=True, least=16),
    Column("Beside", lambda c: Path(c.b).name, left=True, least=16),
    Column("Difference of KLD", lambda c: numeric(c.difference), short="Difference"),
    Column("Standard error", lambda c: numeric(c.se, 2), short="±", priority=1),
    Column("Answer", _apart, left=True),
)
