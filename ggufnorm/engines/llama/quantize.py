"""llama.cpp's own quantizer, in a child process."""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines import worker
from ggufnorm.engines.llama.binding import build, llama
from ggufnorm.engines.worker import Channel, Result, Task
from ggufnorm.errors import EngineError, NoQuantizerError, RefusedError
from ggufnorm.formats.output import replacing

Importance = Mapping[str, NDArray[np.float32]]
"""For each tensor, one weight for each column (of each expert in turn)."""


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    file_type: str,
    *,
    tensor_types: Mapping[str, str] | None = None,
    importance: Importance | None = None,
    n_threads: int | None = None,
) -> None:
    """Write a quantized copy of a model, as llama-quantize does.

    Args:
        source: an F32, F16 or BF16 GGUF file.
        target: the file to write; it appears only when it is complete.
        file_type: a member of ``gguf.LlamaFileType`` without ``MOSTLY_``: ``Q4_K_M`` …
        tensor_types: ``--tensor-type``: regular expressions searched for in a tensor's name
            to ggml's names of types; the first that is found counts.
        importance: ``--imatrix``.
        n_threads: None for all.

    Raises:
        ValueError: there is no such file type.
        OutputError: the file cannot be written.
        RefusedError: llama.cpp says that it is not possible.
        EngineError: llama.cpp fails, crashes or is killed.
    """
    number = _file_type(file_type)
    with replacing(target) as unfinished:
        job = QuantizeJob(
            source=os.fspath(source),
            target=str(unfinished),
            file_type=number,
            tensor_types=dict(tensor_types or {}),
            importance=dict(importance or {}),
            n_threads=n_threads or os.cpu_count() or 1,
        )
        _call(quantize_file, job)


def quantized_sizes(
    source: str | os.PathLike[str], file_types: Sequence[str], *, with_importance: bool = False
) -> dict[str, float]:
    """What standard mixes would take, as ``llama-quantize --dry-run`` tells.

    Args:
        source: an F32, F16 or BF16 GGUF file.
        file_types: as in :func:`quantize`.
        with_importance: whether there is going to be an importance matrix: some mixes
            choose other types then, and some need one.

    Returns:
        For those that are possible, bytes of all tensors together, to 0.01 MiB.

    Raises:
        ValueError: there is no such file type.
        EngineError: llama.cpp does not load the model, crashes or is killed.
    """
    numbers = {name: _file_type(name) for name in file_types}
    return _call(dry_run, DryRunJob(os.fspath(source), numbers, with_importance))


@dataclass(frozen=True)
class QuantizeJob:
    """What :func:`quantize` asks of its child."""

    source: str
    target: str
    file_type: int
    tensor_types: dict[str, str]
    importance: dict[str, NDArray[np.float32]]
    n_threads: int


@dataclass(frozen=True)
class DryRunJob:
    """What :func:`quantized_sizes` asks of its child."""

    source: str
    file_types: dict[str, int]
    with_importance: bool


_Job = TypeVar("_Job", QuantizeJob, DryRunJob)


def _call(task: Task[_Job, Result], job: _Job) -> Result:
    """Run a task of the quantizer's; an error that is no refusal says whose it is."""
    try:
        return worker.call(task, job)
    except RefusedError:
        raise
    except EngineError as error:
        raise type(error)(f"quantizing {job.source}: {error}", error.log) from None


def _file_type(name: str) -> int:
    from ggufnorm.formats.gguf_constants import LlamaFileType

    try:
        return int(LlamaFileType[f"MOSTLY_{name}"])
    except KeyError:
        raise ValueError(f"there is no quantization named {name}") from None


def quantize_file(job: QuantizeJob, _channel: Channel) -> None:
    """The child's part of :func:`quantize`."""
    params, _kept = _parameters(job)
    status, log = _run(job.source, job.target, params)
    if status != 0:
        raise _failure(job.source, log)


