"""The loops in C against NumPy in float64, on rows of all lengths and kinds."""

from __future__ import annotations

import shutil
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
