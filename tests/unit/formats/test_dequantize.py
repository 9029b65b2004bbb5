import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from ggufnorm.errors import TensorTypeError
from ggufnorm.formats import ggml
from ggufnorm.formats.dequantize import dequantize_rows, n_rows, read_rows, read_tensor
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.llama_libraries import find_libraries


def gguf_py_reads(kind):
    _block, size = GGML_QUANT_SIZES[kind]
    try:
        dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:  # what gguf-py raises for a type without Python code
        return False
    return True


TYPES = [kind for kind in GGMLQuantizationType if gguf_py_reads(kind)]
by_name = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)


@pytest.fixture
def without_ggml(monkeypatch):
    monkeypatch.setattr(ggml, "converter", lambda _type: None)


def random_blocks(kind, rows=9, blocks=40, seed=0):
    rng = np.random.default_rng([seed, int(kind)])
    return rng.integers(0, 256, (rows, blocks * GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)


def reference(raw, kind):
    with np.errstate(all="ignore"):
        return dequantize(raw, kind)


def assert_same_bits(values, expected):
    """Equal bits; of a NaN, sign and payload are the processor's business."""
    assert values.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(values), nan)
    np.testing.assert_array_equal(values.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


def write(path, tensors, endianess=GGUFEndian.LITTLE):
    """A GGUF file of ``name -> (data, type)``; data of a type with blocks is raw bytes."""
    writer = gguf.GGUFWriter(path, "test", endianess=endianess)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@by_name
def test_random_bits_become_the_values_of_gguf_py(kind):
    raw = random_blocks(kind)
    assert_same_bits(dequantize_rows(raw, int(kind)), reference(raw, kind))


@by_name
def test_without_llama_cpp_the_values_are_the_same(kind, without_ggml):
    raw = random_blocks(kind)
    assert_same_bits(dequantize_rows(raw, int(kind)), reference(raw, kind))


def test_every_half_and_bfloat_is_converted_exactly():
    raw = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(1, -1)
    for kind in (GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
        values = dequantize_rows(raw, int(kind))
        assert not np.isfinite(values).all()
        assert_same_bits(values, reference(raw, kind))


@pytest.mark.parametrize("scale", [0x7C00, 0xFC00, 0x7E00], ids=["inf", "-inf", "nan"])
def test_a_scale_that_is_not_finite_gives_what_gguf_py_gives(scale):
    kind = GGMLQuantizationType.Q8_0
    raw = random_blocks(kind)
    raw[4, 34 * 7 : 34 * 7 + 2] = np.frombuffer(np.uint16(scale).tobytes(), np.uint8)
    values = dequantize_rows(raw, int(kind))
    assert not np.isfinite(values[4, 7 * 32 : 8 * 32]).any()
    assert_same_bits(values, reference(raw, kind))


@given(st.sampled_from(TYPES), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32))
def test_any_number_of_rows_and_blocks(kind, rows, blocks, seed):
    raw = random_blocks(kind, rows, blocks, seed)
    values = dequantize_rows(raw, int(kind))
    assert values.shape == (rows, blocks * GGML_QUANT_SIZES[kind][0])
    assert_same_bits(values, reference(raw, kind))


def test_where_llama_cpp_is_absent_there_is_no_library(monkeypatch):
    monkeypatch.setattr(ggml, "_LOADED", [])
    monkeypatch.setattr(ggml, "chosen_libraries", lambda: None)
    assert ggml._library.__wrapped__() is None


def test_a_file_that_is_no_library_is_passed_over(tmp_path, monkeypatch):
    path = tmp_path / "libllama.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(ggml, "_LOADED", [])
    monkeypatch.setattr(ggml, "chosen_libraries", lambda: find_libraries(path))
    assert ggml._library.__wrapped__() is None


def test_reading_values_does_not_import_llama_cpp(tmp_path):
    raw = random_blocks(GGMLQuantizationType.Q4_K, 2, 1)
    path = write(tmp_path / "a.gguf", {"x.weight": (raw, GGMLQuantizationType.Q4_K)})
    program = (
        "import sys\n"
        "from ggufnorm.formats import ggml\n"
        "from ggufnorm.formats.dequantize import read_tensor\n"
        "from ggufnorm.formats.gguf import GGUFFile\n"
        "opened = ggml._library.cache_info\n"
        "assert opened().currsize == 0\n"
        "read_tensor(GGUFFile(sys.argv[1]), 'x.weight')\n"
        "assert opened().currsize == 1\n"
        "assert 'llama_cpp' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


@by_name
def test_rows_read_apart_are_the_rows_of_the_tensor(kind, tmp_path):
    raw = random_blocks(kind, rows=6, blocks=32).reshape(2, 3, -1)
    data = raw.view({"F32": "f4", "F16": "f2"}.get(kind.name, "u1"))
    path = write(tmp_path / "a.gguf", {"x.weight": (data, kind)})
    with GGUFFile(path) as file:
        whole = read_tensor(file, "x.weight")
        assert n_rows(file, "x.weight") == 6
        assert_same_bits(whole, reference(raw, kind))
        flat = whole.reshape(6, -1)
        assert_same_bits(read_rows(file, "x.weight", 1, 4), flat[1:4])
        assert_same_bits(read_rows(file, "x.weight", 5), flat[5:])


@pytest.mark.parametrize("dtype", ["f8", "i1", "i2", "i4", "i8"])
def test_plain_numbers_are_cast(dtype, tmp_path):
    data = np.arange(-60, 60).reshape(4, 30).astype(dtype)
    path = write(tmp_path / "a.gguf", {"x": (data, None)})
    with GGUFFile(path) as file:
        values = read_tensor(file, "x")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, data)


def test_a_double_beyond_float32_becomes_infinite(tmp_path):
    path = write(tmp_path / "a.gguf", {"x": (np.array([1e300, 1.5]), None)})
    with GGUFFile(path) as file:
        np.testing.assert_array_equal(read_tensor(file, "x"), [np.inf, 1.5])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64"])
def test_big_endian_numbers_are_read_rightly(kind, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 64)).astype(np.float32)
    path, ggml_type = tmp_path / "a.gguf", GGMLQuantizationType[kind]
    if kind == "BF16":
        values.view(np.uint32)[:] &= 0xFFFF0000
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        values = values.astype(np.float16).astype(np.float32)
        stored = values.astype({"F32": "f4", "F16": "f2", "F64": "f8"}[kind])
    # gguf-py swaps what it takes for numbers, in the same pass.
    data = stored.byteswap().view(np.uint8) if kind == "BF16" else stored
    write(path, {"x.weight": (data, ggml_type)}, GGUFEndian.BIG)
    with GGUFFile(path) as file:
        assert file.byte_order == ">"
        np.testing.assert_array_equal(read_tensor(file, "x.weight"), values)


def test_big_endian_blocks_are_refused(tmp_path):
    kind = GGMLQuantizationType.Q8_0
    path = write(tmp_path / "a.gguf", {"x": (random_blocks(kind), kind)}, GGUFEndian.BIG)
    with (
        GGUFFile(path) as file,
        pytest.raises(TensorTypeError, match=r"a\.gguf: x: big-endian Q8_0"),
    ):
        read_tensor(file, "x")


def test_a_type_that_nobody_reads_is_an_error(tmp_path):
    kind = GGMLQuantizationType.Q8_K
    path = write(tmp_path / "a.gguf", {"x": (random_blocks(kind), kind)})
    with GGUFFile(path) as file, pytest.raises(TensorTypeError, match=r"a\.gguf: x: .* read Q8_K"):
        read_tensor(file, "x")
