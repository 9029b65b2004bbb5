"""``inspect``: what a GGUF file says of its norms, nothing run."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.model import Inspection, NormSite, Skipped, WeightStatistics
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import NormName, norm_parameters, parse_norm_name


def inspect(location: str | os.PathLike[str]) -> Inspection:
    """List every norm of a GGUF model.

    Args:
        location: a path, or any other location (:mod:`ggufnorm.formats.location`); of a
            remote model only the header and the norms are fetched.

    Returns:
        One :class:`~ggufnorm.core.model.NormSite` per norm that has a tensor, in file
        order. A norm without weight and bias leaves no trace in a file and is found
        only by running the model (:func:`ggufnorm.comparison.run.drift`).

    Raises:
        InputError: the model cannot be found or opened.
        GGUFError: it is not well-formed GGUF.
    """
    with open_model(location) as file:
        sites: dict[str, NormName] = {}
        skipped: list[Skipped] = []
        for tensor in file.tensors:
            name = parse_norm_name(tensor)
            if name is None:
                continue
            stem, _, suffix = tensor.rpartition(".")
            if suffix == "bias" and f"{stem}.weight" in file.tensors:
                continue  # told with its weight
            if suffix == "bias":
                skipped.append(Skipped(tensor, "a norm's bias without a weight"))
                continue
            sites[tensor] = name
        weights = file.read_many(sites)
        norms = [_site(file, tensor, name, weights[tensor]) for tensor, name in sites.items()]
        return Inspection(
            path=file.path,
            architecture=file.architecture,
            name=file.metadata.string("general.name"),
            n_layers=file.metadata.integer(f"{file.architecture}.block_count"),
            file_type=file_type(file),
            norms=tuple(norms),
            skipped=tuple(skipped),
        )


def _site(file: ModelFile, tensor: str, name: NormName, raw: NDArray[np.uint8]) -> NormSite:
    bias = tensor.removesuffix("weight") + "bias"
    has_bias = bias in file.tensors
    parameters = norm_parameters(file.metadata, file.architecture, has_bias=has_bias)
    note = parameters.note
    statistics = None
    try:
        statistics = weight_statistics(read_tensor(file, tensor, raw))
    except InputError as error:
        note = f"{note}; {error}".lstrip("; ")
    return NormSite(
        tensor=tensor,
        bias=bias if has_bias else None,
        layer=name.layer,
        role=name.role,
        kind=parameters.kind,
        epsilon=shortest_float32(parameters.epsilon),
        epsilon_key=parameters.epsilon_key,
        groups=parameters.groups,
        dtype=file.tensors[tensor].dtype,
        shape=file.tensors[tensor].shape,
        weight=statistics,
        note=note,
    )


def weight_statistics(weight: NDArray[np.float32]) -> WeightStatistics:
    """Mean, RMS, minimum and maximum of a weight of any shape."""
    finite = weight[np.isfinite(weight)].astype(np.float64)
    bad = int(weight.size - finite.size)
    if finite.size == 0:
        return WeightStatistics(None, None, None, None, bad)
    return WeightStatistics(
        mean=float(finite.mean()),
        rms=float(np.sqrt(np.mean(finite**2))),
        minimum=float(finite.min()),
        maximum=float(finite.max()),
        non_finite=bad,
    )


def shortest_float32(value: float | None) -> float | None:
    """The shortest decimal that reads back as the same float32: 1e-05, not 9.99999975e-06."""
    return None if value is None else float(str(np.float32(value)))


def file_type(file: ModelFile) -> str | None:
    """The mix that the file claims to be (``general.file_type``), None if it does not."""
    from gguf import LlamaFileType

    number = file.metadata.integer("general.file_type")
    if number is None:
        return None
    try:
        return str(LlamaFileType(number).name)
    except ValueError:
        return f"unknown ({number})"
