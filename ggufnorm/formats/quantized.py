"""Quantized checkpoints: what their tensors stand for, dequantized as llama.cpp's converter does.

``dequant_model`` of ``conversion/base.py``, and ``conversion/gpt_oss.py`` for MXFP4. What that
converter does not read is not read here either, and says so: a file was made of something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import from_bf16, from_f16
from ggufnorm.errors import InputError
from ggufnorm.formats.safetensors_header import Entry

Values = NDArray[np.float32]


class Stored(Protocol):
    """A tensor of the checkpoint as it is stored."""

    @property
    def entry(self) -> Entry:
        """Its type and shape."""

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Some rows, all dimensions but the last counted through."""


@dataclass(frozen=True)
class Dequantized:
    """A tensor that others stand for.

    Attributes:
        shape: of its values.
        rows: gives some rows of them, ``(stop - start, length of a row)``.
    """

    shape: tuple[int, ...]
    rows: Callable[[int, int], Values]

    @property
    def entry(self) -> Entry:
        """As the tensor of an unquantized checkpoint."""
        return Entry("F32", self.shape)


@dataclass(frozen=True)
class Quantization:
    """What a quantized checkpoint stands for.

    Attributes:
        tensors: by the names that they have in an unquantized checkpoint.
        refused: why others cannot be read, by that name.
        consumed: names of stored tensors that are no tensors of the network themselves.
    """

    tensors: Mapping[str, Dequantized] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    consumed: frozenset[str] = frozenset()


def quantization(config: Mapping[str, Any], stored: Mapping[str, Stored]) -> Quantization:
    """What the tensors of a checkpoint stand for.

    Args:
        config: its ``config.json``.
        stored: its tensors by name.
    """
    settings = config.get("quantization_config")
    text = config.get("text_config")
    if settings is None and isinstance(text, dict):
        settings = text.get("quantization_config")
    if not isinstance(settings, dict):
        return Quantization()
    method = str(settings.get("quant_method", ""))
    reader = _READERS.get(method)
    if reader is None:
        return _refused(f"quantized by {method[:40] or 'an unknown method'}", stored)
    try:
        return reader(settings, stored)
    except (_NotReadError, InputError, LookupError, TypeError, ValueError, AttributeError) as error:
        return _refused(f"quantized by {method}, in a way that is not read ({error})", stored)


class _NotReadError(Exception):
    """The converter does not read that, or it makes no sense."""


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise _NotReadError(problem)


Settings = Mapping[str, Any]

_BESIDE = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale(_inv|_2)?|weight_shape"
    r"|weight_zero_point|weight_global_scale|weight_g_idx|input_scale|input_global_scale"
    r"|[kv]_scale|SCB|weight_format|weight\.(absmax|quant_map|nested_absmax|nested_quant_map"
    r"|quant_state\..*)|activation_scale|qscale_(weight|act))$"
)
"""Names beside a weight, or in its place, in quantized checkpoints."""

_IN_PLACE = re.compile(r"\.(qweight|weight_packed)$")


def _refused(why: str, stored: Mapping[str, Stored]) -> Quantization:
    """Nothing of it is read."""
    consumed = {name for name in stored if _BESIDE.search(name)}
    weights = {_BESIDE.sub(".weight", name) for name in consumed}
    reason = f"{why}, of which no file is converted; give the unquantized checkpoint"
    refused = {name: f"{name} is {reason}" for name in weights}
    return Quantization({}, refused, frozenset(consumed))


# -- a scale beside each weight ----------------------------------------------------------


def _fp8(settings: Settings, stored: Mapping[str, Stored]) -> Quantization:
    block = settings.get("weight_block_size")
    pairs = {"_scale_inv": "", ".qscale_weight": ".weight"}
    unused = (".activation_scale", "_activation_scale", ".qscale_act")
    return _scaled(stored, pairs, block, unused)


def _modelopt(_settings: Settings, stored: Mapping[str, Stored]) -> Quantization:
    if any(name.endswith(".weight_scale_2") for name in stored):
        raise _NotReadError("NVFP4")
    return _scaled(stored, {"_scale": ""}, None, (".input_scale", ".k_scale", ".v_scale"))


