"""Files beside quantized checkpoints: FP8, compressed-tensors, GPTQ, MXFP4, and what is refused.

The checkpoints are packed here as their makers pack them (DeepSeek, compressed-tensors,
GPTQModel, gpt-oss), by code of its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufnorm.analysis.audit.run import audit
from ggufnorm.core.audit import AuditReport
from ggufnorm.formats.quantized import quantization
from ggufnorm.formats.safetensors_header import Entry
from ggufnorm.report.formats import render
from tests.pairs import Whole, whole

Array = np.ndarray
Stored = dict[str, tuple[str, Array]]


def pack(tensors: Stored) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, values) in tensors.items():
        raw = values.tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def number_e4m3(code: int) -> float:
    sign = -1.0 if code & 128 else 1.0
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = np.array([number_e4m3(c) for c in range(256)], np.float32)


def to_e4m3(values: Array) -> Array:
    codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    return codes[np.abs(values.reshape(-1, 1) - E4M3[codes]).argmin(1)].reshape(values.shape)


def fp8_blocks(name: str, w: Array) -> tuple[Stored, Array]:
    """32 × 32 blocks, the last ones smaller, as DeepSeek's of 128 × 128."""
    rows, columns = -(-w.shape[0] // 32), -(-w.shape[1] // 32)
    scales = np.zeros((rows, columns), np.float32)
    codes, values = np.zeros(w.shape, np.uint8), np.zeros_like(w)
    for i in range(rows):
        for j in range(columns):
            at = np.s_[i * 32 : i * 32 + 32, j * 32 : j * 32 + 32]
            scales[i, j] = np.abs(w[at]).max() / 448
            codes[at] = to_e4m3(w[at] / scales[i, j])
            values[at] = E4M3[codes[at]] * scales[i, j]
    return {name: ("F8_E4M3", codes), f"{name}_scale_inv": ("F32", scales)}, values


def fp8_channels(name: str, w: Array) -> tuple[Stored, Array]:
    scales = (np.abs(w).max(1, keepdims=True) / 448).astype(np.float32)
    codes = to_e4m3(w / scales)
    return {name: ("F8_E4M3", codes), f"{name}_scale": ("F32", scales)}, E4M3[codes] * scales


def words_of(integers: Array) -> Array:
    """Eight integers of 4 bits to a word, along the last axis."""
    each = integers.astype(np.uint32).reshape(*integers.shape[:-1], -1, 8)
    return sum(each[..., i] << np.uint32(4 * i) for i in range(8)).astype(np.uint32).view(np.int32)


def packed(name: str, w: Array) -> tuple[Stored, Array]:
    groups = w.reshape(w.shape[0], -1, 32)
    scales = (np.abs(groups).max(-1) / 7).astype(np.float32)
    integers = np.clip(np.rint(groups / scales[..., None]), -8, 7) + 8
    values = ((integers - 8) * scales[..., None]).reshape(w.shape).astype(np.float32)
    return {
        f"{name}_packed": ("I32", words_of(integers.reshape(w.shape))),
        f"{name}_scale": ("F32", scales),
        f"{name}_shape": ("I64", np.array(w.shape, np.int64)),
    }, values


def gptq(name: str, w: Array) -> tuple[Stored, Array]:
    base = name.removesuffix("weight")
    n_out, n_in = w.shape
    of_input = np.random.default_rng(n_in).permutation(np.arange(n_in) // 32)
    scales = np.full((n_in // 32, n_out), 0.02, np.float16)
    zeros = np.random.default_rng(0).integers(0, 15, (n_in // 32, n_out))
    step, zero = scales.astype(np.float32)[of_input].T, zeros[of_input].T + 1
    integers = np.clip(np.rint(w / step) + zero, 0, 15)
    values = ((integers - zero) * step).astype(np.float32)
    return {
        f"{base}qweight": ("I32", np.ascontiguousarray(words_of(integers).T)),
        f"{base}qzeros": ("I32", words_of(zeros)),
        f"{base}scales": ("F16", scales),
        f"{base}g_idx": ("I32", of_input.astype(np.int32)),
    }, values


Packer = Callable[[str, Array], tuple[Stored, Array]]
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float",
                                               "strategy": "channel"}}},
}  # fmt: skip
PACKED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32,
                                               "strategy": "group"}}},
}  # fmt: skip
METHODS: dict[str, tuple[dict[str, Any], Packer]] = {
    "fp8": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, fp8_blocks),
    "compressed-tensors in FP8": (COMPRESSED, fp8_channels),
    "compressed-tensors, packed": (PACKED, packed),
    "gptq": ({"quant_method": "gptq", "bits": 4}, gptq),
}


def is_quantized(name: str, values: Array) -> bool:
    return values.ndim == 2 and "proj" in name


