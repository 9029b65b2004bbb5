"""The engine's commands without a child process each: some twenty times as many a second."""

from __future__ import annotations

import contextlib
import ctypes
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
from llama_cpp import mtmd_cpp

from ggufnorm.analysis.attribution import recipe
from ggufnorm.analysis.attribution import run as attribution
from ggufnorm.analysis.crosscheck import encoder, nodes
from ggufnorm.analysis.crosscheck import llama as frameworks
from ggufnorm.analysis.drift import capture, run
from ggufnorm.engines.child import Task
from ggufnorm.engines.llama import mtmd, quantize, tokens
from ggufnorm.engines.llama.binding import llama

_ROOMS = (
    run, attribution, recipe, capture, quantize, tokens, frameworks, encoder, nodes, mtmd,
)  # fmt: skip
"""Modules that start child processes."""


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """Run what follows in this process; what crosses the pipe is still turned to JSON and back.

    Give ``n_threads=1``: idle teams of several lanes would spin (see ``engines/child.py``).
    """
    llama().llama_log_set(_silence, None)
    mtmd_cpp.mtmd_log_set(_silence, None)
    with contextlib.ExitStack() as stack:
        for module in _ROOMS:
            stack.enter_context(mock.patch.object(module, "run_in_child", _run_here))
        yield


def _run_here(
    task: Task,
    job: Mapping[str, Any],
    on_message: Callable[[dict[str, Any]], None],
    **_how: bool,
) -> dict[str, Any]:
    result = task(json.loads(json.dumps(dict(job))), on_message, threading.Event())
    plain: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False))
    return plain


def quantize_by_importance(
    source: Path, target: Path, file_type: str, importance: Mapping[str, np.ndarray]
) -> None:
    """What ``llama-quantize --imatrix`` writes.

    Args:
        importance: per tensor, one weight for each column (of each expert).
    """
    lib = llama()
    lib.llama_log_set(_silence, None)
    entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()  # ends with a null name
    kept = [np.ascontiguousarray(values, np.float32) for values in importance.values()]
    for entry, name, values in zip(entries, importance, kept):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = gguf.LlamaFileType[f"MOSTLY_{file_type}"], 1
    params.imatrix = entries
    assert lib.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silence(_level: int, _text: bytes, _data: int) -> None:
    pass
