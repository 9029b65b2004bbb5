"""H2xx: the label of the file's type, and its length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gguf import LlamaFileType

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject

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

_OUTSIDE = ("token_embd", "output", "per_layer_token_embd", "position_embd", "token_types")


@rule("H201", "file-type", "warning")
def file_type(subject: Subject) -> Iterator[Problem]:
    """The label of the file's type is not borne out by its tensors.

    What it does:
        Compares ``general.file_type`` with the types of the matrices. The label's own type,
        or what llama.cpp takes where its blocks do not fit a row, must be that of some of
        the weights.

    Why it matters:
        The label is what users and programs go by: a file that is called Q8_0 and holds
        Q4_0 is not as good as it says.

    What to do:
        Set ``general.file_type``, or find out which file this is.

    Example:
        ``general.file_type says Q8_0, but 100 % of the matrices' weights are Q4_0``
    """
    label = subject.metadata.integer("general.file_type")
    if label is None:
        raise NotApplicableError("the file has no general.file_type")
    try:
        name = LlamaFileType(label & ~_GUESSED).name.removeprefix("MOSTLY_")
    except ValueError:
        raise NotApplicableError(f"general.file_type {label} is not known") from None
    weights: Counter[str] = Counter()
    borne_out = 0
    for tensor in subject.file.tensors.values():
        stem = tensor.name.removesuffix(".weight")
        if len(tensor.shape) < 2 or stem in _OUTSIDE or "norm" in stem or tensor.shape[1] == 1:
            continue
        weights[tensor.dtype] += tensor.n_elements
        if tensor.dtype in _types(name, tensor.shape[0]):
            borne_out += tensor.n_elements
    total = sum(weights.values())
    if not total:
        raise NotApplicableError("the file has no matrices")
    if borne_out < _BORNE_OUT * total:
        most, n = weights.most_common(1)[0]
        message = (
            f"general.file_type says {name.removeprefix('ALL_')}, but {100 * n / total:.0f} % of"
            f" the matrices' weights are {most}"
        )
        evidence = {"key": "general.file_type", "actual": label, "types": dict(weights)}
        yield Problem(message, evidence=evidence)


def _types(label: str, row: int) -> set[str]:
    """The types that matrices of a label may have."""
    base = label
    for ending in ("_S", "_M", "_L", "_XL"):
        if label.startswith(("Q3_K", "Q4_K", "Q5_K")):
            base = base.removesuffix(ending)
    found = set(_MIXES.get(label, (base,)))
    if row % _SUPER_BLOCK:
        instead = {_INSTEAD.get(t, _FOR_SMALL_ROWS) for t in found if "K" in t or "Q" in t}
        found |= instead | {"Q4_0", "Q5_0", "Q5_1", "Q8_0", "F16"} if label not in _PLAIN else set()
    return found


_PLAIN = ("ALL_F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@rule("H202", "trailing-bytes", "warning")
def trailing(subject: Subject) -> Iterator[Problem]:
    """The file goes on behind its last tensor.

    What it does:
        Compares the size of each file with the end of its last tensor, padded to the
        alignment.

    Why it matters:
        Nothing reads these bytes: two files were joined, a download wrote twice, or
        something is hidden there.

    What to do:
        Download or convert the file again.

    Example:
        ``1,048,576 bytes follow the last tensor``
    """
    for file in subject.file.shards:
        n = file.n_trailing
        if n:
            message = f"{n:,} bytes follow the last tensor"
            if len(subject.file.shards) > 1:
                message = f"{file.path}: {message}"
            yield Problem(message, evidence={"n_bytes": n, "end": file.size - n})


RULES: tuple[Rule, ...] = (file_type, trailing)
