"""The operations of two ONNX graphs that are compared: each lies between paired values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import Skipped
from ggufnorm.engines.onnx.cut import (
    FLOATS,
    SHAPE,
    Session,
    all_captured,
    cut,
    ends_of,
    region,
)
from ggufnorm.engines.onnx.graft import Graft
from ggufnorm.engines.onnx.model import OnnxModel, attribute
from ggufnorm.engines.onnx.norms import find_layer
from ggufnorm.engines.onnx.pairs import Pairing, through
from ggufnorm.engines.onnx.products import graph_inputs, matrix_of, on_input
from ggufnorm.engines.onnx.quantized import (
    WEIGHT_INPUTS,
    WeightSite,
    stored_weight,
    weight_sites,
)
from ggufnorm.errors import MismatchError

Array = NDArray[np.float32]
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear")
_INTEGERS = {
    *_ROUNDING, *WEIGHT_INPUTS, "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized",
} - {"Gather"}  # fmt: skip
"""Operations that take or give integers for real numbers."""
MOVES = (
    "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Cast", "Identity", "Slice", "Split", "Concat",
    "Expand", "Flatten", "Pad", "Dropout", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
"""Operations that compute nothing: rows only where they are wrong."""
_CONSTANTS = ("Constant", "DequantizeLinear", "Identity", "Cast")


@dataclass(frozen=True)
class ActivationSite:
    """A ``QuantizeLinear`` with a stored scale.

    Attributes:
        value: the paired value that it rounds, in the graph under test.
        scale: name of the scale.
        zero: name of the zero point, None for none.
    """

    value: str
    scale: str
    zero: str | None


class Hook:
    """A value of the graph under test, its partner, and what computes both.

    Attributes:
        name: in the graph under test.
        ref: in the reference.
        kind: its type in the graph under test, as ONNX's number.
        kind_ref: in the reference.
        nodes: that compute it from other hooks, in order.
        nodes_ref: the same in the reference.
        ends: the hooks' values that it is computed from.
        main: the reference's node that it is named by.
    """

    def __init__(
        self, sides: Sides, graft: Graft, nodes: Sequence[Any], nodes_ref: Sequence[Any]
    ) -> None:
        self.name, self.ref = graft.name, graft.ref
        self.kind, self.kind_ref = graft.kind, graft.kind_ref
        self.graft = graft
        self.nodes, self.nodes_ref = nodes, nodes_ref
        self.ends = ends_of(nodes, sides.grafts)
        self._sides = sides
        last = sides.ref.producers[self.ref]
        products = [n for n in nodes_ref if matrix_of(sides.ref, n) is not None]
        self.main = products[-1] if products else last

    @property
    def label(self) -> str:
        """What the operation is called: by the reference's node."""
        return self.main.name or self.ref

    @property
    def op(self) -> str:
        """ONNX's name of the reference's operation."""
        return str(self.main.op_type)

    @property
    def layer(self) -> int | None:
        """Block number, None outside the blocks."""
        found = find_layer(self.label)
        return int(found[1]) if found else None

    @property
    def together(self) -> tuple[str, ...]:
        """The reference's other operations that compute something, by name."""
        return tuple(
            n.name or n.output[0]
            for n in self.nodes_ref
            if n is not self.main
            and n.op_type not in MOVES
            and any(name in self._sides.moving_ref for name in n.output)
            and self._sides.is_real(n.output[0])
        )

    @property
    def ops(self) -> tuple[str, ...]:
        """The operations of the graph under test, without those on constants alone."""
        return tuple(n.op_type for n in self.nodes if n.op_type not in _CONSTANTS)

    @cached_property
    def sites(self) -> tuple[WeightSite, ...]:
        """Its matrices of integers."""
        return tuple(weight_sites(self._sides.quant, self.nodes))

    @property
    def site(self) -> WeightSite | None:
        """The matrix of integers that stands for its own, None for none."""
        of = self._sides.pairing.weights.of
        known = [s for s in self.sites if of(s.weight) == self.matrix]
        unknown = [s for s in self.sites if of(s.weight) is None]
        return next(iter(known or unknown), None)

    @cached_property
    def rounded(self) -> tuple[ActivationSite, ...]:
        """Where its inputs are rounded by stored scales."""
        return tuple(_activation_sites(self._sides, self.nodes))

    @property
    def is_quantized(self) -> bool:
        """Whether integers take part."""
        return bool(self.sites) or any(
            n.op_type in _INTEGERS or n.op_type.startswith("QLinear") for n in self.nodes
        )

    @property
    def matrix(self) -> str | None:
        """Name of the reference's matrix, None if it reads none."""
        return matrix_of(self._sides.ref, self.main)

    @property
    def dtype(self) -> str:
        """Of the matrix, or of the result."""
        if self.site is not None:
            return self.site.text
        kind = self._sides.quant.type_name(self.kind)
        if not self.is_quantized:
            return kind
        only_rounds = all(n.op_type in _ROUNDING for n in self.nodes if n.op_type in _INTEGERS)
        return f"{kind}, input rounded" if only_rounds else f"{kind}, integers"

    @property
    def dtype_ref(self) -> str:
        """The same in the reference."""
        if self.matrix is not None:
            return self._sides.ref.dtype(self.matrix) or ""
        return self._sides.ref.type_name(self.kind_ref)

    def real_matrix(self) -> Array | None:
        """The reference's matrix, ``(inputs, outputs)``; None if it has none of two axes."""
        values = None if self.matrix is None else self._sides.ref.constant(self.matrix)
        if values is None or values.ndim != 2 or values.dtype.kind != "f":
            return None
        turned = self.op == "Gemm" and attribute(self.main, "transB", 0)
        return np.asarray(values.T if turned else values, np.float32)

    def real(self, site: WeightSite) -> Array | None:
        """What a matrix of integers stands for in the reference, in the integers' order."""
        mine = stored_weight(self._sides.quant, site)
        if mine is None:
            return None
        known = self._sides.pairing.weights.of(site.weight)
        names = [known] if known else [n for node in self.nodes_ref for n in node.input if n]
        found = []
        for name in names:
            theirs = self._sides.ref.constant(name) if self._may_be(name, mine) else None
            if theirs is not None and theirs.dtype.kind == "f":
                wide = theirs.astype(np.float32)
                same = [wide] if wide.shape == mine.shape else []
                if wide.ndim == 2 and wide.T.shape == mine.shape:
                    same.append(wide.T)
                found += [(relative_l2(w, mine), i, w) for i, w in enumerate(same)]
        return min(found, key=lambda f: f[:2])[2] if found else None

    def _may_be(self, name: str, mine: Array) -> bool:
        source = self._sides.ref.source(name) if name else None
        shape = self._sides.ref.shape(source) if source else ()
        return sorted(shape) == sorted(mine.shape) and name not in self._sides.by_ref