def quantized(name: str, method: str, file_type: str = "F32") -> tuple[Whole, Stored]:
    """A pair whose checkpoint is quantized, and the file made of its values."""
    settings, packer = METHODS[method]
    made = whole(name, "F32", file_type)
    made.config["quantization_config"] = settings
    stored: Stored = {}
    for n, values in list(made.source.items()):
        if is_quantized(n, values):
            parts, made.source[n] = packer(n, values)
            stored |= parts
        else:
            stored[n] = ("F32", values)
    remake(made)
    return made, stored


def remake(made: Whole) -> None:
    for entry in made.network.entries:
        for target, make in entry.makes:
            for n, sources in made.sources.items():
                layer = n.split(".")[1]
                if n == target.format(layer) and sources == [entry.source.format(layer)]:
                    made.tensors[n] = make(made.source[sources[0]]) + np.float32(entry.offset)
    for n, sources in made.sources.items():
        if len(sources) > 1:
            made.tensors[n] = np.stack([made.source[s] for s in sources])


def check(folder: Path, made: Whole, stored: Stored) -> AuditReport:
    model, checkpoint = made.write(folder)
    (checkpoint / "model.safetensors").write_bytes(pack(stored))
    return audit(model, source=checkpoint, select=("S", "T"))


@pytest.mark.parametrize("file_type", ["F16", "Q8_0"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "deepseek2"])
def test_a_quantized_checkpoint_is_dequantized_and_compared_whole(
    tmp_path: Path, name: str, method: str, file_type: str
) -> None:
    made, stored = quantized(name, method, file_type)

    report = check(tmp_path, made, stored)

    assert [f for f in report.findings if f.severity != "info"] == []
    coverage = next(f for f in report.findings if f.rule == "T104")
    assert coverage.evidence["n_compared"] == len(made.tensors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_a_scale_that_was_not_applied_is_found(tmp_path: Path, name: str, method: str) -> None:
    made, stored = quantized(name, method)
    role = "blk.1.attn_output.weight"
    made.tensors[role] = made.tensors[role] * np.float32(3)

    report = check(tmp_path, made, stored)

    told = [f for f in report.findings if f.severity != "info"]
    assert [(f.rule, f.tensor) for f in told] == [("T204", role)]


@pytest.mark.parametrize("method", ["awq", "bitsandbytes", "hqq"])
def test_what_the_converter_does_not_read_is_said_not_to_be_compared(
    tmp_path: Path, method: str
) -> None:
    made, stored = quantized("llama", "gptq")
    made.config["quantization_config"] = {"quant_method": method}

    report = check(tmp_path, made, stored)

    assert [f for f in report.findings if f.severity != "info"] == []
    said = " ".join(render(report, "text").split())
    n = sum(is_quantized(s, v) for s, v in made.source.items())
    verdict = said[said.rindex("model.gguf: ") :]
    assert f"{n} of {len(made.tensors)} tensors not compared" in verdict
    assert f"quantized by {method}" in verdict


@dataclass(frozen=True)
class Kept:
    """A tensor in memory, as a checkpoint stores it."""

    entry: Entry
    values: Array

    def rows(self, start: int, stop: int) -> Array:
        return self.values.reshape(-1, self.values.shape[-1])[start:stop]


def test_blocks_of_mxfp4_are_unpacked_as_transformers_unpacks_them() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 6, 2, 16)).astype(np.uint8)
    scales = rng.integers(120, 130, (3, 6, 2)).astype(np.uint8)
    stored = {
        "x.down_proj_blocks": Kept(Entry("U8", blocks.shape), blocks),
        "x.down_proj_scales": Kept(Entry("U8", scales.shape), scales),
    }
    numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    numbers += [-n for n in numbers]
    expected = np.zeros((3, 64, 6), np.float32)
    for e, out, block, byte in np.ndindex(blocks.shape):
        power = 2.0 ** (int(scales[e, out, block]) - 127)
        for half, code in enumerate(
            (blocks[e, out, block, byte] & 15, blocks[e, out, block, byte] >> 4)
        ):
            expected[e, block * 32 + byte * 2 + half, out] = numbers[code] * power

    found = quantization({"quantization_config": {"quant_method": "mxfp4"}}, stored)

    made = found.tensors["x.down_proj"]
    assert made.shape == expected.shape
    flat = expected.reshape(-1, 6)
    assert np.array_equal(made.rows(0, len(flat)), flat)
    assert np.array_equal(made.rows(70, 75), flat[70:75])
    assert found.consumed == frozenset(stored)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.update({"weight_block_size": [0, 32]}),
        lambda s: s.update({"weight_block_size": "128"}),
        lambda s: s.update({"weight_block_size": [16, 32]}),
    ],
)
def test_blocks_that_do_not_fit_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    made, stored = quantized("llama", "fp8")
    made.config["quantization_config"] = dict(made.config["quantization_config"])
    spoil(made.config["quantization_config"])

    report = check(tmp_path, made, stored)

    assert [f for f in report.findings if f.severity == "error"] == []
    assert any(f.rule == "T103" and "not read" in f.message for f in report.findings)
