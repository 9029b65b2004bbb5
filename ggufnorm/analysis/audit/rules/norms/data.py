"""N6: the data of all tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.errors import TensorTypeError
from ggufnorm.formats.dequantize import n_rows, read_rows
from ggufnorm.formats.finite import rows_are_finite
from ggufnorm.formats.gguf_tensors import Tensor
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of
from ggufnorm.formats.storage import LocalStorage, in_parallel

_CHUNK = 1 << 21
"""Bytes whose values are counted at once."""

_PART = 1 << 26
"""Bytes of a tensor that one thread reads, so that the largest keeps none waiting."""

_CONNECTIONS = 4
"""Threads that read, at least, of a file that is not on this machine."""


@rule("N601", "tensor-data", "error")
def tensor_data(_subject: Subject) -> Iterator[Problem]:
    """A tensor's data is short, or overlaps another's.

    What it does:
        Compares where each tensor's data begins and ends, by the header, with the file's
        size and with the other tensors. A file that fails is not looked at further.

    Why it matters:
        The file is truncated, or its header and its data do not belong together. Tools
        that map the file without checking read other bytes for weights.

    What to do:
        Download or convert the file again.

    Example:
        ``byte 1187: tensor 'blk.3.ffn_norm.weight': its data ends 512 bytes after the end
        of the file (is it truncated?)``
    """
    # Who opened the file has checked it (GGUFFile): ggufnorm.analysis.audit.run makes the finding.
    yield from ()


@rule("N602", "tensor-non-finite", "error")
def non_finite(subject: Subject) -> Iterator[Problem]:
    """A tensor has NaN or infinite values, or block scales.

    What it does:
        With ``--full``, reads every tensor but the norms (N301) and looks at the exponents of
        its values, or of its blocks' scales.

    Why it matters:
        One NaN block scale spoils every token. In some quantized types the logits come out
        finite but constant, so nothing else tells. llama.cpp looks only with
        ``--check-tensors``.

    What to do:
        Quantize again; if the unquantized file is affected too, convert again.

    Example:
        ``blk.2.ffn_down.weight (Q4_K): 256 of 65,536 values are NaN or infinite, the first in
        row 17``
    """
    if not subject.full:
        raise NotApplicableError("only the norms were read (--full reads all tensors)")
    seen = subject.weights.keys() | subject.known_finite
    names = [name for name in subject.file.tensors if name not in seen]
    parts = [(name, rows) for name in names for rows in _parts(subject, name)]
    found = in_parallel(
        lambda part: _count_non_finite(subject, *part), parts, _workers(subject.file)
    )
    counts: dict[str, _NonFinite | None] = dict.fromkeys(names, _NonFinite(0, None))
    for (name, _), more in zip(parts, found, strict=True):
        counts[name] = _sum(counts[name], more)
    for name, bad in counts.items():
        if bad is not None and bad.n:
            tensor = subject.file.tensors[name]
            message = (
                f"{name} ({tensor.dtype}): {bad.n:,} of {tensor.n_elements:,} values are NaN or"
                f" infinite, the first in row {bad.first_row}"
            )
            evidence = {"dtype": tensor.dtype, "non_finite": bad.n, "first_row": bad.first_row}
            yield Problem(message, name, layer_of(name), evidence)
    unread = [name for name, bad in counts.items() if bad is None]
    if unread:
        others = f" and {len(unread) - 1} others" if len(unread) > 1 else ""
        raise NotApplicableError(f"{unread[0]}{others} cannot be dequantized here")


def _workers(file: ModelFile) -> int:
    """Threads that read; more than there are processors would wait for the interpreter."""
    n = os.cpu_count() or 1
    return n if _is_local(file) else max(_CONNECTIONS, n)


def _is_local(file: ModelFile) -> bool:
    return all(isinstance(shard.storage, LocalStorage) for shard in file.shards)


@dataclass(frozen=True)
class _NonFinite:
    """How many of a tensor's values are not finite, and the first row that has one."""

    n: int
    first_row: int | None


