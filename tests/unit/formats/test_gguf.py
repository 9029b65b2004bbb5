import math
import re
import struct
import tempfile
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import gguf as gguf_py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufnorm.errors import GGUFError, InputError
from ggufnorm.formats import gguf_header
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.gguf_header import Tensor
from tests.fuzz.fuzz_gguf import (
    ARRAY,
    BOOL,
    CODES,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    SEEDS,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Draft,
    MemoryStorage,
    damaged,
    draft,
    examine,
    fuzz,
    nested_draft,
    rich_draft,
)

KEY_AT, KIND_AT, VALUE_AT = 24, 33, 37  # of the first metadata if its key has one letter
N_DIMS_AT, SHAPE_AT, TYPE_AT, OFFSET_AT = 33, 37, 45, 49  # of a 1-D tensor, one letter, first
QUANTIZATIONS = sorted(gguf_py.GGML_QUANT_SIZES)


def opened(file: Draft | bytes) -> GGUFFile:
    return GGUFFile(MemoryStorage(bytes(file.data if isinstance(file, Draft) else file)))


def refusal(file: Draft | bytes) -> GGUFError:
    with pytest.raises(GGUFError) as caught:
        opened(file)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def with_number(file: Draft, at: int, code: str, value: int) -> bytes:
    data = bytearray(file.data)
    struct.pack_into(file.order + code, data, at, value)
    return bytes(data)


def contents(file: GGUFFile) -> tuple[object, ...]:
    return (
        file.version,
        file.byte_order,
        file.alignment,
        file.header_size,
        dict(file.metadata),
        file.raw_metadata_at,
        dict(file.tensors),
        {name: file.read_bytes(name).tobytes() for name in file.tensors},
    )


# What a file holds


def integers(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    low = -(2 ** (bits - 1)) if signed else 0
    return st.integers(low, low + 2**bits - 1)


ELEMENTS = {
    U8: integers(8, signed=False),
    I8: integers(8, signed=True),
    U16: integers(16, signed=False),
    I16: integers(16, signed=True),
    U32: integers(32, signed=False),
    I32: integers(32, signed=True),
    F32: st.floats(width=32, allow_nan=False),
    BOOL: st.booleans(),
    STRING: st.text(),
    U64: integers(64, signed=False),
    I64: integers(64, signed=True),
    F64: st.floats(allow_nan=False),
}
NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)


@st.composite
def entries(draw):
    """A type, an element type and a value."""
    element = draw(st.sampled_from(sorted(ELEMENTS)))
    if draw(st.booleans()):
        return element, None, draw(ELEMENTS[element])
    if draw(st.integers(0, 4)) == 0:
        lists = st.lists(integers(31, signed=True), min_size=1, max_size=3)
        return ARRAY, ARRAY, draw(st.lists(lists, min_size=1, max_size=3))
    return ARRAY, element, draw(st.lists(ELEMENTS[element], min_size=1, max_size=5))


@st.composite
def quantized(draw):
    """A ggml type, ggml's ne, and the raw bytes as gguf-py's writer takes them."""
    kind = draw(st.sampled_from(QUANTIZATIONS))
    block, block_bytes = gguf_py.GGML_QUANT_SIZES[kind]
    n_blocks = draw(st.integers(1, 3))
    outer = draw(st.lists(st.integers(1, 3), max_size=3))
    shape = (*outer[::-1], n_blocks * block_bytes)
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape, np.uint8)
    return kind, (n_blocks * block, *outer), raw


