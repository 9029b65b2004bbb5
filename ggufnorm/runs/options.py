"""How a model is run, as a caller says it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ggufnorm.core.plain import to_plain
from ggufnorm.engines.llama.session import CacheType, EngineOptions, FlashAttention


@dataclass(frozen=True)
class SideOptions:
    """How one side is run; see :class:`~ggufnorm.engines.llama.session.EngineOptions`.

    ``n_gpu_layers`` is None where it is the same on both sides.
    """

    flash_attention: FlashAttention = "auto"
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    use_extra_bufts: bool = False
    unfused_norms: bool = False
    llama_cpp: str | None = None
    n_gpu_layers: int | None = None

    def engine(self, n_ctx: int, n_threads: int | None, n_gpu_layers: int = 0) -> EngineOptions:
        """The same with what both sides share.

        Args:
            n_ctx: tokens of a chunk.
            n_threads: CPU threads; None for all.
            n_gpu_layers: layers to put on a GPU that llama.cpp was built for.
        """
        threads = n_threads or os.cpu_count() or 1
        layers = n_gpu_layers if self.n_gpu_layers is None else self.n_gpu_layers
        own = to_plain(self, leave_out=("n_gpu_layers",))
        return EngineOptions(n_ctx, threads, layers, **own)


PLAIN = SideOptions()

EXACT = SideOptions(flash_attention="off", cache_type_k="f32", cache_type_v="f32")
"""Nothing is rounded that need not be: what differs from a float32 run elsewhere is in the
file and in the kernels."""
