"""``doctor``: what is installed, and what of it works."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import psutil

from ggufnorm.core import kernels
from ggufnorm.engines import worker
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import EngineMissingError, GgufnormError
from ggufnorm.version import __version__

State = Literal["ok", "absent", "broken"]

_OPTIONAL = {
    "huggingface_hub": "remote",
    "vl-convert-python": "html",
    "torch": "hf",
    "transformers": "hf",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pillow": "vision",
}
"""Packages to the extra that brings them."""

HUB_PATIENCE = 5.0
"""Seconds that the Hub has to answer."""


@dataclass(frozen=True)
class Examination:
    """One thing that was looked at.

    Attributes:
        what: for a person.
        state: ``ok``; ``absent``: not installed or out of reach, which only some commands
            need; ``broken``: there, and does not work.
        found: what was found, or what is wrong and what to try.
    """

    what: str
    state: State
    found: str


def examine() -> Iterator[Examination]:
    """Look at one thing after the other; nothing that goes wrong ends it."""
    memory = psutil.virtual_memory()
    yield Examination("ggufnorm", "ok", __version__)
    yield Examination("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    free, total = memory.available / 1e9, memory.total / 1e9
    machine = (
        f"{platform.platform()}, {os.cpu_count()} processors, {free:.1f} of {total:.1f} GB free"
    )
    yield Examination("machine", "ok", machine)
    packages = ("numpy", "gguf", "click", "rich")
    yield Examination("packages", "ok", ", ".join(f"{p} {metadata.version(p)}" for p in packages))
    yield _optional()
    yield _loops()
    yield _try("inspect", _inspect_sample)
    yield _try("llama.cpp", _engine)
    yield _try("drift", _drift_sample)
    yield _try("Hugging Face Hub", _hub, failed="absent")


def _optional() -> Examination:
    """Packages that only some commands need."""
    found, missing = [], []
    for package, extra in _OPTIONAL.items():
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(f"{package} ([{extra}])")
    if not missing:
        return Examination("optional", "ok", ", ".join(found))
    said = f"{', '.join(found) or 'none'}; not installed: {', '.join(missing)}"
    return Examination("optional", "absent", said)


def _loops() -> Examination:
    """Whether sums are computed by compiled loops."""
    if kernels.library():
        return Examination("compiled loops", "ok", "sums are computed in C")
    why = "this package was built without a C compiler: NumPy takes twice as long for sums"
    return Examination("compiled loops", "absent", why)


def _try(what: str, look: Callable[[], str], failed: State = "broken") -> Examination:
    try:
        return Examination(what, "ok", look())
    except (EngineMissingError, ImportError) as error:
        return Examination(what, "absent", str(error))
    except GgufnormError as error:
        return Examination(what, failed, str(error))


def _inspect_sample() -> str:
    from ggufnorm.analysis.inspection import inspect
    from ggufnorm.samples import sample_model

    found = inspect(sample_model())
    return f"the bundled sample has {len(found.norms)} norms"


def _engine() -> str:
    found = worker.call(describe_engine, None)
    return f"{found.version}, {found.ggml} on {', '.join(found.devices)}; ABI check passed"


@dataclass(frozen=True)
class _Engine:
    """A llama.cpp that loads."""

    version: str
    ggml: str
    devices: tuple[str, ...]


def describe_engine(_job: None, _channel: Channel) -> _Engine:
    """In a child, because a library that is broken may take its process with it."""
    from ggufnorm.engines.llama import binding

    return _Engine(binding.engine_version(), binding.ggml_version(), tuple(binding.devices()))


def _drift_sample() -> str:
    from ggufnorm.analysis.drift.run import drift
    from ggufnorm.samples import sample_model

    report = drift(sample_model(), sample_model(), n_ctx=64, chunks=1)
    residual = max(n.recompute_residual or 0.0 for n in report.norms)
    return f"NumPy recomputes {len(report.norms)} norms of the sample to {residual:.0e}"


def _hub() -> str:
    try:
        from ggufnorm.formats import hub
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'ggufnorm[remote]'") from None
    return hub.access(HUB_PATIENCE)
