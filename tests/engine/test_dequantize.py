"""ggml's conversion to float, against gguf-py's."""

import ctypes

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggufnorm.engines.llama import binding
from ggufnorm.formats import ggml
from tests.unit.formats.test_dequantize import TYPES


def test_ggml_converts_all_that_gguf_py_does():
    converted = {kind for kind in TYPES if ggml.converter(int(kind))}
    assert set(TYPES) - converted == {GGMLQuantizationType.F32}  # which NumPy reads


def test_the_converter_refuses_arrays_that_do_not_fit():
    convert = ggml.converter(int(GGMLQuantizationType.Q8_0))
    with pytest.raises(ValueError, match="34 bytes do not hold 33 values"):
        convert(np.zeros(34, np.uint8), np.zeros(33, np.float32))
    with pytest.raises(ValueError, match="contiguous"):
        convert(np.zeros((4, 34), np.uint8)[::2], np.zeros(64, np.float32))


def mirror(*order):
    """A mirror of the structure with its fields in another order."""
    fields = ggml._TypeTraits._fields_

    class Other(ctypes.Structure):
        _fields_ = tuple(fields[i] for i in order)

    return Other


LAYOUTS = {
    "to_float last": mirror(0, 1, 2, 3, 4, 6, 5),
    "block sizes swapped": mirror(0, 2, 1, 3, 4, 5, 6),
    "name not first": mirror(1, 0, 2, 3, 4, 5, 6),
    "flag later": mirror(0, 1, 2, 3, 5, 4, 6),
    "shorter": mirror(0, 1, 2, 3, 4, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_another_layout_of_the_structure_is_noticed(layout, monkeypatch):
    assert ggml._library.__wrapped__() is not None
    monkeypatch.setattr(ggml, "_TypeTraits", layout)
    assert ggml._library.__wrapped__() is None


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ4_XS", "IQ2_XXS"])
def test_threads_quantize_to_the_same_bits(name, monkeypatch):
    rows = np.random.default_rng(3).standard_normal((33, 512), np.float32)
    kind = GGMLQuantizationType[name]
    monkeypatch.setattr(binding, "_QUANTIZED_AT_ONCE", 1 << 30)
    at_once = binding.quantize_rows(rows, kind)
    monkeypatch.setattr(binding, "_QUANTIZED_AT_ONCE", 2048)
    assert np.array_equal(binding.quantize_rows(rows, kind), at_once)
