"""Streaming statistics against one computation over everything, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ggufnorm.core import row_dots
from ggufnorm.core.logits import LogitSum
from ggufnorm.core.metrics import (
    ChannelSum,
    DifferenceSum,
    Peak,
    PeakSum,
    compare,
    difference,
)

pytestmark = pytest.mark.usefixtures("computed_by")

seeds = st.integers(0, 2**32 - 1)


def pair(seed: int, rows: int, channels: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    r = (rng.standard_normal((rows, channels)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    q = r + (level * np.abs(r).max() * rng.standard_normal(r.shape)).astype(np.float32)
    return r, q


@example(4093, 1, 1, 0.3)  # the observation is a hundredth of the reference
@given(seeds, st.integers(1, 40), st.integers(1, 70), st.sampled_from([1e-6, 1e-3, 0.3, 3.0]))
def test_difference_agrees_with_float64(seed: int, rows: int, channels: int, level: float) -> None:
    r, q = pair(seed, rows, channels, level)
    total = DifferenceSum()
    cut = rows // 2
    total.add(r[:cut], q[:cut], 0, cut)
    total.add(r[cut:], q[cut:], cut, rows - cut)
    got = total.result()

    wide_r, wide_q = r.astype(np.float64), q.astype(np.float64)
    d = (q - r).astype(np.float64)
    assert got.rel_l2 == pytest.approx(np.linalg.norm(d) / np.linalg.norm(wide_r), rel=1e-5)
    assert got.rms_ratio == pytest.approx(np.linalg.norm(wide_q) / np.linalg.norm(wide_r), rel=1e-5)
    cosine = (wide_r * wide_q).sum() / np.linalg.norm(wide_r) / np.linalg.norm(wide_q)
    assert got.cosine == pytest.approx(cosine, abs=1e-6)
    token, channel = divmod(int(np.abs(d).argmax()), channels)
    assert (got.max_abs_token, got.max_abs_channel) == (token, channel)
    assert got.max_abs == np.abs(q - r).max()
    assert (got.rows, got.non_finite_rows) == (rows, 0)


@pytest.mark.parametrize("channels", [1, 7, 10_001, 16_384, 28_672])
def test_several_observations_are_compared_as_each_by_itself(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks or at once, in rows that are short, long, and too long for one call of BLAS."""
    rng = np.random.default_rng(channels)
    r = rng.standard_normal((24, channels)).astype(np.float32)
    near = r + (1e-3 * rng.standard_normal(r.shape)).astype(np.float32)
    far = (1e-3 * rng.standard_normal(r.shape)).astype(np.float32)
    near[3, 0], far[5, 0], far[9] = np.nan, np.inf, 0
    found = []
    for block in (5 * channels, 1 << 30):
        monkeypatch.setattr(row_dots, "_BLOCK", block)
        sums = [DifferenceSum() for _ in range(3)]
        peaks = PeakSum(), PeakSum()
        compare(r, list(zip(sums, (near, far, r), strict=True)), 100, 12, 2, peaks)
        alone = [difference(r, q) for q in (near, far, r)]
        for total, one in zip(sums, alone, strict=True):
            got = total.result()
            assert got.rel_l2 == one.rel_l2
            assert (got.cosine, got.rms_ratio, got.max_abs) == (
                one.cosine,
                one.rms_ratio,
                one.max_abs,
            )
            assert got.max_abs_token == 100 + one.max_abs_token // 2 * 2
            assert (got.rows, got.non_finite_rows) == (one.rows, one.non_finite_rows)
        for peak, v in zip(peaks, (r, near), strict=True):
            at = np.unravel_index(np.nanargmax(np.abs(v)), v.shape)
            assert peak.peak == Peak(float(v[at]), 100 + int(at[0]) // 2 * 2, int(at[1]))
        found.append([total.result() for total in sums])
    assert found[0] == found[1]
    d = (far - r)[np.isfinite(far).all(axis=1)].astype(np.float64)
    wide = r[np.isfinite(far).all(axis=1)].astype(np.float64)
    assert found[0][1].rel_l2 == pytest.approx(np.linalg.norm(d) / np.linalg.norm(wide), rel=1e-6)
    assert found[0][2].rel_l2 == 0.0


def test_nothing_to_compare_adds_nothing() -> None:
    for shape in ((0, 4), (4, 0)):
        nothing = np.empty(shape, np.float32)
        channels = ChannelSum(shape[1])
        channels.add(nothing, nothing)
        assert not channels.error.any()
        total = DifferenceSum()
        total.add(nothing, nothing, 0, 4)
        assert total.result() == DifferenceSum().result()
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(3, 2\)"):
        DifferenceSum().add(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), 0, 2)


