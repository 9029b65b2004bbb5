"""The loops in C against NumPy in float64, on rows of all lengths and kinds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ggufnorm.core import kernels
from ggufnorm.core.floats import below, from_bf16
from ggufnorm.core.metrics import ChannelSum

WIDTHS = (1, 15, 16, 17, 128, 2047, 2048, 2049, 5000)

compiled = pytest.mark.skipif(
    kernels.library() is None, reason="the package was built without a C compiler"
)


def pair(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    r = rng.standard_normal((rows, columns), dtype=np.float32)
    return r, r + np.float32(0.1) * rng.standard_normal(r.shape, dtype=np.float32)


def test_where_there_is_a_compiler_there_are_loops() -> None:
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    assert kernels.library() is not None


@compiled
@pytest.mark.parametrize("columns", WIDTHS)
def test_pairs_are_summed(columns: int) -> None:
    r, q = pair(7, columns)
    dd, rr = np.empty((2, 7))
    found = kernels.sum_pairs(r, q, dd, rr)
    assert found is not None
    d = q - r
    wide_d, wide_r = d.astype(np.float64), r.astype(np.float64)
    np.testing.assert_allclose(dd, (wide_d**2).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(rr, (wide_r**2).sum(axis=1), rtol=1e-6)
    assert found.dd == pytest.approx(dd.sum(), rel=1e-12)
    assert found.rr == pytest.approx(rr.sum(), rel=1e-12)
    scale = np.sqrt(found.dd * found.rr)
    assert found.dr == pytest.approx((wide_d * wide_r).sum(), abs=1e-6 * scale)
    assert found.doubtful == 0 or columns == 1
    for peak, values in ((found.d, d), (found.r, r), (found.q, q)):
        assert peak.value == np.abs(values).max()
        assert peak.row == int(np.abs(values).max(axis=1).argmax())


@compiled
def test_rows_may_lie_apart_or_be_one() -> None:
    whole = np.random.default_rng(1).standard_normal((20, 96), dtype=np.float32)
    r, q = whole[::2, :40], np.broadcast_to(whole[3, 50:90], (10, 40))
    apart, together = (
        kernels.sum_pairs(a, b)
        for a, b in ((r, q), (np.ascontiguousarray(r), np.ascontiguousarray(q)))
    )
    assert apart is not None
    assert apart == together


@compiled
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("side", ["r", "q"])
def test_a_row_that_is_not_summed_in_float32_is_doubtful(bad: float, side: str) -> None:
    r, q = pair(9, 100)
    (r if side == "r" else q)[4, 99] = bad
    found = kernels.sum_pairs(r, q)
    assert found is not None
    assert found.doubtful == 1
    if np.isnan(bad):  # it does not count
        assert np.isfinite([found.d.value, found.r.value, found.q.value]).all()


@compiled
def test_a_row_whose_length_cancels_is_doubtful() -> None:
    r, _ = pair(9, 100)
    q = r.copy()
    q[2] *= np.float32(1e-4)
    found = kernels.sum_pairs(r, q)
    assert found is not None
    assert found.doubtful == 1


@compiled
def test_every_half_and_every_bfloat16_is_read_as_numpy_reads_it() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for kind, values in (
        ("F16", bits.view(np.float16).astype(np.float32)),
        ("BF16", from_bf16(bits)),
    ):
        finite = np.isfinite(values)
        data, expected = bits[finite].reshape(-1, 256), values[finite].reshape(-1, 256)
        found = kernels.sum_pairs(expected, kernels.Stored(data, kind, 256))
        assert found is not None
        assert (found.dd, found.d.value) == (0.0, 0.0)
        worst = np.tile(bits[~finite][:1], (3, 64))
        found = kernels.sum_pairs(worst.astype(np.float32) * 0, kernels.Stored(worst, kind, 64))
        assert found is not None
        assert found.doubtful == 3


@compiled
def test_arrays_that_a_loop_does_not_take_are_left_to_numpy() -> None:
    r, q = pair(4, 64)
    assert kernels.sum_pairs(r.astype(np.float64), q) is None
    assert kernels.sum_pairs(r[:, ::2], q[:, ::2]) is None
    assert kernels.sum_pairs(r[0], q[0]) is None
    assert not kernels.sum_columns(r, q.astype(">f4"), *np.zeros((2, 64)))


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_VERSION", -1)
    assert kernels.library.__wrapped__() is None


def test_a_library_that_does_not_load_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / kernels.LIBRARY).write_bytes(b"no library")
    monkeypatch.setattr(kernels, "_FOLDER", str(tmp_path))
    assert kernels.library.__wrapped__() is None


def test_columns_are_summed(computed_by: None) -> None:
    for columns in WIDTHS:
        r, q = pair(300, columns)
        total = ChannelSum(columns)
        total.add(r, q)
        np.testing.assert_allclose(total.reference, (r.astype(np.float64) ** 2).sum(0), rtol=1e-5)
        wide = (q - r).astype(np.float64)
        np.testing.assert_allclose(total.error, (wide**2).sum(0), rtol=1e-5)
        r[5, 0] = np.nan
        total = ChannelSum(columns)
        total.add(r, q)
        assert np.isfinite(total.error).all()


def test_exponents_are_looked_at(computed_by: None) -> None:
    for n in (0, 1, 7, 4096, 4097):
        for bits, infinity in ((np.uint16, 0x7C00), (np.uint16, 0x7F80), (np.uint32, 0x7F800000)):
            values = np.random.default_rng(n).integers(0, infinity, n).astype(bits)
            values[::2] |= bits(1 << (8 * values.itemsize - 1))
            assert below(values, infinity)
            for place in {0, n // 2, n - 1} if n else ():
                for bad in (infinity, infinity + 1, infinity | 1 << (8 * values.itemsize - 1)):
                    spoilt = values.copy()
                    spoilt[place] = bad
                    assert not below(spoilt, infinity)
                    if bits is np.uint16:
                        apart = np.zeros((n, 17), np.uint16)
                        apart[:, 3] = spoilt
                        assert not below(apart[:, 3], infinity)
                        assert below(apart[:, 4], infinity)


@contextmanager
def opened(path: Path, data: bytes) -> Iterator[int]:
    path.write_bytes(data)
    number = os.open(path, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


HALVES = kernels.Numbers(18, 2, (0, 4), 0x7C00)
"""As of a quantized type: two halves in each block, the rest of which may be anything."""


@compiled
@pytest.mark.parametrize(
    "of",
    [
        kernels.Numbers(2, 2, (0,), 0x7C00),
        kernels.Numbers(2, 2, (0,), 0x7F80),
        kernels.Numbers(4, 4, (0,), 0x7F80_0000),
        HALVES,
    ],
)
def test_a_file_is_scanned_piece_by_piece(of: kernels.Numbers, tmp_path: Path) -> None:
    n, before, buffer = 1000, 7, memoryview(bytearray(1000))
    word = np.dtype(f"u{of.width}")
    finite = np.full(n * of.block // of.width, 0xFFFF_FFFF >> 8 * (4 - of.width), word)
    blocks = finite.reshape(n, -1)
    for place in of.places:
        blocks[:, place // of.width] = of.infinity - 1
    for place in of.places:
        for row in (0, 1, 55, 56, n - 1):
            for bad in (None, of.infinity, of.infinity + 1):
                blocks[row, place // of.width] = of.infinity - 1 if bad is None else bad
                with opened(tmp_path / "file", bytes(before) + blocks.tobytes()) as number:
                    told = kernels.scan(of, blocks.nbytes, buffer, kernels.Position(number, before))
                assert told is (bad is None)
            blocks[row, place // of.width] = of.infinity - 1


@compiled
def test_a_scan_compares_with_another_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 0x7C00, 9000).astype(np.uint16).tobytes()
    of, buffer = kernels.Numbers(2, 2, (0,), 0x7C00), memoryview(bytearray(1000))
    with opened(tmp_path / "one", data) as one:
        for place in (None, 0, 499, 500, 999, 1000, len(data) - 1):
            other = bytearray(data)
            if place is not None:
                other[place] ^= 1
            with opened(tmp_path / "other", b"12345" + bytes(other)) as two:
                places = kernels.Position(one, 0), kernels.Position(two, 5)
                assert kernels.scan(of, len(data), buffer, *places) is (place is None)


@compiled
def test_a_file_that_is_too_short_is_left_to_python(tmp_path: Path) -> None:
    buffer = memoryview(bytearray(1000))
    with opened(tmp_path / "file", bytes(2998)) as number:
        assert kernels.scan(HALVES, 3006, buffer, kernels.Position(number, 0)) is None
        rows = kernels.FileRows(kernels.Position(number, 0), 300, "F32")
        dd, rr = np.empty((2, 10))
        assert kernels.sum_files(rows, rows, 75, dd, rr, buffer) is None
    of = kernels.Numbers(2, 2, (0,), 0x7C00)
    with opened(tmp_path / "file", bytes(3000)) as number:
        place = kernels.Position(number, 0)
        assert kernels.scan(of, 3000, buffer, place, kernels.Position(number, 2)) is None
        assert kernels.scan(of, 3000, buffer[:1], place) is None  # no piece fits


@compiled
@pytest.mark.parametrize(
    "kinds", [("F32", "F32"), ("BF16", "F16"), ("F16", "F32"), ("F32", "BF16")]
)
@pytest.mark.parametrize("columns", [1, 33, 2049])
def test_rows_of_files_are_summed_as_those_in_memory(
    kinds: tuple[str, str], columns: int, tmp_path: Path
) -> None:
    n = 23
    r, q = (
        np.random.default_rng(i).integers(0, 0x4000, (n, columns)).astype(np.uint16)
        if kind != "F32"
        else np.random.default_rng(i).standard_normal((n, columns)).astype(np.float32)
        for i, kind in enumerate(kinds)
    )
    wanted, found = np.empty((2, n)), np.empty((2, n))
    sums = kernels.sum_pairs(
        *(kernels.Stored(a, k, columns) for a, k in zip((r, q), kinds)), *wanted
    )
    assert sums is not None
    size = r.itemsize + q.itemsize
    with (
        opened(tmp_path / "r", b"12345" + r.tobytes()) as of_r,
        opened(tmp_path / "q", q.tobytes()) as of_q,
    ):
        sides = (
            kernels.FileRows(kernels.Position(number, at), columns * a.itemsize, kind)
            for number, at, a, kind in ((of_r, 5, r, kinds[0]), (of_q, 0, q, kinds[1]))
        )
        one, other = sides
        for rows_at_once in (1, 5, 23, 50):
            buffer = memoryview(bytearray(64 + rows_at_once * columns * size))
            assert kernels.sum_files(one, other, columns, *found, buffer) == sums.doubtful
            np.testing.assert_array_equal(found, wanted)
        assert kernels.sum_files(one, other, columns, *found, memoryview(bytearray(64))) is None
