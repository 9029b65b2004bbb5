"""N3: the values of each norm by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, at, rule
from ggufnorm.analysis.audit.subject import Array, Subject
from ggufnorm.core.audit import Severity
from ggufnorm.core.distribution import median
from ggufnorm.core.model import NormSite

_HUGE = 30.0
"""How many times the median of a weight a channel is that is called huge."""


@rule("N301", "norm-non-finite", "error")
def non_finite(subject: Subject) -> Iterator[Problem]:
    """A norm's weight or bias has NaN or infinite values.

    What it does:
        Looks at every value of every norm's weight and bias.

    Why it matters:
        One such value spoils every token that passes the norm.

    What to do:
        Look for it in the source; if it is not there, convert again.

    Example:
        ``blk.3.ffn_norm.weight: 2 of 4,096 values are NaN or infinite, the first in channel
        17``
    """
    _readable(subject)
    for site, name, values in _tensors(subject):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            message = (
                f"{name}: {bad.size:,} of {values.size:,} values are NaN or infinite, the first"
                f" in channel {bad[0]}"
            )
            evidence = {"non_finite": int(bad.size), "first": int(bad[0])}
            yield Problem(message, name, site.layer, evidence)


@rule("N302", "norm-zero", "error")
def zero(subject: Subject) -> Iterator[Problem]:
    """A norm's weight is zero in all channels.

    What it does:
        Looks for weights without any value other than 0.

    Why it matters:
        The norm's output is nothing but its bias: the branch behind it is lost. llama.cpp
        says nothing, and the model still writes text.

    What to do:
        Look at the source: if its weight is zero too, an offset of 1 may be missing (N501);
        if not, convert again.

    Example:
        ``blk.3.ffn_norm.weight: all 4,096 values are 0``
    """
    _readable(subject)
    for site, values, _ in subject.weighted:
        if values.size and not values.any():
            yield at(site, f"{site.tensor}: all {values.size:,} values are 0", n=values.size)


@rule("N303", "norm-constant", "warning")
def constant(subject: Subject) -> Iterator[Problem]:
    """A norm's weight has the same value in all channels.

    What it does:
        Looks for weights of one value, other than 0 (N302), of four channels at least. It is
        an information where all norms of that role are constant: they may never have been
        trained.

    Why it matters:
        Training leaves no weight constant. A converter or a merge may have filled in what it
        did not find.

    What to do:
        Compare with the source (``--source``).

    Example:
        ``blk.3.ffn_norm.weight: all 4,096 values are 1, those of 31 other ffn norms vary``
    """
    _readable(subject)
    varied = {s.role: 0 for s, *_ in subject.weighted}
    for site, values, _ in subject.weighted:
        varied[site.role] += not _is_constant(values)
    for site, values, _ in subject.weighted:
        if values.size < 4 or not _is_constant(values) or not values.any():
            continue
        n = varied[site.role]
        others = (
            f"those of {n} other {site.role} norms vary" if n else "as in all norms of its role"
        )
        message = f"{site.tensor}: all {values.size:,} values are {values.flat[0]:g}, {others}"
        evidence = {"value": float(values.flat[0]), "n_varying": n}
        severity: Severity | None = None if n else "info"
        yield Problem(message, site.tensor, site.layer, evidence, severity)


@rule("N304", "norm-huge-channel", "info")
def huge_channel(subject: Subject) -> Iterator[Problem]:
    """A channel of a norm's weight is many times as large as the others.

    What it does:
        Looks for values of more than 30 times the median size.

    Why it matters:
        Trained models have such channels, and they are the ones that overflow half precision
        and make activations hard to quantize. In a norm of a small model, or in one layer
        only, they can be damage.

    What to do:
        Compare with the source (``--source``), and with ``drift`` if the model is quantized.

    Example:
        ``blk.3.ffn_norm.weight: channel 1415 is 61.5, 72 times the median``
    """
    _readable(subject)
    for site, values, _ in subject.weighted:
        sizes = np.abs(values[np.isfinite(values)].astype(np.float64))
        middle = float(median(sizes)) if sizes.size else 0.0
        if middle == 0 or sizes.max() <= _HUGE * middle:
            continue
        flat = np.where(np.isfinite(values), np.abs(values), 0).ravel()
        channel, times = int(flat.argmax()), float(sizes.max()) / middle
        value = float(values.flat[channel])
        message = f"{site.tensor}: channel {channel} is {value:.4g}, {times:.0f} times the median"
        yield at(site, message, channel=channel, value=value, times_median=times)


def _readable(subject: Subject) -> None:
    if not subject.weights:
        why = next(iter(subject.unreadable.values()), "the file has no norm with a weight")
        raise NotApplicableError(why)


def _tensors(subject: Subject) -> Iterator[tuple[NormSite, str, Array]]:
    """Every weight and bias that could be read."""
    for site in subject.sites:
        for name in (site.tensor, site.bias):
            if name is not None and name in subject.weights:
                yield site, name, subject.weights[name]


def _is_constant(values: Array) -> bool:
    return bool(values.size and (values == values.flat[0]).all())


RULES: tuple[Rule, ...] = (non_finite, zero, constant, huge_channel)
