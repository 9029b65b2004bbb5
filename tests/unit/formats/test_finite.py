"""Whether values are finite, told by their bits and by their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.finite import rows_are_finite
from ggufnorm.formats.gguf import GGUFFile

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0")
ROWS, COLUMNS = 40, 96


def write(path: Path, kind: str, raw: np.ndarray) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("t", raw, raw_shape=raw.shape, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", TYPES)
def test_rows_are_looked_at_where_they_stand(kind: str, tmp_path: Path, computed_by: None) -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    sound = quantize(values, GGMLQuantizationType[kind]).view(np.uint8).reshape(ROWS, -1)
    for place in range(0, sound.shape[1], 2):
        raw = sound.copy()
        raw[17, place : place + 2] = (0x80, 0xFF)  # a NaN in BF16, F16 and F32's upper half
        write(tmp_path / "m.gguf", kind, raw)
        with GGUFFile(tmp_path / "m.gguf") as file:
            with np.errstate(invalid="ignore"):
                finite = np.isfinite(read_tensor(file, "t")).all(axis=1)
            for start, stop in ((0, ROWS), (0, 17), (17, 18), (18, ROWS)):
                assert rows_are_finite(file, "t", start, stop) is bool(finite[start:stop].all())


def test_a_file_that_was_cut_is_an_error(tmp_path: Path, computed_by: None) -> None:
    raw = np.zeros((ROWS, 2 * COLUMNS), np.uint8)
    path = tmp_path / "m.gguf"
    write(path, "F16", raw)
    with GGUFFile(path) as file:
        with path.open("r+b") as cut:
            cut.truncate(path.stat().st_size - 1000)
        with pytest.raises(InputError, match="may have changed while it was read"):
            rows_are_finite(file, "t", 0, ROWS)
        assert rows_are_finite(file, "t", 0, 5)
