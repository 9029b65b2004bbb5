"""Values that do not lie in this computer's memory: what of them travels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import token_of_row
from ggufnorm.core.row_dots import RowDots
from ggufnorm.core.rows import Rows
from ggufnorm.core.tokens import token_rows
from ggufnorm.engines.base import Activation, Array, Batch, NormPlan, rows_of, tokens_of
from ggufnorm.engines.llama.places import Readback
from ggufnorm.engines.llama.runner import LlamaActivation
from ggufnorm.engines.llama.sums import DeviceSums, Largest, ValueSums
from ggufnorm.runs.probes.copied import Copied

Channels = tuple[NDArray[np.float32], NDArray[np.float32]]
Experts = tuple[int, Callable[[], NDArray[np.int32]]]
"""How many experts there are, and what gives the number of each row's once it has been read."""


@dataclass(frozen=True)
class Place:
    """A value within its array: rows as :class:`~ggufnorm.core.rows.Rows` has them."""

    value: float
    row: int
    channel: int


@dataclass(frozen=True)
class Told:
    """The sums of one hook point; see :class:`~ggufnorm.engines.llama.sums.ValueSums`.

    Attributes:
        dots: of each replica beside the reference, rows of one token side by side.
        largest: ``d`` of each.
        peaks: of the reference and of the first other.
        channels: energies per channel, if they were asked for.
        token: tells the number of a row's token.
    """

    dots: tuple[RowDots, ...]
    largest: tuple[Place, ...]
    peaks: tuple[Place, Place]
    channels: Channels | None
    token: Callable[[int], int]


def is_elsewhere(value: Activation) -> bool:
    """Whether a value would have to be fetched."""
    return isinstance(value, LlamaActivation) and not value.is_here


def sums_of(
    device: DeviceSums, batch: Batch, values: Sequence[Activation], channels_of: int | None
) -> Callable[[], Told | None] | None:
    """Sum a hook point's values where they lie.

    Args:
        device: that sums.
        batch: that gave the values.
        values: of the replicas, all llama.cpp's.
        channels_of: the replica whose error is wanted per channel.

    Returns:
        What tells the sums once they have been read, or None where float32 does not hold what some
        row sums up to. None where the device cannot sum them at all.
    """
    nodes = [v for v in values if isinstance(v, LlamaActivation)]
    found = device.sums([v.address for v in nodes], channels_of)
    if found is None:
        return None
    shape = nodes[0].shape
    return lambda: _told(found(), shape, batch)


def _told(found: ValueSums, shape: tuple[int, ...], batch: Batch) -> Told | None:
    n_tokens, first = tokens_of(shape, batch)
    # Rows as they lie, in the order in which tokens come first.
    numbers = np.arange(len(found.rr), dtype=np.float32).reshape(*shape[:-1], 1)
    order = token_rows(numbers, n_tokens)[:, 0].astype(np.intp)
    row_of = np.argsort(order)
    rr, *sums = (
        v[order].astype(np.float64)
        for v in (found.rr, *(v for o in found.others for v in (o.dd, o.dr, o.qq, o.qr)))
    )
    fours = (sums[i : i + 4] for i in range(0, len(sums), 4))
    dots = tuple(RowDots.with_products(dd, dr, rr, qq, qr) for dd, dr, qq, qr in fours)
    if not all(d.hold() for d in dots):
        return None

    def place(largest: Largest) -> Place:
        if largest.value == 0:  # everywhere: the first, as in NumPy
            return Place(0.0, 0, 0)
        row, channel = divmod(largest.at, shape[-1])
        return Place(largest.value, int(row_of[row]), channel)

    return Told(
        dots=dots,
        largest=tuple(place(o.largest) for o in found.others),
        peaks=(place(found.peaks[0]), place(found.peaks[1])),
        channels=found.channels,
        token=token_of_row(len(rr), batch.first + first, n_tokens, 1),
    )


@dataclass(frozen=True)
class Kept:
    """A norm's input or result, or the part of it that is recomputed.

    Attributes:
        read: gives the array, ``(ne[3], ne[2], ne[1], ne[0])``.
        n_tokens: of the whole value.
        part: the tokens of it that the array holds; None for all.
        is_away: whether it can be read only when what devices keep has been.
    """

    read: Callable[[], Array]
    n_tokens: int
    part: range | None
    is_away: bool = False

    @classmethod
    def here(cls, array: Array, n_tokens: int, part: range | None = None) -> Kept:
        """An array in this computer's memory."""
        return cls(lambda: array, n_tokens, part)

    def held(self, copy: Callable[[Array], Array] = np.copy) -> Kept:
        """The same for longer than the value is good; ``copy`` makes a copy of an array."""
        if self.is_away:
            return self
        return Kept.here(copy(self.read()), self.n_tokens, self.part)

    def cut(self, part: range | None) -> Array:
        """The values of those tokens."""
        array = self.read()
        if part is None or self.part is not None:
            return array
        axis = array.shape[:-1].index(self.n_tokens)
        return array[(*[slice(None)] * axis, slice(part.start, part.stop))]


class Recomputed:
    """Chooses the rows of a norm's input and result that are recomputed.

    All of them where they lie in this computer's memory; elsewhere those of some tokens, which
    move on with the text.

    Args:
        n_tokens: of each batch whose rows are fetched; None for all.
        readback: reads them.

    Attributes:
        left_out: why some were not recomputed; empty where all were.
    """

    def __init__(self, n_tokens: int | None, readback: Readback) -> None:
        self._n, self._readback = n_tokens, readback
        self.left_out = ""

    def keep(self, plan: NormPlan, value: Activation) -> Kept:
        """Keep what there is to recompute from, or to compare with.

        Args:
            plan: of the norm.
            value: its input or result.
        """
        if isinstance(value, Copied):
            return Kept.here(value.value, tokens_of(value.value.shape, value.batch)[0])
        if not isinstance(value, LlamaActivation):
            return Kept.here(value.value, 0)
        there, _first = tokens_of(value.shape, value.batch)
        n = self._n or there
        # The statistics of a group reach over tokens.
        whole = there <= n or plan.kind == "group"
        if value.is_here:
            return Kept.here(value.value, there)
        if whole:
            return self._away(value, there, None)
        self.left_out = f"on a device {n} tokens of each batch are recomputed in NumPy"
        start = value.batch.first % (there - n + 1)
        return self._away(value, there, range(start, start + n))

    def _away(self, value: LlamaActivation, there: int, part: range | None) -> Kept:
        region = value.region(part)
        read = None if region is None else self._readback.keep(region)
        if read is None or region is None:
            return Kept.here(Kept.here(value.value, there).cut(part), there, part)
        return Kept(lambda: read().view(np.float32).reshape(region.ne[::-1]), there, part, True)


def chosen_experts(readback: Readback, value: LlamaActivation) -> Experts | None:
    """Of a product with stacked experts: how many there are, and which expert made each row.

    Args:
        readback: reads the latter.
        value: the product, on a device.

    Returns:
        None where the experts' numbers cannot be kept.
    """
    n_experts, region = value.experts()
    read = None if region is None else readback.keep(region)
    return None if read is None else (n_experts, lambda: read().view(np.int32))


def kept_rows(array: Array, part: range | None, batch: Batch) -> Rows:
    """An array of :meth:`Kept.cut` as rows."""
    if part is None:
        return rows_of(array, batch)
    return Rows(token_rows(array, len(part)), batch.first + part.start, len(part))
