"""A trace of a model whose norms are observed whole, chunk by chunk: Transformers and ONNX.

The file has the form of any trace. Its stops bear the norms' names, ``{norm} (input)`` and
``{norm}``, and each block by what leaves it. So it compares with another one of its engine:
two versions of a model, another machine's.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.measure import count_chunks
from ggufnorm.analysis.drift.observe import Rows
from ggufnorm.analysis.drift.run import Progress
from ggufnorm.analysis.trace import layout
from ggufnorm.analysis.trace.thin import thin_logits, thin_rows
from ggufnorm.core.drift import ModelFacts, SideFacts
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedNorm, ObservedRun
from ggufnorm.core.trace import (
    BatchFacts,
    NetworkFacts,
    NormFacts,
    StopFacts,
    TraceFacts,
    TraceType,
)
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.errors import InputError
from ggufnorm.formats.files import open_regular
from ggufnorm.formats.replace import replacing
from ggufnorm.formats.safetensors import SafetensorsWriter

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]

_LAYER = re.compile(r"[./](\d+)(?=[./]|$)")
_SAMPLE = 1 << 16
_PLAIN = SideFacts("off", "f32", "f32", use_extra_bufts=False, unfused_norms=False)


@dataclass(frozen=True)
class Observed:
    """A model that is to be traced.

    Attributes:
        path: what messages call it.
        model: its files.
        architecture: what two traces must share, beside the vocabulary.
        n_vocab: tokens in the vocabulary, for a model without logits.
        n_threads: CPU threads.
        tokenizer: None for none.
        run: runs token ids.
    """

    path: Path
    model: ModelFacts
    architecture: str
    n_vocab: Callable[[], int]
    n_threads: int
    tokenizer: Tokenizer | None
    run: Callable[[Tokens], ObservedRun]


@dataclass(frozen=True)
class Plan:
    """What a trace is to hold.

    Attributes:
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        logits: whether to store the logits of the scored positions.
        dtype: how to store all other values.
        budget: bytes that the file may take; evenly spaced tokens are chosen to keep it.
    """

    n_ctx: int
    chunks: int | None
    logits: bool
    dtype: TraceType
    budget: int | None


def write_trace(
    observed: Observed,
    tokens: Tokens,
    text_name: str,
    out: str | os.PathLike[str],
    plan: Plan,
    on_progress: Callable[[Progress], None],
) -> TraceFacts:
    """Run a model and write down its norms, residual stream and logits.

    Args:
        observed: the model.
        tokens: to run.
        text_name: where they came from.
        out: the trace to write; it appears only when it is complete.
        plan: what it is to hold.
        on_progress: called as the run goes on.

    Raises:
        InputError: the model cannot be run, or the trace cannot be written.
        TextError: there are fewer tokens than one chunk takes.
    """
    n_ctx, path = plan.n_ctx, observed.path
    n_chunks = count_chunks(len(tokens), n_ctx, plan.chunks)
    on_progress(Progress(f"running {path}", 0, n_chunks))

    def run(chunk: int) -> ObservedRun:
        return _by_token(observed.run(tokens[chunk * n_ctx : (chunk + 1) * n_ctx]), n_ctx)

    first = run(0)
    facts = _describe(observed, first, tokens, n_chunks, text_name, plan)
    facts = facts if plan.budget is None else layout.thinned(facts, plan.budget)
    with replacing(out) as unfinished:
        try:
            entries, metadata = layout.entries(facts), layout.metadata(facts)
            with SafetensorsWriter(unfinished, entries, metadata) as writer:
                for i in range(n_chunks):
                    part = tokens[i * n_ctx : (i + 1) * n_ctx]
                    _write(writer, facts, i, part, run(i) if i else first)
                    on_progress(Progress(f"running {path}", i + 1, n_chunks))
                writer.finish()
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror}") from None
    return facts


def _by_token(run: ObservedRun, n_tokens: int) -> ObservedRun:
    """The run with the norms that have rows for each token, no two of one name."""
    good = [n for n in run.norms if n.x.shape[0] == n_tokens]
    skipped = [
        Skipped(n.name, f"its rows are {n.x.shape[0]} and not the tokens")
        for n in run.norms
        if n.x.shape[0] != n_tokens
    ]
    seen: Counter[str] = Counter()
    norms = []
    for norm in good:
        k = seen[norm.name]
        seen[norm.name] += 1
        norms.append(replace(norm, name=f"{norm.name}@{k}") if k else norm)
    return replace(run, norms=tuple(norms), skipped=(*run.skipped, *skipped))


def _write(
    writer: SafetensorsWriter, facts: TraceFacts, chunk: int, tokens: Tokens, run: ObservedRun
) -> None:
    writer.write(layout.TOKENS, chunk, tokens)
    n, start = facts.n_ctx, chunk * facts.n_ctx
    for key, _role, value in _values(run):
        rows = thin_rows(Rows(value.reshape(-1, value.shape[-1]), start, n), start, facts.stride)
        if facts.dtype == "f16" and np.abs(rows.values).max(initial=0) > np.finfo(np.float16).max:
            raise InputError(f"{key} reaches more than half precision holds: use --dtype f32")
        writer.write(layout.stop_name(0, key), chunk, rows.values)
    if facts.logits and run.logits is not None:
        scored = run.logits[facts.batches[0].first_scored : -1]
        writer.write(layout.logits_name(0), chunk, thin_logits(scored, facts, 0))


def _values(run: ObservedRun) -> Iterator[tuple[str, str, Array]]:
    """Key, role and value of each stop, in the order of the run."""
    left = list(run.residuals)
    for i, norm in enumerate(run.norms):
        while left and left[0].n_norms <= i:
            yield left[0].name, "residual", left.pop(0).value
        yield _input_key(norm), "norm_input", norm.x
        yield norm.name, "norm", norm.y
    for residual in left:
        yield residual.name, "residual", residual.value


def _input_key(norm: ObservedNorm) -> str:
    return f"{norm.name} (input)"


# -- what the file says of itself ----------------------------------------------------------------


def _describe(
    observed: Observed,
    run: ObservedRun,
    tokens: Tokens,
    n_chunks: int,
    text_name: str,
    plan: Plan,
) -> TraceFacts:
    n_ctx, tokenizer = plan.n_ctx, observed.tokenizer
    stores = plan.logits and run.logits is not None
    n_scored = n_ctx - n_ctx // 2 - 1 if stores else 0
    weights = {n.name: n.weight_name for n in run.norms}
    stops = tuple(
        _stop(key, role, weights.get(key), value, n_ctx) for key, role, value in _values(run)
    )
    used = np.unique(tokens[: n_chunks * n_ctx]).tolist()
    n_vocab = observed.n_vocab() if run.logits is None else run.logits.shape[1]
    if used[-1] >= n_vocab:
        raise InputError(f"{observed.path}: token {used[-1]} is not in its vocabulary of {n_vocab}")
    return TraceFacts(
        model=observed.model,
        network=NetworkFacts(
            architecture=observed.architecture,
            n_layers=len(run.residuals) or None,
            n_embd=run.residuals[0].value.shape[-1] if run.residuals else None,
            n_vocab=n_vocab,
            vocabulary="" if tokenizer is None else tokenizer.vocabulary(),
        ),
        engine=run.engine,
        options=_PLAIN,
        n_threads=observed.n_threads,
        n_gpu_layers=0,
        text=text_name,
        n_text_tokens=len(tokens),
        n_ctx=n_ctx,
        n_chunks=n_chunks,
        start=None,
        stride=1,
        dtype=plan.dtype,
        n_vocab=n_vocab,
        predicts=run.logits is not None,
        logits=stores,
        batches=(
            BatchFacts(
                first_scored=n_ctx // 2 if stores else 0,
                n_scored=n_scored,
                stops=stops,
                norms=tuple(_norm(n) for n in run.norms),
            ),
        ),
        skipped=run.skipped,
        pieces={} if tokenizer is None else {str(i): tokenizer.piece(i) for i in used},
    )


def files_facts(path: Path, files: Iterable[Path], architecture: str) -> ModelFacts:
    """A model of several files by their sizes and a sample of their bytes."""
    digest, size = hashlib.sha256(), 0
    for file in files:
        n = file.stat().st_size
        size += n
        digest.update(f"{file.name} {n}".encode())
        with open_regular(file) as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, n - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return ModelFacts(os.fspath(path), architecture, path.name, None, size, digest.hexdigest())


def _stop(key: str, role: str, weight: str | None, value: Array, n_tokens: int) -> StopFacts:
    _tokens, heads, channels = value.shape
    return StopFacts(
        key=key,
        op="module" if role == "residual" else "norm",
        role=role,
        tensor=weight,
        dtype="F32" if weight else None,
        layer=_layer(key),
        shape=(channels, heads, n_tokens, 1),
        first=0,
        n_tokens=n_tokens,
        rows=heads,
        channels=channels,
    )


def _norm(norm: ObservedNorm) -> NormFacts:
    return NormFacts(
        key=norm.weight_name or norm.name,
        kind=norm.formula.kind,
        epsilon=norm.formula.epsilon,
        epsilon_metadata=norm.epsilon_stated,
        layer=_layer(norm.name),
        role=norm.name.removesuffix(".weight").rpartition(".")[2],
        groups=norm.formula.groups,
        weight=norm.weight_name,
        bias=norm.bias_name,
        input=_input_key(norm),
        output=norm.name,
    )


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None
