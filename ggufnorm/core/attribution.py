"""What each quantized tensor costs at the output, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.drift import ModelFacts, RunCost, RunFacts
from ggufnorm.core.model import Skipped
from ggufnorm.core.result import Result

Array = NDArray[np.float64]

By = Literal["tensor", "layer", "role"]
"""What is patched together: one tensor, those of a layer, or those of a role in all layers."""


@dataclass(frozen=True)
class Share:
    """What one tensor, or several together, cost at the output by themselves.

    Attributes:
        tensor: its name; None for a group of several.
        tensors: all that were patched together.
        layer: block number, None outside the blocks or where they differ.
        role: the tensor's name without its block, ``attn_q``; None where they differ.
        dtype: type in the model under test; None where they differ.
        dtype_ref: type in the reference, likewise.
        kld: mean KL divergence of the patched reference from the reference, nats a token;
            None if no position had finite logits.
        kld_se: its standard error, None from a single position.
        share: ``kld`` divided by the free run's over the same positions; None where that is 0.
        n_tokens: scored positions.
        local_rel_l2: the largest relative L2 error of an operation that reads it, given the
            reference's input; None where it could not be computed.
        bytes: in the model under test.
        bytes_ref: in the reference.
        kld_per_mb: ``kld`` for each 10⁶ bytes that the reference's type takes more; None
            where it takes no more.
    """

    tensor: str | None
    tensors: tuple[str, ...]
    layer: int | None
    role: str | None
    dtype: str | None
    dtype_ref: str | None
    kld: float | None
    kld_se: float | None
    share: float | None
    n_tokens: int
    local_rel_l2: float | None
    bytes: int
    bytes_ref: int
    kld_per_mb: float | None


@dataclass(frozen=True)
class Unmeasured:
    """A tensor that differs and whose share was not measured by itself.

    Attributes:
        tensor: its name.
        layer: block number, None outside the blocks.
        role: as in :class:`Share`.
        reason: why not.
        local_rel_l2: as in :class:`Share`.
        dtype: type in the model under test.
        bytes: in the model under test.
        bytes_ref: in the reference.
    """

    tensor: str
    layer: int | None
    role: str
    reason: str
    local_rel_l2: float | None
    dtype: str
    bytes: int
    bytes_ref: int


@dataclass(frozen=True)
class Restoration:
    """The model under test with the input of a norm replaced by the reference's.

    Attributes:
        tensor: name of the norm's weight, None for a norm without one.
        node: llama.cpp's label of the node that holds the norm's input.
        layer: block number, None outside the blocks.
        role: what is normalized: ``attn``, ``ffn``, ``q`` …
        kld: mean KL divergence of the restored run from the reference, nats a token: what
            comes after this place costs. None if no position had finite logits.
        kld_se: its standard error, None from a single position.
        share: ``kld`` divided by the free run's over the same positions; None where that is 0.
    """

    tensor: str | None
    node: str
    layer: int | None
    role: str
    kld: float | None
    kld_se: float | None
    share: float | None


@dataclass(frozen=True)
class AttributionReport(Result):
    """Which tensors a quantized model's KL divergence comes from.

    Attributes:
        reference: which file is right by definition.
        quant: which was under test.
        by: what ``shares`` lists.
        total_kld: mean KL divergence of the free run, nats a token.
        total_kld_se: its standard error.
        n_tokens: scored positions of the free run.
        shares: the costliest first.
        layers: groups that were measured on the way to single tensors; in graph order.
        sum_of_shares: of ``shares``: near 1 where errors add up. None without a total.
        sum_of_layers: of ``layers``, likewise.
        unmeasured: tensors that differ and are not in ``shares``.
        unmeasured_share: what the layers' shares leave for them; None if not to be told.
        restorations: in graph order; empty if they were not asked for.
        interrupted: whether a Ctrl-C ended the run.
        verdict: the findings in a few sentences.
        skipped: what could not be compared, and why.
        run: how the figures came about.
        cost: time and memory that it took; None in a report that was read from a document.
    """

    reference: ModelFacts
    quant: ModelFacts
    by: By
    total_kld: float | None
    total_kld_se: float | None
    n_tokens: int
    shares: tuple[Share, ...]
    layers: tuple[Share, ...]
    sum_of_shares: float | None
    sum_of_layers: float | None
    unmeasured: tuple[Unmeasured, ...]
    unmeasured_share: float | None
    restorations: tuple[Restoration, ...]
    interrupted: bool
    verdict: str
    skipped: tuple[Skipped, ...]
    run: RunFacts
    cost: RunCost | None = None


class KldSum:
    """KL divergences of a run, position by position, chunk by chunk."""

    def __init__(self) -> None:
        self.chunks: dict[int, list[Array]] = {}

    def add(self, chunk: int, klds: Array) -> None:
        """Some positions of a chunk, in order."""
        self.chunks.setdefault(chunk, []).append(klds)

    def drop(self, chunk: int) -> None:
        """Forget a chunk that was not finished."""
        self.chunks.pop(chunk, None)

    def values(self, chunks: Sequence[int] | None = None) -> Array:
        """All positions of some chunks, of all if None; NaN where logits were not finite."""
        wanted = self.chunks if chunks is None else chunks
        parts = [part for i in wanted for part in self.chunks[i]]
        return np.concatenate(parts) if parts else np.empty(0)


@dataclass(frozen=True)
class MeanKld:
    """A mean KL divergence, and its ratio to the free run's over the same positions."""

    kld: float | None
    se: float | None
    share: float | None
    n_tokens: int


