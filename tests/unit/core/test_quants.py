"""Ranking files by size and KL divergence, and what a text does not tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from ggufnorm.core.quants import Candidate, Contrast, contrast, rank


def file(path: str, n_bytes: int, kld: float | None, *, broken: bool = False) -> Candidate:
    return Candidate(path, n_bytes, kld, broken)


def contrasts(files: list[Candidate], alike: set[frozenset[str]] = frozenset()) -> list[Contrast]:
    sound = [f for f in files if not f.broken]
    return [
        Contrast(a.path, b.path, (a.kld or 0) - (b.kld or 0), 0.1, {a.path, b.path} not in alike)
        for i, a in enumerate(sound)
        for b in sound[i + 1 :]
    ]


FILES = [file("Q8", 80, 0.001), file("Q5", 50, 0.01), file("Q4", 40, 0.03), file("Q4_0", 41, 0.05)]


def test_a_file_that_is_larger_and_worse_is_dominated() -> None:
    found = rank(FILES, contrasts(FILES), enough=True)
    assert found.best == "Q8"
    assert found.standings == {
        "Q8": "frontier", "Q5": "frontier", "Q4": "frontier", "Q4_0": "dominated",
    }  # fmt: skip
    assert found.beaten_by["Q4_0"] == ("Q4",)


def test_what_is_not_told_apart_is_not_ranked() -> None:
    alike = {frozenset({"Q4", "Q4_0"}), frozenset({"Q8", "Q5"})}
    found = rank(FILES, contrasts(FILES, alike), enough=True)
    assert found.standings["Q4_0"] == "undecided"
    assert found.standings["Q8"] == "undecided"
    assert found.beaten_by["Q8"] == ("Q5",)
    assert found.best == "Q5", "the smallest of those that cannot be told from the closest"


def test_files_of_one_size_that_are_alike_stand_side_by_side() -> None:
    files = [file("a", 10, 0.01), file("b", 10, 0.01)]
    found = rank(files, contrasts(files, {frozenset({"a", "b"})}), enough=True)
    assert set(found.standings.values()) == {"frontier"}


def test_a_smaller_file_that_is_closer_dominates() -> None:
    files = [file("big", 90, 0.2), file("small", 20, 0.1)]
    found = rank(files, contrasts(files), enough=True)
    assert found.best == "small"
    assert found.standings["big"] == "dominated"


def test_a_file_with_nan_is_broken_and_beats_nobody() -> None:
    files = [file("nan", 10, 0.0, broken=True), file("none", 5, None, broken=True), *FILES]
    found = rank(files, contrasts(files), enough=True)
    assert found.standings["nan"] == found.standings["none"] == "broken"
    assert found.best == "Q8"
    alone = rank(files[:2], [], enough=True)
    assert alone.best is None


def test_too_few_positions_rank_nothing() -> None:
    found = rank(FILES, contrasts(FILES), enough=False)
    assert found.best is None
    assert set(found.standings.values()) == {"not ranked"}


RNG = np.random.default_rng(0)
PASSAGES = np.repeat(np.arange(10), 100)


def test_paired_differences_tell_apart_what_means_alone_do_not() -> None:
    both = RNG.exponential(0.1, 1000)
    better = both * 0.98
    found = contrast(("a", "b"), (both, better), PASSAGES)
    assert found.difference == pytest.approx(0.02 * both.mean())
    assert found.told_apart
    # The standard errors of the means themselves are much larger than the difference.
    assert found.difference < both.std() / np.sqrt(1000)


def test_noise_is_not_told_apart() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = rng.exponential(0.1, 1000), rng.exponential(0.1, 1000)
        assert not contrast(("a", "b"), values, PASSAGES).told_apart, seed


def test_positions_of_one_passage_are_not_independent() -> None:
    """Each passage favours one file as a whole: ten coins were thrown, not a thousand."""
    sides = np.repeat(np.array([1, -1, 1, 1, -1, 1, -1, 1, 1, -1]) * 0.01, 100)
    noise = RNG.normal(0, 1e-4, 1000)
    found = contrast(("a", "b"), (0.1 + sides + noise, np.full(1000, 0.1)), PASSAGES)
    assert found.se is not None
    assert found.se > 8 * 0.01 / np.sqrt(1000)
    assert not found.told_apart


def test_a_file_and_its_copy_are_not_told_apart() -> None:
    values = RNG.exponential(0.1, 1000)
    found = contrast(("a", "b"), (values, values), PASSAGES)
    assert found.difference == 0
    assert not found.told_apart


def test_a_hundred_positions_are_needed() -> None:
    values = RNG.exponential(0.1, 99), RNG.exponential(9.9, 99)
    assert not contrast(("a", "b"), values, PASSAGES[:99]).told_apart
    assert contrast(("a",) * 2, (values[0][:1], values[1][:1]), PASSAGES[:1]).se is None
