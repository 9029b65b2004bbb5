"""A reranker's score, and the head that makes it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ggufnorm.analysis.crosscheck.llama import Tokens
from ggufnorm.analysis.crosscheck.output import SCORE, OutputComparison, skipped
from ggufnorm.analysis.crosscheck.padding import compare_padding
from ggufnorm.analysis.crosscheck.pooled import RANK, run_output
from ggufnorm.core.frameworks import EngineDifference
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array, SourceOutput
from ggufnorm.core.tolerances import SAME_DOWNSTREAM
from ggufnorm.errors import EngineError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.options import RunSettings

_HEADS = ("cls.output.weight", "cls.weight")
_WITH_SOFTMAX = ("qwen3", "qwen3vl")
"""Architectures whose scores llama.cpp makes shares of (``build_pooling``)."""


def compare_score(
    source: SourceOutput, file: ModelFile, tokens: Tokens, how: RunSettings
) -> OutputComparison:
    """The score of a checkpoint made for sequence classification beside llama.cpp's.

    Args:
        source: what the checkpoint gives.
        file: the GGUF file.
        tokens: ids.
        how: the file is run.
    """
    if source.score is None:
        return skipped(SCORE, f"Transformers does not load {source.classifier}")
    if not any(name in file.tensors for name in _HEADS):
        return skipped(
            SCORE, f"the file has no cls.output.weight, the source is {source.classifier}"
        )
    shares = file.architecture in _WITH_SOFTMAX
    theirs = _shares(source.score) if shares else source.score
    n_short = None if source.padded is None else source.padded.n_tokens
    try:
        output = run_output(file, tokens, RANK, len(theirs), how, n_short)
    except EngineError as error:
        return skipped(SCORE, str(error))
    if output.value is None:
        return skipped(SCORE, "llama.cpp gives none")
    size = _size(source, theirs, shares=shares)
    reason = _numbers(theirs, output.value)
    lost = _lost(source.head, file)
    if lost:
        reason += f"; {', '.join(lost)} of the source became nothing in the file"
    return OutputComparison(
        SCORE,
        _distance(theirs, output.value, size),
        reason,
        known=_of_types(source, size),
        padding=compare_padding(SCORE, source.padded, output, lambda scores: scores),
    )


def compare_answer(
    source: SourceOutput, file: ModelFile, tokens: Tokens, how: RunSettings
) -> OutputComparison:
    """The score of a reranker that predicts an answer: the shares of ``yes`` and ``no``.

    The file has the rows of its head for the labels that it states
    (``_get_cls_out_tensor`` in ``conversion/qwen.py``).
    """
    stated = file.metadata.get(f"{file.architecture}.classifier.output_labels")
    labels = [str(label) for label in stated] if isinstance(stated, (list, tuple)) else []
    ids = [source.labels.get(label) for label in labels]
    if source.predicted is None or not ids or None in ids:
        needed = "predictions" if source.predicted is None else "a tokenizer that knows its labels"
        return skipped(SCORE, f"pooling by rank is compared where the source has {needed}")
    logits = source.predicted[[i for i in ids if i is not None]]
    theirs = _shares(logits) if file.architecture in _WITH_SOFTMAX else logits
    try:
        value = run_output(file, tokens, RANK, len(theirs), how).value
    except EngineError as error:
        return skipped(SCORE, str(error))
    if value is None:
        return skipped(SCORE, "llama.cpp gives none")
    off = _distance(theirs, value, float(np.linalg.norm(theirs)))
    reason = f"{', '.join(labels)}: {_numbers(theirs, value)}"
    reversed_off = _distance(theirs[::-1], value, float(np.linalg.norm(theirs)))
    if off is not None and reversed_off is not None and reversed_off < 0.1 * off:
        reason += f"; the rows of cls.output.weight stand in another order than {labels}"
    return OutputComparison(SCORE, off, reason)


def _shares(scores: Array) -> Array:
    e = np.exp(scores - scores.max())
    return np.asarray(e / e.sum(), np.float32)


def _size(source: SourceOutput, theirs: Array, *, shares: bool) -> float:
    """What a score's error is relative to: near zero it is the difference of large terms."""
    n = len(theirs)
    last = [] if shares else [w for w in source.head.values() if w.ndim == 2 and len(w) == n]
    terms = [float(np.linalg.norm(w) * np.sqrt(w.shape[1] / n)) for w in last]
    return max(float(np.linalg.norm(theirs)), *terms, 0.0)


def _distance(theirs: Array, value: Array, size: float) -> float | None:
    off = float(np.linalg.norm(theirs - value)) / size if size else 0.0
    return off if np.isfinite(off) else None


def _of_types(source: SourceOutput, size: float) -> tuple[EngineDifference, ...]:
    """What the types of tokens do, of which llama.cpp knows the first alone."""
    if source.typed is None or source.score is None:
        return ()
    off = _distance(source.score, source.typed, size)
    if off is None or off <= SAME_DOWNSTREAM:
        return ()
    reason = (
        "llama.cpp takes every token for one of the first text (type 0, src/models/bert.cpp),"
        " the source those of the second for type 1, as its tokenizer gives a pair:"
        f" {_shown(source.typed)} in the source, {_shown(source.score)} with type 0 alone"
    )
    return (EngineDifference("token types of a pair", "ADD", reason, off, n_sites=0),)


def _numbers(theirs: Array, value: Array) -> str:
    return f"{_shown(theirs)} in the source, {_shown(value)} in llama.cpp"


def _shown(values: Array) -> str:
    return ", ".join(f"{v:.4g}" for v in values[:4].tolist())


def _lost(head: Mapping[str, Array], file: ModelFile) -> list[str]:
    """Weights behind the network that are in no tensor of the file's head."""
    ours = []
    for name in file.tensors:
        if name.startswith("cls."):
            ours.append(np.squeeze(read_tensor(file, name)))
    return [
        name
        for name, values in head.items()
        if not any(_is_same(np.squeeze(values), other) for other in ours)
    ]


def _is_same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and relative_l2(a, b) < 0.1