def _sum(first: _NonFinite | None, more: _NonFinite | None) -> _NonFinite | None:
    """Of two parts of a tensor, in order; None if either cannot be read."""
    if first is None or more is None:
        return None
    row = more.first_row if first.first_row is None else first.first_row
    return _NonFinite(first.n + more.n, row)


def _parts(subject: Subject, name: str) -> list[range]:
    """A tensor's rows, shared out."""
    rows = n_rows(subject.file, name)
    step = _rows_in(_PART, subject.file.tensors[name], rows)
    return [range(start, min(rows, start + step)) for start in range(0, rows, step)]


def _rows_in(n_bytes: int, tensor: Tensor, rows: int) -> int:
    return max(1, n_bytes * rows // max(1, tensor.n_bytes))


def _count_non_finite(subject: Subject, name: str, rows: range) -> _NonFinite | None:
    """Look at all values of some rows of a tensor; None if its type cannot be read."""
    file, tensor = subject.file, subject.file.tensors[name]
    step = _rows_in(_CHUNK, tensor, n_rows(file, name))
    total, first = 0, None
    try:
        if rows_are_finite(file, name, rows.start, rows.stop):
            return _NonFinite(0, None)
        for start in rows[::step]:
            bad = ~np.isfinite(read_rows(file, name, start, min(rows.stop, start + step)))
            if bad.any():
                total += int(bad.sum())
                first = start + int(bad.any(axis=1).argmax()) if first is None else first
    except TensorTypeError:
        return None
    return _NonFinite(total, first)


@rule("N603", "matrix-zero", "warning")
def zero(subject: Subject) -> Iterator[Problem]:
    """A matrix, or one expert of it, is zero everywhere.

    What it does:
        With ``--full``, reads the rows of every matrix of a block, and of each expert, until
        one is not zero.

    Why it matters:
        Nothing passes: a layer that was lost, an expert that was never written. Some networks
        begin with zeros in places; a trained one has none.

    What to do:
        Compare with the source: ``ggufnorm audit --source``.

    Example:
        ``blk.1.ffn_up_exps.weight is zero in expert 2 of 4``
    """
    if not subject.full:
        raise NotApplicableError("only the norms were read (--full reads all tensors)")
    if subject.source is not None:
        raise NotApplicableError("beside the source T206 tells")
    names = [
        name
        for name, t in subject.file.tensors.items()
        if layer_of(name) is not None and len(t.shape) > 1 and name not in subject.weights
    ]
    # Where a row is at hand, handing it to a thread takes longer than reading it.
    workers = 1 if _is_local(subject.file) else _workers(subject.file)
    found = in_parallel(lambda name: _zero_parts(subject, name), names, workers)
    for name, (zeros, n) in zip(names, found, strict=True):
        if not zeros:
            continue
        where = "everywhere" if len(zeros) == n else f"in expert {_listed(zeros)} of {n}"
        evidence = {"experts": zeros[:64]} if n > 1 else {}
        yield Problem(f"{name} is zero {where}", name, layer_of(name), evidence)


def _listed(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
    return ", ".join(map(str, numbers[:4])) + more


def _zero_parts(subject: Subject, name: str) -> tuple[list[int], int]:
    """The parts of a tensor that are zero, and how many it has: experts, or the whole."""
    file, tensor = subject.file, subject.file.tensors[name]
    n = tensor.shape[2] if len(tensor.shape) == 3 else 1
    rows = n_rows(file, name) // n
    try:
        return [i for i in range(n) if _is_zero(subject, name, i * rows, (i + 1) * rows)], n
    except TensorTypeError:
        return [], n


def _is_zero(subject: Subject, name: str, start: int, stop: int) -> bool:
    step = 1  # nearly every tensor is told by its first row
    while start < stop:
        if read_rows(subject.file, name, start, min(stop, start + step)).any():
            return False
        start, step = start + step, min(step * 4, 256)
    return True


RULES: tuple[Rule, ...] = (tensor_data, non_finite, zero)
