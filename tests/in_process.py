"""The engine's commands without a child process each: some twenty times as many a second."""

from __future__ import annotations

import contextlib
import ctypes
import io
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
from llama_cpp import mtmd_cpp

from ggufnorm.core.progress import OnProgress, no_progress
from ggufnorm.engines import frames, worker
from ggufnorm.engines.llama.binding import llama
from ggufnorm.engines.worker import Channel, Job, Result, Task


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """Run what follows in this process; what crosses the pipe is still packed and rebuilt.

    Give ``n_threads=1``: idle teams of several replicas would spin (see ``engines/worker.py``).
    """
    llama().llama_log_set(_silence, None)
    mtmd_cpp.mtmd_log_set(_silence, None)
    with mock.patch.object(worker, "call", call_here):
        yield


def call_here(
    task: Task[Job, Result],
    job: Job,
    on_progress: OnProgress = no_progress,
    *,
    cancellable: bool = False,
    descriptors: tuple[int, ...] = (),
    cancel: threading.Event | None = None,
) -> Result:
    """:func:`ggufnorm.engines.worker.call` without a child.

    Args:
        cancel: set, it asks the task to end early.
    """
    result = task(_across(task, "job", job), Channel(on_progress, cancel or threading.Event()))
    crossed: Result = _across(task, "return", result)
    return crossed


def _across(task: Task[Any, Any], which: str, value: Any) -> Any:
    pipe = io.BytesIO()
    frames.write_frame(pipe, value)
    pipe.seek(0)
    frame = frames.read_frame(pipe)
    assert frame is not None
    return worker.rebuild(task, which, *frame)


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
