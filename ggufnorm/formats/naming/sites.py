"""All norm sites of a file, from its header alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.model import NormSite, Skipped
from ggufnorm.errors import InputError
from ggufnorm.formats.gguf import Metadata
from ggufnorm.formats.gguf_constants import MODEL_ARCH_NAMES, Keys
from ggufnorm.formats.gguf_header import Tensor
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming.encoders import PROJECTOR_NORMS, encoder_parameters, projector_type
from ggufnorm.formats.naming.language import language_parameters
from ggufnorm.formats.naming.names import NormName, excluded, parse_norm_name
from ggufnorm.formats.naming.order import execution_order
from ggufnorm.formats.naming.rules import NormParameters, apply
from ggufnorm.formats.naming.weightless import weightless_norms

MAX_TENSORS, MAX_NORMS = 1 << 16, 1 << 14
"""Tensors and norms of one model at most: ten times as many as the largest have. What a rule
does with each of a million takes minutes."""

_ARCHITECTURES = frozenset(MODEL_ARCH_NAMES.values())


def norm_sites(file: ModelFile) -> tuple[tuple[NormSite, ...], tuple[Skipped, ...]]:
    """Every norm that a file's header tells of.

    Args:
        file: whose tensor names, shapes and metadata are read; no weight is.

    Returns:
        The norms in execution order, ``weight`` not filled in; and the norm-like tensors
        that are not reported as a norm, with the reason.

    Raises:
        InputError: there are more than :data:`MAX_TENSORS` tensors or :data:`MAX_NORMS` norms.
    """
    if len(file.tensors) > MAX_TENSORS:
        raise InputError(
            f"{file.path}: {len(file.tensors):,} tensors are more than the {MAX_TENSORS:,} that are"
            " looked at: is it damaged?"
        )
    sites: list[NormSite] = []
    skipped: list[Skipped] = []
    for tensor in file.tensors.values():
        found = _of_tensor(file, tensor)
        if isinstance(found, NormSite):
            sites.append(found)
            if len(sites) > MAX_NORMS:
                raise InputError(f"{file.path}: more than {MAX_NORMS:,} norms: is it damaged?")
        elif found is not None:
            skipped.append(found)
    sites += _without_tensors(file)
    return tuple(sorted(sites, key=execution_order)), tuple(skipped)


def norm_parameters(
    metadata: Metadata, architecture: str, name: NormName | None = None, *, has_bias: bool = False
) -> NormParameters:
    """Kind and epsilon of a norm, from the epsilon keys that the file carries.

    Where a file carries both the RMSNorm and the LayerNorm key, llama.cpp's graph decides
    for an architecture that is known; for another a bias tells a LayerNorm (no RMSNorm in
    llama.cpp has one), and without a bias the kind stays unknown.

    Args:
        metadata: of the file.
        architecture: ``general.architecture``.
        name: which norm; None for the architecture's usual one.
        has_bias: whether the file has a bias of this norm.
    """
    name = name or NormName(None, "")
    if architecture == "clip":
        return encoder_parameters(metadata, name, has_bias=has_bias)
    return language_parameters(metadata, architecture, name, has_bias=has_bias)


def _of_tensor(file: ModelFile, tensor: Tensor) -> NormSite | Skipped | None:
    reason = excluded(tensor.name)
    if reason is not None:
        return Skipped(tensor.name, reason)
    name = _projector_norm(file, tensor.name) or parse_norm_name(
        tensor.name, file.architecture, file.tensors
    )
    if name is None:
        return None
    stem, _, suffix = tensor.name.rpartition(".")
    if suffix == "bias":
        if f"{stem}.weight" in file.tensors:
            return None  # told with its weight
        return Skipped(tensor.name, "a norm's bias without a weight")
    bias = f"{stem}.bias" if suffix == "weight" and f"{stem}.bias" in file.tensors else None
    if name.role == "a.conv_norm" and bias is not None:
        return Skipped(tensor.name, "a batch norm folded into a scale and a shift: no norm is run")
    if name.inferred and not _is_norm_shaped(tensor, file):
        shape = "×".join(map(str, tensor.shape))
        return Skipped(tensor.name, f"named like a norm, but its shape {shape} is a matrix's")
    parameters = norm_parameters(file.metadata, file.architecture, name, has_bias=bias is not None)
    return _site(file, name, parameters, tensor, bias)


def _projector_norm(file: ModelFile, tensor: str) -> NormName | None:
    if file.architecture != "clip":
        return None
    for modality in ("v.", "a."):
        stem, role = PROJECTOR_NORMS.get(projector_type(file.metadata, modality), ("", ""))
        if stem and tensor in (f"{stem}.weight", f"{stem}.bias"):
            return NormName(None, role)
    return None


def _is_norm_shaped(tensor: Tensor, file: ModelFile) -> bool:
    """One dimension, or two of which neither is a hidden state's width: one row per head."""
    dims = [d for d in tensor.shape if d > 1]
    width = file.metadata.integer(Keys.LLM.EMBEDDING_LENGTH.format(arch=file.architecture))
    return len(dims) <= 1 or (len(dims) == 2 and all(d < (width or d + 1) for d in dims))


def _without_tensors(file: ModelFile) -> Iterator[NormSite]:
    for name, rule in weightless_norms(file):
        found = apply(rule, file.metadata, file.architecture, name)
        note = "; ".join(n for n in (f"no weight ({rule.source})", found.note) if n)
        yield _site(file, name, replace(found, note=note), None, None)


def _site(
    file: ModelFile, name: NormName, found: NormParameters, tensor: Tensor | None, bias: str | None
) -> NormSite:
    return NormSite(
        tensor=tensor.name if tensor else None,
        bias=bias,
        layer=name.layer,
        role=name.role,
        kind=found.kind,
        epsilon=shortest_float32(found.epsilon),
        epsilon_key=found.epsilon_key,
        groups=found.groups,
        dtype=tensor.dtype if tensor else None,
        shape=tensor.shape if tensor else (),
        weight=None,
        note=found.note,
        inferred=name.inferred or file.architecture not in _ARCHITECTURES,
    )
