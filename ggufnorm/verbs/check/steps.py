"""The steps of a check, the cheapest first: what each examines, takes and says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ggufnorm.analysis.diff.order import coarser
from ggufnorm.core.audit import AuditReport
from ggufnorm.core.check import SuspectName
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.engines.chat import CHAT_TEMPLATE
from ggufnorm.formats.files import open_regular
from ggufnorm.formats.llama_libraries import chosen_libraries
from ggufnorm.formats.location import open_model
from ggufnorm.runs.options import PLAIN, placed
from ggufnorm.verbs.check import by_rules, by_runs
from ggufnorm.verbs.check.case import Case, memory, missing_packages, seconds, threads
from ggufnorm.verbs.check.suspects import Judgement

_BLOCK = 1 << 22

_READ, _COMPARED = 5e8, 1.5e8
"""Bytes a second of reading and checking a file, and of comparing it with its source."""
_KERNELS = 1e10
"""Multiplications a second of one thread."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: what it does.
        clears: suspects that are not examined where it does not run.
        command: that does this alone.
        lacks: what it lacks, and what to do about that; None if it can run.
        cost: what it takes, for a person.
        run: what it says of suspects; called with the case and a callback for its progress.
    """

    name: str
    clears: tuple[SuspectName, ...]
    command: Callable[[Case], str]
    lacks: Callable[[Case], tuple[str, str] | None]
    cost: Callable[[Case], str]
    run: Callable[[Case, OnProgress], Iterator[Judgement]]


# -- the bytes ---------------------------------------------------------------------------


def _digest_lacks(case: Case) -> tuple[str, str] | None:
    if case.digest is not None:
        return None
    return "no digest of it is known", ""


def _digest(case: Case, on_progress: OnProgress) -> Iterator[Judgement]:
    assert case.path is not None
    assert case.digest is not None
    found = hashlib.sha256()
    with open_regular(case.path) as file:
        while block := file.read(_BLOCK):
            found.update(block)
            on_progress(Progress("reading", file.tell(), case.size))
    if found.hexdigest() == case.digest:
        yield Judgement("download", "cleared", "all bytes have the SHA-256 that was downloaded")
    else:
        yield Judgement(
            "download", "guilty",
            f"its SHA-256 is {found.hexdigest()[:16]}… and should be {case.digest[:16]}…",
            "download it again",
        )  # fmt: skip


# -- the file alone ----------------------------------------------------------------------


def _audit(case: Case, **options: Any) -> AuditReport:
    from ggufnorm.verbs.files import audit

    return audit(case.evidence.model, **options)


def _alone_command(case: Case) -> str:
    full = _is_read_alone(case)
    return case.command("audit", case.evidence.model, "--full" if full else None)


def _is_read_alone(case: Case) -> bool:
    """Whether all tensors are read without their source: beside it, more can be said of them."""
    return case.path is not None and not case.source_is_local


def _alone(case: Case, _on_progress: OnProgress) -> Iterator[Judgement]:
    report = _audit(case, full=_is_read_alone(case))
    yield from by_rules.accusations(report, _alone_command(case))
    yield from by_rules.of_file_alone(report, case, _alone_command(case))


# -- the file beside a better quant, and its encoder beside it ---------------------------


def _headers_lacks(case: Case) -> tuple[str, str] | None:
    return None if case.evidence.reference else ("no better quant was given", "")


def _headers_command(case: Case) -> str:
    return case.command("diff", case.evidence.reference or "BETTER.gguf", case.evidence.model)


def _headers(case: Case, _on_progress: OnProgress) -> Iterator[Judgement]:
    assert case.evidence.reference is not None
    with open_model(case.evidence.reference) as better, open_model(case.evidence.model) as model:
        yield from by_runs.of_headers(better, model, _headers_command(case))


def _encoder_lacks(case: Case) -> tuple[str, str] | None:
    return None if case.evidence.encoder else ("no encoder was given", "")


def _encoder_command(case: Case) -> str:
    return case.command("inspect", case.evidence.encoder or "MMPROJ")


def _encoder(case: Case, _on_progress: OnProgress) -> Iterator[Judgement]:
    assert case.evidence.encoder is not None
    with open_model(case.evidence.encoder) as encoder, open_model(case.evidence.model) as model:
        yield from by_rules.of_encoder(encoder, model, _encoder_command(case))


# -- the file beside its source ----------------------------------------------------------


def _source_lacks(case: Case) -> tuple[str, str] | None:
    if case.evidence.source is not None:
        return None
    return "no source was given", by_rules.ADD_SOURCE


def _source_command(case: Case) -> str:
    return case.command("audit", case.evidence.model, "--source", case.evidence.source or "FOLDER")


def _beside_source(case: Case, _on_progress: OnProgress) -> Iterator[Judgement]:
    report = _audit(case, source=case.evidence.source)
    yield from by_rules.accusations(report, _source_command(case))
    yield from by_rules.of_source(report, case, _source_command(case))


# -- llama.cpp ---------------------------------------------------------------------------


def _llama_lacks(case: Case) -> tuple[str, str] | None:
    if case.path is None:
        return "it is not on this machine", "download it first"
    if chosen_libraries() is None:
        return "there is no llama.cpp here", "pip install 'ggufnorm[prebuilt]'"
    if case.is_encoder:
        return "llama.cpp runs an encoder only with its model", ""
    return None


def _run_command(case: Case) -> str:
    words = case.device_words
    return case.command("audit", case.evidence.model, "--run", "--select", "C", *words)


def _run_cost(case: Case) -> str:
    return f"{seconds(case.size / _READ + 2)}, {memory(1.1 * case.size)}"


def _run(case: Case, _on_progress: OnProgress) -> Iterator[Judgement]:
    o = case.options
    report = _audit(
        case,
        run=True,
        select=("C",),
        n_threads=o.n_threads,
        n_gpu_layers=o.n_gpu_layers,
        options=placed(PLAIN, o.side),
        check_memory=o.check_memory,
    )
    yield from by_rules.accusations(report, _run_command(case))
    yield from by_rules.of_run(report, _run_command(case))


# -- the source's framework --------------------------------------------------------------


def _compare_lacks(case: Case) -> tuple[str, str] | None:
    missing = _llama_lacks(case) if not case.is_encoder else None
    if _source_lacks(case) or missing:
        return _source_lacks(case) or missing
    if not case.source_is_local:
        return "the source is not on this machine", "download it first"
    gone = missing_packages("torch", "transformers")
    if gone:
        return f"{' and '.join(gone)} is not installed", "pip install 'ggufnorm[hf]'"
    return None


def _compare_command(case: Case) -> str:
    files = (f"hf:{case.evidence.source or 'FOLDER'}", case.evidence.model)
    image = case.evidence.image
    pictured = [] if image is None else ["--image", image]
    shown = pictured if case.is_encoder else case.text_words
    return case.command("compare", *files, *shown, *case.build_words)


def _compare_cost(case: Case) -> str:
    flops = 127 * 2 * case.n_weights
    need = case.size + 4.5 * case.n_weights
    return f"{seconds(8 + 4 * flops / _KERNELS / threads(case))}, {memory(need)}"


def _compare(case: Case, on_progress: OnProgress) -> Iterator[Judgement]:
    from ggufnorm.analysis.crosscheck.run import compare_frameworks

    # The file is judged, exactly, on the CPU: a GPU's rounding would hide small mistakes.
    options = case.options
    image = case.evidence.image if case.is_encoder else None
    report = compare_frameworks(
        f"hf:{case.evidence.source}",
        [case.evidence.model],
        text=None if case.is_encoder else options.text,
        text_name=options.text_name,
        image=image,
        n_threads=options.n_threads,
        check_memory=options.check_memory,
        on_progress=on_progress,
    )
    yield from by_runs.of_compare(report, case, _compare_command(case))


# -- llama.cpp twice ---------------------------------------------------------------------


_UNQUANTIZED = ("f32", "f16", "bf16")


def _cache_lacks(case: Case) -> tuple[str, str] | None:
    if _llama_lacks(case):
        return _llama_lacks(case)
    side = case.options.side
    if (side.cache_type_k, side.cache_type_v, side.flash_attention) == (
        PLAIN.cache_type_k, PLAIN.cache_type_v, PLAIN.flash_attention,
    ):  # fmt: skip
        return by_runs.CACHED_IN_F16, by_runs.NAME_TYPES
    return None


def _side_words(case: Case) -> list[str]:
    side = case.options.side
    words = ["-ctk", side.cache_type_k, "-ctv", side.cache_type_v]
    words += ["-fa", side.flash_attention]
    words += ["--repack"] if side.use_extra_bufts else []
    return [*words, "--unfused-norms"] if side.unfused_norms else words


def _cache_command(case: Case) -> str:
    model = case.evidence.model
    return case.command("drift", model, model, *_side_words(case), *case.drift_words)


def _drift_cost(case: Case) -> str:
    tokens = case.options.n_ctx * (case.options.chunks or 8)
    need = 2 * case.size
    time = 4 + 3.5 * 2 * tokens * case.n_weights / _KERNELS / threads(case) / 2
    return f"{seconds(time)}, {memory(need)}"


def _drift(case: Case, reference: str, on_progress: OnProgress, **sides: Any) -> DriftReport:
    from ggufnorm.analysis.drift.run import drift

    o = case.options
    return drift(
        reference,
        case.evidence.model,
        text=o.text,
        text_name=o.text_name,
        n_ctx=o.n_ctx,
        chunks=o.chunks,
        n_threads=o.n_threads,
        n_gpu_layers=o.n_gpu_layers,
        check_memory=o.check_memory,
        on_progress=on_progress,
        **sides,
    )


def _cache(case: Case, on_progress: OnProgress) -> Iterator[Judgement]:
    side, plain = case.options.side, placed(PLAIN, case.options.side)
    if side.flash_attention == "off" and side.cache_type_v not in _UNQUANTIZED:
        words = (
            f"llama.cpp refuses -ctv {side.cache_type_v} with -fa off: a quantized V cache needs"
            " flash attention"
        )
        yield Judgement("K/V cache", "guilty", words, "run with -fa on, or with -ctv f16")
        return
    model = case.evidence.model
    report = _drift(case, model, on_progress, options=side, options_ref=plain)
    yield from by_runs.of_cache(report, _cache_command(case))


def _quantization_lacks(case: Case) -> tuple[str, str] | None:
    if case.is_encoder or not case.quantized:
        return None
    if _llama_lacks(case):
        return _llama_lacks(case)
    if case.evidence.reference is None:
        return (
            "no better quant was given",
            "add one (F16, BF16, Q8_0): ggufnorm check MODEL BETTER.gguf",
        )
    return None


def _quantization_command(case: Case) -> str:
    files = (case.evidence.reference or "BETTER.gguf", case.evidence.model)
    return case.command("drift", *files, *case.drift_words)


def _quantization(case: Case, on_progress: OnProgress) -> Iterator[Judgement]:
    if not case.quantized:
        words = f"no tensor is quantized ({case.types}): whether one was, its source tells"
        yield Judgement("quantization", "partly", words, by_rules.ADD_SOURCE)
    if case.evidence.reference is not None:
        yield from _templates(case, case.evidence.reference)
        exchanged = _exchanged(case, case.evidence.reference)
        if exchanged is not None:
            yield exchanged
            return
        plain = placed(PLAIN, case.options.side)
        report = _drift(
            case, case.evidence.reference, on_progress, options=plain, options_ref=plain
        )
        yield from by_runs.of_drift(report, _quantization_command(case))


def _exchanged(case: Case, reference: str) -> Judgement | None:
    """What there is to say of a better quant that is none."""
    with open_model(reference) as a, open_model(case.evidence.model) as b:
        found = coarser(a, b)
    if found is None:
        return None
    words = f"{reference} is no better quant ({found.dtype_ref} against {found.dtype})"
    do = "exchange the two, or give a better one: ggufnorm check MODEL BETTER.gguf"
    return Judgement("quantization", "not examined", words, do)


def _templates(case: Case, reference: str) -> Iterator[Judgement]:
    """Whether both files put a chat to the model alike; which is right, neither tells."""
    with open_model(reference) as a, open_model(case.evidence.model) as b:
        theirs, own = (m.metadata.text(CHAT_TEMPLATE) for m in (a, b))
    if theirs == own:
        return
    if own is None or theirs is None:
        words = f"it has {'no' if own is None else 'a'} chat template, unlike {reference}"
    else:
        pairs = zip_longest(own.splitlines(), theirs.splitlines())
        line = next((n for n, (x, y) in enumerate(pairs, 1) if x != y), 1)
        words = f"its chat template is not that of {reference}, from line {line} on"
    do = "compare both with the source's: ggufnorm check MODEL FOLDER"
    yield Judgement("tokenizer", "partly", words, do)


STEPS: tuple[Step, ...] = (
    Step(
        "compare the file's digest", ("download",),
        lambda case: "sha256sum " + (str(case.path) if case.path else case.evidence.model),
        _digest_lacks, lambda case: seconds(case.size / _READ), _digest,
    ),
    Step(
        "check the file by itself",
        ("download", "file against source", "normalization", "pooling"),
        _alone_command, lambda _case: None,
        lambda case: seconds(case.size / _READ if _is_read_alone(case) else 3), _alone,
    ),
    Step(
        "compare its keys with a better quant's", (),
        _headers_command, _headers_lacks, lambda _case: seconds(1), _headers,
    ),
    Step(
        "compare its encoder's width with its own", (),
        _encoder_command, _encoder_lacks, lambda _case: seconds(1), _encoder,
    ),
    Step(
        "compare every tensor and key with the source",
        ("file against source", "tokenizer", "normalization", "pooling"),
        _source_command, _source_lacks,
        lambda case: seconds((case.size + case.source_size) / _COMPARED), _beside_source,
    ),
    Step(
        "run it, and recompute its norms", ("engine and device",),
        _run_command, _llama_lacks, _run_cost, _run,
    ),
    Step(
        "run it beside its source in Transformers", ("tokenizer", "pooling", "engine and device"),
        _compare_command, _compare_lacks, _compare_cost, _compare,
    ),
    Step(
        "run it with your cache types beside f16", ("K/V cache",),
        _cache_command, _cache_lacks, _drift_cost, _cache,
    ),
    Step(
        "run it beside a better quant", ("quantization",),
        _quantization_command, _quantization_lacks, _drift_cost, _quantization,
    ),
)  # fmt: skip
"""In the order in which they run."""