class Sides:
    """Both graphs, and the hooks that they have in common.

    Args:
        ref: the reference.
        quant: the graph under test.
        pairing: of their values.
        feeds: of both, to see which shapes values have.
        n_threads: CPU threads; None leaves ONNX Runtime's choice.

    Attributes:
        grafts: all paired values, by name in the graph under test.
        by_ref: likewise by the reference's name.
        hooks: in the graph's order.
        shapes: of the reference's values in the first run, by hook.
        shapes_quant: the same in the graph under test, which may have merged axes.
        reshaped: paired values of other shapes, with both.
        skipped: what is not compared, and why.

    Raises:
        MismatchError: they have no operation in common.
        EngineError: ONNX Runtime does not take one of them.
    """

    def __init__(
        self,
        ref: OnnxModel,
        quant: OnnxModel,
        pairing: Pairing,
        feeds: tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]],
        n_threads: int | None,
    ) -> None:
        self.ref, self.quant, self.n_threads = ref, quant, n_threads
        self.pairing = pairing
        self.moving_ref = on_input(ref)
        self._real = _real_values(ref)
        pairs = _cuttable(ref, quant, pairing, self.moving_ref)
        if not pairs:
            raise MismatchError(
                f"{quant.path}: no operation of {ref.path} is found in it: use compare, which"
                " judges norms and outputs"
            )
        kinds = [
            _kinds(model, names, n_threads)
            for model, names in ((quant, list(pairs)), (ref, list(pairs.values())))
        ]
        grafts = [
            Graft(name, other, kinds[0][name], kinds[1][other])
            for name, other in pairs.items()
            if name in kinds[0] and other in kinds[1]
        ]
        self.reshaped: list[tuple[Graft, tuple[int, ...], tuple[int, ...]]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.shapes_quant: dict[str, tuple[int, ...]] = {}
        self._measure_shapes(grafts, feeds)
        self.grafts = {g.name: g for g in grafts if g.name in self.shapes}
        self.by_ref = {g.ref: g for g in self.grafts.values()}
        self.hooks = [
            Hook(
                self,
                graft,
                region(quant, [graft.name], self.grafts),
                region(ref, [graft.ref], self.by_ref),
            )
            for graft in self.grafts.values()
        ]
        self.skipped = tuple(self._unpaired())

    def _unpaired(self) -> Iterator[Skipped]:
        """The operations with a matrix that no hook has, or not by themselves."""
        seen = {id(node) for hook in self.hooks for node in hook.nodes}
        for hook in self.hooks:
            for node in hook.nodes_ref:
                if node is not hook.main and matrix_of(self.ref, node) is not None:
                    name = node.name or node.output[0]
                    yield Skipped(name, f"compared together with {hook.label}")
        for node in self.quant.nodes:
            if id(node) not in seen and matrix_of(self.quant, node) is not None:
                name = node.name or node.output[0]
                yield Skipped(name, "no result behind it has a partner in the reference")

    def is_real(self, value: str) -> bool:
        """Whether real numbers lead to a value of the reference."""
        return value in self._real

    def viewed(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """A value of the reference in the shape that it has in the graph under test."""
        there, here = self.shapes[name], self.shapes_quant[name]
        return value if there == here else value.reshape(here)

    def _measure_shapes(
        self,
        grafts: Sequence[Graft],
        feeds: tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]],
    ) -> None:
        shapes = []
        for model, names, fed in (
            (self.ref, [g.ref for g in grafts], feeds[0]),
            (self.quant, [g.name for g in grafts], feeds[1]),
        ):
            session = Session(cut(model, [], {}, shapes=names), model, self.n_threads)
            found = session.run(fed)
            shapes.append([tuple(int(n) for n in found[SHAPE + name]) for name in names])
        for graft, theirs, mine in zip(grafts, *shapes, strict=True):
            if is_view(theirs, mine):
                self.shapes[graft.name] = theirs
                self.shapes_quant[graft.name] = mine
            else:
                self.reshaped.append((graft, theirs, mine))


