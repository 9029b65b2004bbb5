"""Builds of llama.cpp that are driven by ctypes alone: here llama-cpp-python's own libraries."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufnorm
from ggufnorm.engines import worker
from ggufnorm.engines.llama import layouts
from ggufnorm.engines.llama.api import Api
from ggufnorm.engines.llama.layouts import parse_struct, verified_layout
from ggufnorm.engines.llama.quantize import quantize, quantized_sizes
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import EngineMissingError, NoQuantizerError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.llama_libraries import VARIABLE, find_libraries
from ggufnorm.formats.pure import quantize_purely
from ggufnorm.runs.options import SideOptions


@pytest.fixture(scope="module")
def build() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "lib"


def run(model: Path, text: str, **options: Any) -> ggufnorm.DriftReport:
    return ggufnorm.drift(model, model, text=text, n_ctx=32, chunks=1, n_threads=1, **options)


def test_a_build_gives_the_figures_of_the_binding(
    tiny: dict[str, Path], text: str, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_binding = run(tiny["qwen3moe"], text)
    monkeypatch.setenv(VARIABLE, str(build))
    alone = run(tiny["qwen3moe"], text)
    assert alone.operations == by_binding.operations
    assert alone.norms == by_binding.norms
    ours, theirs = alone.run.engine_quant, by_binding.run.engine_quant
    assert ours
    assert theirs
    assert ours.build.digest == theirs.build.digest
    assert (ours.build.origin, theirs.build.origin) == ("--llama-cpp", "llama-cpp-python")
    assert ours.build.layout in ("the known layout of v0.5.0", "the build's llama.h")
    assert ours.devices == theirs.devices == ("CPU",)
    assert re.fullmatch(r"llama\.cpp \d.*", ours.build.name)


def test_a_build_quantizes_as_the_binding_does(
    tiny: dict[str, Path], build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importance = {"blk.0.ffn_up.weight": np.arange(1, 257, dtype=np.float32)}
    n_embd = GGUFFile(tiny["llama"]).tensors["blk.0.ffn_up.weight"].shape[0]
    importance = {name: values[:n_embd] for name, values in importance.items()}
    given: dict[str, Any] = {"tensor_types": {"ffn_down": "Q8_0"}, "importance": importance}
    quantize(tiny["llama"], tmp_path / "binding.gguf", "Q4_K_M", **given)
    monkeypatch.setenv(VARIABLE, str(build))
    quantize(tiny["llama"], tmp_path / "alone.gguf", "Q4_K_M", **given)
    assert (tmp_path / "alone.gguf").read_bytes() == (tmp_path / "binding.gguf").read_bytes()
    sizes = quantized_sizes(tiny["llama"], ["Q4_0", "Q8_0"])
    assert sizes["Q4_0"] < sizes["Q8_0"]


def test_a_build_without_a_quantizer_says_which_has_one(build: Path) -> None:
    api = Api.__new__(Api)
    api.libraries, api.handles, api.layouts = find_libraries(build), object(), {}
    with pytest.raises(NoQuantizerError, match="does not quantize: use llama-cpp-python or"):
        api.llama_model_quantize_default_params()


def test_a_model_is_quantized_purely_where_no_build_does(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    quantize(tiny["llama"], tmp_path / "llama.gguf", "Q4_0")
    quantize_purely(tiny["llama"], tmp_path / "pure.gguf", "Q4_0")
    with GGUFFile(tmp_path / "llama.gguf") as theirs, GGUFFile(tmp_path / "pure.gguf") as ours:
        assert ours.metadata.get("general.file_type") == theirs.metadata.get("general.file_type")
        alike = [n for n, t in theirs.tensors.items() if t.dtype == "Q4_0"]
        assert alike
        for name in alike:
            assert ours.read_bytes(name).tobytes() == theirs.read_bytes(name).tobytes()


def test_what_a_build_lacks_fails_when_it_is_called(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(build))
    assert worker.call(probe, None) == Found(
        "this llama.cpp lacks llama_no_such_function: use another release (ggufnorm doctor shows"
        " which one runs)",
        f"this process has loaded another llama.cpp than {build / 'libggml.so'}",
    )


@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gpt2"])
def test_two_builds_in_lockstep_give_the_figures_of_one(
    tiny: dict[str, Path], text: str, build: Path, arch: str
) -> None:
    other = SideOptions(llama_cpp=str(build), flash_attention="off", cache_type_k="q8_0")
    one = run(tiny[arch], text, options=replace(other, llama_cpp=None), floor=True)
    two = run(tiny[arch], text, options=other, floor=True)
    assert two.operations == one.operations
    assert any(o.local.rel_l2 for o in two.operations)  # the cache's rounding
    assert two.norms == one.norms
    assert two.logits == one.logits
    assert two.floor == one.floor
    assert two.run.engine_ref == one.run.engine_ref
    assert two.run.engine_quant
    assert two.run.engine_quant.build.origin == "--llama-cpp"


def test_a_crash_in_the_other_build_is_an_error(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    broken = tmp_path / "libllama.so"
    broken.write_bytes(b"no library")
    with pytest.raises(EngineMissingError, match="does not load"):
        run(tiny["llama"], text, options=SideOptions(llama_cpp=str(broken)))


def test_a_folder_without_a_build_ends_a_run(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineMissingError, match="no libllama there"):
        run(tiny["llama"], text, options_ref=SideOptions(llama_cpp=str(tmp_path)))


# -- layouts -------------------------------------------------------------------------------------

HEADER = """
struct llama_context_params {
    uint32_t n_ctx; // text context; 0 = from model
    int32_t  n_threads;
    enum llama_pooling_type pooling_type;
    ggml_backend_sched_eval_callback cb_eval;
    void * cb_eval_user_data;
    /* not a field; */
    bool embeddings;
    size_t   n_samplers;
};
"""
FIELDS = ["n_ctx", "n_threads", "pooling_type", "cb_eval", "cb_eval_user_data", "embeddings",
          "n_samplers"]  # fmt: skip


def test_a_header_is_read() -> None:
    fields = parse_struct(HEADER, "llama_context_params")
    assert fields is not None
    assert [name for name, _ in fields] == FIELDS
    assert fields[3][1] is ctypes.c_void_p
    assert parse_struct(HEADER.replace("size_t", "struct other"), "llama_context_params") is None
    assert parse_struct(HEADER, "llama_model_params") is None


def memory_of(defaults: dict[str, object], fields: list[tuple[str, Any]]) -> bytes:
    """What a build with those fields returns."""
    value = layouts.make_struct("written", fields)()
    for name, _ in fields:
        if defaults.get(name) is not None:
            setattr(value, name, defaults[name])
    return bytes(value)


@pytest.mark.parametrize("release", layouts.KNOWN["llama_context_params"])
def test_each_known_layout_has_its_fields_found(release: str) -> None:
    name = "llama_context_params"
    pairs = (part.split(":") for part in layouts.KNOWN[name][release].split())
    fields = [(field, layouts._KINDS[kind]) for kind, field in pairs]
    raw = memory_of(layouts._DEFAULTS[name], fields)  # type: ignore[arg-type]
    found = verified_layout(name, None, lambda struct: struct.from_buffer_copy(raw))
    right = layouts.make_struct(name, fields)
    offsets = {f: getattr(right, f).offset for f, _ in fields}
    # A later layout may only add fields at the end.
    assert {f: getattr(found.struct, f).offset for f in offsets} == offsets


def test_a_header_that_does_not_hold_is_passed_over_and_nothing_is_guessed(tmp_path: Path) -> None:
    header = tmp_path / "llama.h"
    header.write_text(HEADER)
    unknown = bytes(range(1, 256)) * 5
    with pytest.raises(EngineMissingError, match=r"by the build's llama\.h, n_ctx is"):
        verified_layout(
            "llama_context_params", header, lambda struct: struct.from_buffer_copy(unknown)
        )


def test_a_field_that_a_build_lacks_is_not_set_in_silence() -> None:
    struct = layouts.make_struct("llama_context_params", [("n_ctx", ctypes.c_uint32)])
    with pytest.raises(EngineMissingError, match="has no op_offload"):
        struct().op_offload = True


# -- the child's side ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What went wrong."""

    lacking: str
    other: str


def probe(_job: None, _channel: Channel) -> Found:
    """Call what is not there, and ask for a second build."""
    from ggufnorm.engines.llama.api import function_of
    from ggufnorm.engines.llama.binding import build as loaded
    from ggufnorm.engines.llama.binding import llama
    from ggufnorm.engines.llama.library import choose_build

    absent = function_of(llama().handles, "llama_no_such_function", None, [])
    other = str(Path(loaded().library).with_name("libggml.so"))
    return Found(_message(absent), _message(lambda: choose_build(other)))


def _message(call: Callable[[], None]) -> str:
    with pytest.raises(EngineMissingError) as caught:
        call()
    return str(caught.value)
