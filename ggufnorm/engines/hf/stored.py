"""A checkpoint computed with its own matrices as a GGUF file stores them: what its types cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import ObservedRun, TypeCost
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.hf.pinned import NormInputs, distances, norm_inputs
from ggufnorm.formats.conversion import tensor_of
from ggufnorm.formats.ggml import block_size, converter, quantizer, type_number
from ggufnorm.formats.model_file import ModelFile

_BLOCK, _K_BLOCK = 32, 256
"""Values to a block of Q8_0, and of Q8_K."""
_PRODUCTS = frozenset({
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "_grouped_mm",
    "grouped_mm",
})  # fmt: skip
"""Functions of torch that multiply with a matrix."""


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
    matrix is multiplied with is rounded as llama.cpp's CPU does it (:func:`_rounded_input`).

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
    dtypes: dict[int, str] = {}
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if parameter.dim() < 2:
                continue
            target = tensor_of(file, name)
            stored = file.tensors.get(target or "")
            columns = int(parameter.shape[-1] if stored is None else stored.shape[0])
            dtype = coarsest if stored is None else stored.dtype
            parameter.copy_(_rounded(parameter, dtype, columns))
            dtypes[parameter.untyped_storage().data_ptr()] = dtype
    with _RoundedProducts(dtypes):
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
    return relative_l2(before.logits(), after.logits())


class _RoundedProducts(TorchFunctionMode):
    """Rounds what each matrix is multiplied with, as llama.cpp does for the matrix's type.

    A matrix is known by its memory, so that the parts of it that experts take are known too.

    Args:
        dtypes: of the matrices by the address of their memory.
    """

    def __init__(self, dtypes: Mapping[int, str]) -> None:
        super().__init__()
        self._dtypes = dtypes

    def __torch_function__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _PRODUCTS:
            stored = [self._dtype(v) for v in args]
            dtype = next((d for d in stored if d is not None), None)
            first = stored.index(dtype) if dtype is not None else 0
            args = [
                _rounded_input(v, dtype, by_rows=i > first)
                if dtype is not None and d is None and isinstance(v, torch.Tensor) and v.dim() > 1
                else v
                for i, (v, d) in enumerate(zip(args, stored, strict=True))
            ]
        return func(*args, **(kwargs or {}))

    def _dtype(self, value: Any) -> str | None:
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            return None
        return self._dtypes.get(value.untyped_storage().data_ptr())


def _rounded_input(x: torch.Tensor, dtype: str, *, by_rows: bool) -> torch.Tensor:
    """What a matrix is multiplied with, as llama.cpp's CPU rounds it.

    To half precision, or to bytes in blocks of 32, in the K and I formats of 256 (``Q8_0`` and
    ``Q8_K`` as ``vec_dot_type`` in ``ggml/src/ggml-cpu/ggml-cpu.c``).

    Args:
        x: the values.
        dtype: of the matrix.
        by_rows: whether the sum of the product goes over rows: the matrix stands before.
    """
    if not x.is_floating_point() or dtype in ("F32", "F64"):
        return x
    if by_rows:
        return _rounded_input(x.mT, dtype, by_rows=False).mT
    size = block_size(dtype)
    block = _K_BLOCK if size == _K_BLOCK and x.shape[-1] % _K_BLOCK == 0 else _BLOCK
    if size == 1 or x.shape[-1] % block:
        return x.bfloat16().float() if dtype == "BF16" else x.half().float()
    blocks = x.unflatten(-1, (-1, block))
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