def is_view(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether one shape is the other with neighbouring axes merged: ``1×16×32`` and ``16×32``."""
    left, right = ([n for n in reversed(shape) if n != 1] for shape in (a, b))
    while left and right:
        x, y = left.pop(), right.pop()
        split = 0
        while x != y:
            side = left if x < y else right
            if not side or split * (1 if x < y else -1) < 0:
                return False
            split = 1 if x < y else -1
            if x < y:
                x *= side.pop()
            else:
                y *= side.pop()
    return not left and not right


def _real_values(model: OnnxModel) -> set[str]:
    """Values that real numbers lead to, and not the integers of a shape."""
    found = {name for name, dtype in _input_types(model) if dtype in FLOATS.values()}
    for node in model.nodes:
        if node.op_type in _TO_INTEGERS:
            continue
        if matrix_of(model, node) is not None or any(name in found for name in node.input):
            found.update(node.output)
    return found


_TO_INTEGERS = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Equal", "Greater", "Less", "Not")


def _input_types(model: OnnxModel) -> Iterator[tuple[str, int]]:
    for i in graph_inputs(model):
        yield i.name, i.type.tensor_type.elem_type


def _cuttable(
    ref: OnnxModel, quant: OnnxModel, pairing: Pairing, moving_ref: set[str]
) -> dict[str, str]:
    """Paired values that depend on the input, and that no inner graph takes."""
    moving = on_input(quant)
    inner = all_captured(quant) | all_captured(ref)
    return {
        name: other
        for name, other in pairing.values.items()
        if name in moving and other in moving_ref and not {name, other} & inner
    }


def _kinds(model: OnnxModel, names: list[str], n_threads: int | None) -> dict[str, int]:
    """Types of those values that are real numbers."""
    session = Session(cut(model, names, {}), model, n_threads)
    return {n: FLOATS[t] for n, t in session.types.items() if t in FLOATS}


def _activation_sites(sides: Sides, nodes: Sequence[Any]) -> Iterator[ActivationSite]:
    for node in nodes:
        if node.op_type != "QuantizeLinear":
            continue
        value = through(sides.quant, node.input[0], sides.grafts)
        if value in sides.grafts and sides.quant.constant(node.input[1]) is not None:
            zero = node.input[2] if len(node.input) > 2 else ""
            yield ActivationSite(value, node.input[1], zero or None)
