"""N4: the values of norms beside each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, at, rule
from ggufnorm.analysis.audit.subject import Array, Subject
from ggufnorm.core.distribution import median
from ggufnorm.core.model import NormSite, WeightStatistics

_FEWEST_LAYERS = 8
"""Layers from which a role has a usual course that one can be unlike."""

_NEIGHBOURS = 2
"""Layers on each side that a layer is compared with."""

_OUTLIER_Z = 6.0
_OUTLIER_FACTOR = 6.0
"""How far from its neighbours a layer is, in robust standard deviations and as a factor."""

_NARROWEST = 0.1
"""Standard deviation, of logarithms, below which layers are not held to be alike."""

_CUT = 0.05
"""Share of a weight's values at each end that does not count for its layer: outlier channels."""

_Peer = tuple[NormSite, Array]
_Told = tuple[NormSite, WeightStatistics]


@rule("N401", "norm-outlier-layer", "warning")
def outlier_layer(subject: Subject) -> Iterator[Problem]:
    """One layer's norm is unlike those of its role in the layers around it.

    What it does:
        Follows mean, root mean square and spread of a role's weights from layer to layer,
        as logarithms, and reports a layer that is off from the median of its neighbours by
        a factor of 6 and by 6 robust standard deviations. Single large channels do not count.
        Roles of eight layers or more; the first two and the last two layers, which training
        makes unlike the others, are not reported.

    Why it matters:
        Weights of trained models change slowly with depth. One that does not follow has been
        scaled, shifted or taken from another norm.

    What to do:
        Compare with the source (``--source``).

    Example:
        ``blk.7.ffn_norm.weight: its root mean square is 8.1, in the layers around it 0.81``
    """
    roles = _by_role(subject)
    if not any(len(peers) >= _FEWEST_LAYERS for peers in roles.values()):
        raise NotApplicableError(f"no role has norms in {_FEWEST_LAYERS} layers or more")
    for peers in roles.values():
        if len(peers) >= _FEWEST_LAYERS:
            yield from _outliers(peers)


@rule("N402", "norm-duplicated", "warning")
def duplicated(subject: Subject) -> Iterator[Problem]:
    """Two norms have the same weight.

    What it does:
        Looks for weights that are equal in every value, between layers and within one. Where
        all norms of a block are those of another block, the block was repeated, by a merge
        perhaps: that is one information per block.

    Why it matters:
        Training never gives two norms the same values: one was written twice, and the other
        is lost.

    What to do:
        Convert again; if the model is a merge that repeats layers, accept the finding.

    Example:
        ``blk.7.ffn_norm.weight has the values of blk.6.ffn_norm.weight``
    """
    twins = _twins(subject)
    if not subject.weighted:
        raise NotApplicableError("the file has no norm with a weight that can be read")
    repeated = _repeated_blocks(subject, twins)
    for layer, first in repeated.items():
        message = f"block {layer} has all the norms of block {first}"
        yield Problem(message, None, layer, {"of": first}, "info")
    for site, first_site in twins:
        if site.layer not in repeated:
            message = f"{site.tensor} has the values of {first_site.tensor}"
            yield at(site, message, of=first_site.tensor)


@rule("N403", "norms-from-bf16", "info")
def from_bf16(subject: Subject) -> Iterator[Problem]:
    """The norms were trained, or at least saved, in bfloat16.

    What it does:
        Tells from their values that every norm's weight is made of bfloat16 numbers, with an
        offset baked in or not.

    Why it matters:
        It is how most models are trained, and what lets offsets be told from the file alone
        (N5).

    What to do:
        Nothing.

    Example:
        ``all 65 norm weights are bfloat16 numbers``
    """
    told = _told(subject)
    n = sum(_is_from_bf16(weight) for _, weight in told)
    if n == len(told):
        yield Problem(f"all {n} norm weights are bfloat16 numbers", evidence={"n": n})


@rule("N404", "norms-from-f16", "info")
def from_f16(subject: Subject) -> Iterator[Problem]:
    """The norms went through half precision.

    What it does:
        Tells from their values that every norm's weight is made of half-precision numbers
        that are no bfloat16 numbers.

    Why it matters:
        The file was made of an F16 checkpoint. If the model was trained in bfloat16 or
        float32, its weights have been rounded, and an offset was added in half precision.

    What to do:
        Convert from the original checkpoint, if there is one in another precision.

    Example:
        ``all 65 norm weights are half-precision numbers``
    """
    told = _told(subject)
    n = sum(_is_from_f16(weight) for _, weight in told)
    if n == len(told):
        yield Problem(f"all {n} norm weights are half-precision numbers", evidence={"n": n})


@rule("N405", "norm-of-other-precision", "warning")
def of_other_precision(subject: Subject) -> Iterator[Problem]:
    """One norm is not of the precision of all others.

    What it does:
        Where nine of ten weights or more are made of bfloat16 numbers, or of half-precision
        ones, reports those that are not, if other norms of their role are: some checkpoints
        keep all norms of one role in float32.

    Why it matters:
        A converter treats all norms alike. This one has been changed since: edited, scaled,
        merged or damaged.

    What to do:
        Compare with the source (``--source``).

    Example:
        ``blk.7.ffn_norm.weight has values that are no bfloat16 numbers, 64 others have none``
    """
    told = _told(subject)
    for word, holds in (("bfloat16", _is_from_bf16), ("half-precision", _is_from_f16)):
        other = [site for site, weight in told if not holds(weight)]
        if not 0 < 10 * len(other) <= len(told):
            continue
        for site in other:
            rest = len(told) - len(other)
            message = (
                f"{site.tensor} has values that are no {word} numbers, {rest} others have none"
            )
            yield at(site, message, n_others=rest, precision=word)
        return


