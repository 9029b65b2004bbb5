"""Which llama.cpp ran a model, and where: what a report says of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

GpuLayers = int | Literal["auto", "all"]
"""``-ngl``: how many layers to put on devices; as many as fit; all, output layer included."""

SplitMode = Literal["none", "layer"]
"""``-sm``: one device for the whole model, or layers spread over all of them."""

ALL = -1
"""All layers, or all experts, where a number of them is meant."""

AUTO = -2
"""As many layers as fit, where a number of them is meant: decided before a model is loaded."""


@dataclass(frozen=True)
class Build:
    """A build of llama.cpp.

    Attributes:
        name: its release: ``llama-cpp-python 0.3.36``, ``llama.cpp v0.5.0``.
        library: the shared library with llama.h's functions.
        origin: who named it: ``--llama-cpp``, ``LLAMA_CPP_LIB_PATH``, ``llama-cpp-python``,
            ``fetched``, ``xllamacpp``.
        ggml: the version and commit of its ggml.
        digest: SHA-256 of its libraries.
        layout: where the layout of its parameters comes from.
    """

    name: str
    library: str
    origin: str
    ggml: str
    digest: str
    layout: str


@dataclass(frozen=True)
class KernelError:
    """How far apart two engines are in one kind of operation, on one file and on equal inputs.

    Attributes:
        op: ggml's name of the operation at the hook points.
        dtype: type of the tensor that it reads, None if it reads none.
        n: hook points of that kind.
        nmse: the largest normalized mean squared error among them; None where one is NaN or
            infinite.
        worst: the hook point with that error.
        limit: what llama.cpp's own test-backend-ops allows for such an operation.
        first: the first hook point beyond it, in graph order; None if there is none.
    """

    op: str
    dtype: str | None
    n: int
    nmse: float | None
    worst: str
    limit: float
    first: str | None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where llama.cpp is told to put a model, in its own words.

    Attributes:
        offload_devices: ``-dev``: names of devices; empty for none; None for llama.cpp's choice.
        rpc: ``--rpc``: servers of llama.cpp's RPC backend, whose devices come first.
        split_mode: ``-sm``.
        tensor_split: ``-ts``: proportions of the devices; empty for llama.cpp's own choice, by
            free memory.
        main_gpu: ``-mg``: number of the device for the whole model, with ``-sm none``.
        tensor_overrides: ``-ot``: a regular expression of tensor names and the name of a buffer
            type, the first that matches counts.
        n_cpu_moe: ``-ncmoe``: the experts of so many first layers stay on the CPU; -1 for all
            (``-cmoe``).
        kv_offload: ``-kvo``: put keys and values of a layer where the layer is.
        op_offload: ``--op-offload``: copy weights on the CPU to a device for each large batch.
    """

    offload_devices: tuple[str, ...] | None = None
    rpc: tuple[str, ...] = ()
    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    tensor_overrides: tuple[tuple[str, str], ...] = ()
    n_cpu_moe: int = 0
    kv_offload: bool = True
    op_offload: bool = True

    def options(self, n_gpu_layers: GpuLayers | None) -> list[tuple[str, ...]]:
        """The options that ask for it, as llama.cpp spells them; none by default.

        Args:
            n_gpu_layers: ``-ngl``; None where it was not given.

        Returns:
            Each option with its value.
        """
        plain = Placement()
        layers = "all" if n_gpu_layers == ALL else str(n_gpu_layers)
        devices = None if self.offload_devices is None else ",".join(self.offload_devices) or "none"
        experts = ("-cmoe",) if self.n_cpu_moe == ALL else ("-ncmoe", str(self.n_cpu_moe))
        asked: list[tuple[object, tuple[str, ...]]] = [
            (n_gpu_layers is not None, ("-ngl", layers)),
            (devices, ("-dev", str(devices))),
            (self.rpc, ("--rpc", ",".join(self.rpc))),
            (self.split_mode != plain.split_mode, ("-sm", self.split_mode)),
            (self.tensor_split, ("-ts", ",".join(f"{n:g}" for n in self.tensor_split))),
            (self.main_gpu != plain.main_gpu, ("-mg", str(self.main_gpu))),
            *((True, ("-ot", f"{name}={buffer}")) for name, buffer in self.tensor_overrides),
            (self.n_cpu_moe, experts),
            (not self.kv_offload, ("-nkvo",)),
            (not self.op_offload, ("--no-op-offload",)),
        ]
        return [option for is_asked, option in asked if is_asked]


@dataclass(frozen=True)
class Circumstance:
    """Another way to run the same two engines on the same file: is a fault there, too?

    Attributes:
        batch: most tokens in one batch.
        alone: whether every operation was computed by itself, so that none was fused.
        n: operations that were compared.
        op: ggml's name of the first operation whose own error is beyond its limit; None if none
            is.
        dtype: type of the file's tensor that it reads, None if it reads none.
        at: the tensor that it reads, or its label.
        nmse: its error; None where it is NaN or infinite, and where no operation is beyond.
        whole: the normalized mean squared error between the two engines' logits where nothing was
            watched, so that all was fused that an engine fuses; None where there are no logits.
        watched: the same where operations were watched.
    """

    batch: int
    alone: bool
    n: int
    op: str | None
    dtype: str | None
    at: str | None
    nmse: float | None
    whole: float | None
    watched: float | None


@dataclass(frozen=True)
class Engine(Placement):
    """A build of llama.cpp, where it was told to put a model, and where it was seen.

    Attributes:
        build: of llama.cpp.
        n_gpu_layers: ``-ngl``, as asked for; -1: all.
        devices: the buffers that the graph's results really were on: ``CPU``, ``Vulkan0``;
            empty where no graph was seen.
        hardware: the devices that it could use beside the CPU, with their makers' names of them.
        weights: the buffers that the weights that were read really were in, and bytes in each.
    """

    build: Build
    n_gpu_layers: int
    devices: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    weights: tuple[tuple[str, int], ...] = ()


def placement_of(values: Placement) -> Placement:
    """The part of options, or of an engine, that is a placement."""
    return Placement(**{f.name: getattr(values, f.name) for f in fields(Placement)})
