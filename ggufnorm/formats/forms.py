"""How locations are written, and what they name: :data:`FORMS` has every form."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ggufnorm.core.trace import SCHEMA
from ggufnorm.errors import InputError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.safetensors import SafetensorsReader

Scheme = Literal["path", "http", "hub", "ollama", "checkpoint"]
"""How a location is written, and with that where it leads."""

Kind = Literal["gguf", "mmproj", "trace", "onnx", "checkpoint", "folder", "unknown"]
"""What a location names.

A ``folder`` has a ``config.json`` and was not written as ``hf:FOLDER``. A path is ``unknown``
where there is no file, or a file of no other kind.
"""

Engine = Literal["llama.cpp", "transformers", "onnxruntime"]
"""What runs a model."""

AnyLocation = str | os.PathLike[str]
"""A location as users give it; a ``PathLike`` is always a path."""


@dataclass(frozen=True)
class Form:
    """One way to write a location.

    Attributes:
        example: as a user types it.
        scheme: where it leads.
        kind: what it names.
        pattern: regular expression of all such locations; its group ``name`` becomes
            :attr:`Location.name`. None for a path: its suffix or its file tells the kind.
        meaning: for the table in docs/reading.md, which a test holds equal to this one.
    """

    example: str
    scheme: Scheme
    kind: Kind
    pattern: str | None
    meaning: str


_HTTP, _HUB = r"(?P<name>https?://.*)", r"(?P<name>hf://.*)"
_OLLAMA, _CHECKPOINT = r"ollama:(?P<name>.*)", r"hf:(?!//)(?P<name>.*)"

FORMS = (
    Form("model.gguf", "path", "gguf", None, "a path"),
    Form(
        "model-00002-of-00005.gguf", "path", "gguf", None,
        "any shard of a split model; it stands for the whole. Missing, duplicate or foreign shards"
        " are named",
    ),
    Form("mmproj.gguf", "path", "mmproj", None,
         "the image or audio encoder that goes with a model (`general.architecture` is `clip`)"),
    Form("https://host/model.gguf", "http", "gguf", _HTTP,
         "read with range requests; split models too"),
    Form("hf://org/repo[@revision]/file.gguf", "hub", "gguf", _HUB,
         "a file on the Hugging Face Hub"),
    Form(
        "-hf org/repo[:QUANT]", "hub", "gguf", _HUB,
        "the file that llama.cpp's `-hf` picks: that quantization (Q4_K_M by default), else the"
        " first file. `hf://org/repo:QUANT` is the same",
    ),
    Form("ollama:name[:tag]", "ollama", "gguf", _OLLAMA,
         "a model that Ollama has pulled, found through its manifests (`OLLAMA_MODELS`)"),
    Form("hf:FOLDER", "checkpoint", "checkpoint", _CHECKPOINT,
         "a checkpoint: a folder with `config.json` and safetensors, run by Transformers"),
    Form("hf:org/repo", "checkpoint", "checkpoint", _CHECKPOINT,
         "the same, of a repository in huggingface_hub's cache"),
    Form("model.onnx", "path", "onnx", None, "an ONNX model, run by ONNX Runtime"),
    Form("trace.safetensors", "path", "trace", None,
         "what `ggufnorm trace` wrote, under whatever name"),
)  # fmt: skip
"""Every way to write a location."""

_PATTERNS = tuple(
    (form, re.compile(form.pattern, re.IGNORECASE | re.DOTALL)) for form in FORMS if form.pattern
)


@dataclass(frozen=True)
class Location:
    """Where something is: :func:`parse` makes it.

    Attributes:
        text: as it was given; messages call it so.
        scheme: how it is written.
        name: what stands behind the prefix of ``hf:`` and ``ollama:``, else all of it.
    """

    text: str
    scheme: Scheme
    name: str

    @property
    def engine(self) -> Engine:
        """What runs it. The way it is written tells, so it need not exist."""
        if self.scheme == "checkpoint":
            return "transformers"
        is_onnx = self.scheme != "ollama" and self.name.lower().endswith(".onnx")
        return "onnxruntime" if is_onnx else "llama.cpp"

    @cached_property
    def kind(self) -> Kind:
        """What it names; a path's file is looked into."""
        if self.engine == "transformers":
            return "checkpoint"
        if self.engine == "onnxruntime":
            return "onnx"
        return _kind_of_file(Path(self.name)) if self.scheme == "path" else "gguf"


def parse(location: AnyLocation | Location) -> Location:
    """Take a location apart, by :data:`FORMS`. Nothing is opened.

    Args:
        location: anything; what is of no other form is a path.
    """
    if isinstance(location, Location):
        return location
    text = os.fspath(location)
    if isinstance(location, str):
        for form, pattern in _PATTERNS:
            found = pattern.fullmatch(text)
            if found:
                return Location(text, form.scheme, found["name"])
    return Location(text, "path", text)


def _kind_of_file(path: Path) -> Kind:
    try:
        if path.is_dir():
            return "folder" if (path / "config.json").is_file() else "unknown"
        if not path.is_file():  # a pipe would keep us waiting
            return "unknown"
        with path.open("rb") as file:
            start = file.read(_START.size + 1 + len(_ENCODER))
    except (OSError, ValueError):
        return "unknown"
    is_gguf = start[:4] == b"GGUF"
    return _kind_of_gguf(path, start) if is_gguf else _kind_of_safetensors(path)


_ENCODER = b"clip"
_START = struct.Struct("<4sIQQQ20sIQ")
"""Magic, version, tensors, keys; and the first key, which writers make the architecture."""
_STRING = 8
"""``GGUF_TYPE_STRING`` in ggml/include/gguf.h."""


def _kind_of_gguf(path: Path, start: bytes) -> Kind:
    # A vocabulary makes the header long, so it is walked only where another key stands first.
    if len(start) >= _START.size + len(_ENCODER):
        *_counts, n_key, key, kind, n = _START.unpack_from(start)
        if (n_key, key, kind) == (20, b"general.architecture", _STRING):
            return "mmproj" if start[_START.size :][:n] == _ENCODER else "gguf"
    try:
        with GGUFFile(path) as file:
            return "mmproj" if file.architecture.encode() == _ENCODER else "gguf"
    except InputError:  # whoever opens it says why
        return "gguf"


def _kind_of_safetensors(path: Path) -> Kind:
    try:
        with SafetensorsReader(path) as file:
            return "trace" if file.metadata.get("schema") == SCHEMA else "unknown"
    except InputError:
        return "unknown"