def dry_run(job: DryRunJob, _channel: Channel) -> dict[str, float]:
    """The child's part of :func:`quantized_sizes`."""
    found: dict[str, float] = {}
    for name, number in job.file_types.items():
        params, _kept = _parameters(QuantizeJob(job.source, "", number, {}, {}, 1))
        if job.with_importance:
            params.imatrix = (llama().llama_model_imatrix_data * 1)()
        params.dry_run = True
        status, log = _run(job.source, "", params)
        size = re.search(r"quant size\s*=\s*([\d.]+) MiB", log)
        if status != 0 and not isinstance(failure := _failure(job.source, log), RefusedError):
            raise failure
        if status == 0 and size and "will require an imatrix" not in log:
            found[name] = float(size[1]) * (1 << 20)
    return found


def _parameters(job: QuantizeJob) -> tuple[Any, list[Any]]:
    """``llama_model_quantize_params``, and what must live as long as they do."""
    from ggufnorm.formats.gguf_constants import GGMLQuantizationType

    lib = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = job.file_type, job.n_threads
    kept: list[Any] = []
    if job.tensor_types or job.importance:
        _require_arrays(lib, params)
    if job.tensor_types:  # both arrays end with a null name
        overrides = (lib.llama_model_tensor_override * (len(job.tensor_types) + 1))()
        for entry, (pattern, name) in zip(overrides, job.tensor_types.items(), strict=False):
            entry.pattern, entry.type = pattern.encode(), GGMLQuantizationType[name.upper()]
        params.tt_overrides = overrides
        kept.append(overrides)
    if job.importance:
        importance = {n: np.ascontiguousarray(v, np.float32) for n, v in job.importance.items()}
        matrix = (lib.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(matrix, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = matrix
        kept += [matrix, importance]
    return params, kept


def _require_arrays(lib: Any, params: Any) -> None:
    """Refuse a release that takes types and importance as C++ objects (before July 2026).

    Raises:
        NoQuantizerError: it is one.
    """
    fields = {name for name, *_ in params._fields_}
    if "tt_overrides" not in fields or not hasattr(lib, "llama_model_imatrix_data"):
        raise NoQuantizerError(
            f"{build().name} is too old to be given types of tensors or an importance matrix: use a"
            " newer one"
        )


def _run(source: str, target: str, params: Any) -> tuple[int, str]:
    """``llama_model_quantize``: its status and the last of what it logs."""
    lib, log = llama(), deque[str](maxlen=_LOG_LINES)

    def keep(_level: int, text: bytes, _data: object) -> None:
        log.append(text.decode(errors="replace"))
        os.write(2, text)  # where the parent keeps the last lines for a crash

    callback = lib.llama_log_callback(keep)
    lib.llama_log_set(callback, None)
    _CALLBACKS.append(callback)
    status = lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    return int(status), "".join(log)


_LOG_LINES = 64
_CALLBACKS: list[Any] = []
"""Kept: llama.cpp holds on to the last one, ctypes does not."""


_REFUSALS = re.compile(
    r"this quantization requires an imatrix!"
    r"|Missing importance matrix for tensor .* in a very low-bit quantization"
    r"|imatrix size \d+ is different from tensor size \d+ for .*"
    r"|imatrix contains non-finite value .*"
    r"|requantizing from type \S+ is disabled"
    r"|type \S+ unsupported for integer quantization: no dequantization available"
    r"|cannot dequantize/convert tensor type \S+"
    r"|no tensor type fallback is defined for type \S+"
    r"|quantized data validation failed"
    r"|invalid output file type \d+"
)
"""What ``llama_model_quantize_impl`` and its helpers throw (``src/llama-quant.cpp``) where the
types asked for cannot be had. It throws as well if the disk is full or memory is short."""


def _failure(source: str, log: str) -> EngineError:
    """A failed quantization as an error: whether llama.cpp refused, and what it says."""
    found = re.search(r"failed to quantize: (.*)", log)
    reason = found[1].strip() if found else ""
    if _REFUSALS.fullmatch(reason):
        return RefusedError(f"llama.cpp cannot quantize {source}: {reason}")
    return EngineError(f"llama.cpp failed: {reason or 'it does not say why'}")