def test_small_angles_keep_their_digits() -> None:
    r = np.ones((1, 10_000), np.float32)
    q = r.copy()
    q[0, 0] += 1e-2
    got = difference(r, q)
    d = float(q[0, 0]) - 1
    expected = (1 - 1e-4) * d * d / 1e4 / 2  # 1 - cos = sin²/2 to first order
    assert 1 - got.cosine == pytest.approx(expected, rel=1e-3)


def test_identical_arrays_differ_by_exactly_nothing() -> None:
    r = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    got = difference(r, r.copy())
    assert (got.rel_l2, got.cosine, got.rms_ratio, got.max_abs) == (0.0, 1.0, 1.0, 0.0)


def test_several_rows_of_one_token_count_as_that_token() -> None:
    r = np.zeros((6, 4), np.float32)
    q = r.copy()
    q[5, 2] = 1.0  # third token, second head
    total = DifferenceSum()
    total.add(r, q, 100, 3)
    assert (total.result().max_abs_token, total.result().max_abs_channel) == (102, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_counted_and_left_out(bad: float) -> None:
    r, q = pair(3, 6, 8, 0.1)
    clean = difference(np.delete(r, 2, 0), np.delete(q, 2, 0))
    q[2, 5] = bad
    got = difference(r, q)
    assert (got.non_finite_rows, got.non_finite_token, got.rows) == (1, 2, 5)
    # With a bad row about, all rows are summed in float64 instead of float32.
    assert got.rel_l2 == pytest.approx(clean.rel_l2, rel=1e-6)
    # The tokens of the rows that are left keep their numbers.
    assert got.max_abs_token == clean.max_abs_token + (clean.max_abs_token >= 2)


def test_values_whose_squares_overflow_float32_are_still_compared() -> None:
    r = np.array([[1e25, 2e25]], np.float32)
    got = difference(r, r * np.float32(1.5))
    assert got.non_finite_rows == 0
    assert got.rel_l2 == pytest.approx(0.5)


def test_nothing_seen_has_no_figures() -> None:
    got = DifferenceSum().result()
    assert (got.rel_l2, got.cosine, got.max_abs, got.rows) == (None, None, None, 0)


def test_a_reference_of_zeros_has_no_relative_error() -> None:
    got = difference(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
    assert got.rel_l2 is None
    assert got.max_abs == 1.0


def exact_kld(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    p = [math.exp(v - max(p_logits)) for v in p_logits]
    q = [math.exp(v - max(q_logits)) for v in q_logits]
    sp, sq = math.fsum(p), math.fsum(q)
    return math.fsum(a / sp * math.log((a / sp) / (b / sq)) for a, b in zip(p, q))


@given(seeds, st.integers(2, 30), st.integers(2, 50))
def test_logit_statistics_agree_with_the_definitions(seed: int, n: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    ref = (3 * rng.standard_normal((n, vocab))).astype(np.float32)
    quant = (ref + 0.3 * rng.standard_normal(ref.shape)).astype(np.float32)
    following = rng.integers(0, vocab, n).astype(np.int32)
    total = LogitSum()
    total.add(ref[:1], quant[:1], following[:1])
    total.add(ref[1:], quant[1:], following[1:])
    got = total.result()

    kld = [exact_kld(p.astype(float), q.astype(float)) for p, q in zip(ref, quant)]
    assert got.n_tokens == n
    assert got.mean_kld == pytest.approx(np.mean(kld), rel=1e-9)
    assert got.mean_kld_se == pytest.approx(np.std(kld, ddof=1) / math.sqrt(n), rel=1e-9)
    assert got.max_kld == pytest.approx(max(kld), rel=1e-9)
    assert got.p999_kld == pytest.approx(np.quantile(kld, 0.999), rel=1e-9)
    same = sum(int(a.argmax() == b.argmax()) for a, b in zip(ref, quant))
    assert got.same_top1 == same / n
    nll = [
        [
            math.log(math.fsum(math.exp(v - row[t]) for v in row))
            for row, t in zip(m.tolist(), following)
        ]
        for m in (ref.astype(float), quant.astype(float))
    ]
    assert got.ppl_ref == pytest.approx(math.exp(np.mean(nll[0])), rel=1e-9)
    assert got.ppl_quant == pytest.approx(math.exp(np.mean(nll[1])), rel=1e-9)
    assert got.ppl_ratio == pytest.approx(got.ppl_quant / got.ppl_ref, rel=1e-9)


def test_positions_with_non_finite_logits_are_counted_and_left_out() -> None:
    ref = np.zeros((2, 3), np.float32)
    quant = ref.copy()
    quant[1, 0] = np.nan
    total = LogitSum()
    total.add(ref, quant, np.zeros(2, np.int32))
    got = total.result()
    assert (got.n_tokens, got.non_finite_tokens, got.mean_kld) == (1, 1, 0.0)
    assert got.mean_kld_se is None


def test_blocks_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    r, q = pair(7, 300, 40, 1e-3)
    q[5, 3], q[299, 0] = np.nan, 1e4
    states = []
    for block in (1 << 20, 400):
        monkeypatch.setattr(row_dots, "_BLOCK", block)
        monkeypatch.setattr("ggufnorm.core.logits._BLOCK", block)
        total, peaks, logits = DifferenceSum(), (PeakSum(), PeakSum()), LogitSum()
        compare(r, [(total, q)], 0, 300, peaks=peaks)
        logits.add(r, q, np.zeros(300, np.int32))
        states.append([total.state(), [p.peak for p in peaks], logits.state()])
    assert states[0] == states[1]


def test_peaks_are_those_of_all_values_whatever_their_order() -> None:
    """What the reference's largest value and the difference rule out is not read."""
    rng = np.random.default_rng(11)
    for spoilt in (False, True):
        beside = PeakSum(), PeakSum()
        alone = PeakSum(), PeakSum()
        for chunk in range(40):
            r = (rng.standard_normal((3, 5)) * 10.0 ** rng.integers(-2, 3)).astype(np.float32)
            q = r + (rng.standard_normal(r.shape) * 10.0 ** rng.integers(-4, 2)).astype(np.float32)
            if spoilt:
                q.flat[rng.integers(q.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
                r.flat[rng.integers(r.size)] = rng.choice([np.nan, np.inf, 3e38])
            compare(r, [(DifferenceSum(), q)], 3 * chunk, 3, peaks=beside)
            for peak, values in zip(alone, (r, q), strict=True):
                peak.add(values, 3 * chunk, 3)
        assert [p.peak for p in beside] == [p.peak for p in alone]


@pytest.mark.parametrize("scale", [1e-15, 1e-19, 1e-24, 1e-30])
def test_values_whose_squares_float32_does_not_hold_are_told_apart(scale: float) -> None:
    rng = np.random.default_rng(0)
    r, q = (rng.standard_normal((2, 9, 70)) * scale).astype(np.float32)
    q[4], r[5], q[5] = r[4], 0, 0  # a row that is the same, and one of zeros
    got, wide = difference(r, q), (q - r).astype(np.float64)
    expected = np.linalg.norm(wide) / np.linalg.norm(r.astype(np.float64))
    assert got.rel_l2 == pytest.approx(expected, rel=1e-5)
    assert (got.rows, got.non_finite_rows) == (9, 0)
