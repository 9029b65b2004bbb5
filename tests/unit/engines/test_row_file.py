"""Rows in a temporary file: what is written is read, in another process too."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from ggufnorm.core.formula import Formula
from ggufnorm.core.observed import ObservedNorm
from ggufnorm.engines.row_file import RowFile
from ggufnorm.errors import MemoryLimitError


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (), (0, 4), (1000, 1, 100)])
def test_arrays_are_read_as_they_were_written(shape: tuple[int, ...]) -> None:
    file, value = RowFile(), rows(*shape)
    file.put(rows(7))

    place = file.put(value)
    file.put(rows(7))

    assert file.get(place).shape == shape
    assert np.array_equal(file.get(place), value)


def test_two_that_have_a_file_open_write_behind_each_other() -> None:
    ours = RowFile()
    theirs = RowFile(ours.name)
    values = [rows(3), rows(2, 2), rows(4)]

    places = [file.put(v) for file, v in zip((ours, theirs, ours), values, strict=True)]

    assert all(np.array_equal(theirs.get(p), v) for p, v in zip(places, values, strict=True))


def test_a_file_outlives_its_maker_while_another_has_it_open() -> None:
    ours = RowFile()
    place = ours.put(rows(3))
    theirs = RowFile(ours.name)

    del ours

    assert np.array_equal(theirs.get(place), rows(3))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(MemoryLimitError, match=r"No space left on device.*TMPDIR"):
        RowFile("file:/dev/full").put(rows(3))


def test_no_folder_for_temporary_files_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(MemoryLimitError, match="TMPDIR"):
        RowFile()


def test_a_norm_reads_its_rows_anew_each_time() -> None:
    file, x, y = RowFile(), rows(4, 1, 8), rows(4, 1, 8)
    norm = ObservedNorm(
        "n", Formula("rms", 1e-6), None, None, None, file.keep(x), file.keep(y), layer=3
    )

    assert norm.x is not norm.x
    assert np.array_equal(norm.x, x)
    assert np.array_equal(norm.y, y)
    loaded = norm.loaded()
    assert loaded.x is loaded.x
    assert loaded.layer == 3


def test_many_rows_are_recomputed_as_few_are() -> None:
    x = rows(600, 2, 512)
    weight = rows(2, 512)
    norm = ObservedNorm("n", Formula("layer", 1e-6), None, weight, None, x, x)

    assert np.array_equal(norm.recompute(x), norm.formula.recompute(x, weight))
