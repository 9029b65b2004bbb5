"""Whisper's logarithm of mel energies, and what pipelines make of them instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from ggufnorm.core.log_mel import FLOOR, SPAN, Array, scaled

_E = float(np.log(10))
LLAMA_FLOOR = 2.0**-24
"""llama.cpp's least energy (``filter_params::mel_floor`` in ``tools/mtmd/mtmd-audio.cpp``)."""


@dataclass(frozen=True)
class Scale:
    """``gain · max(log10 e, log10 floor, top - span) + offset``.

    Attributes:
        mistakes: names of what is not as expected.
        text: the same in words.
        gain: of decades; None feeds the energies themselves.
        offset: added at the end.
        span: decades kept below ``top``, None to keep all.
        floor: least energy.
        top: decades of the loudest value; by default of the values themselves.
        relative: whether that is subtracted first.
    """

    mistakes: tuple[str, ...]
    text: str
    gain: float | None = 0.25
    offset: float = 1.0
    span: float | None = SPAN
    floor: float = FLOOR
    top: float | None = None
    relative: bool = False

    def apply(self, energies: Array, loudest: float) -> Array:
        """Values of energies.

        Args:
            energies: at any places.
            loudest: energy of the whole spectrogram.
        """
        if self.gain is None:
            return energies
        logs = np.log10(np.maximum(energies, self.floor))
        top = float(np.log10(max(loudest, self.floor))) if self.top is None else self.top
        if self.span is not None:
            logs = np.maximum(logs, top - self.span)
        return np.asarray(self.gain * (logs - top * self.relative) + self.offset)

    def undo(self, values: Array) -> Array:
        """Energies of values, those below the bound raised to it."""
        with np.errstate(over="ignore"):
            return values if self.gain is None else 10 ** ((values - self.offset) / self.gain)


def expected_again(scale: Scale, values: Array) -> Array:
    """Values as the expected scale gives them, where another one gave these."""
    return scaled(scale.undo(values))


def scales(whole: float | None, batch: float | None = None) -> Iterator[Scale]:
    """What a pipeline may have made of energies, the right thing first.

    Args:
        whole: decades of the loudest value of all of a sound that is longer than what the
            encoder takes at once; None for one that is not.
        batch: decades of the loudest value of all inputs fed together, None of one alone.
    """
    floors = [
        ("", "", FLOOR),
        ("mel-floor", "energies below 2^-24 were raised to it, not those below 1e-10", LLAMA_FLOOR),
    ]
    tops: list[tuple[str, str, bool, float | None]] = [
        ("", "", True, None),
        ("clamp-missing", "nothing was cut off 8 decades below the maximum", False, None),
    ]
    if whole is not None:
        text = "the maximum is that of the whole sound, not of the part that is fed"
        tops.append(("clamp-of-whole", text, True, whole))
    if batch is not None:
        text = "the maximum is that of all inputs together (the batch), not of each"
        tops.append(("clamp-of-batch", text, True, batch))
    logs = [
        ("", "", 1.0, SPAN),
        ("natural-logarithm", "the logarithm is natural, not to base 10", _E, SPAN / _E),
        ("decibels", "decibels, not decades", 10.0, SPAN),
    ]
    steps = [
        ("", "", 0.25, 1.0),
        ("not-scaled", "(x + 4) / 4 was left out", 1.0, 0.0),
        ("scaled-twice", "(x + 4) / 4 was done twice", 0.0625, 1.25),
        ("offset-missing", "divided by 4, but 4 was not added", 0.25, 0.0),
        ("divisor-missing", "4 was added, but not divided by 4", 1.0, 4.0),
    ]
    for floor, top, log, step in product(floors, tops, logs, steps):
        parts = [(name, text) for name, text, *_ in (step, log, top, floor) if name]
        yield Scale(
            mistakes=tuple(name for name, _text in parts),
            text="; ".join(text for _name, text in parts),
            gain=log[2] * step[2],
            offset=step[3],
            span=log[3] if top[2] else None,
            floor=floor[2],
            top=top[3],
        )
    yield Scale(("logarithm-missing",), "energies: no logarithm was taken", gain=None)
    text = "decibels below the loudest value"
    yield Scale(("decibels",), text, gain=10.0, offset=0.0, relative=True)
