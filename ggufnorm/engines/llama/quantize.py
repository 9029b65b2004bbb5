"""llama.cpp's own quantizer, in a child process."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.child import Emit, Task, run_in_child
from ggufnorm.engines.llama.binding import llama
from ggufnorm.errors import EngineError, RefusedError
from ggufnorm.formats.output import replacing, temporary_folder

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
    with replacing(target) as unfinished, temporary_folder(unfinished.parent) as folder:
        job = {
            "source": os.fspath(source),
            "target": str(unfinished),
            "file_type": number,
            "tensor_types": dict(tensor_types or {}),
            "importance": _keep(importance, folder),
            "n_threads": n_threads or os.cpu_count() or 1,
        }
        _in_child(_quantize, job)


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
    job = {
        "source": os.fspath(source),
        "file_types": {name: _file_type(name) for name in file_types},
        "with_importance": with_importance,
    }
    return _in_child(_dry_run, job)


def _in_child(task: Task, job: dict[str, Any]) -> dict[str, Any]:
    """Run a task of the quantizer's; an error that is no refusal says whose it is."""
    try:
        return run_in_child(task, job, lambda _message: None)
    except RefusedError:
        raise
    except EngineError as error:
        raise type(error)(f"quantizing {job['source']}: {error}", error.log) from None


def _file_type(name: str) -> int:
    from gguf import LlamaFileType

    try:
        return int(LlamaFileType[f"MOSTLY_{name}"])
    except KeyError:
        raise ValueError(f"there is no quantization named {name}") from None


def _keep(importance: Importance | None, folder: Path) -> str | None:
    """Write an importance matrix where the child finds it: it is too large for the job."""
    if not importance:
        return None
    path = folder / "importance.npz"
    columns: dict[str, Any] = {f"{i}": v for i, v in enumerate(importance.values())}
    np.savez(path, names=np.array(list(importance)), **columns)
    return str(path)


def _quantize(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    params, _kept = _parameters(job)
    status, log = _run(job, job["target"], params)
    if status != 0:
        raise _failure(job["source"], log)
    return {}


def _dry_run(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, number in job["file_types"].items():
        one = {"file_type": number, "n_threads": 1, "tensor_types": {}, "importance": None}
        params, _kept = _parameters(one)
        if job["with_importance"]:
            params.imatrix = (llama().llama_model_imatrix_data * 1)()
        params.dry_run = True
        status, log = _run(job, "", params)
        size = re.search(r"quant size\s*=\s*([\d.]+) MiB", log)
        if status != 0 and not isinstance(failure := _failure(job["source"], log), RefusedError):
            raise failure
        if status == 0 and size and "will require an imatrix" not in log:
            found[name] = float(size[1]) * (1 << 20)
    return found


def _parameters(job: dict[str, Any]) -> tuple[Any, list[Any]]:
    """``llama_model_quantize_params``, and what must live as long as they do."""
    from gguf import GGMLQuantizationType

    lib = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = job["file_type"], job["n_threads"]
    kept: list[Any] = []
    if job["tensor_types"]:  # both arrays end with a null name
        overrides = (lib.llama_model_tensor_override * (len(job["tensor_types"]) + 1))()
        for entry, (pattern, name) in zip(overrides, job["tensor_types"].items(), strict=False):
            entry.pattern, entry.type = pattern.encode(), GGMLQuantizationType[name.upper()]
        params.tt_overrides = overrides
        kept.append(overrides)
    if job["importance"]:
        with np.load(job["importance"]) as file:
            importance = {
                str(name): np.ascontiguousarray(file[f"{i}"], np.float32)
                for i, name in enumerate(file["names"])
            }
        matrix = (lib.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(matrix, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = matrix
        kept += [matrix, importance]
    return params, kept


def _run(job: dict[str, Any], target: str, params: Any) -> tuple[int, str]:
    """``llama_model_quantize``: its status and the last of what it logs."""
    lib, log = llama(), deque[str](maxlen=_LOG_LINES)

    def keep(_level: int, text: bytes, _data: object) -> None:
        log.append(text.decode(errors="replace"))
        os.write(2, text)  # where the parent keeps the last lines for a crash

    callback = lib.llama_log_callback(keep)
    lib.llama_log_set(callback, None)
    _CALLBACKS.append(callback)
    source = job["source"].encode()
    status = int(lib.llama_model_quantize(source, target.encode(), ctypes.byref(params)))
    return status, "".join(log)


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
