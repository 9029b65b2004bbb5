"""A checkpoint computed with its own matrices as a GGUF file stores them: what its types cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import ObservedRun, TypeCost
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.hf.pinned import NormInputs, distances, norm_inputs
from ggufnorm.formats.conversion import tensor_of
from ggufnorm.formats.ggml import converter, quantizer, type_number
from ggufnorm.formats.model_file import ModelFile

_BLOCK = 32
"""Values to a block of Q8_0."""


def cost_of_types(
    model: HFModel,
    file: ModelFile,
    tokens: Tokens,
    plain: ObservedRun,
    rounding_of: Callable[[str], float],
) -> TypeCost:
    """How far the types of a file's matrices move the source itself.

    The parameters of the model are rounded for good, as ggml quantizes without an importance
    matrix; what the file's name map does not know is rounded as its coarsest matrix. What a
    matrix is multiplied with is rounded as llama.cpp's CPU does it: to half precision, or to
    bytes in blocks of 32 (``vec_dot_type`` in ``ggml/src/ggml-cpu/ggml-cpu.c``).

    Args:
        model: the source.
        file: whose types are taken.
        tokens: ids.
        plain: the source's run with its own matrices.
        rounding_of: relative rounding of a type.
    """
    names = [norm.name for norm in plain.norms]
    before = norm_inputs(model, tokens, names)
    matrices = {n: t for n, t in file.tensors.items() if len(t.shape) > 1 and min(t.shape[:2]) > 1}
    coarsest = max((t.dtype for t in matrices.values()), key=rounding_of, default="F32")
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if parameter.dim() < 2:
                continue
            target = tensor_of(file, name)
            stored = file.tensors.get(target or "")
            columns = int(parameter.shape[-1] if stored is None else stored.shape[0])
            dtype = coarsest if stored is None else stored.dtype
            parameter.copy_(_rounded(parameter, dtype, columns))
    with _rounded_activations(model.model, coarsest):
        moved = norm_inputs(model, tokens, names)
        own = norm_inputs(model, tokens, names, before)
    return TypeCost(
        moved=distances(before, moved),
        own=distances(before, own),
        logits=_logits_off(before, moved),
        own_logits=_logits_off(before, own),
    )


def _logits_off(before: NormInputs, after: NormInputs) -> float:
    if before.logits is None or after.logits is None:
        return 0.0
    return relative_l2(before.logits, after.logits)


@contextmanager
def _rounded_activations(model: torch.nn.Module, dtype: str) -> Iterator[None]:
    """Round what goes into each product with a matrix."""

    def round_input(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], torch.Tensor):
            return None
        return (_rounded_input(args[0], dtype), *args[1:])

    products = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    handles = [
        module.register_forward_pre_hook(round_input)
        for module in model.modules()
        if isinstance(module, products)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounded_input(x: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype in ("F32", "F64"):
        return x
    if dtype in ("F16", "BF16") or x.shape[-1] % _BLOCK:
        return x.bfloat16().float() if dtype == "BF16" else x.half().float()
    blocks = x.unflatten(-1, (-1, _BLOCK))
    step = (blocks.abs().amax(dim=-1, keepdim=True) / 127).clamp_min(1e-30)
    return ((blocks / step).round() * step).flatten(-2)


def _rounded(values: torch.Tensor, dtype: str, columns: int) -> torch.Tensor:
    """Values as a type stores them; as they are where it does not hold such rows."""
    if dtype == "F16":
        return values.half().float()
    if dtype == "BF16":
        return values.bfloat16().float()
    # GPT-2's Conv1D has its matrices the other way round.
    turned = values.dim() == 2 and values.shape[-1] != columns == values.shape[0]
    rows = (values.T if turned else values).detach().float().contiguous().numpy()
    flat = rows.reshape(-1, rows.shape[-1])
    try:
        number = type_number(dtype)
        quantize, restore = quantizer(number), converter(number)
        if quantize is None or restore is None:
            return values
        out = np.empty_like(flat)
        restore(quantize(flat).reshape(-1), out.reshape(-1))
    except (KeyError, ValueError):
        return values
    found = torch.from_numpy(out.reshape(rows.shape))
    return found.T if turned else found
