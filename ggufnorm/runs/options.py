"""How a model is run, as a caller says it."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace

from ggufnorm.core.engine import ALL, AUTO, GpuLayers, Placement, placement_of
from ggufnorm.engines.llama.session import MAX_BATCH, CacheType, EngineOptions, FlashAttention


@dataclass(frozen=True)
class SideOptions(Placement):
    """How one side is run; see :class:`~ggufnorm.engines.llama.session.EngineOptions`.

    ``n_gpu_layers`` is None where it is the same on both sides.
    """

    flash_attention: FlashAttention = "auto"
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    use_extra_bufts: bool = False
    unfused_norms: bool = False
    llama_cpp: str | None = None
    n_gpu_layers: GpuLayers | None = None
    n_ubatch: int = MAX_BATCH

    def engine(
        self, n_ctx: int, n_threads: int | None, n_gpu_layers: GpuLayers | None = None
    ) -> EngineOptions:
        """The same with what both sides share; to be settled before a model is loaded.

        Args:
            n_ctx: tokens of a chunk.
            n_threads: CPU threads; None for all.
            n_gpu_layers: layers to put on devices; None for none, or where devices are named
                for as many as fit.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        wanted = own.pop("n_gpu_layers")
        wanted = n_gpu_layers if wanted is None else wanted
        return EngineOptions(n_ctx, n_threads or os.cpu_count() or 1, self._layers(wanted), **own)

    def _layers(self, wanted: GpuLayers | None) -> int:
        if self.offload_devices == ():
            return 0
        if wanted is None:
            wanted = "auto" if self.offload_devices or self.rpc else 0
        return {"auto": AUTO, "all": ALL}[wanted] if isinstance(wanted, str) else wanted


PLAIN = SideOptions()

EXACT = SideOptions(flash_attention="off", cache_type_k="f32", cache_type_v="f32")
"""Nothing is rounded that need not be: what differs from a float32 run elsewhere is in the
file and in the kernels."""


def placed(options: SideOptions, where: SideOptions) -> SideOptions:
    """Options with the build, the devices and the batches of others."""
    return replace(
        options,
        llama_cpp=where.llama_cpp,
        n_gpu_layers=where.n_gpu_layers,
        n_ubatch=where.n_ubatch,
        **vars(placement_of(where)),
    )


ON_CPU = (
    "encoders of pictures and sounds run in one way, on the CPU (mtmd): llama.cpp's options"
    " (-ngl, -dev, --rpc, -fa, -ctk …) go with language models"
)
"""Why an encoder is not put on a device."""


def is_plain(side: SideOptions) -> bool:
    """Whether nothing is asked for but llama.cpp's defaults, on the CPU."""
    devices, layers = side.offload_devices or None, side.n_gpu_layers or None
    return replace(side, offload_devices=devices, n_gpu_layers=layers) == PLAIN


@dataclass(frozen=True)
class RunSettings:
    """How one model is run alone.

    Attributes:
        side: llama.cpp's options.
        n_threads: CPU threads; None for all.
        check_memory: refuse a model that does not fit into the memory that is free.
    """

    side: SideOptions = PLAIN
    n_threads: int | None = None
    check_memory: bool = True

    def engine(self, n_ctx: int) -> EngineOptions:
        """For a text of so many tokens; to be settled before a model is loaded."""
        return self.side.engine(n_ctx, self.n_threads)
