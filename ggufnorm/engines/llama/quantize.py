"""llama.cpp's own quantizer, in a child process."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from ggufnorm.engines.child import Emit, run_in_child
from ggufnorm.engines.llama.binding import llama
from ggufnorm.errors import EngineError


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    file_type: str,
    *,
    n_threads: int | None = None,
) -> None:
    """Write a quantized copy of a model, as llama-quantize does.

    Args:
        source: an F32, F16 or BF16 GGUF file.
        target: the file to write; it appears only when it is complete.
        file_type: a member of ``gguf.LlamaFileType`` without ``MOSTLY_``: ``Q4_K_M`` …
        n_threads: None for all.

    Raises:
        ValueError: there is no such file type.
        EngineError: llama.cpp refuses.
    """
    from gguf import LlamaFileType

    try:
        number = int(LlamaFileType[f"MOSTLY_{file_type}"])
    except KeyError:
        raise ValueError(f"there is no quantization named {file_type}") from None
    target = Path(target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantizing-") as folder:
        unfinished = Path(folder) / target.name
        job = {
            "source": os.fspath(source),
            "target": str(unfinished),
            "file_type": number,
            "n_threads": n_threads or os.cpu_count() or 1,
        }
        run_in_child(_quantize, job, lambda _message: None)
        unfinished.replace(target)


def _quantize(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    lib = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = job["file_type"]
    params.nthread = job["n_threads"]
    status = lib.llama_model_quantize(job["source"].encode(), job["target"].encode(), params)
    if status != 0:
        raise EngineError(f"llama.cpp cannot quantize {job['source']}")
    return {}
