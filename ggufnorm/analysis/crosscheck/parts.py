"""Parts of a source's matrices that a file holds by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ggufnorm.core.operations import Array, Operation


def parts(weight: Array, ours: Array) -> Iterator[Array]:
    """The parts of a source's matrix that may be a file's matrix.

    Transformers has several in one: gate and up of all experts, Q, K and V.

    Args:
        weight: ``(out, in)``, or ``(experts, out, in)``.
        ours: the file's.
    """
    if weight.size == ours.size:
        yield weight
    elif weight.ndim == ours.ndim and weight.shape[-1] == ours.shape[-1]:
        n, of = weight.shape[-2], ours.shape[-2]
        if weight.shape[:-2] == ours.shape[:-2] and of and n % of == 0:
            yield from np.split(weight, n // of, axis=-2)


def latent_parts(ours: Array, operations: Sequence[Operation]) -> Iterator[Array]:
    """K or V of a latent attention, which the source has in one matrix.

    Source: ``DeepseekV2Model.modify_tensors`` in llama.cpp's ``conversion/deepseek.py``.

    Args:
        ours: the file's, ``(heads, latent, channels)`` of K, ``(heads, channels, latent)`` of V.
        operations: of the source.
    """
    for operation in operations:
        both = operation.weight
        of_both = (operation.tensor or "").endswith(".kv_b_proj.weight")
        if both is None or not of_both or len(both) % len(ours):
            continue
        of_head, latent = both.reshape(len(ours), -1, both.shape[1]), both.shape[1]
        if ours.shape[1] == latent and ours.shape[2] < of_head.shape[1]:
            yield of_head[:, : ours.shape[2]].swapaxes(1, 2)
        elif ours.shape[2] == latent and ours.shape[1] < of_head.shape[1]:
            yield of_head[:, -ours.shape[1] :]
