"""Parts that several views have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ggufnorm.core.model import Skipped
from ggufnorm.report.formatting import counted, model_line
from ggufnorm.report.view import (
    Cell,
    Column,
    Columns,
    Gallery,
    Picture,
    Report,
    Section,
    Sentence,
    Status,
    facts,
    table,
)

if TYPE_CHECKING:  # a view of one kind does without what others show
    from ggufnorm.core.drift import ModelFacts, SideFacts
    from ggufnorm.core.engine import Engine
    from ggufnorm.core.feed import FeedFinding

_MOST_SKIPPED = 10


def command(verb: str, *arguments: str) -> str:
    """A command to be typed, its arguments quoted for a shell."""
    return f"`{shlex.join(['ggufnorm', verb, *arguments])}`"


def sentences(*texts: str) -> tuple[Sentence, ...]:
    """Sentences that are neither good nor bad; empty ones are left out."""
    return tuple(Sentence(text) for text in texts if text)


def skipped_section(skipped: Sequence[Skipped]) -> Section:
    """What was not looked at, and why."""
    said = sentences(*map(_reason, skipped))
    return Section(f"Skipped: {len(said)}", sentences=said, most=_MOST_SKIPPED, folded=True)


def _reason(s: Skipped) -> str:
    """What and why; an error of a file begins with its name already."""
    return s.reason if s.reason.startswith(f"{s.what}: ") else f"{s.what}: {s.reason}"


def unread_reports(failed: Sequence[Skipped], n: int) -> tuple[Report, ...]:
    """Those of ``n`` models of a set that could not be read, if any."""
    if not failed:
        return ()
    said = tuple(Sentence(_reason(s), "error") for s in failed)
    headline = f"{len(failed)} of {n} models were not read"
    return (Report("Summary", headline=headline, status="error", verdict=said),)


def model_facts(label: str, model: ModelFacts) -> Iterable[tuple[str, str]]:
    """Which file was run."""
    yield label, model_line(model)
    yield "", f"fingerprint {model.fingerprint[:16] or '–'}, {model.name or 'unnamed'}"


def option_facts(reference: SideFacts, quant: SideFacts) -> Iterable[tuple[str, str]]:
    """How both sides were run, once if alike."""
    if reference == quant:
        yield "options", _options(reference)
    else:
        yield "options", f"reference: {_options(reference)}"
        yield "", f"quant: {_options(quant)}"


def engine_facts(reference: Engine | None, quant: Engine | None) -> Iterable[tuple[str, str]]:
    """Which builds of llama.cpp ran both sides and on what, once if alike."""
    if reference is None and quant is None:
        return
    if reference and quant and _engine(reference) == _engine(quant):
        yield "engine", _engine(reference)
        return
    for name, side in (("reference", reference), ("quant", quant)):
        label = "engine" if name == "reference" else ""
        yield label, f"{name}: {'a trace' if side is None else _engine(side)}"


def ran_section(engine: Engine | None) -> Section | None:
    """Which build of llama.cpp ran one model; None where none did."""
    if engine is None:
        return None
    return Section("How it was run", table=facts("run", engine_facts(engine, engine)), folded=True)


def _engine(engine: Engine) -> str:
    b = engine.build
    ggml = "" if b.ggml in b.name else f", {b.ggml}"
    asked = [" ".join(option) for option in engine.options(engine.n_gpu_layers or None)]
    weights = [f"{n / 1e6:,.1f} MB in {name}" for name, n in engine.weights]
    return (
        f"{b.name}{ggml}, by {b.origin}, libraries {b.digest[:12]}, structures by {b.layout}, on"
        f" {', '.join(engine.devices) or 'devices that were not seen'}"
        + (f", weights {', '.join(weights)}" if weights and asked else "")
        + (f"; {', '.join(engine.hardware)}" if engine.hardware else "")
        + (f"; asked for by {' '.join(asked)}" if asked else "")
    )


def _options(side: SideFacts) -> str:
    parts = [
        f"flash attention {side.flash_attention}",
        f"K/V cache {side.cache_type_k}/{side.cache_type_v}",
        *([f"{counted(side.n_ubatch, 'token')} a decode"] if side.n_ubatch != 512 else []),
        *(["repacked weights"] if side.use_extra_bufts else []),
        *(["unfused norms"] if side.unfused_norms else []),
    ]
    return ", ".join(parts)


# -- pipelines of images and sounds ------------------------------------------------------

_FINDINGS: Columns[FeedFinding] = (
    Column("Severity", lambda f: Cell(f.severity, status=severity_status(f.severity)), left=True),
    Column("Finding", lambda f: f.name, left=True),
    Column("Message", lambda f: f.message, left=True, prose=True),
)


def severity_status(severity: str) -> Status:
    """How good a finding of that severity is."""
    return "error" if severity == "error" else "warning" if severity == "warning" else "neutral"


def feed_status(findings: Iterable[FeedFinding]) -> Status:
    """How good pipelines are by what was found on them."""
    from ggufnorm.core.feed import is_refuted

    found = tuple(findings)
    if any(f.severity == "error" for f in found):
        return "error"
    return "warning" if is_refuted(found) else "neutral" if found else "ok"


def feed_findings_section(findings: Sequence[FeedFinding]) -> Section:
    """What was found on pipelines."""
    return Section("Findings", table=table("findings", _FINDINGS, findings, layout="records"))


def gallery(
    title: str, named: Iterable[tuple[str, str | None]], note: str, *, wide: bool = False
) -> Gallery | None:
    """Those of ``(caption, PNG)`` that are base64, None if none is.

    A document may come from anywhere, and a PNG's text goes into a page's address.
    """
    pictures = tuple(
        Picture(png, caption)
        for caption, png in named
        if png is not None and re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", png)
    )
    return Gallery(title, pictures, note, wide) if pictures else None
