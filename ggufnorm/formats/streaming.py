"""Passes over bytes of files that never become an array, by the loops of ``kernels.c``.

These read by themselves, so much at a time as a core's own cache holds: into larger memory the
bytes would come slower, and then be read from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ggufnorm.core import kernels
from ggufnorm.core.kernels import Numbers, Position, Sums
from ggufnorm.formats.storage import Extent, LocalStorage, Scratch, heed_stop

_CACHED = 1 << 20
"""Bytes of a core's own cache, as of most processors."""

_STEP = 1 << 24
"""Bytes that are read before the interpreter can stop it."""

_BUFFER = Scratch()


def scan(extent: Extent, of: Numbers, other: Extent | None = None) -> bool | None:
    """Read bytes once, and tell whether their numbers are finite.

    Args:
        extent: whole blocks.
        of: the numbers in them.
        other: bytes that should be the same.

    Returns:
        Whether they are finite, and the bytes the same; None where that cannot be told: they are
        not on this machine, there are no loops, or something could not be read.
    """
    if other is not None and other.n != extent.n:
        return False
    step = _STEP // of.block * of.block
    with _positions([extent] if other is None else [extent, other]) as positions:
        if positions is None:
            return None
        for start in range(0, extent.n, step):
            heed_stop()
            n = min(step, extent.n - start)
            told = kernels.scan(of, n, _BUFFER.of(_CACHED), *(_from(p, start) for p in positions))
            if not told:
                return told
    return True


class StoredRows(NamedTuple):
    """Rows of values somewhere, one after the other.

    Attributes:
        extent: their bytes.
        kind: as in :class:`~ggufnorm.core.kernels.Stored`.
        convert: as in :class:`~ggufnorm.core.kernels.Stored`.
    """

    extent: Extent
    kind: str
    convert: int = 0


def sum_rows(r: StoredRows, q: StoredRows, columns: int, dd: Sums, rr: Sums) -> bool:
    """Sum the rows of two files; see :func:`~ggufnorm.core.kernels.sum_files`.

    Args:
        r: reference.
        q: observation, as many rows.
        columns: values of a row.
        dd: gets ``Σ d²`` of each row, contiguous.
        rr: gets ``Σ r²`` of each row.

    Returns:
        Whether all were summed, none of them doubtful.
    """
    n = len(dd)
    sizes = [side.extent.n // max(1, n) for side in (r, q)]
    step = max(1, _STEP // max(1, sum(sizes)))
    with _positions([r.extent, q.extent]) as positions:
        if positions is None:
            return False
        for start in range(0, n, step):
            heed_stop()
            some = slice(start, min(n, start + step))
            of_r, of_q = (
                kernels.FileRows(_from(position, start * size), size, side.kind, side.convert)
                for position, size, side in zip(positions, sizes, (r, q), strict=True)
            )
            buffer = _BUFFER.of(max(_CACHED, 2 * sum(sizes)))
            if kernels.sum_files(of_r, of_q, columns, dd[some], rr[some], buffer) != 0:
                return False
    return True


def _from(position: Position, start: int) -> Position:
    return Position(position.descriptor, position.offset + start)


@contextmanager
def _positions(extents: Sequence[Extent]) -> Iterator[list[Position] | None]:
    """Where bytes are, their files held open; None where loops cannot read them."""
    storages = [e.storage for e in extents]
    local = [s for s in storages if isinstance(s, LocalStorage)]
    if kernels.library() is None or len(local) < len(storages):
        yield None
        return
    held = [s.opened() for s in local]
    yield [Position(h.number, e.offset) for h, e in zip(held, extents, strict=True)]