def mean_kld(observed: KldSum, total: KldSum) -> MeanKld:
    """Mean of the positions that are finite in both runs.

    Args:
        observed: a run of some of the total's chunks.
        total: the free run.
    """
    values, free = observed.values(), total.values(tuple(observed.chunks))
    good = np.isfinite(values) & np.isfinite(free)
    values, free = values[good], free[good]
    n = len(values)
    if n == 0:
        return MeanKld(None, None, None, 0)
    mean, whole = float(values.mean()), float(free.mean())
    se = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return MeanKld(mean, se, mean / whole if whole > 0 else None, n)


def costly(klds: Mapping[str, float], rest: float) -> list[str]:
    """The fewest groups without which at most ``rest`` of the sum remains.

    Args:
        klds: of the groups.
        rest: share of their sum, 0 to 1.

    Returns:
        Names, the costliest first; all that cost anything if ``rest`` is 0.
    """
    ordered = sorted(klds, key=lambda name: -klds[name])
    left = whole = math.fsum(klds.values())
    chosen: list[str] = []
    for name in ordered:
        if left <= rest * whole or klds[name] <= 0:
            break
        chosen.append(name)
        left -= klds[name]
    return chosen


def total_of(shares: Sequence[float | None]) -> float | None:
    """Sum of shares; None if there is none to be told."""
    known = [s for s in shares if s is not None]
    return math.fsum(known) if known else None


ADDITIVE = (0.8, 1.25)
"""Between these a sum of shares is called additive."""


def attribution_verdict(
    total: float | None,
    shares: Sequence[Share],
    sum_of_shares: float | None,
    unmeasured_share: float | None,
    restorations: Sequence[Restoration],
) -> str:
    """The findings in a few sentences; ``shares`` the costliest first."""
    if total is None:
        return "No position has finite logits in both runs: run drift to find the first NaN."
    if not shares and total == 0:
        return "No tensor differs in what it computes: there is nothing to attribute."
    if not shares:
        return f"The KL divergence is {total:.3g} nats, and no tensor's share was measured."
    sentences = [_concentration(shares)]
    if sum_of_shares is not None:
        sentences.append(_additivity(sum_of_shares, unmeasured_share))
    sentences += _harm(restorations)
    return " ".join(sentences)


def _concentration(shares: Sequence[Share]) -> str:
    known = [s.share or 0.0 for s in shares]
    whole, half = math.fsum(known), 0.0
    n = 0
    while n < len(known) and half < whole / 2:
        half += known[n]
        n += 1
    first = shares[0]
    where = first.tensor or f"{first.role or f'layer {first.layer}'}"
    return (
        f"{where} costs most, {100 * known[0]:.0f} % of the KL divergence;"
        f" {n} of {len(shares)} make half of what the shares sum to."
    )


def _additivity(total: float, unmeasured: float | None) -> str:
    low, high = ADDITIVE
    whole = total + (unmeasured or 0.0)
    rest = f" and the unmeasured rest's {unmeasured:.2f}" if unmeasured else ""
    if whole < low:
        return (
            f"The shares sum to {total:.2f}{rest}, well below 1: errors reinforce each other,"
            " and undoing one gains more than its share."
        )
    if whole > high:
        return (
            f"The shares sum to {total:.2f}{rest}, well above 1: errors overlap or saturate,"
            " and undoing one gains less than its share."
        )
    return f"The shares sum to {total:.2f}{rest}: near 1, so the errors add up."


def _harm(restorations: Sequence[Restoration]) -> list[str]:
    """Between which two norms most is lost."""
    spine = [r for r in restorations if r.share is not None and r.role in _SPINE]
    falls = [(a.share or 0.0) - (b.share or 0.0) for a, b in pairwise(spine)]
    if not falls or max(falls) <= 0:
        return []
    at = max(range(len(falls)), key=falls.__getitem__)
    names = [r.tensor or r.node for r in (spine[at], spine[at + 1])]
    return [
        f"Most harm is done between {names[0]} and {names[1]}: the reference's state there"
        f" leaves {100 * (spine[at].share or 0):.0f} % before and"
        f" {100 * (spine[at + 1].share or 0):.0f} % after."
    ]


_SPINE = ("attn", "ffn", "output")
"""Roles of norms that read the residual stream."""
