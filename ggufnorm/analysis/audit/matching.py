"""A file's norms beside the ones that they were made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import round_to_bf16
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import NormSite
from ggufnorm.core.tolerances import QUANTIZED_EMBEDDINGS, TRAINED_FURTHER
from ggufnorm.core.transforms import Explanation, explain, same
from ggufnorm.errors import InputError
from ggufnorm.formats.conversion import EMBEDDING, Origin, embedding_source, origins, with_rescale
from ggufnorm.formats.dequantize import n_rows, read_rows
from ggufnorm.formats.hf import Source
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_SAMPLED_ROWS = 64
"""Rows of the embedding that tell one checkpoint from another."""


_ROUNDED: dict[str, Callable[[Array], Array]] = {
    "F32": lambda rows: rows,
    "F16": lambda rows: rows.astype(np.float16).astype(np.float32),
    "BF16": round_to_bf16,
}
"""What is left of a matrix in the types that keep its values but for their last bits."""

_BLOCK = re.compile(r"(.*?\.)?\d+\.")


@dataclass(frozen=True)
class Match:
    """A norm's weight or bias, with the tensor that it was made of.

    Attributes:
        tensor: its name in the file.
        site: the norm.
        origin: where it comes from.
        explanation: how its values come from there.
        source_dtype: of the source's tensor, in safetensors' words.
    """

    tensor: str
    site: NormSite
    origin: Origin
    explanation: Explanation
    source_dtype: str

    @property
    def is_bias(self) -> bool:
        """Whether it is the norm's bias."""
        return self.tensor == self.site.bias


