"""Which type for which tensor: the choice, and what it gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ggufnorm.core.drift import ModelFacts, RunCost
from ggufnorm.core.engine import Engine
from ggufnorm.core.model import Skipped
from ggufnorm.core.result import Result


@dataclass(frozen=True)
class Option:
    """A type that a tensor can have.

    Attributes:
        dtype: ggml's name of it.
        bytes: that the tensor takes in a file, padding counted in.
        kld: what it is predicted to cost at the output, nats a token.
        measured: whether that was measured, and not scaled from another type.
    """

    dtype: str
    bytes: int
    kld: float
    measured: bool


@dataclass(frozen=True)
class Choice:
    """A tensor and the type chosen for it.

    Attributes:
        tensor: its name.
        layer: block number, None outside the blocks.
        role: its name without the block.
        dtype: the type chosen.
        dtype_quant: that it has in the model under test.
        bytes: that it takes, padding counted in.
        bytes_quant: that it takes in the model under test.
        kld: what it is predicted to cost at the output, nats a token.
    """

    tensor: str
    layer: int | None
    role: str
    dtype: str
    dtype_quant: str
    bytes: int
    bytes_quant: int
    kld: float


@dataclass(frozen=True)
class Trial:
    """A file that was quantized and run.

    Attributes:
        name: what it is: a standard mix, or ``recipe``.
        bytes: of the file.
        kld: mean KL divergence from the reference, nats a token; None if not finite.
        kld_se: its standard error.
    """

    name: str
    bytes: int
    kld: float | None
    kld_se: float | None


@dataclass(frozen=True)
class RecipeReport(Result):
    """Which type each tensor should have.

    Attributes:
        reference: what is to be quantized.
        quant: the quantization to be bettered.
        max_bytes: limit on the file's size, None if there was none.
        target_kld: KL divergence to be met, None if there was none.
        imatrix: the importance matrix: a path, ``auto`` or None.
        anchors: types at which tensors' shares were measured.
        file_type: standard mix to name on the command line.
        choices: in file order.
        arguments: for llama-quantize, ``PATTERN=TYPE`` each.
        predicted_kld: sum of the choices' costs, nats a token.
        predicted_quant_kld: the same sum for the model under test; None where a type of its
            is not among those tried.
        bytes: that the file will take.
        measured_quant: the model under test.
        measured: the recipe's file, None if it was not applied.
        uniform: the smallest standard mixes that are not smaller; empty if nothing was
            applied.
        n_tokens: scored positions of each run.
        verdict: the findings in a few sentences.
        skipped: what could not be tried, and why.
        cost: time that it took; None in a report that was read from a document.
        engine: the llama.cpp that ran the model under test, and where.
    """

    reference: ModelFacts
    quant: ModelFacts
    max_bytes: int | None
    target_kld: float | None
    imatrix: str | None
    anchors: tuple[str, ...]
    file_type: str
    choices: tuple[Choice, ...]
    arguments: tuple[str, ...]
    predicted_kld: float
    predicted_quant_kld: float | None
    bytes: int
    measured_quant: Trial
    measured: Trial | None
    uniform: tuple[Trial, ...]
    n_tokens: int
    verdict: str
    skipped: tuple[Skipped, ...]
    cost: RunCost | None = None
    engine: Engine | None = None


Options = Mapping[str, Sequence[Option]]
"""By tensor."""
Assignment = dict[str, Option]
"""By tensor."""


def lowest_kld(options: Options, max_bytes: int) -> Assignment | None:
    """The types that cost least within a size; None if even the smallest do not fit.

    Tensor by tensor, only types on the lower convex hull of cost over bytes can be part of an
    optimum of the relaxed problem; steps along the hulls are taken in the order of what they
    gain a byte. Bytes left over are then spent on any type that still fits.
    """
    chosen = _smallest(options)
    left = max_bytes - total_bytes(chosen)
    if left < 0:
        return None
    for _gain, name, _k, option in _steps(options):
        added = option.bytes - chosen[name].bytes
        if added <= left and option.kld < chosen[name].kld:
            chosen[name] = option
            left -= added
    while better := _best_that_fits(options, chosen, left):
        name, option = better
        left -= option.bytes - chosen[name].bytes
        chosen[name] = option
    return chosen


def smallest_size(options: Options, target_kld: float) -> Assignment | None:
    """The smallest types whose costs sum to the target at most; None if none do."""
    chosen = _smallest(options)
    for _gain, name, _k, option in _steps(options):
        if total_kld(chosen) <= target_kld:
            break
        chosen[name] = option
    if total_kld(chosen) > target_kld:
        return None
    while smaller := _smallest_that_meets(options, chosen, target_kld - total_kld(chosen)):
        name, option = smaller
        chosen[name] = option
    return chosen


def total_bytes(chosen: Mapping[str, Option]) -> int:
    """Bytes of all tensors."""
    return sum(o.bytes for o in chosen.values())


def total_kld(chosen: Mapping[str, Option]) -> float:
    """Sum of the predicted costs."""
    return math.fsum(o.kld for o in chosen.values())


def _smallest(options: Options) -> Assignment:
    return {name: min(of, key=lambda o: (o.bytes, o.kld)) for name, of in options.items()}


def hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull of cost over bytes, from the smallest type on."""
    found: list[Option] = []
    for o in sorted(options, key=lambda o: (o.bytes, o.kld)):
        if found and (o.bytes == found[-1].bytes or o.kld >= found[-1].kld):
            continue
        while len(found) > 1 and _slope(found[-2], o) <= _slope(found[-2], found[-1]):
            found.pop()
        found.append(o)
    return found