@settings(deadline=None, max_examples=60)
@given(
    metadata=st.dictionaries(NAMES.filter(bool), entries(), max_size=6),
    tensors=st.dictionaries(NAMES, quantized(), max_size=5),
    alignment=st.sampled_from([None, 1, 2, 4, 8, 16, 32, 64, 4096]),
    byte_order=st.sampled_from("<>"),
)
def test_reads_what_gguf_py_writes(metadata, tensors, alignment, byte_order):
    for key in ("general.architecture", "general.alignment"):
        metadata.pop(key, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        order = gguf_py.GGUFEndian.LITTLE if byte_order == "<" else gguf_py.GGUFEndian.BIG
        writer = gguf_py.GGUFWriter(path, "llama", endianess=order)
        if alignment:
            writer.add_custom_alignment(alignment)
        for key, (kind, element, value) in metadata.items():
            types = [t if t is None else gguf_py.GGUFValueType(t) for t in (kind, element)]
            writer.add_key_value(key, value, *types)
        for name, (kind, _, raw) in tensors.items():
            writer.add_tensor(name, raw, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

        with GGUFFile(path) as file:
            assert (file.path, file.version, file.byte_order) == (str(path), 3, byte_order)
            assert file.alignment == (alignment or 32)
            assert file.architecture == "llama"
            expected = {key: value for key, (_, _, value) in metadata.items()}
            found = dict(file.metadata)
            del found["general.architecture"]
            assert found.pop("general.alignment", None) == alignment
            assert found == expected
            for key, value in expected.items():
                assert type(found[key]) is type(value)
            assert list(file.tensors) == list(tensors)
            for name, (kind, shape, raw) in tensors.items():
                tensor = file.tensors[name]
                assert (tensor.shape, tensor.dtype, tensor.ggml_type) == (shape, kind.name, kind)
                assert tensor.n_elements == math.prod(shape)
                assert tensor.offset % file.alignment == 0
                assert file.read_bytes(name).tobytes() == raw.tobytes()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 32, 1024])
def test_every_value_type_in_every_layout(order, version, alignment):
    with opened(rich_draft(order, version, alignment)) as file:
        assert (file.version, file.byte_order, file.alignment) == (version, order, alignment)
        assert dict(file.metadata) == {
            "general.architecture": "llama",
            "general.alignment": alignment,
            "u8": 200,
            "i8": -100,
            "u16": 60_000,
            "i16": -30_000,
            "i32": -(2**31),
            "f32": np.float32(1e-5),
            "bool": True,
            "u64": 2**64 - 1,
            "i64": -(2**63),
            "f64": 0.1,
            "empty": "",
            "tokenizer.ggml.tokens": ["<s>", "", "▁the", "\0", "é" * 9],
            "tokenizer.ggml.scores": [0.0, -1.5, 2.5],
            "flags": [True, False],
            "bytes": list(range(40)),
            "nothing": [],
        }
        cube = file.tensors["cube"]
        assert cube == Tensor("cube", (2, 2, 2, 2), "I8", 24, cube.offset, 16)
        assert file.storage.size == cube.offset + cube.n_bytes


def test_typed_access_to_metadata():
    with opened(rich_draft()) as file:
        assert file.metadata.string("empty") == ""
        assert file.metadata.integer("u64") == 2**64 - 1
        assert file.metadata.number("i8") == -100.0
        assert file.metadata.number("f64") == 0.1
        for missing in ("tokenizer.ggml.scores", "bool", "not there"):
            assert file.metadata.integer(missing) is None
            assert file.metadata.number(missing) is None
            assert file.metadata.string(missing) is None
        assert file.metadata.integer("f32") is None
        assert file.metadata.string("u8") is None


@pytest.mark.parametrize("order", "<>")
def test_arrays_are_counted_and_compared_without_being_decoded(order):
    files = opened(rich_draft(order)), opened(rich_draft(order, alignment=64))
    for first, second in (files, files[::-1]):
        metadata = first.metadata
        for key, value in metadata.items():
            assert metadata.n_elements(key) == (len(value) if isinstance(value, list) else None)
            alike = metadata.raw(key) == second.metadata.raw(key)
            assert alike == (value == second.metadata[key])
        assert metadata.n_elements("not there") is None
        assert metadata.raw("not there") is None
    bad = opened(draft([("texts", ARRAY, (STRING, ["fine", b"\xff"]))]))
    assert bad.metadata.n_elements("texts") == 2
    assert bad.metadata.raw("texts")[1].endswith(b"\xff")


