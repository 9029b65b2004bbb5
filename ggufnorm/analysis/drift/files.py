"""What two files say of themselves: keys, tensors that one lacks, values that were changed.

A run shows where two models part; the files show why. Nothing is dequantized here but what
both files hold in one type with other bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.diff.metadata import metadata_differences
from ggufnorm.analysis.diff.order import Coarser, coarser
from ggufnorm.analysis.drift.weights import type_cost
from ggufnorm.core.diff import MetadataDifference
from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.core.tolerances import FLOAT32_ROUNDING, WEIGHT_RATIO
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import n_rows, read_rows
from ggufnorm.formats.gguf_tensors import Tensor
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import parse_norm_name
from ggufnorm.formats.read_keys import reads

_BYTES = 1 << 22
"""Bytes of a tensor compared at a time."""
_ELEMENTS = 1 << 20
"""Elements dequantized at a time."""
_ROWS = 256
"""Rows by which a type's cost is measured."""
_WITHOUT_EFFECT = ("context_length", "rope.scaling.finetuned", "vocab_size")
"""Keys that are read, and change no result where the others agree."""


@dataclass(frozen=True)
class Changed:
    """A tensor that both files hold in one type, with other bytes.

    Attributes:
        rel_l2: distance of the values; None if they hold NaN or infinity.
        expected: what two quantizations of one weight to this type may be apart; 0 for
            types that are not quantized.
    """

    tensor: str
    dtype: str
    n_dims: int
    rel_l2: float | None
    expected: float

    @property
    def is_edited(self) -> bool:
        """Whether no second quantization of the same weight explains it."""
        return self.rel_l2 is None or self.rel_l2 > max(self.expected, FLOAT32_ROUNDING)


@dataclass(frozen=True)
class Files:
    """What the files of a run show.

    Attributes:
        keys: that differ, and that llama.cpp reads for this architecture.
        tokenizer: keys of the tokenizer and the chat template that differ: a run of the same
            token ids shows nothing of them.
        same: tensors with the same bytes in both files.
        changed: tensors of one type with other bytes, but norms, in the order asked for.
        n_matrices: that both files hold in one type, with the same bytes or not.
        lacking: tensors of the reference that the model under test has not, by name.
        added: the other way round.
        coarser: set if the reference is quantized more coarsely than the model under test.
    """

    keys: tuple[MetadataDifference, ...] = ()
    tokenizer: tuple[MetadataDifference, ...] = ()
    same: frozenset[str] = frozenset()
    changed: tuple[Changed, ...] = ()
    n_matrices: int = 0
    lacking: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()
    coarser: Coarser | None = None


def read_files(reference: ModelFile, quant: ModelFile, names: Iterable[str]) -> Files:
    """Compare two files.

    Args:
        reference: the model that is right by definition.
        quant: the model under test.
        names: of the tensors that were read in the run, in graph order.
    """
    if reference.path == quant.path:
        return Files(same=frozenset(reference.tensors))
    same, changed, n_matrices = set(), [], 0
    for name in dict.fromkeys(names):
        a, b = reference.tensors.get(name), quant.tensors.get(name)
        if a is None or b is None or a.shape != b.shape or a.ggml_type != b.ggml_type:
            continue
        n_matrices += _n_dims(a) > 1
        if _same_bytes(reference, quant, name):
            same.add(name)
        elif parse_norm_name(name) is None and (c := _changed(reference, quant, name)):
            changed.append(c)
    return Files(
        keys=forward_keys(reference, quant),
        tokenizer=tokenizer_keys(reference, quant),
        same=frozenset(same),
        changed=tuple(changed),
        n_matrices=n_matrices,
        lacking=frozenset(set(reference.tensors) - set(quant.tensors)),
        added=frozenset(set(quant.tensors) - set(reference.tensors)),
        coarser=coarser(reference, quant),
    )


def _n_dims(tensor: Tensor) -> int:
    return sum(n > 1 for n in tensor.shape)


def tokenizer_keys(reference: ModelFile, quant: ModelFile) -> tuple[MetadataDifference, ...]:
    """Keys of the tokenizer and the chat template that differ."""
    return tuple(
        d
        for d in metadata_differences(reference, quant)
        if d.affects == "tokens" or d.key.startswith("tokenizer.chat_template")
    )


def forward_keys(reference: ModelFile, quant: ModelFile) -> tuple[MetadataDifference, ...]:
    """Keys that differ, that llama.cpp reads for the architecture, and that act on results."""
    architecture = quant.architecture
    is_encoder = architecture == "clip"  # read by tools/mtmd/clip.cpp, not by src/models
    found = [
        d
        for d in metadata_differences(reference, quant)
        if d.affects == "forward"
        and (is_encoder or reads(architecture, d.key.removeprefix(f"{architecture}.")) is not False)
    ]
    idle = [f"{architecture}.{key}" for key in _WITHOUT_EFFECT]
    return tuple(d for d in found if d.key not in idle)


def _same_bytes(a: ModelFile, b: ModelFile, name: str) -> bool:
    if a.byte_order != b.byte_order:
        return False
    size = a.tensors[name].n_bytes
    return all(
        bytes(a.read_part(name, i, n)) == bytes(b.read_part(name, i, n))
        for i in range(0, size, _BYTES)
        for n in [min(_BYTES, size - i)]
    )


def _changed(a: ModelFile, b: ModelFile, name: str) -> Changed | None:
    tensor = a.tensors[name]
    n_dims = _n_dims(tensor)
    total, step = DifferenceSum(), max(1, _ELEMENTS // tensor.shape[0])
    try:
        for start in range(0, n_rows(a, name), step):
            rows = [read_rows(f, name, start, min(start + step, n_rows(a, name))) for f in (a, b)]
            total.add(rows[0], rows[1], start, len(rows[0]))
        expected = 2 * WEIGHT_RATIO * type_cost(spread_rows(a, name), tensor.ggml_type)
    except (InputError, NotImplementedError):
        return None  # a type that ggml alone reads, and not here
    found = total.result()
    rel_l2 = None if found.non_finite_rows else found.rel_l2
    return Changed(name, tensor.dtype, n_dims, rel_l2, expected)


def spread_rows(file: ModelFile, name: str) -> NDArray[np.float32]:
    """At most :data:`_ROWS` rows, spread evenly over a tensor."""
    rows = n_rows(file, name)
    step = max(1, rows // _ROWS)
    return np.concatenate([read_rows(file, name, i, i + 1) for i in range(0, rows, step)])
