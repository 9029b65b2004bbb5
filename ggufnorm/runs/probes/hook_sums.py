"""What the probe of drift gathers: sums of one hook point, and of one norm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ggufnorm.core.metrics import ChannelSum, DifferenceSum, ExpertSum, Peak, PeakSum
from ggufnorm.engines.base import NormPlan

REFERENCE, FREE, PINNED, FLOOR = 0, 1, 2, 3
"""The replicas of a drift run; the last is the reference again, if its own noise is asked for.
The first two are its sides. Without a pinned replica the last stands in that one's place."""


@dataclass
class NormSum:
    """The sums of one norm.

    Attributes:
        plan: in the model under test.
        ref_plan: in the reference.
        input_key: of the hook point that holds the input.
        output_key: of the hook point that holds the result.
        kernel: llama.cpp's result against NumPy's, under test.
        kernel_ref: the same in the reference.
        weight: the reference's recompute with the other weight and bias against itself.
        epsilon: with the other epsilon.
        input: with the other input.
    """

    plan: NormPlan
    ref_plan: NormPlan
    input_key: str
    output_key: str
    kernel: DifferenceSum = field(default_factory=DifferenceSum)
    kernel_ref: DifferenceSum = field(default_factory=DifferenceSum)
    weight: DifferenceSum = field(default_factory=DifferenceSum)
    epsilon: DifferenceSum = field(default_factory=DifferenceSum)
    input: DifferenceSum = field(default_factory=DifferenceSum)

    PARTS = ("kernel", "kernel_ref", "weight", "epsilon", "input")


@dataclass
class HookSum:
    """The sums of one hook point.

    Attributes:
        free: drift in the free run.
        pinned: drift with the reference's values upstream.
        peak: largest value in the free run.
        peak_ref: largest value in the reference.
        channels: energies per channel, of residual sums in the free run, and of attention
            with the reference's values upstream.
        experts: of a product with stacked experts, with the reference's values upstream.
        bad_ref: whether the reference itself shows NaN or infinity.
    """

    free: DifferenceSum = field(default_factory=DifferenceSum)
    pinned: DifferenceSum = field(default_factory=DifferenceSum)
    peak: PeakSum = field(default_factory=PeakSum)
    peak_ref: PeakSum = field(default_factory=PeakSum)
    channels: ChannelSum | None = None
    experts: ExpertSum | None = None
    bad_ref: bool = False


def hook_state(total: HookSum) -> dict[str, Any]:
    """All that was gathered, as plain data that JSON keeps exactly."""
    peaks = {
        name: None if peak is None else [peak.value, peak.token, peak.channel]
        for name, peak in (("peak", total.peak.peak), ("peak_ref", total.peak_ref.peak))
    }
    channels = total.channels and [
        total.channels.reference.tolist(),
        total.channels.error.tolist(),
    ]
    return {
        "free": total.free.state(),
        "pinned": total.pinned.state(),
        "channels": channels,
        "experts": total.experts and total.experts.state(),
        "bad_ref": total.bad_ref,
        **peaks,
    }


def hook_from_state(data: dict[str, Any]) -> HookSum:
    """The inverse of :func:`hook_state`."""
    channels = None
    if data["channels"]:
        channels = ChannelSum(len(data["channels"][0]))
        channels.reference, channels.error = (np.array(v) for v in data["channels"])
    experts = None
    if data["experts"]:
        experts = ExpertSum.from_state(data["experts"])
    return HookSum(
        free=DifferenceSum.from_state(data["free"]),
        pinned=DifferenceSum.from_state(data["pinned"]),
        peak=PeakSum(data["peak"] and Peak(*data["peak"])),
        peak_ref=PeakSum(data["peak_ref"] and Peak(*data["peak_ref"])),
        channels=channels,
        experts=experts,
        bad_ref=bool(data["bad_ref"]),
    )