@dataclass(frozen=True)
class Matches:
    """All norms of a file beside those of its source.

    Attributes:
        found: what is on both sides and could be read.
        missing: what the source has and the file lacks.
        unmatched: names of tensors that the file has and nothing in the source becomes,
            with their norm.
        unreadable: why a tensor could not be compared, by its name.
        different: why the source is another checkpoint; None if it is not.
        problem: why nothing could be compared; None if something could.
    """

    found: tuple[Match, ...] = ()
    missing: tuple[Origin, ...] = ()
    unmatched: tuple[tuple[str, NormSite], ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    different: str | None = None
    problem: str | None = None


def match_norms(
    file: ModelFile, sites: Iterable[NormSite], weights: Mapping[str, Array], source: Source
) -> Matches:
    """Put a file's norms beside those of its source.

    Args:
        file: the model.
        sites: its norms.
        weights: values of their weights and biases, by name.
        source: what the file was converted from.
    """
    known = origins(file, source.tensors)
    if known is None:
        return Matches(problem=f"gguf-py does not know the architecture {file.architecture!a}")
    of_tensor = {name: site for site in sites for name in (site.tensor, site.bias) if name}
    if not known:
        what = "has no norm with a weight" if not of_tensor else "no norm has a known name"
        where = file.path if not of_tensor else source.path
        return Matches(problem=f"{where}: {what}")
    values, unreadable = _read(known.values(), source)
    known |= {n: with_rescale(known[n], file, source.config, v.size) for n, v in values.items()}
    compared = [n for n in of_tensor if n in values and n in weights]
    expected = {n: known[n].transform.apply(values[n]) for n in of_tensor if n in values}
    found = tuple(
        _match(n, of_tensor, known[n], values[n], weights[n], expected, source) for n in compared
    )
    return Matches(
        found=found,
        missing=tuple(o for o in known.values() if _is_missing(o, file)),
        unmatched=tuple((n, site) for n, site in of_tensor.items() if n not in known),
        unreadable=tuple(unreadable.items()),
        different=_why_different(file, found, source),
    )


def converted(
    file: ModelFile, source: Source, tensors: Iterable[str], *, half: bool
) -> dict[str, Array]:
    """What a conversion makes of norms of the source.

    Args:
        file: that they are for.
        source: what it was converted from.
        tensors: names in the file, which need not have them.
        half: whether offsets are added to F16 values in half precision.

    Returns:
        By name, in the shape of NumPy's order; those whose values the source has.
    """
    known = origins(file, source.tensors) or {}
    wanted = [known[name] for name in tensors if name in known]
    values, _ = _read(wanted, source)
    found: dict[str, Array] = {}
    for name, read in values.items():
        origin = with_rescale(known[name], file, source.config, read.size)
        is_f16 = source.tensors[origin.sources[0]].dtype == "F16"
        flat = origin.transform.apply(read, half=half and is_f16)
        found[name] = flat.reshape(_shape(file, name, flat.size) or read.shape)
    return found


_LAYER = re.compile(r"(?<=blk\.)\d+(?=\.)")


def _shape(file: ModelFile, name: str, n: int) -> tuple[int, ...] | None:
    """The shape that the file has for a norm, or for the same one of another layer."""
    role = _LAYER.sub("*", name)
    alike = [name, *(other for other in file.tensors if _LAYER.sub("*", other) == role)]
    shapes = (file.tensors[a].shape for a in alike if a in file.tensors)
    return next((s[::-1] for s in shapes if prod(s) == n), None)


def _read(
    known: Iterable[Origin], source: Source
) -> tuple[dict[str, NDArray[np.floating]], dict[str, str]]:
    """The source's values by the file's name, and why some could not be read."""
    known = tuple(known)
    why = {name: source.why_unreadable(name) for origin in known for name in origin.sources}
    read = source.read_many(name for name, reason in why.items() if reason is None)
    values: dict[str, NDArray[np.floating]] = {}
    unreadable: dict[str, str] = {}
    for origin in known:
        reasons = [reason for name in origin.sources if (reason := why[name]) is not None]
        parts = [read[name] for name in origin.sources if name in read]
        if reasons:
            unreadable[origin.tensor] = reasons[0]
        elif len({part.shape for part in parts}) > 1:
            unreadable[origin.tensor] = f"{source.path}: heads of {origin.tensor} differ in size"
        else:
            values[origin.tensor] = parts[0] if len(parts) == 1 else np.stack(parts)
    return values, unreadable


def _match(
    name: str,
    of_tensor: Mapping[str, NormSite],
    origin: Origin,
    values: NDArray[np.floating],
    weight: Array,
    expected: Mapping[str, Array],
    source: Source,
) -> Match:
    dtype = source.tensors[origin.sources[0]].dtype
    half = dtype == "F16"
    explanation = explain(weight, values, origin.transform, half=half)
    if explanation.kind in ("partial", "values"):
        # Only now is it worth while to look at what every other norm should be.
        others = {n: expected[n] for n in _others(name, of_tensor, expected)}
        explanation = explain(weight, values, origin.transform, half=half, others=others)
    return Match(name, of_tensor[name], origin, explanation, dtype)


def _others(
    name: str, of_tensor: Mapping[str, NormSite], expected: Mapping[str, Array]
) -> list[str]:
    """Other weights, or biases, of the same size, the likeliest to be mixed up first."""
    site, suffix = of_tensor[name], name.rpartition(".")[2]

    def distance(other: str) -> tuple[bool, bool, int]:
        there = of_tensor[other]
        apart = abs((there.layer or 0) - (site.layer or 0))
        return (there.role != site.role and there.layer != site.layer, apart > 1, apart)

    same_size = [
        n
        for n in expected
        if n != name and n.endswith(f".{suffix}") and expected[n].size == expected[name].size
    ]
    return sorted(same_size, key=distance)


def _is_missing(origin: Origin, file: ModelFile) -> bool:
    if origin.tensor in file.tensors:
        return False
    # A block that is not in the file at all was left out, or is the business of another rule.
    block = _BLOCK.match(origin.tensor)
    return block is None or any(name.startswith(block[0]) for name in file.tensors)


def _why_different(file: ModelFile, found: tuple[Match, ...], source: Source) -> str | None:
    strange = [m for m in found if m.explanation.kind in ("values", "size")]
    if not strange or 2 * len(strange) < len(found):
        return None
    share = f"{len(strange)} of {len(found)} norm weights and biases"
    sizes = sum(m.explanation.kind == "size" for m in strange)
    if 2 * sizes >= len(strange):
        return f"{share} have another size, which no conversion gives"
    alike = _embeddings(file, source)
    if alike is not None and alike[0]:
        return None
    error = alike[1] if alike else None
    if (
        error is not None
        and error < QUANTIZED_EMBEDDINGS
        and _median_error(strange) >= TRAINED_FURTHER
    ):
        return None
    also = "" if error is None else f", and the token embeddings differ too (by {error:.2g})"
    return f"{share} have other values, which no transform explains{also}"


def _median_error(strange: Iterable[Match]) -> float:
    errors = [m.explanation.evidence.get("relative_error") for m in strange]
    return float(np.median([e for e in errors if e is not None] or [np.inf]))


def _embeddings(file: ModelFile, source: Source) -> tuple[bool, float] | None:
    """Whether the first rows of the token embedding are the same, and their relative error."""
    name = embedding_source(file, source.tensors)
    if name is None or EMBEDDING not in file.tensors:
        return None
    try:
        there = source.read(name, _SAMPLED_ROWS)
        here = read_rows(file, EMBEDDING, 0, min(_SAMPLED_ROWS, n_rows(file, EMBEDDING)))
    except InputError:
        return None
    n = min(len(here), len(there))
    if there.ndim != 2 or n == 0 or here.shape[1] != there.shape[1]:
        return None
    rows, stored = there[:n].astype(np.float32), file.tensors[EMBEDDING].dtype
    error = relative_l2(rows, here[:n]) if rows.any() else 0.0
    rounded = _ROUNDED[stored](rows) if stored in _ROUNDED else None
    return rounded is not None and same(here[:n].ravel(), rounded.ravel()), error
