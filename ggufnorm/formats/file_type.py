"""The type that a file is called by, and the types that are really inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ggufnorm.core.model import TypeCount, TypesInside
from ggufnorm.formats.gguf_constants import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    LlamaFileType,
)
from ggufnorm.formats.gguf_tensors import Tensor
from ggufnorm.formats.model_file import ModelFile

_GUESSED = 1024
"""Bit of ``general.file_type`` of files whose type llama.cpp guessed."""

_BORNE_OUT = 0.05
"""Share of the weights that must have the type of the label."""

# The type that most matrices of a mix have, where it is not in the label's name
# (llama_tensor_get_type in src/llama-quant.cpp).
_MIXES = {
    "ALL_F32": ("F32",), "Q2_K": ("Q2_K", "Q3_K"), "Q2_K_S": ("Q2_K", "Q3_K"),
    "IQ2_XXS": ("IQ2_XXS", "IQ2_XS"), "IQ2_S": ("IQ2_XS", "IQ2_S"), "IQ2_M": ("IQ2_S", "IQ2_XS"),
    "IQ3_XS": ("IQ3_XXS", "IQ3_S"), "IQ3_XXS": ("IQ3_XXS", "IQ3_S", "IQ2_S"),
    "IQ3_M": ("IQ3_S", "IQ3_XXS"), "IQ1_M": ("IQ1_M", "IQ1_S", "IQ2_XXS"),
    "MXFP4_MOE": ("MXFP4",), "TQ1_0": ("TQ1_0",), "TQ2_0": ("TQ2_0",),
}  # fmt: skip

# What stands in the place of a type whose blocks do not fit the rows (the same file).
_INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FOR_SMALL_ROWS = "IQ4_NL"
_SUPER_BLOCK = 256

_PLAIN = ("ALL_F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

_OUTSIDE = ("token_embd", "output", "per_layer_token_embd", "position_embd", "token_types")


def label_of(number: int) -> str | None:
    """The name of a ``general.file_type``, without ``MOSTLY_``; None if it is not known."""
    try:
        return str(LlamaFileType(number & ~_GUESSED).name).removeprefix("MOSTLY_")
    except ValueError:
        return None


def types_inside(file: ModelFile) -> TypesInside:
    """Count the types of a file's tensors, and hold them against its label."""
    tensors = list(file.tensors.values())
    matrices = [t for t in tensors if _is_matrix(t)]
    n_weights = sum(t.n_elements for t in tensors)
    n_bytes = sum(t.n_bytes for t in tensors)
    number = file.metadata.integer("general.file_type")
    label = None if number is None else label_of(number)
    wrong = None if label is None else mislabelled(label, tensors)
    return TypesInside(
        label=label,
        matrices=_counts(matrices),
        vectors=_counts([t for t in tensors if not _is_matrix(t)]),
        n_weights=n_weights,
        n_bytes=n_bytes,
        bits_per_weight=8 * n_bytes / n_weights if n_weights else None,
        note=wrong or ("" if label is None else _replaced(label, matrices)),
        mislabelled=wrong is not None,
    )


def _is_matrix(tensor: Tensor) -> bool:
    return len(tensor.shape) > 1 and tensor.shape[1] > 1


def _counts(tensors: Sequence[Tensor]) -> tuple[TypeCount, ...]:
    """One for each type, that of the most tensors first."""
    found = Counter(t.dtype for t in tensors)
    return tuple(
        TypeCount(
            dtype,
            n,
            sum(t.n_elements for t in tensors if t.dtype == dtype),
            sum(t.n_bytes for t in tensors if t.dtype == dtype),
        )
        for dtype, n in found.most_common()
    )


# -- the label ---------------------------------------------------------------------------


def inner_types(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Weights by type, of the matrices that a label speaks of: those inside the layers."""
    weights: Counter[str] = Counter()
    for tensor in _inner(tensors):
        weights[tensor.dtype] += tensor.n_elements
    return dict(weights)


def mislabelled(label: str, tensors: Iterable[Tensor]) -> str | None:
    """What is wrong with a label that the matrices do not bear out, None if they do.

    The label's own type, or what llama.cpp takes where its blocks do not fit a row, must be
    that of some of the weights.
    """
    inner = list(_inner(tensors))
    weights = Counter(inner_types(inner))
    total = sum(weights.values())
    borne_out = sum(t.n_elements for t in inner if t.dtype in _types(label, t.shape[0]))
    if not total or borne_out >= _BORNE_OUT * total:
        return None
    most, n = weights.most_common(1)[0]
    return (
        f"general.file_type says {label.removeprefix('ALL_')}, but {100 * n / total:.0f} % of"
        f" the matrices' weights are {most}"
    )


def _inner(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    for tensor in tensors:
        stem = tensor.name.removesuffix(".weight")
        if _is_matrix(tensor) and stem not in _OUTSIDE and "norm" not in stem:
            yield tensor


def _own(label: str) -> tuple[str, ...]:
    """The types that a label stands for."""
    base = label
    for ending in ("_S", "_M", "_L", "_XL"):
        if label.startswith(("Q3_K", "Q4_K", "Q5_K")):
            base = base.removesuffix(ending)
    return _MIXES.get(label, (base,))


def _types(label: str, row: int) -> set[str]:
    """The types that matrices of a label may have."""
    found = set(_own(label))
    if row % _SUPER_BLOCK and label not in _PLAIN:
        instead = {_INSTEAD.get(t, _FOR_SMALL_ROWS) for t in found if "K" in t or "Q" in t}
        found |= instead | {"Q4_0", "Q5_0", "Q5_1", "Q8_0", "F16"}
    return found


def _replaced(label: str, matrices: Sequence[Tensor]) -> str:
    """Which matrices cannot have the label's types, and what they have; empty for none."""
    own = _own(label)[0]
    block = _block_of(own)
    short = [t for t in matrices if t.shape[0] % block]
    if not short:
        return ""
    lacks = all(t.dtype != own for t in matrices)
    rows = sorted({t.shape[0] for t in short})
    shown = " and ".join(map(str, rows)) if len(rows) < 3 else f"{rows[0]} to {rows[-1]}"
    instead = ", ".join(c.dtype for c in _counts(short))
    return (
        f"called {label}, {f'but holds no {own}' if lacks else 'but not throughout'}: rows of"
        f" {shown} do not divide by {block}, so {len(short)} of {len(matrices)} matrices"
        f" are {instead}"
    )


def _block_of(dtype: str) -> int:
    """Elements of a type's block; 1 for a type that this gguf-py does not know."""
    known = GGMLQuantizationType.__members__.get(dtype)
    return 1 if known is None else int(GGML_QUANT_SIZES[known][0])