def _by_role(subject: Subject) -> dict[str, list[_Peer]]:
    """Finite weights that are not constant, by role, in the order of their layers."""
    roles: dict[str, list[_Peer]] = defaultdict(list)
    for site, values, statistics in subject.weighted:
        varies = bool(values.size) and not (values == values.flat[0]).all()  # else N302, N303
        if site.layer is not None and varies and not statistics.non_finite:
            roles[site.role].append((site, values))
    return roles


def _outliers(peers: Sequence[_Peer]) -> Iterator[Problem]:
    figures = np.array([_figures(values) for _, values in peers])
    # The mean of values of both signs can be anything.
    one_signed = bool((figures[:, 0] > 0.5 * figures[:, 1]).all())
    first = 0 if one_signed else 1
    courses = np.log(figures).T
    worst: dict[int, tuple[float, int]] = {}
    for i in _inner(len(peers)):
        found = [(abs(off), c) for c in range(first, 3) if (off := _out_of_line(courses[c], i))]
        if found:
            worst[i] = max(found)
    for i, (off, column) in worst.items():
        if _is_beside_a_worse(i, worst):
            continue
        value = float(figures[i, column])
        around = float(np.exp(median(_around(courses[column], i))))
        name = ("mean", "root mean square", "spread")[column]
        message = f"{peers[i][0].tensor}: its {name} is {value:.3g}, in the layers around it"
        evidence = {"figure": name, "value": value, "around": around, "factor": float(np.exp(off))}
        yield at(peers[i][0], f"{message} {around:.3g}", **evidence)


def _out_of_line(course: NDArray[np.float64], i: int) -> float:
    """How far a layer's figure is from those around it, as a logarithm; 0 if that is usual."""
    off = float(course[i] - median(_around(course, i)))
    if abs(off) < np.log(_OUTLIER_FACTOR):
        return 0.0
    rest = np.delete(course, i)
    usual = [rest[j] - median(_around(rest, j)) for j in _inner(len(rest))]
    spread = max(_NARROWEST, 1.4826 * float(median(np.abs(usual))))
    return off if abs(off) >= _OUTLIER_Z * spread else 0.0


def _inner(n: int) -> range:
    """Layers with neighbours on both sides; the others are off by any trend."""
    return range(_NEIGHBOURS, n - _NEIGHBOURS)


def _around(course: NDArray[np.float64], i: int) -> NDArray[np.float64]:
    """The figures of the layers around one, without its own."""
    near = [j for j in range(i - _NEIGHBOURS, i + _NEIGHBOURS + 1) if 0 <= j < len(course)]
    return course[[j for j in near if j != i]]


def _figures(values: Array) -> tuple[float, float, float]:
    """Mean, root mean square and spread, with the largest and smallest twentieth cut."""
    wide = values.astype(np.float64)
    ordered, last = np.sort(wide, axis=None), wide.size - 1
    low, high = np.interp((_CUT * last, (1 - _CUT) * last), np.arange(wide.size), ordered)
    wide = np.clip(wide, low, high)
    tiny = float(np.finfo(np.float32).tiny)
    rms = float(np.sqrt(np.mean(wide**2)))
    return max(abs(float(wide.mean())), tiny), max(rms, tiny), max(float(wide.std()), tiny)


def _is_beside_a_worse(i: int, worst: dict[int, tuple[float, int]]) -> bool:
    near = (worst[j] for j in range(i - _NEIGHBOURS, i + _NEIGHBOURS + 1) if j in worst and j != i)
    return any(other[0] > worst[i][0] for other in near)


def _twins(subject: Subject) -> list[tuple[NormSite, NormSite]]:
    """Norms with the weight of an earlier one, and that one; constant weights left out."""
    first: dict[tuple[tuple[int, ...], bytes], NormSite] = {}
    found = []
    for site, values, _ in subject.weighted:
        # A multi-token predictor may share the output's norm.
        if values.size < 4 or (values == values.flat[0]).all() or site.role.startswith("nextn."):
            continue
        key = (values.shape, values.tobytes())
        if key in first:
            found.append((site, first[key]))
        else:
            first[key] = site
    return found


def _repeated_blocks(
    subject: Subject, twins: Sequence[tuple[NormSite, NormSite]]
) -> dict[int, int]:
    """Blocks of two norms or more all of whose norms are an earlier block's, with that one."""
    n_norms: dict[int, int] = defaultdict(int)
    for site, *_ in subject.weighted:
        if site.layer is not None:
            n_norms[site.layer] += 1
    of: dict[int, list[int | None]] = defaultdict(list)
    for site, first in twins:
        if site.layer is not None and first.role == site.role:
            of[site.layer].append(first.layer)
    return {
        layer: firsts[0]
        for layer, firsts in of.items()
        if firsts[0] is not None and len(set(firsts)) == 1 and len(firsts) == n_norms[layer] >= 2
    }


def _told(subject: Subject) -> tuple[_Told, ...]:
    """Norms with values enough to tell their precision by, and with all their digits."""
    if not subject.precise:
        raise NotApplicableError("no norm has values enough to tell their precision by")
    return subject.precise


def _is_from_bf16(statistics: WeightStatistics) -> bool:
    return statistics.offset.fits


def _is_from_f16(statistics: WeightStatistics) -> bool:
    return statistics.offset.f16 == 1 and not statistics.offset.fits


RULES: tuple[Rule, ...] = (outlier_layer, duplicated, from_bf16, from_f16, of_other_precision)
