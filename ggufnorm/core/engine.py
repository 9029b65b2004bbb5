"""Which llama.cpp ran a model, and where: what a report says of it."""

from __future__ import annotations

from dataclasses import dataclass


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
class Engine:
    """A build and what it was given to compute on.

    Attributes:
        build: of llama.cpp.
        n_gpu_layers: ``-ngl``, as asked for; -1: all.
        devices: the buffers that the graph's results really were on: ``CPU``, ``Vulkan0``;
            empty where no graph was seen.
        rpc: servers of llama.cpp's RPC backend, as asked for.
        tensor_split: ``-ts``, as asked for; empty for llama.cpp's own choice.
        split_mode: ``-sm``.
    """

    build: Build
    n_gpu_layers: int
    devices: tuple[str, ...] = ()
    rpc: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    split_mode: str = "layer"