def _scaled(
    stored: Mapping[str, Stored],
    pairs: Mapping[str, str],
    block: object,
    unused: tuple[str, ...] = (),
) -> Quantization:
    """Weights of 8 bits and their scales: one, one of each row, or one of each block."""
    found: dict[str, Dequantized] = {}
    consumed = {name for name in stored if name.endswith(unused)}
    for name, scale in stored.items():
        ending = next((e for e in pairs if name.endswith(e) and name not in consumed), None)
        weight = name.removesuffix(ending) + pairs[ending] if ending else ""
        if weight in stored:
            found[weight] = _times_scale(stored[weight], scale, _block_size(block))
            consumed.add(name)
    return Quantization(found, {}, frozenset(consumed))


def _block_size(block: object) -> tuple[int, int] | None:
    if block is None:
        return None
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(b, int) for b in block)):
        raise _NotReadError(f"blocks of {block!r:.40}")
    if min(block) < 1:
        raise _NotReadError(f"blocks of {block!r:.40}")
    return block[0], block[1]


def _times_scale(weight: Stored, scale: Stored, block: tuple[int, int] | None) -> Dequantized:
    shape, of_scale = weight.entry.shape, scale.entry.shape
    width, n = shape[-1], prod(shape[:-1])
    per = n // shape[0] if len(shape) > 2 else n
    if block is not None:
        wanted = (*shape[:-2], -(-shape[-2] // block[0]), -(-width // block[1]))
        _need(of_scale == wanted, f"scales of {of_scale} for {shape}")
    else:
        n_scales = prod(of_scale)
        _need(n_scales > 0 and n % n_scales == 0, f"scales of {of_scale} for {shape}")

    def rows(start: int, stop: int) -> Values:
        values = decoded(weight, start, stop)
        at = np.arange(start, stop)
        if block is not None:
            of_item = of_scale[-2]
            where = at // per * of_item + at % per // block[0]
            first, last = int(where.min()), int(where.max()) + 1
            scales = decoded(scale, first, last)[where - first]
            return np.asarray(values * np.repeat(scales, block[1], axis=1)[:, :width])
        flat = decoded(scale, 0, max(1, prod(of_scale[:-1]))).reshape(-1)
        if len(flat) == 1:
            return np.asarray(values * flat[0])
        # As it is broadcast: one of each row of a matrix, or of each matrix of a stack.
        of_row = flat[at] if len(flat) == n else flat[at // (n // len(flat))]
        return values * of_row[:, None]

    return Dequantized(shape, rows)


# -- packed integers ---------------------------------------------------------------------


def _compressed(settings: Settings, stored: Mapping[str, Stored]) -> Quantization:
    groups = settings["config_groups"]
    if len(groups) != 1:
        raise _NotReadError(f"{len(groups)} groups")
    weights = next(iter(groups.values()))["weights"]
    kind = settings.get("format")
    if kind in ("float-quantized", "int-quantized", "naive-quantized"):
        if weights.get("strategy") not in ("channel", "block", "tensor"):
            raise _NotReadError(f"strategy {weights.get('strategy')!r:.40}")
        block = weights.get("block_structure")
        unused = (".input_scale", ".k_scale", ".v_scale", ".weight_zero_point")
        return _scaled(stored, {"_scale": ""}, block, unused)
    if kind != "pack-quantized" or weights.get("type", "int") != "int":
        raise _NotReadError(f"format {kind!r:.40}")
    return _packed(stored, int(weights["num_bits"]), weights.get("group_size"))


def _packed(stored: Mapping[str, Stored], bits: int, group: int | None) -> Quantization:
    if bits not in (2, 4, 8):
        raise _NotReadError(f"{bits} bits")
    found: dict[str, Dequantized] = {}
    consumed: set[str] = set()
    for name in stored:
        if not name.endswith(".weight_packed"):
            continue
        weight = name.removesuffix("_packed")
        parts = {p: f"{weight}_{p}" for p in ("packed", "scale", "shape", "zero_point", "g_idx")}
        if parts["g_idx"] in stored:
            raise _NotReadError("columns in another order")
        shape = tuple(int(n) for n in stored[parts["shape"]].rows(0, 1).reshape(-1)[:2])
        found[weight] = _unpacked(
            stored[name],
            stored[parts["scale"]],
            stored.get(parts["zero_point"]),
            shape,
            bits,
            group,
        )
        consumed.update(p for p in parts.values() if p in stored)
    return Quantization(found, {}, frozenset(consumed))


def _unpacked(
    packed: Stored,
    scale: Stored,
    zero: Stored | None,
    shape: tuple[int, ...],
    bits: int,
    group: int | None,
) -> Dequantized:
    width = shape[1]
    per = group if group and group > 0 else width
    each = 32 // bits
    fits = packed.entry.shape == (shape[0], -(-width // each))
    fits = fits and scale.entry.shape == (shape[0], -(-width // per))
    _need(fits, f"scales of {scale.entry.shape} for {shape}")

    def rows(start: int, stop: int) -> Values:
        values = _bits_along(packed.rows(start, stop), bits)[:, :width].astype(np.float32)
        scales = decoded(scale, start, stop)
        if zero is None:
            offset: Values = np.full_like(scales, 1 << (bits - 1))
        else:  # packed along the rows
            first, last = start // each, -(-stop // each)
            down = _bits_along(zero.rows(first, last).T, bits).T
            offset = down[start - first * each : stop - first * each].astype(np.float32)
        values -= np.repeat(offset, per, axis=1)[:, :width]
        return values * np.repeat(scales, per, axis=1)[:, :width]

    return Dequantized(shape, rows)


def _bits_along(words: NDArray[Any], bits: int) -> NDArray[np.uint32]:
    """The small integers of each 32-bit word, the lowest first, along the last axis."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    wide = np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts
    return (wide & np.uint32((1 << bits) - 1)).reshape(*words.shape[:-1], -1)


def _gptq(settings: Settings, stored: Mapping[str, Stored]) -> Quantization:
    bits = int(settings["bits"])
    if bits not in (2, 4, 8):
        raise _NotReadError(f"{bits} bits")
    one = 1 if settings.get("checkpoint_format", "gptq") == "gptq" else 0
    found: dict[str, Dequantized] = {}
    consumed: set[str] = set()
    for name in stored:
        if name.endswith(".qweight"):
            base = name.removesuffix("qweight")
            parts = [base + p for p in ("qweight", "qzeros", "scales", "g_idx")]
            found[f"{base}weight"] = _of_gptq(*(stored[p] for p in parts), bits=bits, one=one)
            consumed.update(parts)
    return Quantization(found, {}, frozenset(consumed))


def _of_gptq(
    weight: Stored, zeros: Stored, scales: Stored, groups: Stored, *, bits: int, one: int
) -> Dequantized:
    """Integers packed along the inputs, with a group of each input: stored transposed."""
    each = 32 // bits
    n_in, n_out = weight.entry.shape[0] * each, weight.entry.shape[1]

    def rows(start: int, stop: int) -> Values:
        words = weight.rows(0, weight.entry.shape[0])[:, start:stop]
        values = _bits_along(words.T, bits).astype(np.float32)
        of_input = groups.rows(0, 1).reshape(-1)
        n_groups = scales.entry.shape[0]
        scale = decoded(scales, 0, n_groups)[:, start:stop]
        zero = _bits_along(zeros.rows(0, n_groups), bits)[:, start:stop].astype(np.float32) + one
        return np.asarray((values - zero[of_input].T) * scale[of_input].T)

    return Dequantized((n_out, n_in), rows)


# -- others ------------------------------------------------------------------------------


def _bitnet(_settings: Settings, stored: Mapping[str, Stored]) -> Quantization:
    """Values of -1, 0 and 1, four quarters of the rows in one; the scale divides."""
    found: dict[str, Dequantized] = {}
    consumed: set[str] = set()
    for name, scale in stored.items():
        weight = name.removesuffix("_scale")
        if name.endswith(".weight_scale") and weight in stored:
            found[weight] = _of_bitnet(stored[weight], scale)
            consumed.add(name)
    return Quantization(found, {}, frozenset(consumed))


def _of_bitnet(weight: Stored, scale: Stored) -> Dequantized:
    quarter, width = weight.entry.shape

    def rows(start: int, stop: int) -> Values:
        at = np.arange(start, stop)
        raw = weight.rows(0, quarter)[at % quarter]
        values = (raw >> (2 * (at // quarter)).astype(np.uint8)[:, None]) & 3
        return np.asarray((values.astype(np.float32) - 1) / decoded(scale, 0, 1).reshape(-1)[0])

    return Dequantized((4 * quarter, width), rows)


def _mxfp4(_settings: Settings, stored: Mapping[str, Stored]) -> Quantization:
    """Of gpt-oss: blocks of 32 numbers of 4 bits with a power of two, transposed when unpacked."""
    found: dict[str, Dequantized] = {}
    consumed: set[str] = set()
    for name, blocks in stored.items():
        base = name.removesuffix("_blocks")
        if base != name and f"{base}_scales" in stored:
            found[base] = _of_mxfp4(blocks, stored[f"{base}_scales"])
            consumed.update((name, f"{base}_scales"))
    return Quantization(found, {}, frozenset(consumed))


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4 = np.concatenate([_E2M1, -_E2M1])


def _of_mxfp4(blocks: Stored, scales: Stored) -> Dequantized:
    n_experts, n_out, n_blocks, half = blocks.entry.shape
    n_in = n_blocks * half * 2

    def expert(i: int) -> Values:
        raw = blocks.rows(i * n_out * n_blocks, (i + 1) * n_out * n_blocks)
        values = np.stack([_FP4[raw & 15], _FP4[raw >> 4]], axis=-1).reshape(n_out, n_blocks, -1)
        powers = _E8M0[scales.rows(i * n_out, (i + 1) * n_out)]
        return np.asarray(values * powers[..., None], np.float32).reshape(n_out, n_in)

    def rows(start: int, stop: int) -> Values:
        first, last = start // n_in, -(-stop // n_in)
        turned = np.concatenate([np.ascontiguousarray(expert(i).T) for i in range(first, last)])
        return turned[start - first * n_in : stop - first * n_in]

    return Dequantized((n_experts, n_in, n_out), rows)


_READERS: dict[str, Callable[[Settings, Mapping[str, Stored]], Quantization]] = {
    "fp8": _fp8, "modelopt": _modelopt, "compressed-tensors": _compressed, "gptq": _gptq,
    "bitnet": _bitnet, "mxfp4": _mxfp4,
}  # fmt: skip


# -- numbers of 8 bits -------------------------------------------------------------------


def _e4m3() -> Values:
    """All 256 numbers of FP8 E4M3 (``float8_e4m3fn``): no infinities, NaN in the last place."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[bits & 127 == 127] = np.nan
    return np.where(bits > 127, -values, values).astype(np.float32)


E4M3 = _e4m3()
"""All 256 numbers of FP8 E4M3, by their bits."""
_E5M2 = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)
_E8M0 = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan))


def decoded(tensor: Stored, start: int, stop: int) -> Values:
    """Rows of a tensor as float32, FP8 too."""
    raw, dtype = tensor.rows(start, stop), tensor.entry.dtype
    tables = {"F8_E4M3": E4M3, "F8_E5M2": _E5M2, "F8_E8M0": _E8M0}
    if dtype in tables:
        return np.asarray(tables[dtype][raw])
    if dtype == "BF16":
        return from_bf16(raw)
    if dtype == "F16":
        return from_f16(raw.view(np.uint16))
    return np.asarray(raw, np.float32)


def entries(found: Quantization) -> Iterator[tuple[str, Entry]]:
    """Names and entries of what a quantized checkpoint stands for."""
    for name, tensor in found.tensors.items():
        yield name, tensor.entry
    for name in found.refused:
        yield name, Entry("quantized", ())
