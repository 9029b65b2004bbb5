"""``inspect`` of an ONNX graph; nothing is run."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import numpy as np

from ggufnorm.core.distribution import weight_statistics
from ggufnorm.core.model import Inspection, NormSite
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.norms import (
    DECOMPOSED,
    OnnxNorm,
    find_layer,
    find_norms,
    own_statistics,
    site_name,
    takes_own_statistics,
)


def inspect_onnx(path: str | os.PathLike[str], *, tensors: bool = False) -> Inspection:
    """List every norm of an ONNX graph; see :func:`ggufnorm.analysis.inspection.inspect`.

    ``epsilon_key`` is the operation that holds epsilon, ``decomposed`` for one that an
    exporter has taken apart.

    Raises:
        EngineMissingError: onnx is not installed.
        InputError: the file cannot be opened or is not ONNX.
    """
    model = OnnxModel(path)
    found, skipped = find_norms(model)
    norms = tuple(_site(model, norm) for norm in found)
    layers = {n.layer for n in norms if n.layer is not None}
    return Inspection(
        path=model.path,
        architecture=f"ONNX of {model.proto.producer_name or 'an unknown exporter'}",
        name=model.proto.graph.name or None,
        n_layers=len(layers) or None,
        file_type=None,
        norms=norms,
        skipped=skipped,
        tensors=tuple(model.tensors()) if tensors else None,
    )


def _site(model: OnnxModel, norm: OnnxNorm) -> NormSite:
    name = site_name(norm, model)
    layer = find_layer(name)
    site = NormSite(
        tensor=norm.weight,
        bias=norm.bias,
        layer=int(layer[1]) if layer else None,
        role=_role(name),
        kind=norm.kind,
        epsilon=norm.epsilon,
        epsilon_key=norm.op,
        groups=norm.groups,
        dtype=model.dtype(norm.weight) if norm.weight else None,
        shape=model.shape(norm.weight)[::-1] if norm.weight else (),
        weight=None,
        note=_note(norm, model),
    )
    values = None if norm.weight_value is None else model.constant(norm.weight_value)
    if values is None:
        return site
    return replace(site, weight=weight_statistics(np.asarray(values, np.float32)))


def _role(name: str) -> str:
    """What stands behind the block's number, or else the last two words."""
    layer = find_layer(name)
    words = [w for w in re.split(r"[./]", name[layer.end() if layer else 0 :]) if w]
    if len(words) > 1 and words[-1] in ("weight", "scale", "gamma"):
        words.pop()
    return ".".join(words if layer else words[-2:])


def _note(norm: OnnxNorm, model: OnnxModel) -> str:
    if takes_own_statistics(model, model.nodes[norm.node]):
        return f"{norm.op} {own_statistics(model, model.nodes[norm.node])}"
    if norm.kind is None:
        return f"{norm.op} has fixed statistics: mean and variance are in the file"
    if norm.op == DECOMPOSED:
        outside = ", epsilon outside the root" if norm.divisor == "outside" else ""
        added = f", {norm.offset:+g} on the weight" if norm.offset else ""
        return f"written as single operations{outside}{added}"
    return ""
