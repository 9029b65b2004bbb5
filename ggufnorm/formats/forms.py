"""How locations are written, and what they name: :data:`FORMS` has every form."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ggufnorm.errors import InputError
from ggufnorm.formats.contents import content_of
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.model_file import ModelFile

Scheme = Literal["path", "http", "hub", "ollama", "checkpoint"]
"""How a location is written, and with that where it leads."""

Kind = Literal[
    "gguf", "mmproj", "adapter", "vocabulary", "imatrix", "trace", "safetensors", "onnx",
    "checkpoint", "folder", "models", "directory", "picture", "sound", "array", "text", "report",
    "pickle", "repository", "webpage", "unknown",
]  # fmt: skip
"""What a location names.

Of GGUF files, ``gguf`` is a model, whole or a shard of one, ``adapter`` a LoRA, ``vocabulary``
a tokenizer without weights, ``imatrix`` an importance matrix. A ``folder`` has a
``config.json`` and was not written as ``hf:FOLDER``; ``models`` is one without it that has GGUF
files, ``directory`` any other. ``picture`` to ``pickle`` are files that are no model
(:data:`~ggufnorm.formats.contents.ContentKind`). A ``repository`` is written ``org/repo``, and
there is no such path; a ``webpage`` is an address of the Hub's that a browser shows. A path is
``unknown`` where there is no file, or a file of no other kind. A file named ``.gguf`` is never one
of another format: whoever opens it says what is wrong with it.
"""

GGUF_KINDS: frozenset[Kind] = frozenset({"gguf", "mmproj", "adapter", "vocabulary", "imatrix"})
"""The kinds of GGUF files."""

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
    def is_gguf(self) -> bool:
        """Whether it is some kind of GGUF file, of which only the first bytes are looked at."""
        if self.engine != "llama.cpp":
            return False
        return self.scheme != "path" or _start(Path(self.name))[:4] == b"GGUF"

    @cached_property
    def kind(self) -> Kind:
        """What it names; a path's file is looked into."""
        if self.engine == "transformers":
            return "checkpoint"
        if self.engine == "onnxruntime":
            return "onnx"
        if self.scheme == "http" and web_page(self.name) is not None:
            return "webpage"
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


_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", re.ASCII)
"""How a repository on the Hugging Face Hub is written, in front of ``:`` and a quantization."""
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".onnx", ".json", ".npy", ".bin", ".txt")
_WEB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:/?|/tree/[^?#]*|/blob/(?P<revision>[^/?#]+)/(?P<file>[^?#]+))(?:[?#].*)?"
)
"""Addresses that a browser shows: of a repository, or of one of its files."""


def web_page(url: str) -> str | None:
    """The location behind an address that a browser shows; None if it is no such page."""
    found = _WEB_PAGE.fullmatch(url)
    if found is None:
        return None
    if found["file"] is None:
        return f"hf://{found['repo']}"
    at = "" if found["revision"] == "main" else f"@{found['revision']}"
    return f"hf://{found['repo']}{at}/{found['file']}"


def _kind_of_file(path: Path) -> Kind:
    try:
        if path.is_dir():
            return _kind_of_folder(path)
        if not path.exists():
            return _kind_of_nothing(path)
    except (OSError, ValueError):
        return "unknown"
    start = _start(path)
    if not start:
        return "unknown"
    if start[:4] == b"GGUF":
        return _kind_of_gguf(path, start)
    kind = _kind_of_safetensors(path)
    if kind != "unknown" or path.suffix.lower() == ".gguf":
        return kind
    content = content_of(start)
    return "unknown" if content is None or content == "pointer" or content == "page" else content


def _kind_of_folder(path: Path) -> Kind:
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return "folder"
    here = any(found for depth in ("*.gguf", "*/*.gguf") for found in path.glob(depth))
    return "models" if here else "directory"  # deeper, a home folder would take too long


def _kind_of_nothing(path: Path) -> Kind:
    """What may have been meant by a path that leads nowhere."""
    text = path.as_posix()
    is_model = path.suffix.lower() in _MODEL_SUFFIXES
    is_there = path.parent.is_dir()
    return "repository" if _REPOSITORY.fullmatch(text) and not (is_model or is_there) else "unknown"


def _start(path: Path) -> bytes:
    """The first bytes of a file; none where there is none."""
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return b""
        with path.open("rb") as file:
            return file.read(_PEEK)
    except (OSError, ValueError):
        return b""


def _kind_of_gguf(path: Path, start: bytes) -> Kind:
    """By the first keys where they tell: a vocabulary makes the whole header long."""
    said = _first_strings(start)
    architecture, n_tensors = (
        said.get("general.architecture"),
        int.from_bytes(start[8:16], "little"),
    )
    if architecture == "clip":
        return "mmproj"
    if architecture and n_tensors and "general.type" in said:
        return _TYPES.get(said["general.type"], "gguf")
    try:
        with GGUFFile(path) as file:
            return kind_of_model(file)
    except InputError:  # whoever opens it says why
        return "gguf"


_PEEK = 1 << 12
_HEAD = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors and of keys (ggml/include/gguf.h)."""
_STRING = 8
"""``GGUF_TYPE_STRING`` in ggml/include/gguf.h."""


def _first_strings(start: bytes) -> dict[str, str]:
    """The keys at the beginning of a header, as far as their values are strings."""
    found: dict[str, str] = {}
    at = _HEAD.size
    while True:
        parts = []
        for kind in (None, _STRING):  # a key has no type in front, its value has
            if kind is not None:
                if int.from_bytes(start[at : at + 4], "little") != kind:
                    return found
                at += 4
            n = int.from_bytes(start[at : at + 8], "little")
            at += 8
            if at + n > len(start) or n == 0:
                return found
            parts.append(start[at : at + n].decode(errors="replace"))
            at += n
        found[parts[0]] = parts[1]


_TYPES: dict[str, Kind] = {
    "adapter": "adapter", "vocab": "vocabulary", "imatrix": "imatrix", "mmproj": "mmproj",
}  # fmt: skip
"""``general.type`` (``GGUFType`` in gguf-py/gguf/constants.py), where it is not a model."""


def kind_of_model(file: ModelFile) -> Kind:
    """What a GGUF file is, by ``general.type``, and where it does not say so by what it holds.

    A file without tensors that says it is a model, but has tokens, is a vocabulary
    (``convert_hf_to_gguf.py --vocab-only``); a shard may have none.
    """
    said = _TYPES.get(file.metadata.string("general.type") or "")
    if file.architecture == "clip":
        return "mmproj"
    if said is not None:
        return said
    if not file.tensors:
        is_shard = (file.metadata.integer("split.count") or 1) > 1
        has_tokens = "tokenizer.ggml.model" in file.metadata
        return "vocabulary" if has_tokens and not is_shard else "gguf"
    if all(name.endswith((".in_sum2", ".counts")) for name in file.tensors):
        return "imatrix"
    return "adapter" if all(name.endswith(_LORA) for name in file.tensors) else "gguf"


_LORA = (".lora_a", ".lora_b")
"""How an adapter's tensors end (``src/llama-adapter.cpp``)."""


def _kind_of_safetensors(path: Path) -> Kind:
    from ggufnorm.core.trace import SCHEMA  # which ``inspect`` of a GGUF file does without
    from ggufnorm.formats.safetensors import SafetensorsReader

    try:
        with SafetensorsReader(path) as file:
            return "trace" if file.metadata.get("schema") == SCHEMA else "safetensors"
    except InputError:
        return "unknown"
