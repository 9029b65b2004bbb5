"""Devices of a llama.cpp, and the parameters that put a model on them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ggufnorm.core.engine import ALL, Placement
from ggufnorm.engines.llama.binding import ggml, llama
from ggufnorm.engines.llama.rpc import watched
from ggufnorm.errors import RefusedError

Kind = Literal["CPU", "GPU", "IGPU", "ACCEL", "META"]

_KINDS: tuple[Kind, ...] = ("CPU", "GPU", "IGPU", "ACCEL", "META")
"""``enum ggml_backend_dev_type``, ggml/include/ggml-backend.h."""

_SPLIT_MODES = {"none": 0, "layer": 1}
"""``enum llama_split_mode``, llama.h."""

_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""``LLM_FFN_EXPS_REGEX``, common/common.h."""

CPU = "CPU"
"""The buffer type in the computer's memory (``ggml_backend_cpu_buffer_type``)."""


@dataclass(frozen=True)
class Device:
    """What a model can be computed on.

    Attributes:
        name: ``CPU``, ``Vulkan0``.
        description: its maker's name of it.
        kind: of ggml's kinds.
        total: bytes of its memory; 0 where it does not tell.
        free: of which are free.
        buffer: name of its buffer type, None where it has none.
    """

    name: str
    description: str
    kind: Kind
    total: int
    free: int
    buffer: str | None


def find_devices() -> tuple[Device, ...]:
    """All devices of this process's llama.cpp."""
    llama()
    lib = ggml()
    found = (lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count()))
    with watched("asking for devices"):
        return tuple(map(_describe, found))


def _describe(handle: int) -> Device:
    lib = ggml()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    buffer = lib.ggml_backend_dev_buffer_type(handle)
    return Device(
        name=lib.ggml_backend_dev_name(handle).decode(),
        description=lib.ggml_backend_dev_description(handle).decode(),
        kind=_KINDS[lib.ggml_backend_dev_type(handle)],
        total=total.value,
        free=free.value,
        buffer=lib.ggml_backend_buft_name(buffer).decode() if buffer else None,
    )


def used_devices(devices: Sequence[Device], placement: Placement) -> list[Device]:
    """The devices that layers are put on, in llama.cpp's order.

    Source: ``llama_prepare_model_devices`` in src/llama.cpp.

    Args:
        devices: all that there are.
        placement: where the model is to go; see :func:`require_devices`.
    """
    if placement.offload_devices is None:
        kinds = [[d for d in devices if d.kind == kind] for kind in ("GPU", "IGPU")]
        found = kinds[0] or kinds[1]
    else:
        named = {d.name: d for d in devices if d.kind != "CPU"}
        found = [named[name] for name in placement.offload_devices]
    if placement.split_mode == "none":
        return found[placement.main_gpu :][:1]
    return found


def require_devices(devices: Sequence[Device], n_gpu_layers: int, placement: Placement) -> None:
    """Refuse what a llama.cpp would not do, or would pass over without a word.

    Args:
        devices: all that it has.
        n_gpu_layers: how many layers are to be put on them.
        placement: where.

    Raises:
        RefusedError: a device or buffer type that was asked for is not there.
    """
    there_are = (
        f"this llama.cpp has {', '.join(map(as_words, devices))}; name another build with"
        " --llama-cpp"
    )
    named = {d.name for d in devices if d.kind != "CPU"}
    for name in placement.offload_devices or ():
        if name not in named:
            raise RefusedError(f"there is no device {name} (-dev): {there_are}")
    buffers = [d.buffer for d in devices if d.buffer]
    for pattern, buffer in placement.tensor_overrides:
        if buffer not in buffers:
            raise RefusedError(
                f"there is no buffer type {buffer} (-ot {pattern}={buffer}): this llama.cpp has"
                f" {', '.join(buffers)}"
            )
    n = len(used_devices(devices, replace(placement, split_mode="layer")))
    if len(placement.tensor_split) > n:
        parts = len(placement.tensor_split)
        raise RefusedError(f"-ts names {parts} proportions, of {n} devices: {there_are}")
    if n and placement.main_gpu >= n:
        raise RefusedError(f"there is no device number {placement.main_gpu} (-mg): {there_are}")
    if n_gpu_layers and not n:
        # It would run on the CPU, and the report would speak of GPU layers.
        layers = str(n_gpu_layers) if n_gpu_layers > 0 else "all"
        raise RefusedError(
            f"{layers} layers cannot be put on a GPU: {there_are}, or leave out -ngl"
        )


def as_words(device: Device) -> str:
    """``Vulkan0 (llvmpipe)``."""
    return f"{device.name} ({device.description})"


def place(params: Any, n_gpu_layers: int, placement: Placement) -> list[Any]:
    """Set what llama.cpp is to put where.

    Args:
        params: ``struct llama_model_params`` of any build.
        n_gpu_layers: -1 for all; 0 for the CPU alone.
        placement: all else.

    Returns:
        What the parameters point to: keep it as long as the model.

    Raises:
        RefusedError: a device or buffer type that was asked for is not there.
    """
    require_devices(find_devices(), n_gpu_layers, placement)
    params.n_gpu_layers = n_gpu_layers
    params.split_mode = _SPLIT_MODES[placement.split_mode]
    params.main_gpu = placement.main_gpu
    overrides = override_patterns(placement)
    held = [_overrides(params, overrides)] if overrides else []
    names = placement.offload_devices
    if n_gpu_layers == 0 and all(buffer == CPU for _, buffer in overrides):
        names = ()  # or large batches, and scratch memory, would be on a device all the same
    if names is not None:
        array = (ctypes.c_void_p * (len(names) + 1))()  # closed by a null pointer
        array[: len(names)] = [ggml().ggml_backend_dev_by_name(name.encode()) for name in names]
        held.append(_point(params, "devices", array))
    if placement.tensor_split:
        n_most = max(int(llama().llama_max_devices()), len(placement.tensor_split))
        held.append(
            _point(params, "tensor_split", (ctypes.c_float * n_most)(*placement.tensor_split))
        )
    return held


def override_patterns(placement: Placement) -> list[tuple[str, str]]:
    """Pattern and buffer type of all overrides, ``-cmoe`` and ``-ncmoe`` among them."""
    n = placement.n_cpu_moe
    experts = [_EXPERTS] if n == ALL else [rf"blk\.{i}{_EXPERTS}" for i in range(n)]
    return [*placement.tensor_overrides, *((pattern, CPU) for pattern in experts)]


class _Override(ctypes.Structure):
    """``struct llama_model_tensor_buft_override`` of ``llama.h``."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def _overrides(params: Any, overrides: Sequence[tuple[str, str]]) -> Any:
    lib = ggml()
    handles = (lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count()))
    types = [t for t in map(lib.ggml_backend_dev_buffer_type, handles) if t]
    named = {lib.ggml_backend_buft_name(t).decode(): t for t in types}
    array = (_Override * (len(overrides) + 1))()  # closed by a null pattern
    for entry, (pattern, buffer) in zip(array, overrides, strict=False):
        entry.pattern, entry.buft = pattern.encode(), named[buffer]
    return _point(params, "tensor_buft_overrides", array)


def _point(params: Any, field: str, array: Any) -> Any:
    """Let a field point to an array, whatever type of pointer a build declares it as."""
    kinds = {name: kind for name, kind, *_ in params._fields_}
    setattr(params, field, ctypes.cast(array, kinds[field]))
    return array
