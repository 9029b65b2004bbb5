"""``trace`` of a checkpoint: Transformers runs it, and what its norms show is written down.

The file has the form of any trace. Its stops bear the modules' names: ``{norm} (input)``,
``{norm}``, and each block by what leaves it. So it compares with another trace of Transformers:
two checkpoints, two versions of one, another machine's.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufnorm.comparison.measure import count_chunks
from ggufnorm.comparison.observe import Rows
from ggufnorm.comparison.run import MIN_CTX, Progress
from ggufnorm.core.drift import ModelFacts, SideFacts
from ggufnorm.core.observed import ObservedNorm, ObservedRun
from ggufnorm.core.trace import (
    BatchFacts,
    NetworkFacts,
    NormFacts,
    StopFacts,
    TraceFacts,
    TraceType,
)
from ggufnorm.engines.hf import HFModel
from ggufnorm.errors import InputError, TextError
from ggufnorm.formats.location import checkpoint_folder
from ggufnorm.formats.replace import replacing
from ggufnorm.formats.safetensors import SafetensorsWriter
from ggufnorm.samples import default_text
from ggufnorm.tracing import layout
from ggufnorm.tracing.thin import thin_logits, thin_rows

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]

_LAYER = re.compile(r"\.(\d+)(?=\.|$)")
_SAMPLE = 1 << 16
_PLAIN = SideFacts("off", "f32", "f32", use_extra_bufts=False, unfused_norms=False)


def trace_checkpoint(
    folder: str,
    out: str | os.PathLike[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    logits: bool = True,
    dtype: TraceType = "f32",
    budget: int | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> TraceFacts:
    """Run a checkpoint in Transformers and write down its norms, residual stream and logits.

    Args:
        folder: with config.json, safetensors and a tokenizer, or ``org/repo`` for one in
            huggingface_hub's cache.
        out: the trace to write; it appears only when it is complete.
        text: what to run; None for the bundled text.
        text_name: how a report calls it.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        n_threads: CPU threads; None for all.
        logits: whether to store the logits of the scored positions.
        dtype: how to store all other values.
        budget: bytes that the file may take; evenly spaced tokens are chosen to keep it.
        trust_remote_code: run Python that the checkpoint brings.
        on_progress: called as the run goes on.

    Returns:
        What the trace says of itself.

    Raises:
        EngineMissingError: torch or transformers is not installed.
        InputError: the checkpoint has no tokenizer or cannot be run, or the trace cannot be
            written.
        TextError: the text is empty or shorter than one chunk.
        ValueError: ``n_ctx`` is out of range.
    """
    if n_ctx < MIN_CTX:
        raise ValueError(f"n_ctx must be at least {MIN_CTX}, not {n_ctx}")
    if text is None:
        text, text_name = default_text(), "bundled: State of the Union addresses"
    if not text.strip():
        raise TextError(f"{text_name}: the text is empty")
    path = checkpoint_folder(folder)
    model = HFModel(path, n_threads=n_threads, trust_remote_code=trust_remote_code)
    tokens = model.tokenize(text)
    if tokens is None:
        raise InputError(f"{path}: no tokenizer that loads: a trace needs one")
    n_chunks = count_chunks(len(tokens), n_ctx, chunks)
    on_progress(Progress(f"running {path}", 0, n_chunks))
    first = model.run(tokens[:n_ctx])
    facts = _describe(model, path, first, tokens, n_ctx, n_chunks, text_name, dtype, logits)
    facts = facts if budget is None else layout.thinned(facts, budget)
    with replacing(out) as unfinished:
        try:
            entries, metadata = layout.entries(facts), layout.metadata(facts)
            with SafetensorsWriter(unfinished, entries, metadata) as writer:
                for i in range(n_chunks):
                    part = tokens[i * n_ctx : (i + 1) * n_ctx]
                    _write(writer, facts, i, part, model.run(part) if i else first)
                    on_progress(Progress(f"running {path}", i + 1, n_chunks))
                writer.finish()
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror}") from None
    return facts


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
    model: HFModel,
    path: Path,
    run: ObservedRun,
    tokens: Tokens,
    n_ctx: int,
    n_chunks: int,
    text_name: str,
    dtype: TraceType,
    logits: bool,
) -> TraceFacts:
    stores = logits and run.logits is not None
    n_scored = n_ctx - n_ctx // 2 - 1 if stores else 0
    weights = {n.name: n.weight_name for n in run.norms}
    stops = tuple(
        _stop(key, role, weights.get(key), value, n_ctx) for key, role, value in _values(run)
    )
    used = np.unique(tokens[: n_chunks * n_ctx]).tolist()
    n_vocab = model.n_vocab if run.logits is None else run.logits.shape[1]
    return TraceFacts(
        model=_facts(path, model.kind),
        network=NetworkFacts(
            architecture=f"transformers {model.kind}",
            n_layers=len(run.residuals) or None,
            n_embd=run.residuals[0].value.shape[-1] if run.residuals else None,
            n_vocab=n_vocab,
            vocabulary=model.vocabulary(),
        ),
        engine=run.engine,
        options=_PLAIN,
        n_threads=model.n_threads,
        n_gpu_layers=0,
        text=text_name,
        n_text_tokens=len(tokens),
        n_ctx=n_ctx,
        n_chunks=n_chunks,
        start=None,
        stride=1,
        dtype=dtype,
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
        pieces={str(i): model.piece(i) for i in used},
    )


def _facts(path: Path, kind: str) -> ModelFacts:
    """A checkpoint by its sizes and a sample of its bytes."""
    digest, size = hashlib.sha256(), 0
    for file in [*sorted(path.glob("*.safetensors")), path / "config.json"]:
        n = file.stat().st_size
        size += n
        digest.update(f"{file.name} {n}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, n - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return ModelFacts(os.fspath(path), kind, path.name, None, size, digest.hexdigest())


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
        role=norm.name.rpartition(".")[2],
        groups=norm.formula.groups,
        weight=norm.weight_name,
        bias=norm.bias_name,
        input=_input_key(norm),
        output=norm.name,
    )


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None
