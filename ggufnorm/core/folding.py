"""What becomes of a layer's weight and bias when batch norms beside it are folded into them.

A batch norm's statistics are fixed, so it is a scale and a shift of each channel,
``s = gamma / sqrt(variance + epsilon)`` and ``t = beta - mean · s``. Behind a layer ``W x + b``
it gives ``(s W) x + (s b + t)``, before one ``(W s) x + (b + W t)``. The second holds at a
padded border only where ``t`` is 0: what is padded has not been shifted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.float64]
Values = tuple[Wide, Wide]
"""A layer's weight, ``(groups, out, in, taps)``, and its bias, ``(groups · out,)``."""

Side = Literal["before", "after"]
ALONE = "BatchNormalization"
"""The operation of a layer that is nothing but a batch norm."""


@dataclass(frozen=True)
class BatchNorm:
    """The constants of a batch norm.

    Attributes:
        name: of the norm.
        gamma: weight of each channel.
        beta: bias of each channel.
        mean: running mean.
        variance: running variance.
        epsilon: added to the variance.
    """

    name: str
    gamma: Wide
    beta: Wide
    mean: Wide
    variance: Wide
    epsilon: float

    @property
    def scale(self) -> Wide:
        """What each channel is multiplied with."""
        return np.asarray(self.gamma / np.sqrt(self.variance + self.epsilon))

    @property
    def step(self) -> Step:
        """The norm as a scale and a shift."""
        return Step(self.scale, self.beta - self.mean * self.scale, self)


@dataclass(frozen=True)
class Step:
    """``scale · x + shift`` of each channel.

    Attributes:
        scale: ``(channels,)``.
        shift: ``(channels,)``.
        norm: the batch norm that it is, None for other operations.
        rounding: relative L2 that the type of the scale loses at most; 0 for float32.
        lost: most that the type of the shift loses, of each channel or of all.
    """

    scale: Wide
    shift: Wide
    norm: BatchNorm | None = None
    rounding: float = 0.0
    lost: Wide | float = 0.0

    @property
    def size(self) -> Wide:
        """How large the terms are whose sum the shift is."""
        if self.norm is None:
            return np.abs(self.shift)
        return np.abs(self.norm.beta) + np.abs(self.norm.mean * self.scale)


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with all that scales and shifts its channels.

    Attributes:
        name: of its weight, or of its node.
        op: ONNX's name of the operation.
        weight: ``(groups, out, in, taps)``.
        bias: ``(groups · out,)``, zero where there is none.
        padded: whether its input is padded.
        rounding: relative L2 that the type of the weight loses at most; 0 for float32.
        lost: most that the type of the bias loses, of each channel or of all.
        alpha: of a Gemm, with which the weight is multiplied already.
        beta: of a Gemm, with which the bias is multiplied already.
        before: steps on its input, in order.
        after: steps on its result, in order.
    """

    name: str
    op: str
    weight: Wide
    bias: Wide
    padded: bool = False
    rounding: float = 0.0
    lost: Wide | float = 0.0
    alpha: float = 1.0
    beta: float = 1.0
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()

    @property
    def look(self) -> tuple[int, ...]:
        """Sizes that a layer keeps whatever is folded into it."""
        return self.weight.shape

    def values(self) -> Values:
        """Weight and bias with all steps folded into them."""
        groups, out, channels, _taps = self.weight.shape
        scale, shift = np.ones(groups * channels), np.zeros(groups * channels)
        for step in self.before:
            scale, shift = scale * step.scale, shift * step.scale + step.shift
        moved = np.einsum("goit,gi->go", self.weight, shift.reshape(groups, channels))
        weight = self.weight * scale.reshape(groups, 1, channels, 1)
        bias = self.bias + moved.reshape(-1)
        for step in self.after:
            weight = weight * step.scale.reshape(groups, out, 1, 1)
            bias = bias * step.scale + step.shift
        return weight, bias

    def bias_size(self) -> float:
        """Length of the vector of the terms that the bias is the sum of, all taken positive."""
        return self._positive(np.abs(self.bias), lambda step: step.size)

    def weight_rounding(self) -> float:
        """Relative L2 that the types of all that makes up the weight lose at most."""
        return self.rounding + sum(s.rounding for s in (*self.before, *self.after))

    def bias_rounding(self) -> float:
        """Length of the vector of what the types of all added terms lose at most."""
        return self._positive(
            np.broadcast_to(self.lost, self.bias.shape),
            lambda step: np.broadcast_to(step.lost, step.shift.shape),
        )

    def _positive(self, bias: Wide, shift: Callable[[Step], Wide]) -> float:
        """Length of the bias that other terms add up to, none taking away from another."""
        before, after = (
            tuple(Step(np.abs(s.scale), shift(s)) for s in steps)
            for steps in (self.before, self.after)
        )
        other = replace(self, weight=np.abs(self.weight), bias=bias, before=before, after=after)
        return float(np.linalg.norm(other.values()[1]))


def alone(norm: BatchNorm, step: Step) -> Layer:
    """A batch norm beside no layer, as the step behind one whose weight is 1."""
    n = norm.gamma.size
    return Layer(norm.name, ALONE, np.ones((n, 1, 1, 1)), np.zeros(n), after=(step,))


@dataclass(frozen=True)
class Spot:
    """Where a batch norm stands beside a layer.

    Attributes:
        layer: that it may be folded into.
        side: of the layer.
        index: among the steps there.
        norm: the batch norm.
    """

    layer: Layer
    side: Side
    index: int
    norm: BatchNorm

    def put(self, *steps: Step) -> Layer:
        """The layer with other steps in the norm's place."""
        there: tuple[Step, ...] = getattr(self.layer, self.side)
        changed = (*there[: self.index], *steps, *there[self.index + 1 :])
        if self.side == "before":
            return replace(self.layer, before=changed)
        return replace(self.layer, after=changed)


def spots(layer: Layer) -> Iterator[Spot]:
    """All batch norms beside a layer."""
    sides: tuple[Side, ...] = ("before", "after")
    for side in sides:
        for i, step in enumerate(getattr(layer, side)):
            if step.norm is not None:
                yield Spot(layer, side, i, step.norm)
