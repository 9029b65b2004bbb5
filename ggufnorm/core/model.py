"""What a norm is, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggufnorm.core.fingerprint import OffsetFingerprint
from ggufnorm.core.result import Result

NormKind = Literal["rms", "layer", "group", "l2"]
"""RMSNorm, LayerNorm, GroupNorm, L2 norm: ggml's RMS_NORM, NORM, GROUP_NORM, L2_NORM."""


@dataclass(frozen=True)
class Outlier:
    """An element of a weight that stands out.

    Attributes:
        index: of the channel; of a 2-D weight, counted on from row to row.
        value: of the element.
        z: robust z-score: distance from the median in standard deviations.
    """

    index: int
    value: float
    z: float


@dataclass(frozen=True)
class WeightStatistics:
    """How a norm's weight is distributed, over all its elements.

    Attributes:
        mean: arithmetic mean.
        rms: square root of the mean square.
        minimum: smallest element.
        maximum: largest element.
        non_finite: how many elements are NaN or infinite; the other figures leave
            them out, and are None if nothing is left.
        histogram: elements in bins of equal width from ``minimum`` to ``maximum``; empty
            if nothing is left.
        n_outliers: how many channels are outliers.
        outliers: the most extreme of them.
        offset: which offset the converter baked into the weight.
    """

    mean: float | None
    rms: float | None
    minimum: float | None
    maximum: float | None
    non_finite: int
    histogram: tuple[int, ...]
    n_outliers: int
    outliers: tuple[Outlier, ...]
    offset: OffsetFingerprint


@dataclass(frozen=True)
class NormSite:
    """One normalization as a GGUF file describes it.

    Attributes:
        tensor: name of the weight's tensor, None for a norm without one.
        bias: name of the bias's tensor, None if the norm adds none.
        layer: block number, None outside the blocks.
        role: what it normalizes: ``attn``, ``ffn``, ``q``, ``k``, ``output`` …
        kind: None if neither the metadata nor the architecture tells.
        epsilon: as stored (float32), None if the metadata does not tell.
        epsilon_key: the metadata key that holds ``epsilon``.
        groups: how many groups a group norm splits the channels into.
        dtype: ggml type name of the weight, for example ``F32``; None without one.
        shape: of the weight, in ggml's order: ``shape[0]`` runs along a row.
        weight: how the weight's values are distributed.
        note: why ``kind`` or ``epsilon`` is unknown, or what else is out of the ordinary;
            empty if nothing is.
        inferred: gguf-py does not know the architecture or the tensor's name; the norm
            was told by the shape of its name.
    """

    tensor: str | None
    bias: str | None
    layer: int | None
    role: str
    kind: NormKind | None
    epsilon: float | None
    epsilon_key: str | None
    groups: int | None
    dtype: str | None
    shape: tuple[int, ...]
    weight: WeightStatistics | None
    note: str = ""
    inferred: bool = False


@dataclass(frozen=True)
class Skipped:
    """Something that was not looked at, and why."""

    what: str
    reason: str


NOT_CHECKED = "interrupted before it was checked"
"""The reason of models that a Ctrl-C kept from being checked."""


@dataclass(frozen=True)
class TensorFacts:
    """A tensor as the header describes it.

    Attributes:
        name: as in the file.
        dtype: ggml type name, for example ``Q4_K``.
        shape: in ggml's order.
        n_bytes: size of the data.
        offset: of the first byte, from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    offset: int


@dataclass(frozen=True)
class TypeCount:
    """Tensors of one type.

    Attributes:
        dtype: ggml type name.
        n_tensors: how many.
        n_weights: elements of all of them.
        n_bytes: size of their data.
    """

    dtype: str
    n_tensors: int
    n_weights: int
    n_bytes: int


@dataclass(frozen=True)
class TypesInside:
    """Which types a file really holds.

    Attributes:
        label: that ``general.file_type`` claims, for example ``Q4_K_M``; None if the file does
            not say, or says a number that is not known.
        matrices: of all tensors of more than one row, the type of the most tensors first.
        vectors: the same of all others.
        n_weights: elements of all tensors.
        n_bytes: size of their data.
        bits_per_weight: of all tensors; None for a file without any.
        note: where label and types differ, and why; empty if they do not.
        mislabelled: whether the types do not bear the label out (rule H201).
    """

    label: str | None
    matrices: tuple[TypeCount, ...]
    vectors: tuple[TypeCount, ...]
    n_weights: int
    n_bytes: int
    bits_per_weight: float | None
    note: str = ""
    mislabelled: bool = False


@dataclass(frozen=True)
class Inspection(Result):
    """All norms of one model file.

    Attributes:
        path: the file.
        architecture: ``general.architecture``.
        name: ``general.name``, None if the file has none.
        n_layers: ``{architecture}.block_count``, None if the file has none.
        file_type: the quantization mix that the file claims, for example
            ``MOSTLY_Q4_K_M``, None if the file does not say.
        norms: in execution order: embeddings, layer by layer, output.
        skipped: norm-like tensors that are not reported as a norm.
        tensors: all tensors in file order; None if they were not asked for.
        types: which types the tensors have; None of an ONNX file.
    """

    path: str
    architecture: str
    name: str | None
    n_layers: int | None
    file_type: str | None
    norms: tuple[NormSite, ...]
    skipped: tuple[Skipped, ...]
    tensors: tuple[TensorFacts, ...] | None = None
    types: TypesInside | None = None


@dataclass(frozen=True)
class InspectionSet(Result):
    """Several model files.

    Attributes:
        models: those that could be read, as they were given.
        failed: those that could not, and why.
    """

    models: tuple[Inspection, ...]
    failed: tuple[Skipped, ...]