def test_nested_arrays_are_read():
    with opened(nested_draft()) as file:
        assert file.metadata["nested"] == [[1, 2], ["a", "b"], [[-1]]]
        assert file.metadata["tail"] == [1, 2, 3]


@pytest.mark.parametrize("odd", ["", "\0", "\0" * 9, "a" * 255, "b" * 256, "c" * 70_000])
@pytest.mark.parametrize("every", [1, 7, 5000])
def test_many_strings_are_passed_by_whatever_they_are(odd, every, tmp_path, computed_by):
    n = 12_000 if len(odd) < 1000 or every > 1000 else 60
    texts = [odd if i % every == every - 1 else "token" * (i % 5) + str(i) for i in range(n)]
    written = draft([("texts", ARRAY, (STRING, texts)), ("last", STRING, "is found")])
    path = tmp_path / "model.gguf"
    path.write_bytes(written.data)
    for file in (opened(written), GGUFFile(path)):  # which are read in other steps
        assert file.metadata["last"] == "is found"
        assert file.metadata["texts"] == texts


@pytest.mark.parametrize("length", [2**40, 2**63 - 8, 2**63, 2**64 - 9, 2**64 - 1])
def test_a_string_that_cannot_fit_is_refused_among_many(length, computed_by):
    written = bytearray(draft([("texts", ARRAY, (STRING, ["token"] * 9000))]).data)
    at = written.rindex(struct.pack("<Q", 5) + b"token")
    written[at : at + 8] = struct.pack("<Q", length)
    error = refusal(written)
    assert (error.offset, str(length) in str(error)) == (at, True)
    error = refusal(written[: at - 3])  # in the midst of a length, and behind it
    assert "needs 8 bytes" in str(error) or "cannot fit" in str(error)


