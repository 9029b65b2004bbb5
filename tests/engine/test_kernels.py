"""Loops that convert quantized rows on the way, against conversion as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggufnorm.core import kernels
from ggufnorm.formats import ggml
from ggufnorm.formats.dequantize import dequantize_rows
from ggufnorm.formats.gguf_constants import GGMLQuantizationType
from ggufnorm.formats.storage import Extent, LocalStorage
from ggufnorm.formats.streaming import StoredRows, sum_rows

TYPES = (
    "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "IQ2_S", "IQ3_XXS",
    "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip


@pytest.mark.skipif(kernels.library() is None, reason="the package was built without a C compiler")
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("columns", [256, 2048, 5376])  # one run of a loop, and some with a rest
def test_rows_are_summed_as_they_are_stored(name: str, columns: int, tmp_path: Path) -> None:
    ggml_type = int(GGMLQuantizationType[name])
    r = np.random.default_rng(columns).standard_normal((5, columns), dtype=np.float32)
    raw, address = ggml.quantized(ggml_type, r), ggml.converter_address(ggml_type)
    if raw is None or address is None:
        pytest.skip("this llama.cpp does not make the type")
    stored = kernels.Stored(raw, "OTHER", columns, address)
    values = dequantize_rows(raw, ggml_type)
    assert kernels.sum_pairs(r, stored) == kernels.sum_pairs(r, values)
    again = kernels.sum_pairs(stored, values)
    assert again is not None
    assert (again.dd, again.doubtful) == (0.0, 0)

    path = tmp_path / "rows"
    path.write_bytes(r.tobytes() + raw.tobytes())
    of_r = StoredRows(Extent(LocalStorage(path), 0, r.nbytes), "F32")
    of_q = StoredRows(Extent(LocalStorage(path), r.nbytes, raw.nbytes), "OTHER", address)
    in_file, in_memory = np.empty((2, 5)), np.empty((2, 5))
    assert sum_rows(of_r, of_q, columns, *in_file)
    kernels.sum_pairs(r, stored, *in_memory)
    np.testing.assert_array_equal(in_file, in_memory)
