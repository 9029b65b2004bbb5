"""What bytes are read from, and the memory that they are read into."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from ggufnorm.errors import InputError
from ggufnorm.formats.storage import LocalStorage, Scratch


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
