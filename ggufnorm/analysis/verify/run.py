"""``verify``: every tensor of a quantized file made again from its source."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from threading import Lock

from ggufnorm.analysis.diff.metadata import metadata_differences
from ggufnorm.analysis.diff.order import coarser
from ggufnorm.analysis.diff.run import DiffProgress
from ggufnorm.analysis.inspection import model_facts
from ggufnorm.analysis.verify.tensors import Importance, prove
from ggufnorm.core.diff import MetadataDifference
from ggufnorm.core.model import Skipped
from ggufnorm.core.verify import TensorProof, VerifyReport
from ggufnorm.errors import EngineMissingError, MismatchError, TensorTypeError
from ggufnorm.formats import ggml
from ggufnorm.formats.imatrix import read_imatrix
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.storage import readers

_WRITTEN = ("general.file_type", "general.quantization_version")
_WRITTEN_PREFIXES = ("quantize.imatrix.", "split.")
"""Keys that llama-quantize writes (``llama_model_quantize_impl`` in ``src/llama-quant.cpp``)."""
_MOST_NAMED = 3
_MOST_WEIGHTED = 0.3
"""Relative L2 between a matrix in two bits with an importance matrix and without one: 0.2 in
Q2_K, 0.06 in Q4_K (tests/engine/test_verify.py)."""

Location = str | os.PathLike[str]


def verify(
    quant: Location,
    source: Location,
    *,
    imatrix: Location | None = None,
    n_threads: int | None = None,
    on_progress: Callable[[DiffProgress], None] = lambda _progress: None,
) -> VerifyReport:
    """Tell whether a file is exactly what llama-quantize makes of another.

    Each tensor is quantized again by ggml, to the type that it has in the file, and compared
    byte by byte. Nothing is written; memory holds some rows for each thread.

    Args:
        quant: the quantized file.
        source: what it is said to be made of.
        imatrix: the importance matrix that it was made with, GGUF or ``.dat``.
        n_threads: threads that quantize; None for all processors.
        on_progress: is told how far it is.

    Raises:
        InputError: a file cannot be opened or read.
        GGUFError: it is not well-formed GGUF.
        MismatchError: they are two architectures, or have no tensor in common.
        EngineMissingError: llama-cpp-python is not installed.
        ValueError: ``n_threads`` is out of range.
    """
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, not {n_threads}")
    if not ggml.can_quantize():
        raise EngineMissingError(
            "llama.cpp's quantization is needed: pip install 'ggufnorm[llama]'"
        )
    importance = {} if imatrix is None else read_imatrix(imatrix)
    with open_model(source) as a, open_model(quant) as b:
        _require_alike(a, b)
        found, skipped = _proofs(a, b, importance, n_threads, on_progress)
        lacking = tuple(name for name in a.tensors if name not in b.tensors)
        added = tuple(name for name in b.tensors if name not in a.tensors)
        metadata = tuple(d for d in metadata_differences(a, b) if not _is_written(d.key))
        differing = [t for t in found if t.outcome == "differs"]
        trailing = sum(shard.n_trailing for shard in b.shards)
        swapped = coarser(a, b)
        is_derived = not (differing or skipped or lacking or added or metadata or trailing)
        matrix = _matrix_of(b) if imatrix is None else None
        return VerifyReport(
            source=model_facts(a),
            quant=model_facts(b),
            imatrix=None if imatrix is None else os.fspath(imatrix),
            engine=ggml.version() or "",
            tensors=tuple(found),
            lacking=lacking,
            added=added,
            metadata=metadata,
            skipped=tuple(skipped),
            is_derived=is_derived,
            verdict=" ".join(
                [
                    *([swapped.asked("verify")] if swapped and not is_derived else []),
                    _verdict(
                        found,
                        skipped,
                        lacking,
                        added,
                        metadata,
                        trailing,
                        matrix,
                        imatrix is not None,
                    ),
                ]
            ),
        )


def _require_alike(a: ModelFile, b: ModelFile) -> None:
    if a.architecture != b.architecture:
        raise MismatchError(
            f"{a.path} is {a.architecture or 'of no architecture'}, {b.path} is"
            f" {b.architecture or 'of none'}: neither is made of the other"
        )
    if not any(name in a.tensors for name in b.tensors):
        raise MismatchError(f"{a.path} and {b.path} have no tensor in common")
    for file in (a, b):
        if file.byte_order == ">":
            raise MismatchError(f"{file.path} is big-endian, which ggml does not quantize here")


def _proofs(
    a: ModelFile,
    b: ModelFile,
    importance: Importance,
    n_threads: int | None,
    on_progress: Callable[[DiffProgress], None],
) -> tuple[list[TensorProof], list[Skipped]]:
    names = [name for name in b.tensors if name in a.tensors]
    total = sum(b.tensors[name].n_elements for name in names)
    lock, started, done = Lock(), time.perf_counter(), 0

    def advance(n: int) -> None:
        nonlocal done
        with lock:
            done += n
            speed = done / max(time.perf_counter() - started, 1e-9)
            on_progress(DiffProgress("quantizing", done, total, speed))

    def one(name: str) -> TensorProof | Skipped:
        if tuple(a.tensors[name].shape) != tuple(b.tensors[name].shape):
            return Skipped(name, "it has another shape in the source")
        try:
            return prove(a, b, name, importance, advance)
        except (TensorTypeError, ValueError) as error:
            return Skipped(name, str(error))

    with readers(n_threads or os.cpu_count() or 1) as pool:
        results = list(pool.map(one, names))
    return (
        [r for r in results if isinstance(r, TensorProof)],
        [r for r in results if isinstance(r, Skipped)],
    )


def _is_written(key: str) -> bool:
    return key in _WRITTEN or key.startswith(_WRITTEN_PREFIXES)


def _matrix_of(file: ModelFile) -> str | None:
    """The importance matrix that the file says it was made with."""
    return file.metadata.string("quantize.imatrix.file")


# -- the verdict -------------------------------------------------------------------------


def _verdict(
    found: list[TensorProof],
    skipped: list[Skipped],
    lacking: tuple[str, ...],
    added: tuple[str, ...],
    metadata: Sequence[MetadataDifference],
    trailing: int,
    matrix: str | None,
    given: bool,
) -> str:
    differing = [t for t in found if t.outcome == "differs"]
    derived = sum(t.outcome == "derived" for t in found)
    copied = sum(t.outcome == "copied" for t in found)
    counts = f"{derived} quantized and {copied} copied"
    said = []
    if differing:
        named = "; ".join(map(_of_tensor, differing[:_MOST_NAMED]))
        more = f"; and {len(differing) - _MOST_NAMED} more" if len(differing) > _MOST_NAMED else ""
        said.append(
            f"{len(differing)} of {len(found)} tensors are not what the source gives: {named}{more}"
        )
        if matrix is not None:
            said.append(f"the file was made with the importance matrix {matrix}: give it")
        elif not given and _looks_weighted(found):
            said.append(
                "so many, and each by so little: was it made with an importance matrix, or by"
                " another release of llama.cpp?"
            )
    elif found and not (skipped or lacking or added):
        said.append(f"All {len(found)} tensors are what the source gives, bit for bit ({counts})")
    else:
        said.append(f"{len(found)} tensors are what the source gives, bit for bit ({counts})")
    for names, words in ((lacking, "is missing"), (added, "is not in the source")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            said.append(f"{names[0]}{more} {words}")
    if skipped:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        said.append(f"not made again: {skipped[0].what}{more} ({skipped[0].reason})")
    if metadata:
        keys = ", ".join(d.key for d in metadata[:_MOST_NAMED])
        said.append(
            f"keys that llama-quantize copies differ: {keys}"
            f"{', …' if len(metadata) > _MOST_NAMED else ''}"
        )
    if trailing:
        said.append(f"{trailing:,} bytes follow the last tensor")
    return ". ".join(s[:1].upper() + s[1:] for s in said) + "."


def _looks_weighted(found: list[TensorProof]) -> bool:
    """Whether most of what was quantized differs, and no tensor by more than its type may cost."""
    quantized = [t for t in found if t.dtype != t.dtype_from]
    off = [t.rel_l2 for t in quantized if t.outcome == "differs"]
    return 2 * len(off) > len(quantized) and all(e is not None and e < _MOST_WEIGHTED for e in off)


def _of_tensor(t: TensorProof) -> str:
    off = "not finite" if t.rel_l2 is None else f"off by {t.rel_l2:.3g}"
    return (
        f"{t.tensor} ({t.dtype}): {t.n_differing:,} of {t.n_blocks:,} blocks, the first in row"
        f" {t.first_row}, {off}"
    )