def test_arrays_outlive_the_file(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(rich_draft().data)
    with GGUFFile(path) as file:
        weight = file.read_bytes("cube")
    path.unlink()
    assert weight.tobytes() == bytes(rich_draft().data[-16:])
    assert file.metadata["tokenizer.ggml.scores"] == [0.0, -1.5, 2.5]


def test_values_are_decoded_only_when_asked_for():
    key, bad = "tokenizer.ggml.tokens", b"\xff\xfe"
    written = draft([(key, ARRAY, (STRING, ["fine", bad])), ("name", STRING, b"ab\x80")])
    with opened(written) as file:
        assert key in file.metadata
        assert len(file.metadata) == 2
        assert file.metadata.string(key) is None
        with pytest.raises(GGUFError, match=r"tokens.*UTF-8") as caught:
            _ = file.metadata[key]
        assert caught.value.offset == written.data.index(bad)
        with pytest.raises(GGUFError, match=r"'name'.*UTF-8") as caught:
            _ = file.metadata.string("name")
        assert caught.value.offset == written.data.index(b"\x80")


# What llama.cpp reads and a strict reader might not


def test_a_closed_file_may_be_closed_again_and_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf_py.GGUFWriter(path, "llama")
    writer.add_tensor("w", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    before = file.read_bytes("w")
    file.close()
    file.close()
    assert before.view(np.float32).tolist() == [1.0] * 8
    with pytest.raises(InputError, match="it has been closed"):
        file.read_bytes("w")


def test_a_tensor_without_dimensions_is_a_scalar():
    with opened(draft(tensors=[("scalar", (), 0, 0)], data=struct.pack("<f", 1.5))) as file:
        assert (file.tensors["scalar"].shape, file.tensors["scalar"].n_bytes) == ((1,), 4)
        assert read_tensor(file, "scalar").tolist() == [1.5]


@pytest.mark.parametrize("kind", [0, 1, 8, 12])
@pytest.mark.parametrize("shape", [(0,), (256, 0), (0, 3), (256, 2, 0, 2)])
def test_empty_tensors_take_no_space(kind, shape):
    tensors = [("empty", shape, kind, 0), ("next", (1,), 0, 0), ("last", (0,), 0, 32)]
    with opened(draft(tensors=tensors, data=bytes(32))) as file:
        assert file.tensors["empty"].n_bytes == 0
        assert file.read_bytes("empty").size == 0
        assert read_tensor(file, "empty").shape == shape[::-1]


def test_tensors_stand_in_any_order_with_gaps():
    tensors = [("b", (2,), 24, 64), ("a", (2,), 24, 0), ("c", (1,), 24, 32)]
    with opened(draft(tensors=tensors, data=bytes(range(66)))) as file:
        assert list(file.tensors) == ["b", "a", "c"]
        assert [file.read_bytes(n).tolist() for n in "bac"] == [[64, 65], [0, 1], [32]]


def test_names_are_data():
    names = ["", "../../etc/passwd", "*", "a\nb", "{bid}", "%s", "\x1b[31m", "é" * 200]
    tensors = [(name, (1,), 24, 32 * i) for i, name in enumerate(names)]
    with opened(draft(tensors=tensors, data=bytes(32 * len(names)))) as file:
        assert list(file.tensors) == names


def test_long_keys_are_read_up_to_the_limit_of_the_format():
    key = "k" * 65_535
    with opened(draft([(key, U8, 7)])) as file:
        assert dict(file.metadata) == {key: 7}
    error = refusal(draft([(key + "k", U8, 7)]))
    assert (error.offset, error.field) == (24, "length of metadata key 0")
    assert len(str(error)) < 200


def test_any_byte_but_zero_is_true():
    scalar = with_number(draft([("k", U8, 2)]), KIND_AT, "I", BOOL)
    array = with_number(draft([("k", ARRAY, (U8, [0, 2, 255]))]), VALUE_AT, "I", BOOL)
    with opened(scalar) as file, opened(array) as files:
        assert file.metadata["k"] is True
        assert files.metadata["k"] == [False, True, True]


# What must be refused

HUGE = [2**31, 2**32, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1]


def one_tensor(shape=(4,), kind=0, offset=0, data=bytes(16), **more) -> Draft:
    return draft(tensors=[("t", shape, kind, offset)], data=data, **more)


REFUSED = {
    "no magic": (b"GGML" + bytes(40), 0, "magic"),
    "too short for the magic": (b"GG", 0, "magic"),
    "version 1": (draft(version=1), 4, "version"),
    "version 4": (draft(version=4), 4, "version"),
    "version 0": (draft(version=0), 4, "version"),
    "big-endian version 1": (draft(version=1, order=">"), 4, "version"),
    "same key twice": (draft([("k", U8, 1), ("k", U8, 2)]), 38, "metadata key 1"),
    "empty key": (draft([("", U64, 1)]), KEY_AT, "metadata key 0"),
    "key that is not UTF-8": (draft([(b"ab\xff", U8, 1)]), 34, "metadata key 0"),
    "key with a NUL": (draft([("a\0b", U8, 1)]), KEY_AT, "metadata key 0"),
    "alignment 0": (draft([("general.alignment", U32, 0)]), 53, "'general.alignment'"),
    "alignment 24": (draft([("general.alignment", U32, 24)]), 53, "'general.alignment'"),
    "alignment of another type": (
        draft([("general.alignment", U64, 32)]),
        53,
        "'general.alignment'",
    ),
    "alignment is an array": (
        draft([("general.alignment", ARRAY, (U32, [32]))]),
        53,
        "'general.alignment'",
    ),
    "same tensor twice": (
        draft(tensors=[("t", (1,), 0, 0), ("t", (1,), 0, 32)], data=bytes(64)),
        57,
        "name of tensor 1",
    ),
    "tensor name that is not UTF-8": (draft(tensors=[(b"\xc3(", (1,), 0, 0)]), 32, "tensor 0"),
    "tensor name with a NUL": (draft(tensors=[("\0", (1,), 0, 0)]), 24, "name of tensor 0"),
    "five dimensions": (one_tensor((1,) * 5), N_DIMS_AT, "number of dimensions of tensor 't'"),
    "product of dimensions overflows": (one_tensor((2**32, 2**32)), SHAPE_AT, "shape of tensor"),
    "overflow behind a zero": (one_tensor((0, 2**62)), SHAPE_AT, "shape of tensor 't'"),
    "removed tensor type": (one_tensor(kind=4), TYPE_AT, "type of tensor 't'"),
    "unknown tensor type": (one_tensor(kind=10_000), TYPE_AT, "type of tensor 't'"),
    "row does not divide into blocks": (one_tensor((33,), kind=8), SHAPE_AT, "shape of tensor 't'"),
    "scalar of a block type": (one_tensor((), kind=8), SHAPE_AT, "shape of tensor 't'"),
    "misaligned offset": (one_tensor(offset=4, data=bytes(64)), OFFSET_AT, "offset of tensor 't'"),
    "tensor that ends outside": (one_tensor(data=bytes(15)), 24, "tensor 't'"),
    "empty tensor outside": (one_tensor((0,), offset=32), 24, "tensor 't'"),
    "tensor that begins inside another": (
        draft(tensors=[("a", (16,), 0, 0), ("b", (1,), 0, 32)], data=bytes(64)),
        57,
        "tensor 'b'",
    ),
    "tensor that begins in the last byte of another": (
        draft(
            [("general.alignment", U32, 1)],
            [("a", (4,), 24, 0), ("b", (1,), 24, 3)],
            data=bytes(8),
            alignment=1,
        ),
        90,
        "tensor 'b'",
    ),
    "two tensors in one place": (
        draft(tensors=[("a", (1,), 0, 0), ("b", (1,), 0, 0)], data=bytes(64)),
        57,
        "tensor 'b'",
    ),
} | {
    f"{what} {n}": (file, at, field)
    for n in HUGE
    for what, file, at, field in (
        ("tensors", draft(n_tensors=n), 8, "tensor count"),
        ("metadata", draft(n_metadata=n), 16, "metadata count"),
        ("dimension", one_tensor((n,)), 24 if n < 2**60 else SHAPE_AT, "tensor 't'"),
        ("offset", one_tensor(offset=n), 24 if n % 32 == 0 else OFFSET_AT, "tensor 't'"),
    )
}


@pytest.mark.parametrize(("file", "offset", "field"), REFUSED.values(), ids=REFUSED)
def test_refuses(file, offset, field):
    error = refusal(file)
    assert error.offset == offset
    assert field in error.field


@pytest.mark.parametrize("n", [3, 16, *HUGE])
@pytest.mark.parametrize("order", "<>")
def test_refuses_lengths_behind_the_end(n, order):
    texts = draft([("k", ARRAY, (STRING, ["a", "b"]))], order=order)
    first, second = VALUE_AT + 12, VALUE_AT + 21
    cases = [
        (draft([("k", U8, 1)], order=order), KEY_AT, KEY_AT),
        (draft([("k", STRING, "a")], order=order), VALUE_AT, VALUE_AT),
        (draft([("k", ARRAY, (U64, [1]))], order=order), VALUE_AT + 4, VALUE_AT + 4),
        (texts, VALUE_AT + 4, VALUE_AT + 4 if n > 3 else len(texts.data)),
        (texts, second, second),
        (one_tensor(order=order, data=b""), 24, 24),
    ]
    for file, at, expected in cases:
        if at + 8 + n > len(file.data):
            assert refusal(with_number(file, at, "Q", n)).offset == expected
    # The first string swallows the second's length and ends inside or behind it.
    if n > 10:
        assert refusal(with_number(texts, first, "Q", n)).offset == first


@pytest.mark.parametrize("kind", [13, 14, 255, 2**31, 2**32 - 1])
def test_refuses_unknown_value_types(kind):
    error = refusal(with_number(draft([("k", U8, 1)]), KIND_AT, "I", kind))
    assert (error.offset, error.field) == (KIND_AT, "value of 'k'")
    error = refusal(with_number(draft([("k", ARRAY, (U8, [1]))]), VALUE_AT, "I", kind))
    assert (error.offset, error.field) == (VALUE_AT, "value of 'k'")


@pytest.mark.parametrize("order", "<>")
def test_every_truncation_is_refused(order, tmp_path):
    whole = bytes(rich_draft(order).data)
    for n in range(len(whole)):
        assert refusal(whole[:n]).offset <= n
    path = tmp_path / "cut.gguf"
    for n in (0, 1, 4, 23, 24, 100, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(GGUFError, match=re.escape(f"{path}: byte ")):
            GGUFFile(path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_every_damaged_byte_is_refused_or_harmless(seed):
    whole = bytes(seed.data)
    header = opened(whole).header_size
    outcomes = set()
    for at in range(header):
        for value in {*(whole[at] ^ 1 << bit for bit in range(8)), 0, 255} - {whole[at]}:
            outcomes.add(examine(whole[:at] + bytes([value]) + whole[at + 1 :]))
    assert outcomes >= {"valid", "refused"}


# Hostile sizes


def cost(file: bytes) -> tuple[float, int]:
    """Processor seconds and bytes of opening a file and decoding all of its values."""
    tracemalloc.start()
    try:
        start = time.process_time()
        with suppress(GGUFError):
            dict(opened(file).metadata)
        return time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def depth(n: int) -> bytes:
    """An array of one array of one array …"""
    head = bytes(draft([("k", ARRAY, (U8, []))]).data[:VALUE_AT])
    return head + struct.pack("<IQ", ARRAY, 1) * n + struct.pack("<IQ", U8, 0)


def test_nesting_is_bounded():
    assert examine(depth(7)) == "valid"
    error = refusal(depth(8))
    assert "nested" in str(error)
    assert error.offset == VALUE_AT + 8 * 12
    deep = depth(10**6)
    seconds, n_bytes = cost(deep)
    assert seconds < 1
    assert n_bytes < len(deep)


def test_many_empty_arrays_cost_a_small_multiple_of_their_size():
    n = 2**14
    head = bytes(draft([("k", ARRAY, (ARRAY, []))]).data[:VALUE_AT])
    file = head + struct.pack("<IQ", ARRAY, n) + struct.pack("<IQ", U8, 0) * n
    _, n_bytes = cost(file)
    assert n_bytes < 8 * len(file)


def test_many_small_entries_cost_a_small_multiple_of_their_size():
    n = 3_000
    keys = draft([(f"{i:x}", U8, 0) for i in range(n)])
    tensors = draft(tensors=[(f"{i:x}", (0,), 0, 0) for i in range(n)])
    for file in (keys, tensors):
        assert cost(bytes(file.data))[1] < 24 * len(file.data)


def test_counts_are_refused_before_memory_is_taken():
    array = draft([("k", ARRAY, (U8, []))])
    for n in HUGE:
        for file in (
            bytes(draft(n_tensors=n).data),
            bytes(draft(n_metadata=n).data),
            with_number(array, VALUE_AT + 4, "Q", n),
        ):
            seconds, n_bytes = cost(file)
            assert seconds < 0.1
            assert n_bytes < 2**14


# Files that are not on this machine


@pytest.mark.parametrize("first_read", [0, 1, 7, 64, 500, 10_000])
def test_the_first_read_does_not_change_the_result(first_read, monkeypatch):
    monkeypatch.setattr(gguf_header, "_FIRST_READ", first_read)
    for seed in SEEDS:
        storage = MemoryStorage(bytes(seed.data))
        with GGUFFile(storage) as file:
            header = storage.reads[:]
            monkeypatch.setattr(gguf_header, "_FIRST_READ", 1 << 16)
            assert contents(file) == contents(opened(seed))
            monkeypatch.setattr(gguf_header, "_FIRST_READ", first_read)
        ends = [offset + n for offset, n in header]
        assert [offset for offset, _ in header] == [0, *ends[:-1]], "no byte is read twice"
        assert ends[-1] <= max(4 * file.header_size, first_read)


def test_the_first_read_does_not_change_the_refusal(monkeypatch):
    for data in damaged(300, seed=1):
        found = set()
        for first_read in (1, 50, 1 << 16):
            monkeypatch.setattr(gguf_header, "_FIRST_READ", first_read)
            try:
                found.add(repr(contents(opened(data))))
            except GGUFError as error:
                found.add(str(error))
        assert len(found) == 1


class SparseStorage(MemoryStorage):
    """A header and then zeros, as many as wanted."""

    def __init__(self, header: bytes, size: int) -> None:
        super().__init__(header)
        self.size = size

    def read(self, offset: int, n: int, into: memoryview | None = None) -> bytes:
        found = super().read(offset, n)
        return found + bytes(n - len(found))


def test_tensor_data_is_not_fetched_with_the_header():
    size = 10**12
    storage = SparseStorage(bytes(rich_draft().data), size)
    with GGUFFile(storage) as file:
        assert storage.reads == [(0, 1 << 16)]
        file.read_bytes("cube")
        assert storage.reads[1:] == [(file.tensors["cube"].offset, 16)]


@pytest.mark.parametrize("n", [2**40, 2**62])
def test_a_hostile_count_is_refused_without_fetching(n):
    size = 10**12
    array = draft([("k", ARRAY, (U8, [])), ("l", U8, 0)])
    for header in (
        with_number(array, VALUE_AT + 4, "Q", n),
        bytes(draft(n_tensors=n).data),
        bytes(draft(n_metadata=n).data),
    ):
        storage = SparseStorage(header, size)
        with pytest.raises(GGUFError, match="cannot fit"):
            GGUFFile(storage)
        assert storage.reads == [(0, 1 << 16)]


def test_a_header_that_goes_on_and_on_is_not_fetched():
    array = draft([("k", ARRAY, (U8, [])), ("l", U8, 0)])
    storage = SparseStorage(with_number(array, VALUE_AT + 4, "Q", 10**11), 10**12)
    with pytest.raises(GGUFError, match="256 MiB"):
        GGUFFile(storage)
    assert storage.reads == [(0, 1 << 16)]


def test_no_more_than_the_limit_is_fetched(monkeypatch):
    monkeypatch.setattr(gguf_header, "_FIRST_READ", 150)
    monkeypatch.setattr(gguf_header, "_MAX_FETCHED", 400)
    storage = SparseStorage(bytes(rich_draft().data), 10**12)
    with pytest.raises(GGUFError, match="download"):
        GGUFFile(storage)
    assert storage.reads == [(0, 150), (150, 250)]


def test_the_last_value_is_fetched_too(monkeypatch):
    monkeypatch.setattr(gguf_header, "_FIRST_READ", 64)
    storage = MemoryStorage(bytes(draft([("k", ARRAY, (U8, [7] * 500))]).data))
    with GGUFFile(storage) as file:
        assert file.metadata["k"] == [7] * 500


def test_a_short_read_is_an_error(monkeypatch):
    class Shrunk(MemoryStorage):
        def read(self, offset: int, n: int, into: memoryview | None = None) -> bytes:
            return super().read(offset, n)[: max(0, 600 - offset)]

    monkeypatch.setattr(gguf_header, "_FIRST_READ", 500)
    with pytest.raises(InputError, match="may have changed"):
        GGUFFile(Shrunk(bytes(rich_draft().data)))


def decoded(file: GGUFFile, key: str):
    """A value, or None if llama.cpp reads it and Python cannot: text that is not UTF-8."""
    try:
        return file.metadata[key]
    except GGUFError as error:
        if "UTF-8" not in str(error):
            raise
        return None


def same_value(ours, elements: list[str], kind: int) -> bool:
    raw = [bytes.fromhex(e) for e in elements]
    if kind == STRING:
        return [text.partition("\0")[0].encode() for text in ours] == raw
    theirs = [struct.unpack("<" + CODES[kind], r)[0] for r in raw]
    return repr(ours) == repr(theirs)  # NaN is NaN


# A small slice of the fuzzer


@pytest.mark.slow
def test_fuzz_slice():
    found = fuzz(2_000, seed=1)
    assert found.failures == []
    assert min(found.tally["valid"], found.tally["refused"]) > 100
