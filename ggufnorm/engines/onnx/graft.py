"""The graph under test with operations of the reference in the place of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufnorm.engines.onnx.cut import RAW, region, whole
from ggufnorm.engines.onnx.model import OnnxModel, require_onnx

_FLOAT = "ggufnorm/float"


@dataclass(frozen=True)
class Graft:
    """A result of the graph under test that the reference's operation is to compute.

    Attributes:
        name: of the result in the graph under test.
        ref: of the reference's.
        kind: its type in the graph under test.
        kind_ref: in the reference.
    """

    name: str
    ref: str
    kind: int
    kind_ref: int


def grafted(
    quant: OnnxModel,
    ref: OnnxModel,
    grafts: Sequence[Graft],
    partners: Mapping[str, Graft],
) -> Any:
    """The graph under test in which the reference's operations compute some results.

    Args:
        quant: the graph under test.
        ref: the reference.
        grafts: which results.
        partners: all paired values, by the reference's name.

    Raises:
        InputError: a weight of the reference cannot be read.
    """
    proto = whole(quant)
    by_name = {g.name: g for g in grafts}
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        for i, name in enumerate(node.output):
            if name in by_name:
                node.output[i] = RAW + name
                _graft(proto, ref, by_name[name], partners)
        proto.graph.node.append(node)
    return proto


def _graft(proto: Any, ref: OnnxModel, graft: Graft, partners: Mapping[str, Graft]) -> None:
    onnx = require_onnx()
    prefix = f"{_FLOAT}/{graft.ref}/"
    nodes = region(ref, [graft.ref], partners)
    inputs = {i.name for i in ref.proto.graph.input}

    def local(name: str) -> str:
        if not name or (name in inputs and ref.dtype(name) is None):
            return name
        partner = partners.get(name)
        if partner is None or name == graft.ref:
            return prefix + name
        if partner.kind == partner.kind_ref:
            return partner.name
        wide = prefix + "wide/" + name
        if wide not in cast:
            cast.add(wide)
            proto.graph.node.append(
                onnx.helper.make_node("Cast", [partner.name], [wide], to=partner.kind_ref)
            )
        return wide

    cast: set[str] = set()
    for node in nodes:
        names = [local(name) for name in node.input]
        copy = proto.graph.node.add()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        copy.input[:] = names
        copy.output[:] = [prefix + name if name else "" for name in node.output]
        for name in node.input:
            value = ref.constant(name) if ref.dtype(name) else None
            if value is not None and not any(
                t.name == prefix + name for t in proto.graph.initializer
            ):
                proto.graph.initializer.append(onnx.numpy_helper.from_array(value, prefix + name))
    proto.graph.node.append(
        onnx.helper.make_node("Cast", [prefix + graft.ref], [graft.name], to=graft.kind)
    )
