"""How llama.cpp lays out the parameters that it takes by value.

Fields of these structures come and go between releases. A build's own ``llama.h`` says how they
lie, where it can be found; else a table of known layouts is tried. Neither is believed: a layout
is accepted only if every known default of ``llama_*_default_params()`` stands where it should,
and nothing of a rejected one is ever used.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufnorm.errors import EngineMissingError

_SIZE = 1024
"""Bytes of a structure as it is passed: more than any release's. What lies behind the real
fields is not looked at: System V and AArch64 pass structures of this size in memory, Windows by
a pointer to a copy."""

_KINDS: Mapping[str, Any] = {
    "P": ctypes.c_void_p, "I": ctypes.c_int32, "U": ctypes.c_uint32, "F": ctypes.c_float,
    "B": ctypes.c_bool, "S": ctypes.c_size_t,
}  # fmt: skip
"""Letters of the table: pointer, int or enum, uint32_t, float, bool, size_t."""

_MODEL_HEAD = "P:devices P:tensor_buft_overrides I:n_gpu_layers I:split_mode"
_MODEL_TAIL = (
    "I:main_gpu P:tensor_split P:progress_callback P:progress_callback_user_data P:kv_overrides"
    " B:vocab_only"
)
_CONTEXT_HEAD = "U:n_ctx U:n_batch U:n_ubatch U:n_seq_max"
_CONTEXT_ROPE = "I:rope_scaling_type I:pooling_type I:attention_type"
_CONTEXT_TYPES = (
    "F:rope_freq_base F:rope_freq_scale F:yarn_ext_factor F:yarn_attn_factor F:yarn_beta_fast"
    " F:yarn_beta_slow U:yarn_orig_ctx F:defrag_thold P:cb_eval P:cb_eval_user_data I:type_k"
    " I:type_v"
)
_CONTEXT_ABORT = "P:abort_callback P:abort_callback_data B:embeddings B:offload_kqv"
_CONTEXT_MIDDLE = f"{_CONTEXT_TYPES} {_CONTEXT_ABORT}"
_CONTEXT_TAIL = "B:no_perf B:op_offload B:swa_full B:kv_unified"
_SAMPLERS = "P:samplers S:n_samplers"
_QUANTIZE = (
    "I:nthread I:ftype I:output_tensor_type I:token_embedding_type B:allow_requantize"
    " B:quantize_output_tensor B:only_copy B:pure B:keep_split"
)

# Checked against include/llama.h of each release.
KNOWN: Mapping[str, Mapping[str, str]] = {
    "llama_model_params": {
        "v0.5.0": f"{_MODEL_HEAD} I:load_mode I:lazy_mode {_MODEL_TAIL} B:check_tensors"
        " B:use_extra_bufts B:no_host B:no_alloc B:load_mtp",
        "v0.4.0": f"{_MODEL_HEAD} I:load_mode {_MODEL_TAIL} B:check_tensors B:use_extra_bufts"
        " B:no_host B:no_alloc B:load_mtp",
        "llama-cpp-python 0.3.33": f"{_MODEL_HEAD} {_MODEL_TAIL} B:use_mmap B:use_direct_io"
        " B:use_mlock B:check_tensors B:use_extra_bufts B:no_host B:no_alloc",
        "b6301": f"{_MODEL_HEAD} {_MODEL_TAIL} B:use_mmap B:use_mlock B:check_tensors"
        " B:use_extra_bufts",
    },
    "llama_context_params": {
        "b11739": f"{_CONTEXT_HEAD} U:n_rs_seq U:n_outputs_max U:n_outputs_max_per_seq I:n_threads"
        f" I:n_threads_batch I:ctx_type {_CONTEXT_ROPE} I:flash_attn_type {_CONTEXT_TYPES}"
        f" S:moe_cache_size {_CONTEXT_ABORT} {_CONTEXT_TAIL} {_SAMPLERS} P:ctx_other",
        "v0.5.0": f"{_CONTEXT_HEAD} U:n_rs_seq U:n_outputs_max U:n_outputs_max_per_seq I:n_threads"
        f" I:n_threads_batch I:ctx_type {_CONTEXT_ROPE} I:flash_attn_type {_CONTEXT_MIDDLE}"
        f" {_CONTEXT_TAIL} {_SAMPLERS} P:ctx_other",
        "llama-cpp-python 0.3.33": f"{_CONTEXT_HEAD} U:n_rs_seq U:n_outputs_max I:n_threads"
        f" I:n_threads_batch I:ctx_type {_CONTEXT_ROPE} I:flash_attn_type {_CONTEXT_MIDDLE}"
        f" {_CONTEXT_TAIL} {_SAMPLERS} P:ctx_other",
        "llama-cpp-python 0.3.25": f"{_CONTEXT_HEAD} U:n_rs_seq U:n_outputs_max I:n_threads"
        f" I:n_threads_batch I:ctx_type {_CONTEXT_ROPE} I:flash_attn_type {_CONTEXT_MIDDLE}"
        f" {_CONTEXT_TAIL} {_SAMPLERS}",
        "llama-cpp-python 0.3.20": f"{_CONTEXT_HEAD} I:n_threads I:n_threads_batch"
        f" {_CONTEXT_ROPE} I:flash_attn_type {_CONTEXT_MIDDLE} {_CONTEXT_TAIL} {_SAMPLERS}",
        "b6301": f"{_CONTEXT_HEAD} I:n_threads I:n_threads_batch {_CONTEXT_ROPE}"
        f" {_CONTEXT_MIDDLE} B:flash_attn {_CONTEXT_TAIL}",
    },
    "llama_model_quantize_params": {
        "v0.5.0": f"{_QUANTIZE} B:dry_run P:imatrix P:kv_overrides P:tt_overrides P:prune_layers"
        " S:max_buf_size",
    },
}  # fmt: skip

_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "llama_model_params": {
        "devices": None, "tensor_buft_overrides": None, "split_mode": 1, "main_gpu": 0,
        "tensor_split": None, "progress_callback": None, "kv_overrides": None,
        "vocab_only": False, "check_tensors": False, "use_extra_bufts": True, "no_host": False,
        "no_alloc": False,
    },
    "llama_context_params": {
        "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4,
        "n_threads_batch": 4, "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1,
        "flash_attn_type": -1, "rope_freq_base": 0.0, "rope_freq_scale": 0.0,
        "yarn_ext_factor": -1.0, "yarn_orig_ctx": 0, "defrag_thold": -1.0, "cb_eval": None,
        "cb_eval_user_data": None, "type_k": 1, "type_v": 1, "abort_callback": None,
        "abort_callback_data": None, "embeddings": False, "offload_kqv": True, "no_perf": True,
        "op_offload": True, "samplers": None, "n_samplers": 0, "ctx_other": None,
    },
    "llama_model_quantize_params": {
        "nthread": 0, "allow_requantize": False, "quantize_output_tensor": True,
        "only_copy": False, "pure": False, "keep_split": False, "dry_run": False,
        "imatrix": None, "kv_overrides": None, "tt_overrides": None, "prune_layers": None,
    },
}  # fmt: skip
"""What ``llama_*_default_params()`` has given in every release of :data:`KNOWN`."""


@dataclass(frozen=True)
class Layout:
    """A structure that was verified.

    Attributes:
        struct: the ctypes structure.
        source: where its fields come from.
    """

    struct: type[ctypes.Structure]
    source: str


def verified_layout(
    name: str, header: Path | None, default: Callable[[type[ctypes.Structure]], Any]
) -> Layout:
    """The layout of a structure in a build.

    Args:
        name: of the structure.
        header: the build's own llama.h, None where it is not to be found.
        default: calls the function that gives the defaults, in a given structure.

    Raises:
        EngineMissingError: no layout holds; the message says what differs.
    """
    differs = ""
    for source, fields in _candidates(name, header):
        struct = make_struct(name, fields)
        wrong = _disagreements(name, default(struct))
        if not wrong:
            return Layout(struct, source)
        differs = differs or f"by {source}, {', '.join(wrong[:3])}"
    raise EngineMissingError(
        f"this llama.cpp lays out {name} in a way that ggufnorm does not know ({differs}): name"
        " a build whose llama.h is beside it (a build tree or an install prefix), or another"
        " release"
    )


def _candidates(name: str, header: Path | None) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    if header is not None:
        fields = parse_struct(header.read_text(encoding="utf-8", errors="replace"), name)
        if fields is not None:
            yield "the build's llama.h", fields
    for release, text in KNOWN.get(name, {}).items():
        pairs = (part.split(":") for part in text.split())
        yield f"the known layout of {release}", [(field, _KINDS[k]) for k, field in pairs]


def parse_struct(header: str, name: str) -> list[tuple[str, Any]] | None:
    """The fields of a structure in C; None where it is not there or has a type of another kind.

    Args:
        header: text of llama.h.
        name: of the structure.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", header, flags=re.S)
    found = re.search(rf"struct\s+{name}\s*\{{(.*?)\}}", text, re.S)
    if found is None:
        return None
    fields = []
    for declaration in filter(None, (" ".join(d.split()) for d in found[1].split(";"))):
        matched = re.fullmatch(r"(.*?[\s*])(\w+)", declaration)
        kind = None if matched is None else _kind_of(matched[1].strip())
        if matched is None or kind is None:
            return None
        fields.append((matched[2], kind))
    return fields


