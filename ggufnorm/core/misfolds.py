"""The mistakes that are made when a batch norm is folded into a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from ggufnorm.core.folding import BatchNorm, Spot, Step, Values, Wide
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.tolerances import EPSILON_OF_VARIANCE, NEAR_SCALE

FoldCause = Literal[
    "epsilon", "gamma", "beta", "mean", "variance", "bias", "elsewhere", "order", "lost",
    "padding", "statistics", "twice", "alpha", "values",
]  # fmt: skip
"""What is wrong with a fold:

- ``epsilon``: it is another; ``gamma``, ``beta``, ``mean``: left out; ``variance``: its root is;
- ``bias``: the layer's bias is lost or not scaled, or else only one of weight and bias is folded;
- ``elsewhere``: another norm's values are in the layer, or the norm's in another layer;
- ``order``: of the channels; ``lost``: the norm is gone, and the layer is as it was;
- ``padding``: a shift before a layer that pads its input;
- ``statistics``: it takes those of its own input, or those it was initialized with;
- ``twice``: it is folded, and still there, or folded twice;
- ``alpha``: the factor of a ``Gemm``, or its ``beta``; ``values``: nothing tried explains it.
"""


@dataclass(frozen=True)
class Mistake:
    """One way to fold a batch norm wrong.

    Attributes:
        cause: in a word.
        message: the same in words that follow the norm's name.
        values: that the layer has then.
        epsilon: that is folded, None where another is not the matter.
        of: the other norm, of cause ``elsewhere``.
    """

    cause: FoldCause
    message: str
    values: Values
    epsilon: float | None = None
    of: str | None = None


def mistakes(spot: Spot, weight: Wide, others: Mapping[str, BatchNorm]) -> Iterator[Mistake]:
    """The mistakes that are made in folding, the plainest first; made as they are asked for.

    Args:
        spot: the norm, and the layer that it should be folded into.
        weight: that the layer is found to have; it tells epsilon.
        others: the other batch norms of the graph, by name.
    """
    message = "is gone, and nothing of it is in the layer beside it"
    yield Mistake("lost", message, spot.put().values())
    step = spot.norm.step
    message = "is applied twice: it is in the layer beside it, and again behind it"
    yield Mistake("twice", message, spot.put(step, replace(step, norm=None)).values())
    yield from _half_done(spot)
    yield from _left_out(spot, weight)
    yield from _misread(spot)
    yield from _exchanged(spot, weight, others)


_PARTS: dict[FoldCause, Callable[[BatchNorm], BatchNorm]] = {
    "gamma": lambda n: replace(n, gamma=np.ones_like(n.gamma)),
    "beta": lambda n: replace(n, beta=np.zeros_like(n.beta)),
    "mean": lambda n: replace(n, mean=np.zeros_like(n.mean)),
}


def _left_out(spot: Spot, weight: Wide) -> Iterator[Mistake]:
    """Another epsilon, and each choice of gamma, beta and mean left out."""
    for n in range(len(_PARTS) + 1):
        for chosen in combinations(_PARTS, n):
            norm = spot.norm
            for part in chosen:
                norm = _PARTS[part](norm)
            what = f"is applied without its {' and its '.join(chosen)}"
            if chosen:
                yield Mistake(chosen[0], what, spot.put(norm.step).values())
            epsilon = _fitted_epsilon(norm, _scale(spot, weight))
            if epsilon is not None:
                start = f"{what}, and" if chosen else "is applied"
                yield Mistake(
                    "epsilon" if not chosen else chosen[0],
                    f"{start} with an epsilon of {epsilon:g}, in the source {norm.epsilon:g}",
                    spot.put(replace(norm, epsilon=epsilon).step).values(),
                    epsilon,
                )


def _scale(spot: Spot, weight: Wide) -> Wide:
    """What a weight was multiplied with in each of the norm's channels (least squares)."""
    base = spot.put().values()[0]
    axes = (2, 3) if spot.side == "after" else (1, 3)
    return np.asarray(((weight * base).sum(axes) / (base * base).sum(axes)).reshape(-1))


def _fitted_epsilon(norm: BatchNorm, scale: Wide) -> float | None:
    """The epsilon that makes this scale, as its channels of the smallest variance tell it."""
    told = (norm.gamma / scale) ** 2 - norm.variance
    trust = 1 / (norm.variance + norm.epsilon) ** 2
    used = np.isfinite(told) & np.isfinite(trust) & (norm.gamma != 0)
    if not used.any():
        return None
    epsilon = float(f"{np.average(told[used], weights=trust[used]):.3g}")
    smallest = float(norm.variance.min())
    if epsilon < EPSILON_OF_VARIANCE * smallest:
        epsilon = 0.0
    return epsilon if epsilon + smallest > 0 else None


def _misread(spot: Spot) -> Iterator[Mistake]:
    n = spot.norm
    fresh = replace(n, mean=np.zeros_like(n.mean), variance=np.ones_like(n.variance))
    message = "has the statistics of a new batch norm: mean 0 and variance 1"
    yield Mistake("statistics", message, spot.put(fresh.step).values())
    added = replace(n, mean=-n.mean)
    yield Mistake("mean", "is applied with its mean added", spot.put(added.step).values())
    squared = replace(n, variance=(n.variance + n.epsilon) ** 2, epsilon=0.0)
    message = "is applied with its variance in the place of the standard deviation"
    yield Mistake("variance", message, spot.put(squared.step).values())
    turned = Step(n.step.scale[::-1], n.step.shift[::-1])
    yield Mistake("order", "is applied with its channels reversed", spot.put(turned).values())


def _half_done(spot: Spot) -> Iterator[Mistake]:
    weight, bias = spot.put(spot.norm.step).values()
    plain_weight, plain_bias = spot.put().values()
    yield Mistake("bias", "is applied to the weight, not to the bias", (weight, plain_bias))
    yield Mistake("bias", "is applied to the bias, not to the weight", (plain_weight, bias))
    if spot.side == "after" and spot.layer.bias.any():
        bare = replace(spot, layer=replace(spot.layer, bias=np.zeros_like(spot.layer.bias)))
        shift = bare.put(spot.norm.step).values()[1]
        message = "is applied, and the layer's own bias is lost"
        yield Mistake("bias", message, (weight, shift))
        message = "is applied, and the layer's own bias is not scaled"
        yield Mistake("bias", message, (weight, shift + plain_bias))


def _exchanged(spot: Spot, weight: Wide, others: Mapping[str, BatchNorm]) -> Iterator[Mistake]:
    n, scale = spot.norm, _scale(spot, weight)
    told = np.isfinite(scale)
    for name, other in others.items():
        if name == n.name or other.gamma.size != n.gamma.size:
            continue
        mixed = replace(n, mean=other.mean, variance=other.variance)
        for norm, message in (
            (other, f"is not in its layer, which holds {name}"),
            (mixed, f"is applied with the mean and the variance of {name}"),
        ):
            if relative_l2(norm.scale[told], scale[told]) <= NEAR_SCALE:
                yield Mistake("elsewhere", message, spot.put(norm.step).values(), of=name)
