"""What is known of a case before anything is run: the evidence, the file, what it will cost."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ggufnorm.core.engine import GpuLayers
from ggufnorm.errors import InputError
from ggufnorm.formats.forms import parse
from ggufnorm.formats.hf import open_source
from ggufnorm.formats.llama_libraries import VARIABLE
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.runs.options import PLAIN, SideOptions
from ggufnorm.verbs.check.given import Evidence

FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
"""Types that are not quantized."""
_SCORES = frozenset({"cls.weight", "cls.output.weight"})
_DIGEST = re.compile(r"(?:sha256[-:])?([0-9a-f]{64})")
"""How huggingface_hub's cache and Ollama name the files whose digest they know."""


@dataclass(frozen=True)
class RunOptions:
    """How models are run.

    Attributes:
        text: to run; None for the bundled one.
        text_name: what reports call it.
        n_ctx: tokens of a chunk.
        chunks: to run at most.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers on a GPU.
        side: the options that the user runs the model with.
        check_memory: refuse models that do not fit into the memory that is free.
    """

    text: str | None = None
    text_name: str = "given text"
    n_ctx: int = 512
    chunks: int | None = 4
    n_threads: int | None = None
    n_gpu_layers: GpuLayers | None = None
    side: SideOptions = PLAIN
    check_memory: bool = True


@dataclass(frozen=True)
class Case:
    """A model and all that is known of it from its header.

    Attributes:
        evidence: what was given.
        options: how models are run.
        path: on this machine, of a split model its first shard; None for a remote model.
        n_shards: files that the model is in.
        size: bytes.
        source_size: bytes of the source's tensors; 0 without one.
        n_weights: elements of all tensors.
        architecture: ``general.architecture``.
        name: ``general.name``.
        types: tensors by type, ``21 Q4_K, 13 F32``.
        quantized: types of the matrices that are no floats, the commonest first.
        pools: whether the model makes one vector or score of a text: it states how, attends both
            ways (``LlamaModel.is_embedding``), or has a classifier.
        is_encoder: whether the model is an image or audio encoder.
        source_is_local: whether the source is on this machine.
    """

    evidence: Evidence
    options: RunOptions
    path: Path | None
    n_shards: int
    size: int
    source_size: int
    n_weights: int
    architecture: str
    name: str | None
    types: str
    quantized: tuple[str, ...]
    pools: bool
    is_encoder: bool
    source_is_local: bool

    @property
    def digest(self) -> str | None:
        """SHA-256 that the file's name states; None where it states none."""
        if self.path is None or self.n_shards > 1:
            return None
        found = _DIGEST.fullmatch(self.path.resolve().name)
        return found[1] if found else None

    @property
    def fix_command(self) -> str:
        """The command that writes a corrected copy beside the model."""
        source = self.evidence.source
        fixed = Path(self.evidence.model).stem if self.path is None else self.path.stem
        return self.command(
            "fix", self.evidence.model, *(("--source", source) if source else ()),
            "-o", f"{fixed}-fixed.gguf",
        )  # fmt: skip

    @property
    def build_words(self) -> list[str]:
        """The options of a command line that runs the same llama.cpp on as many threads."""
        o, build = self.options, os.environ.get(VARIABLE)
        words = [] if o.n_threads is None else ["-t", str(o.n_threads)]
        words += [] if o.check_memory else ["--no-memory-check"]
        return words if build is None else [*words, "--llama-cpp", build]

    @property
    def device_words(self) -> list[str]:
        """The same, on the same devices and in batches of the same size."""
        o = self.options
        words = [*chain(*o.side.options(o.n_gpu_layers)), *self.build_words]
        return words if o.side.n_ubatch == PLAIN.n_ubatch else [*words, "-ub", f"{o.side.n_ubatch}"]

    @property
    def text_words(self) -> list[str]:
        """The option of a command line that runs the same text, where a file holds it."""
        o = self.options
        return ["-f", o.text_name] if o.text is not None and Path(o.text_name).is_file() else []

    @property
    def drift_words(self) -> list[str]:
        """The options of a ``drift`` that runs the same chunks in the same way."""
        o = self.options
        words = self.text_words + ([] if o.n_ctx == RunOptions.n_ctx else ["-c", f"{o.n_ctx}"])
        return [
            *words,
            *([] if o.chunks is None else ["--chunks", f"{o.chunks}"]),
            *self.device_words,
        ]

    def command(self, verb: str, *parts: str | None) -> str:
        """A command line."""
        return " ".join(["ggufnorm", verb, *(shlex.quote(p) for p in parts if p is not None)])


def open_case(evidence: Evidence, options: RunOptions) -> Case:
    """Read the header.

    Raises:
        InputError: the model or the source cannot be found or opened.
        GGUFError: the model is not well-formed GGUF.
    """
    with open_model(evidence.model) as file:
        types = Counter(t.dtype for t in file.tensors.values())
        quantized = Counter(t.dtype for t in file.tensors.values() if _is_quantized(t.dtype))
        arch = file.architecture
        pooling = file.metadata.integer(f"{arch}.pooling_type")
        is_causal = file.metadata.get(f"{arch}.attention.causal") is not False
        is_local, source_size = _source_size(evidence.source)
        return Case(
            evidence,
            options,
            _local(evidence.model),
            len(file.shards),
            file.size,
            source_size,
            sum(t.n_elements for t in file.tensors.values()),
            arch,
            file.metadata.string("general.name"),
            ", ".join(f"{n} {name}" for name, n in types.most_common()),
            tuple(name for name, _ in quantized.most_common()),
            bool(pooling) or not is_causal or not _SCORES.isdisjoint(file.tensors),
            arch == "clip",
            is_local,
        )


def _is_quantized(dtype: str) -> bool:
    return dtype not in FLOATS and not re.fullmatch(r"I\d+", dtype)


def _local(location: str) -> Path | None:
    if parse(location).scheme == "http":
        return None
    try:
        return local_path(location)
    except InputError:
        return None


def _source_size(location: str | None) -> tuple[bool, int]:
    if location is None:
        return False, 0
    with open_source(location) as source:
        return source.is_local, source.n_bytes


def missing_packages(*names: str) -> list[str]:
    """The packages, of those, that cannot be imported."""
    from importlib.util import find_spec

    return [name for name in names if find_spec(name) is None]


def seconds(n: float) -> str:
    """A time to be expected: ``under 5 s``, ``about 40 s``, ``about 3 min``."""
    if n < 5:
        return "under 5 s"
    return f"about {n:.0f} s" if n < 90 else f"about {n / 60:.0f} min"


def memory(n: float) -> str:
    """Memory to be expected."""
    return f"{n / 1e9:.1f} GB of memory"


def threads(case: Case) -> int:
    """CPU threads of a run."""
    return case.options.n_threads or os.cpu_count() or 1
