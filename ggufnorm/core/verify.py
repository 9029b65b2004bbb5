"""Whether a file is what llama-quantize makes of another, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggufnorm.core.diff import MetadataDifference
from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.model import Skipped
from ggufnorm.core.result import Result

Outcome = Literal["copied", "derived", "differs"]
"""What was found of a tensor:

- ``copied``: both files hold the same bytes, in one type;
- ``derived``: ggml's quantization of the source's values gives the file's bytes;
- ``differs``: it does not.
"""


@dataclass(frozen=True)
class TensorProof:
    """A tensor of the file, made again from the source.

    Attributes:
        tensor: its name.
        layer: block number, None outside the blocks.
        dtype_from: its type in the source.
        dtype: its type in the file.
        outcome: what was found.
        n_blocks: blocks of its type; values of a type without blocks.
        n_differing: blocks whose bytes are not those that were made.
        first_row: the row of the first such block, None without one.
        first_block: its number within the row.
        rel_l2: relative L2 distance of the file's values from those that were made; 0 where all
            bytes are the same, None where it is not finite.
    """

    tensor: str
    layer: int | None
    dtype_from: str
    dtype: str
    outcome: Outcome
    n_blocks: int
    n_differing: int
    first_row: int | None
    first_block: int | None
    rel_l2: float | None


@dataclass(frozen=True)
class VerifyReport(Result):
    """A quantized file beside its source.

    Attributes:
        source: what it is said to be made of.
        quant: the file.
        imatrix: the importance matrix that was used, None without one.
        engine: whose quantization made the tensors again.
        tensors: those of the file that the source has too, in the file's order.
        lacking: tensors of the source that the file lacks.
        added: tensors of the file that the source lacks.
        metadata: keys that differ, but for those that llama-quantize writes.
        skipped: tensors that could not be made again, and why.
        is_derived: whether all of the file was made again bit for bit.
        verdict: the same in a sentence or two.
    """

    source: ModelFacts
    quant: ModelFacts
    imatrix: str | None
    engine: str
    tensors: tuple[TensorProof, ...]
    lacking: tuple[str, ...]
    added: tuple[str, ...]
    metadata: tuple[MetadataDifference, ...]
    skipped: tuple[Skipped, ...]
    is_derived: bool
    verdict: str

    @property
    def differing(self) -> tuple[TensorProof, ...]:
        """The tensors that are not what the source gives."""
        return tuple(t for t in self.tensors if t.outcome == "differs")
