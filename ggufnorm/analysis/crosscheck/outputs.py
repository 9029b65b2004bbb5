"""The result that people use, where it is no prediction: a pooled embedding or a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from ggufnorm.analysis.crosscheck.llama import Tokens
from ggufnorm.analysis.crosscheck.output import EMBEDDING, STATES, OutputComparison, skipped
from ggufnorm.analysis.crosscheck.padding import compare_padding
from ggufnorm.analysis.crosscheck.pooled import POOLING, RANK, Output, run_output
from ggufnorm.analysis.crosscheck.scores import compare_answer, compare_score
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import Array, SourceOutput
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.options import RunSettings

_BY_ROOT = "mean by the root of the length"
_READS_DENSE = ("gemma-embedding", "lfm2")
"""Architectures that llama.cpp reads ``dense_2`` and ``dense_3`` of (``src/models/*.cpp``)."""
_CLOSER = 0.1


def compare_output(
    source: SourceOutput, location: str, tokens: Tokens, how: RunSettings, *, predicts: bool
) -> OutputComparison | None:
    """The file's embedding or score beside the source's; None where both only predict.

    Args:
        source: what the checkpoint gives.
        location: of the GGUF file.
        tokens: ids.
        how: the file is run.
        predicts: whether both sides give logits.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    with open_model(local_path(location)) as file:
        stated = file.metadata.integer(f"{file.architecture}.pooling_type")
        if source.classifier is not None:
            return compare_score(source, file, tokens, how)
        if stated == RANK and source.pooling is None:
            return compare_answer(source, file, tokens, how)
        if file.architecture == "t5" and source.pooling is None:
            # A checkpoint of T5Model has no head, and the file predicts with its embeddings.
            return None if predicts else skipped(EMBEDDING, "an encoder-decoder gives none")
        if source.pooling is None and not stated:
            return None if predicts else _compare_states(source, file, tokens, how)
        return _compare_pooled(source, file, stated, tokens, how)


def with_unread(compared: OutputComparison | None, source: SourceOutput) -> OutputComparison | None:
    """The same, and what the checkpoint's own code makes of tensors that Transformers' has not."""
    if not source.unread:
        return compared
    n = len(source.unread) - 1
    names = source.unread[0] + (f" and {n} more" if n else "")
    own = f", which {source.made_for} runs" if source.made_for else ""
    why = f"Transformers' own class reads no {names}{own}"
    if compared is None:
        return skipped(BEHIND, why)
    return replace(compared, left=(*compared.left, Skipped(BEHIND, why)))


BEHIND = "the source's own result"

# -- one embedding --------------------------------------------------------------------------


def pool(states: Array, mode: str) -> Array | None:
    """One embedding of the states of all tokens; None in a way that is not known."""
    n = len(states)
    weights = np.arange(1, n + 1, dtype=np.float32)[:, None]
    ways: dict[str, Callable[[], Array]] = {
        "mean": lambda: states.mean(axis=0),
        "cls": lambda: states[0],
        "last": lambda: states[-1],
        "max": lambda: states.max(axis=0),
        "weighted mean": lambda: (states * weights).sum(axis=0) / weights.sum(),
        _BY_ROOT: lambda: states.sum(axis=0) / np.float32(np.sqrt(n)),
    }
    parts = [ways[part]() if part in ways else None for part in mode.split(" + ")]
    found = [p for p in parts if p is not None]
    return np.concatenate(found) if found and len(found) == len(parts) else None


def _compare_pooled(
    source: SourceOutput,
    file: ModelFile,
    stated: int | None,
    tokens: Tokens,
    how: RunSettings,
) -> OutputComparison:
    key = f"{file.architecture}.pooling_type"
    ours = POOLING[stated] if stated is not None and 0 <= stated < len(POOLING) else "none"
    mode = source.pooling or ours
    if source.pooling is not None and ours == "none":
        reason = f"the source pools by {mode} (1_Pooling/config.json), and the file states no {key}"
        return OutputComparison(EMBEDDING, None, f"{reason}: llama.cpp does not pool", True)
    if ours == "rank":
        reason = f"the source pools by {mode} (1_Pooling/config.json), and {key} is 4: a score"
        return OutputComparison(EMBEDDING, None, reason, True)
    dense = _dense_of(source, file)
    if isinstance(dense, OutputComparison):
        return dense
    embed, left = dense
    result = partial(_embedding, mode=mode, behind=embed)
    theirs = None if source.states is None else result(source.states)
    if theirs is None or source.states is None:
        return skipped(EMBEDDING, f"pooling by {mode} is not computed here")
    n_short = None if source.padded is None else source.padded.n_tokens
    n_values = source.states.shape[1]
    output = run_output(file, tokens, POOLING.index(ours), n_values, how, n_short)
    if output.value is None:
        return skipped(EMBEDDING, "llama.cpp gives none")
    found = OutputComparison(
        EMBEDDING,
        None,
        left=left,
        padding=compare_padding(EMBEDDING, source.padded, output, result),
    )
    if mode == _BY_ROOT and ours == "mean":
        # The same but for its length, which is told by itself.
        longer = f"it is √{len(tokens)} times llama.cpp's; normalizing removes that"
        if not source.normalizes:
            found = replace(found, left=(*left, Skipped("length of the embedding", longer)))
        return replace(found, off=relative_l2(_unit(theirs), _unit(output.value)))
    off = relative_l2(theirs, output.value) if theirs.shape == output.value.shape else None
    if ours == mode:
        reason = _masked(file, output, theirs, off)
        return replace(found, off=off, reason=reason, is_wrong=bool(reason))
    return replace(found, off=off, reason=_other_pooling(key, stated, ours, mode), is_wrong=True)


def _embedding(states: Array, mode: str, behind: Callable[[Array], Array | None]) -> Array | None:
    pooled = pool(states, mode)
    return None if pooled is None else behind(pooled)


def _other_pooling(key: str, stated: int | None, ours: str, mode: str) -> str:
    said = (
        f"the file pools by {ours} ({key} {stated}), the source by {mode} (1_Pooling/config.json)"
    )
    if mode in POOLING:
        return f"{said}: it should be {POOLING.index(mode)}"
    return f"{said}, which llama.cpp cannot: take the embeddings of tokens (--pooling none)"


def _masked(file: ModelFile, output: Output, theirs: Array, off: float | None) -> str:
    """Why an encoder alone gives something else than it encodes: ``llama_decode`` masks it."""
    if output.encoded is None or off is None or output.encoded.shape != theirs.shape:
        return ""
    if relative_l2(theirs, output.encoded) > _CLOSER * off:
        return ""
    key = f"{file.architecture}.attention.causal"
    return (
        f"the file has no {key}, and llama-server and llama-embedding, which call llama_decode,"
        f" hide later tokens from earlier ones; with --override-kv {key}=bool:false they do not"
    )


def _unit(values: Array) -> Array:
    return values / max(float(np.linalg.norm(values)), 1e-12)


# -- what runs behind the pooling -------------------------------------------------------------


def _dense_of(
    source: SourceOutput, file: ModelFile
) -> OutputComparison | tuple[Callable[[Array], Array | None], tuple[Skipped, ...]]:
    """What to do with the source's pooled states before they are compared; what is left out."""
    names = [n for n in ("dense_2.weight", "dense_3.weight") if n in file.tensors]
    listed = " and ".join(map(str, source.dense))
    left = tuple(
        Skipped(module, f"the source runs it behind the pooling, and llama.cpp has no {module}")
        for module in source.modules
    )
    if names and not source.dense:
        reason = f"the file runs {' and '.join(names)} behind the pooling, and modules.json none"
        return OutputComparison(EMBEDDING, None, reason, True, left=left)
    if source.dense and not names and file.architecture in _READS_DENSE:
        reason = (
            f"the source runs {listed} behind the pooling (modules.json), and the file has no"
            " dense_2.weight: convert it with --sentence-transformers-dense-modules"
        )
        return OutputComparison(EMBEDDING, None, reason, True, left=left)
    if source.dense and not names:
        why = (
            f"the source runs it behind the pooling, and llama.cpp has no place for it in"
            f" {file.architecture}: the embedding before it is compared; apply it yourself"
        )
        return _as_it_is, (*left, *(Skipped(str(d), why) for d in source.dense))
    return partial(_applied, source=source), left


def _as_it_is(pooled: Array) -> Array | None:
    return pooled


def _applied(pooled: Array, source: SourceOutput) -> Array | None:
    value: Array | None = pooled
    for dense in source.dense:
        value = None if value is None else dense.apply(value)
    return value


# -- states of tokens -------------------------------------------------------------------------


def _compare_states(
    source: SourceOutput, file: ModelFile, tokens: Tokens, how: RunSettings
) -> OutputComparison:
    """What leaves the last layer, where neither side says how it is pooled."""
    states = source.states
    if states is None:
        return skipped(STATES, "Transformers shows none")
    output = run_output(file, tokens, 0, states.shape[1], how)
    if output.value is None:
        return skipped(STATES, "llama.cpp gives none")
    off = relative_l2(states, output.value)
    reason = _masked(file, output, states, off)
    return OutputComparison(STATES, off, reason, bool(reason))
