"""What bytes are read from, and the memory that they are read into."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest

from ggufnorm.core import kernels
from ggufnorm.errors import InputError
from ggufnorm.formats import streaming
from ggufnorm.formats.storage import Extent, LocalStorage, Scratch, in_parallel, readers


def address(memory: memoryview) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def test_a_thread_reads_into_its_own_memory_again_and_again() -> None:
    scratch, here = Scratch(), Barrier(2)

    def work(value: int) -> tuple[int, int, bytes]:
        first = scratch.of(64)
        first[:] = bytes([value]) * 64
        here.wait(10)  # the other thread has written, too
        return address(first), address(scratch.of(16)), bytes(first)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(work, (1, 2))

    assert one[0] == one[1] != other[0] == other[1]
    assert (one[2], other[2]) == (b"\1" * 64, b"\2" * 64)


def test_much_memory_is_not_kept() -> None:
    scratch = Scratch()
    kept = scratch.of(64)

    assert len(scratch.of(1 << 24)) == 1 << 24
    assert address(scratch.of(64)) == address(kept)


def test_a_file_is_read_into_the_memory_given(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    storage, memory = LocalStorage(path), bytearray(10)

    found = storage.read(5, 10, memoryview(memory))

    assert bytes(found) == memory == bytes(range(5, 15))
    with pytest.raises(InputError, match="may have changed"):
        storage.read(95, 10, memoryview(memory))
    storage.close()


# -- threads that read -----------------------------------------------------------------------

LONG = 60.0
"""Seconds after which a reader that nothing stops gives up."""


def read_on(read: Callable[[], object], begun: Event) -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        read()
        begun.set()


def seconds_to_interrupt(reads: Sequence[Callable[[], object]]) -> float:
    """How long the threads of two go on that read, and go on to read, at a Ctrl-C."""
    begun = [Event() for _ in range(2)]
    started = time.monotonic()
    try:
        with readers(2) as pool:
            for i, read in enumerate(reads):
                pool.submit(read_on, read, begun[i % 2])
            assert all(event.wait(LONG / 4) for event in begun)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return time.monotonic() - started


@pytest.fixture
def zeros(tmp_path: Path) -> LocalStorage:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(1 << 20))
    return LocalStorage(path)


def test_readers_stop_where_they_read_next(zeros: LocalStorage) -> None:
    # Of five, three never begin.
    assert seconds_to_interrupt([lambda: zeros.read(0, 1000)] * 5) < LONG / 2


@pytest.mark.skipif(kernels.library() is None, reason="the package was built without a C compiler")
def test_loops_that_read_stop_between_their_steps(
    zeros: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_STEP", 1000)
    of = kernels.Numbers(2, 2, (0,), 0x7C00)
    rows = streaming.StoredRows(Extent(zeros, 0, zeros.size), "F16")
    sums = np.empty((2, 1024))
    passes = [
        lambda: streaming.scan(rows.extent, of),
        lambda: streaming.sum_rows(rows, rows, 512, *sums),
    ]
    assert seconds_to_interrupt(passes) < LONG / 2
    assert streaming.scan(rows.extent, of, rows.extent) is True
    assert streaming.scan(rows.extent, of, rows.extent.part(0, 1000)) is False


def test_an_error_in_one_thread_stops_the_others(zeros: LocalStorage) -> None:
    def work(item: int) -> None:
        if item == 0:
            raise InputError("no such thing")
        read_on(lambda: zeros.read(0, 1000), Event())

    started = time.monotonic()
    with pytest.raises(InputError, match="no such thing"):
        in_parallel(work, range(4), 2)
    assert time.monotonic() - started < LONG / 2
    assert zeros.read(0, 3) == bytes(3)  # this thread belongs to no pool
    assert in_parallel(lambda n: len(zeros.read(0, n)), [1, 2, 3], 2) == [1, 2, 3]
