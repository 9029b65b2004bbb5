"""What pipelines do to levels, from the right thing to two mistakes at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np

from ggufnorm.core.normalization import (
    BGR,
    KNOWN,
    RGB,
    TOP_LEVEL,
    Affine,
    Array,
    Normalization,
    Three,
    is_any,
    is_usable,
    three,
    whose_model,
)

# _preprocess_numpy_input in keras.applications.imagenet_utils, mode "caffe", red first.
_CAFFE: Three = (123.68, 116.779, 103.939)

AS_EXPECTED = "normalized as expected"


@dataclass(frozen=True)
class Hypothesis:
    """What a pipeline may have done.

    Attributes:
        mistakes: names of what is not as expected; empty if all is.
        text: the same in words.
        affine: what it makes of levels.
    """

    mistakes: tuple[str, ...]
    text: str
    affine: Affine


@lru_cache(maxsize=16)
def hypotheses(expected: Normalization) -> tuple[Hypothesis, ...]:
    """What a pipeline may have done, from the right thing to two mistakes at once.

    Of those that come to the same with these constants, only the first is there.
    """
    made = [
        (len(h.mistakes), rank, h) for rank, h in enumerate(_all(expected)) if is_usable(h.affine)
    ]
    kept: dict[tuple[int, int, int], list[Hypothesis]] = {RGB: [], BGR: []}
    for _n, _rank, hypothesis in sorted(made, key=lambda m: m[:2]):
        alike = kept[hypothesis.affine.order]
        if not is_any(hypothesis.affine, [k.affine for k in alike]):
            alike.append(hypothesis)
    return tuple(sorted((h for k in kept.values() for h in k), key=lambda h: len(h.mistakes)))


def _all(expected: Normalization) -> Iterator[Hypothesis]:
    swaps = (
        ((), ""),
        (("channels-swapped",), "the channels are swapped (BGR)"),
        (
            ("channels-swapped-after",),
            "the channels are swapped (BGR) after they were normalized",
        ),
        (("constants-swapped",), "mean and std are in the order of BGR, the channels are not"),
    )
    for (mistakes, text, affine), (swap, how) in product(_unswapped(expected), swaps):
        words = f"{text}; {how}" if mistakes and swap else how or text
        yield Hypothesis((*mistakes, *swap), words, _swapped(affine, swap))


def _swapped(affine: Affine, swap: tuple[str, ...]) -> Affine:
    if not swap:
        return affine
    backwards = replace(affine, gain=three(affine.gain[::-1]), offset=three(affine.offset[::-1]))
    return {
        "channels-swapped": replace(affine, order=BGR),
        "channels-swapped-after": replace(backwards, order=BGR),
        "constants-swapped": backwards,
    }[swap[0]]


def _unswapped(expected: Normalization) -> Iterator[tuple[tuple[str, ...], str, Affine]]:
    """Mistakes that treat all channels alike."""
    k, m, s = expected.scale, np.array(expected.mean), np.array(expected.std)
    one, zero, full = np.ones(3), np.zeros(3), np.full(3, k)
    yield (), AS_EXPECTED, expected.affine

    def wrong(mistake: str, text: str, gain: Array, offset: Array) -> tuple[
        tuple[str, ...], str, Affine
    ]:  # fmt: skip
        return (mistake,), text, Affine(three(gain), three(offset))

    with np.errstate(all="ignore"):
        yield wrong("not-normalized", "scaled, but not normalized: neither mean nor std was used",
                    full, zero)  # fmt: skip
        yield wrong("raw", "neither scaled nor normalized: levels from 0 to 255", one, zero)
        if k != 1:
            text = "not scaled: the mean was subtracted from levels of 0 to 255"
            yield wrong("not-scaled", text, one / s, -m / s)
            text = "scaled twice, or scaled though mean and std are of levels from 0 to 255"
            yield wrong("scaled-twice", text, full * k / s, -m / s)
        else:
            text = "scaled to 0 to 1, though these constants are of levels from 0 to 255"
            yield wrong("scaled", text, one / TOP_LEVEL / s, -m / s)
        yield wrong("mean-std-exchanged", "mean and std are exchanged", full / m, -s / m)
        yield wrong("std-is-mean", "divided by the mean instead of the std", full / m, -m / m)
        yield wrong("mean-is-std", "the std was subtracted instead of the mean", full / s, -s / s)
        yield wrong("std-twice", "divided by the std twice", full / s**2, -m / s**2)
        yield wrong("normalized-twice", "normalized twice", full / s**2, -m / s**2 - m / s)
        yield wrong("mean-unused", "the mean was not subtracted", full / s, zero)
        yield wrong("std-unused", "not divided by the std", full, -m)
        yield wrong("std-multiplied", "multiplied by the std instead of divided", full * s, -m * s)
        yield wrong("mean-added", "the mean was added instead of subtracted", full / s, m / s)
        how = "a slip of precedence: "
        yield wrong("precedence", f"{how}x - mean / std, of pixels from 0 to 1", full, -m / s)
        if not np.allclose(m / s, np.round(m / s)):  # whole levels less are levels
            yield wrong("precedence", f"{how}x - mean / std, of levels from 0 to 255", one, -m / s)
        yield wrong("precedence", f"{how}x / std - mean, of pixels from 0 to 1", full / s, -m)
        yield wrong("precedence", f"{how}x / std - mean, of levels from 0 to 255", one / s, -m)
        yield wrong("precedence", f"{how}x / (255 - mean) / std", 1 / (TOP_LEVEL - m) / s, zero)
        yield wrong("precedence", "the mean was scaled too: (x - mean) / 255 / std",
                    k / s, -k * m / s)  # fmt: skip
        yield wrong("inverted", "multiplied by the std and the mean added: the inverse",
                    full * s, m)  # fmt: skip
        text = "Caffe's way: levels less their mean, not divided"
        yield wrong("constants-of-another", text, one, -np.array(_CAFFE))
    for name, (mean, std) in KNOWN.items():
        yield wrong("constants-of-another", f"normalized with the constants of {whose_model(name)}",
                    1 / TOP_LEVEL / np.array(std), -np.array(mean) / np.array(std))  # fmt: skip
    for name, (mean, std) in KNOWN.items():
        yield wrong("std-of-another", f"divided by the std of {whose_model(name)}",
                    k / np.array(std), -m / np.array(std))  # fmt: skip
        yield wrong("mean-of-another", f"the mean of {whose_model(name)} was subtracted",
                    k / s, -np.array(mean) / s)  # fmt: skip
