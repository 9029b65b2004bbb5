"""``inspect``: what a GGUF file says of its norms, nothing run."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufnorm.core.distribution import weight_statistics
from ggufnorm.core.model import Inspection, NormSite, TensorFacts
from ggufnorm.formats.dequantize import read_norms
from ggufnorm.formats.file_type import types_inside
from ggufnorm.formats.forms import parse
from ggufnorm.formats.gguf_constants import LlamaFileType
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import norm_sites

if TYPE_CHECKING:
    from ggufnorm.core.drift import ModelFacts


def inspect(location: str | os.PathLike[str], *, tensors: bool = False) -> Inspection:
    """List every norm of a GGUF model.

    Args:
        location: a path, or any other location (:mod:`ggufnorm.formats.location`); of a
            remote model only the header and the norms are fetched. A path that ends with
            ``.onnx`` is read as an ONNX graph.
        tensors: whether to list all tensors too.

    Returns:
        One :class:`~ggufnorm.core.model.NormSite` per norm, in execution order. A norm
        without weight and bias leaves no trace in a file: those of the architectures that
        are known for one are listed with ``tensor`` None; any other is found only by
        running the model (:func:`ggufnorm.analysis.drift.run.drift`).

    Raises:
        InputError: the model cannot be found or opened.
        GGUFError: it is not well-formed GGUF.
        EngineMissingError: it is ONNX, and onnx is not installed.
    """
    if parse(location).engine == "onnxruntime":
        from ggufnorm.engines.onnx.listing import inspect_onnx

        return inspect_onnx(location, tensors=tensors)
    with open_model(location) as file:
        norms, skipped = norm_sites(file)
        return Inspection(
            path=file.path,
            architecture=file.architecture,
            name=file.metadata.string("general.name"),
            n_layers=file.metadata.integer(f"{file.architecture}.block_count"),
            file_type=file_type(file),
            norms=_with_weights(file, norms),
            skipped=skipped,
            tensors=_all_tensors(file) if tensors else None,
            types=types_inside(file),
        )


def _with_weights(file: ModelFile, norms: Collection[NormSite]) -> tuple[NormSite, ...]:
    """The same norms, each with what its weight's values show."""
    values, unreadable = read_norms(file, [norm.tensor for norm in norms if norm.tensor])

    def completed(norm: NormSite) -> NormSite:
        if norm.tensor in values:
            return replace(norm, weight=weight_statistics(values[norm.tensor]))
        notes = (norm.note, unreadable.get(norm.tensor or "", ""))
        return replace(norm, note="; ".join(n for n in notes if n))

    return tuple(map(completed, norms))


def _all_tensors(file: ModelFile) -> tuple[TensorFacts, ...]:
    return tuple(
        TensorFacts(t.name, t.dtype, t.shape, t.n_bytes, t.offset) for t in file.tensors.values()
    )


def select(
    inspection: Inspection, *, layers: Sequence[range] = (), roles: Collection[str] = ()
) -> Inspection:
    """The same with those norms only that are in one of the layers and have one of the roles.

    Args:
        inspection: what was found.
        layers: of block numbers; empty for all, and for what is outside the blocks.
        roles: empty for all.
    """
    norms = tuple(
        n
        for n in inspection.norms
        if (not layers or any(n.layer in r for r in layers)) and (not roles or n.role in roles)
    )
    return replace(inspection, norms=norms)


def file_type(file: ModelFile) -> str | None:
    """The mix that the file claims to be (``general.file_type``), None if it does not."""
    number = file.metadata.integer("general.file_type")
    if number is None:
        return None
    try:
        return str(LlamaFileType(number).name)
    except ValueError:
        return f"unknown ({number})"


def fingerprint(file: ModelFile) -> str:
    """A digest that tells two model files apart without reading all of either.

    SHA-256 over the size, the header, and 64 pages of 4 KiB spread evenly over the data,
    of every shard.
    """
    from hashlib import sha256  # which ``inspect`` does without

    digest = sha256()
    for shard in file.shards:
        size = shard.size
        digest.update(str(size).encode())
        digest.update(shard.storage.read(0, shard.header_size))
        for i in range(64):
            at = shard.header_size + (size - shard.header_size) * i // 64
            digest.update(shard.storage.read(at, min(4096, size - at)))
    return digest.hexdigest()


def model_facts(file: ModelFile) -> ModelFacts:
    """What a report says of a model file."""
    from ggufnorm.core.drift import ModelFacts

    return ModelFacts(
        path=file.path,
        architecture=file.architecture,
        name=file.metadata.string("general.name"),
        file_type=file_type(file),
        n_bytes=file.size,
        fingerprint=fingerprint(file),
    )
