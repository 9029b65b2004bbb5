"""Which value of one ONNX graph stands for which of another.

A value of the graph under test is paired with one of the reference by

1. its name, where the two files share names: whoever quantizes, converts to half precision or
   optimizes a graph keeps the names of results. Names are believed as a whole or not at all:
   exporters that number values give the same number to another value in another version;
2. the weight that it is computed with: by the initializer's name, or by its values;
3. topology: the same operation on paired inputs and equal constants gives paired results, in
   the order of the graph where several are alike.

Casts, copies and ``QuantizeLinear`` followed by ``DequantizeLinear`` are seen through: they round
a value and do not make another one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.tolerances import NOT_QUANTIZATION
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.products import (
    CLIPS,
    ROUNDS,
    Product,
    ends_of_products,
    graph_inputs,
    products_of,
    rounded_to,
)
from ggufnorm.engines.onnx.quantized import dequantized_weight

_AGREE = 0.5
"""Share of the common names behind which the same must stand for names to be believed: numbered
names agree at few places or none, and two exchanged matrices must not make the rest doubted."""
_SAMPLES = 4096
"""Elements by which two weights are compared."""
_SMALL = 64
"""Constants of at most so many elements are compared exactly."""


@dataclass(frozen=True)
class Pairing:
    """Values that stand for each other.

    Attributes:
        values: of the graph under test, to the reference's; in the order of its nodes.
        inputs: of the graph under test, to the reference's.
        outputs: likewise.
        by_name: whether names were believed.
        weights: knows which matrix of the reference one is.
    """

    values: Mapping[str, str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    by_name: bool
    weights: Weights


def pair_values(ref: OnnxModel, quant: OnnxModel) -> Pairing:
    """Pair the values of two graphs."""
    inputs = _ends([i.name for i in graph_inputs(ref)], [i.name for i in graph_inputs(quant)])
    outputs = _ends(*([o.name for o in m.proto.graph.output] for m in (ref, quant)))
    weights = Weights(ref, quant)
    products = [
        {p.weight: p for p in products_of(model, weights.of if model is quant else None)}
        for model in (ref, quant)
    ]
    by_name = _names_agree(ref, quant, *products)
    finder = _Finder(ref, quant, weights, dict(inputs))
    if by_name:
        for name in quant.producers:
            if name in ref.producers:
                finder.add(name, name)
    for key, product in products[1].items():
        if key in products[0]:
            finder.add(*ends_of_products(ref, quant, products[0][key], product))
    finder.follow()
    for name, other in outputs.items():
        finder.add(name, other)
    for name, other in list(finder.found.items()):
        _behind_activation(ref, quant, finder.found, name, other)
    for name, other in list(finder.found.items()):
        if _clips_later(ref.producers.get(other), quant.producers.get(name)):
            _after_rounding(quant, finder.found, name)
    order = {name: i for i, name in enumerate(quant.producers)}
    found = {n: finder.found[n] for n in sorted(finder.found.keys() & order, key=order.__getitem__)}
    return Pairing(found, inputs, outputs, by_name, weights)


def _behind_activation(
    ref: OnnxModel, quant: OnnxModel, found: dict[str, str], name: str, other: str
) -> None:
    """Pair what is behind an activation that the graph under test has no node for."""
    users, own = ref.consumers.get(other, []), quant.producers.get(name)
    if len(users) != 1 or users[0].op_type not in CLIPS or own is None:
        return
    behind = str(users[0].output[0])
    if behind in quant.producers or behind in found.values():
        return
    rounded = name if own.op_type == "DequantizeLinear" else rounded_to(quant, name)
    if rounded is not None and not _is_clipped(quant, rounded):
        del found[name]
        found[rounded] = behind


def _is_clipped(model: OnnxModel, value: str) -> bool:
    """Whether a value goes into an activation, rounded or not."""
    users = list(model.consumers.get(value, ()))
    for user in users:
        if user.op_type in ROUNDS:
            users += model.consumers.get(user.output[0], ())
    return any(user.op_type in (*CLIPS, "QLinearLeakyRelu") for user in users)


def _clips_later(theirs: Any | None, mine: Any | None) -> bool:
    """Whether an activation was left to the rounding behind it, which clips as well."""
    if theirs is None or mine is None or theirs.op_type not in CLIPS:
        return False
    return mine.op_type not in CLIPS and not mine.op_type.startswith(("Fused", "QLinear"))


def _after_rounding(quant: OnnxModel, found: dict[str, str], name: str) -> None:
    """Pair what a value is rounded to in its place."""
    rounded = rounded_to(quant, name)
    if rounded is not None:
        found[rounded] = found.pop(name)


def _ends(ref: list[str], quant: list[str]) -> dict[str, str]:
    """Inputs or outputs, by name or else by order."""
    if set(quant) <= set(ref):
        return {name: name for name in quant}
    return dict(zip(quant, ref, strict=False)) if len(ref) == len(quant) else {}


# -- products with a stored matrix -----------------------------------------------------------


def _names_agree(
    ref: OnnxModel,
    quant: OnnxModel,
    products_ref: Mapping[tuple[str, int], Product],
    products: Mapping[tuple[str, int], Product],
) -> bool:
    """Whether equal names mean equal values: the same matrix, or the same operation."""
    read = [
        (quant_end == ref_end, quant_end in ref.producers)
        for key, product in products.items()
        if key in products_ref
        for quant_end, ref_end in [ends_of_products(ref, quant, products_ref[key], product)]
    ]
    shared = [same for same, known in read if known]
    if shared:
        return sum(shared) >= _AGREE * len(shared)
    common = [name for name in quant.producers if name in ref.producers]
    same = [ref.producers[n].op_type == quant.producers[n].op_type for n in common]
    return bool(same) and sum(same) >= _AGREE * len(same)


class Weights:
    """Which initializer of the reference one of the graph under test is."""

    def __init__(self, ref: OnnxModel, quant: OnnxModel) -> None:
        self.ref, self.quant = ref, quant
        self._found: dict[str, str | None] = {}
        self._sizes: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, _dtype, shape in ref.matrices():
            self._sizes[tuple(sorted(shape))].append(name)

    def of(self, name: str) -> str | None:
        """By name, with or without what ONNX Runtime's quantizer appends; else by values."""
        if name not in self._found:
            self._found[name] = self._by_name(name) or self._by_values(name)
        return self._found[name]

    def _by_name(self, name: str) -> str | None:
        shape = sorted(self.quant.shape(name))
        for candidate in (name, name.removesuffix("_quantized")):
            if self.ref.dtype(candidate) and sorted(self.ref.shape(candidate)) == shape:
                return candidate
        return None

    def _by_values(self, name: str) -> str | None:
        mine = dequantized_weight(self.quant, name)
        if mine is None or mine.ndim < 2:
            return None
        near = []
        for candidate in self._sizes.get(tuple(sorted(mine.shape)), ()):
            theirs = self.ref.constant(candidate)
            if theirs is not None:
                near.append((_distance(theirs, mine), candidate))
        best = min(near, default=None)
        return best[1] if best is not None and best[0] < NOT_QUANTIZATION else None


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Relative L2 of a sample of two matrices, either of which may be transposed."""
    turned = [b] if a.shape == b.shape else []
    if a.ndim == 2 and a.shape == b.T.shape:
        turned.append(b.T)
    step = max(1, a.size // _SAMPLES)
    x = a.reshape(-1)[::step].astype(np.float64)
    length = float(np.linalg.norm(x)) or 1.0
    errors = [float(np.linalg.norm(t.reshape(-1)[::step] - x)) / length for t in turned]
    return min(errors, default=np.inf)


# -- topology ---------------------------------------------------------------------------------


class _Finder:
    """Pairs results of the same operation on paired inputs."""

    def __init__(
        self, ref: OnnxModel, quant: OnnxModel, weights: Weights, found: dict[str, str]
    ) -> None:
        self.ref, self.quant, self.weights, self.found = ref, quant, weights, found
        self._taken = set(found.values())

    def add(self, name: str, other: str) -> None:
        """Two values that stand for each other, unless either has a partner."""
        if name not in self.found and other not in self._taken:
            self.found[name] = other
            self._taken.add(other)

    def follow(self) -> None:
        """From what is paired to what is computed of it."""
        theirs: dict[Any, list[Any]] = defaultdict(list)
        for node in self.ref.nodes:
            theirs[self._key_ref(node)].append(node)
        for node in self.quant.nodes:
            if node.op_type in ROUNDS or node.output[0] in self.found:
                continue
            key = self._key(node)
            for other in theirs.get(key, ()) if key is not None else ():
                if other.output[0] not in self._taken:
                    for mine, their in zip(node.output, other.output, strict=False):
                        self.add(mine, their)
                    break

    def _key_ref(self, node: Any) -> Any:
        return _key(node, [self._side_ref(name) for name in node.input if name])

    def _side_ref(self, name: str) -> Any:
        base = through(self.ref, name)
        constant = _constant_key(self.ref, base, lambda source: source)
        return ("value", base) if constant is None else constant

    def _key(self, node: Any) -> Any:
        if node.op_type in _VIEWS and node.input:
            first = self._side(node.input[0])
            return None if first is None else _key(node, [first])
        sides = [self._side(name) for name in node.input if name]
        return None if None in sides else _key(node, sides)

    def _side(self, name: str) -> Any:
        base = through(self.quant, name, self.found)
        if base in self.found:
            return "value", through(self.ref, self.found[base])
        return _constant_key(self.quant, base, self.weights.of)


def _key(node: Any, sides: list[Any]) -> Any:
    """What tells an operation from others: attributes only where it moves values alone."""
    if node.op_type in _VIEWS:
        return node.op_type, tuple(sides[:1])
    if node.op_type == "Transpose":
        perm = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
        return node.op_type, perm, tuple(sides)
    if node.op_type in ("Add", "Mul"):
        return node.op_type, tuple(sorted(sides, key=repr))
    return node.op_type, tuple(sides)


_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operations whose other inputs say only in which shape values are seen."""


def _constant_key(model: OnnxModel, value: str, name_of: Callable[[str], str | None]) -> Any:
    """What tells a constant from others: small ones their values, others the weight's name."""
    if model.dtype(value) is None or math.prod(model.shape(value)) <= _SMALL:
        found = model.constant(value)
        if found is None:
            return None
        if found.size <= _SMALL:
            return "constant", tuple(float(np.float32(v)) for v in found.reshape(-1))
    source = model.source(value)
    return "weight", None if source is None else name_of(source)


def through(model: OnnxModel, name: str, known: Collection[str] | None = None) -> str:
    """The value before rounding; of a graph under test the nearest that has a partner."""
    while known is None or name not in known:
        node = model.producers.get(name)
        if node is None or node.op_type not in ROUNDS:
            return name
        name = str(node.input[0])
    return name