def _slope(a: Option, b: Option) -> float:
    return (b.kld - a.kld) / (b.bytes - a.bytes)


def _steps(options: Options) -> list[tuple[float, str, int, Option]]:
    """All steps along all hulls, those that gain most a byte first."""
    found = []
    for name, of in options.items():
        corners = hull(of)
        found += [(_slope(a, b), name, k, b) for k, (a, b) in enumerate(pairwise(corners))]
    return sorted(found, key=lambda step: step[:3])


def _best_that_fits(options: Options, chosen: Assignment, left: int) -> tuple[str, Option] | None:
    """The change that gains most within the bytes left."""
    found = [
        (chosen[name].kld - o.kld, name, o)
        for name, of in options.items()
        for o in of
        if o.bytes - chosen[name].bytes <= left and o.kld < chosen[name].kld
    ]
    return max(found, key=lambda f: f[0])[1:] if found else None


def _smallest_that_meets(
    options: Options, chosen: Assignment, slack: float
) -> tuple[str, Option] | None:
    """The change that saves most and costs no more than the slack."""
    found = [
        (chosen[name].bytes - o.bytes, name, o)
        for name, of in options.items()
        for o in of
        if o.bytes < chosen[name].bytes and o.kld - chosen[name].kld <= slack
    ]
    return max(found, key=lambda f: f[0])[1:] if found else None


@dataclass(frozen=True)
class Anchor:
    """A tensor's cost where it was measured.

    Attributes:
        error: relative L2 error of what it computes, given the reference's input.
        kld: its cost at the output, nats a token.
    """

    error: float
    kld: float


def scaled_kld(error: float, anchors: Sequence[Anchor]) -> float:
    """The cost of a tensor in a type where only its local error is known.

    Between two anchors a power law goes through both; beyond them the cost grows with the
    square of the error, as the KL divergence does with any small change of the logits.

    Args:
        error: relative L2 error in that type.
        anchors: at least one, with errors above 0.
    """
    if error <= 0:
        return 0.0
    ordered = sorted(anchors, key=lambda a: a.error)
    low = max((a for a in ordered if a.error <= error), key=lambda a: a.error, default=None)
    high = min((a for a in ordered if a.error > error), key=lambda a: a.error, default=None)
    if low and high and low.kld > 0 and high.kld > 0:
        power = math.log(high.kld / low.kld) / math.log(high.error / low.error)
        return float(low.kld * (error / low.error) ** power)
    nearest = low or high
    assert nearest
    return nearest.kld * (error / nearest.error) ** 2


def recipe_verdict(
    predicted: float,
    n_bytes: int,
    quant: Trial,
    measured: Trial | None,
    uniform: Sequence[Trial],
) -> str:
    """The findings in a few sentences."""
    size = f"{n_bytes / 1e6:,.2f} MB ({100 * (n_bytes / quant.bytes - 1):+.1f} %)"
    if measured is None:
        than = "" if quant.kld is None else f"; {quant.name} has {quant.kld:.3g}"
        return f"{size} should give a KL divergence of {predicted:.3g} nats{than}."
    if measured.kld is None:
        return f"{size}: the recipe's file gives no finite logits: report this."
    sentence = (
        f"{size} give a KL divergence of {measured.kld:.3g} nats, {predicted:.3g} was predicted."
    )
    others = []
    for other in (quant, *uniform):
        if other.kld:
            less = 100 * (1 - measured.kld / other.kld)
            how = f"{less:.0f} % less than" if less >= 0 else f"{-less:.0f} % more than"
            others.append(f"{how} {other.name} ({other.bytes / 1e6:,.2f} MB, {other.kld:.3g})")
    return f"{sentence} That is {', '.join(others)}." if others else sentence