def _kind_of(declared: str) -> Any:
    plain = {"bool": "B", "float": "F", "size_t": "S", "uint32_t": "U", "int32_t": "I", "int": "I"}
    if "*" in declared or declared.endswith(("_callback", "_dev_t")):
        return _KINDS["P"]
    if declared.startswith("enum "):
        return _KINDS["I"]
    return _KINDS.get(plain.get(declared, ""))


def make_struct(name: str, fields: list[tuple[str, Any]]) -> type[ctypes.Structure]:
    """A structure of those fields, filled up to the size that is passed.

    Setting a field that this build does not have raises :class:`EngineMissingError`: Python
    would keep it as an attribute, and llama.cpp never see it.
    """
    size = ctypes.sizeof(type(name, (ctypes.Structure,), {"_fields_": fields}))
    kinds = dict(fields)

    def put(self: Any, field: str, value: Any) -> None:
        if field == "flash_attn_type" and "flash_attn" in kinds:  # before October 2025
            field, value = "flash_attn", value == 1
        if field not in kinds:
            raise EngineMissingError(f"{name} of this llama.cpp has no {field}: use a newer one")
        if kinds[field] is ctypes.c_void_p and value is not None:
            kept = self.__dict__.setdefault("_kept", [])
            kept.append(value)  # what is pointed to must outlive the call
            value = ctypes.cast(value, ctypes.c_void_p)
        ctypes.Structure.__setattr__(self, field, value)

    rest = ("_rest", ctypes.c_char * (_SIZE - size))
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, rest], "__setattr__": put})


def _disagreements(name: str, value: Any) -> list[str]:
    """Fields whose default is not what it should be."""
    have = {field[0] for field in value._fields_}
    wrong = [
        f"{field} is {getattr(value, field)!r} and not {expected!r}"
        for field, expected in _DEFAULTS[name].items()
        if field in have and getattr(value, field) != expected
    ]
    if name == "llama_model_params" and value.n_gpu_layers not in (-1, 0, 999):
        wrong.append(f"n_gpu_layers is {value.n_gpu_layers}")
    return wrong


def find_header(library: Path) -> Path | None:
    """The llama.h that a library was built from, None where it cannot be told.

    A build tree's CMakeCache.txt names the source tree; an install prefix has ``include``.
    """
    for folder in (library.parent, *library.resolve().parents[:4]):
        roots = [folder]
        cache = folder / "CMakeCache.txt"
        if cache.is_file():
            text = cache.read_text(encoding="utf-8", errors="replace")
            named = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", text, re.M)
            roots = [Path(named[1]), Path(named[1]) / "vendor" / "llama.cpp"] if named else roots
        for root in roots:
            header = root / "include" / "llama.h"
            if header.is_file():
                return header
    return None
