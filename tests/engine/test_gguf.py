"""llama.cpp's own parser on the same files."""

import json
import subprocess
import sys
from pathlib import Path

import gguf as gguf_py
import pytest

from ggufnorm.errors import GGUFError
from ggufnorm.formats.gguf import GGUFFile
from tests.fuzz.fuzz_gguf import (
    ARRAY,
    F64,
    STRING,
    U8,
    damaged,
    draft,
    rich_draft,
)
from tests.paths import ROOT
from tests.unit.formats.test_gguf import QUANTIZATIONS, decoded, opened, same_value


class LlamaParser:
    """llama.cpp's parser in a child process, which is started anew if it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.child: subprocess.Popen[str] | None = None

    def __enter__(self) -> "LlamaParser":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        if self.child is not None:
            self.child.communicate()
            self.child = None

    def parse(self, data: bytes):
        """What it makes of a file; None if it refuses it or dies of it."""
        self.path.write_bytes(data)
        if self.child is None:
            script = ROOT / "tests" / "fuzz" / "llama_parser.py"
            self.child = subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        self.child.stdin.write(f"{self.path}\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if not answer:
            self.stop()
            return None
        return json.loads(answer)


@pytest.fixture(scope="module")
def llama_parser(tmp_path_factory):
    with LlamaParser(tmp_path_factory.mktemp("llama") / "case.gguf") as parser:
        parsed = parser.parse(bytes(rich_draft().data))
        assert parsed is not None, "llama.cpp's parser did not start"
        yield parser


# gguf-py 0.19 gives a block of Q8_1 40 bytes, ggml 36. No file holds the type: it is what
# activations are quantized to on their way.
WRONG_IN_GGUF_PY = {int(gguf_py.GGMLQuantizationType.Q8_1)}


def deliberate(error: GGUFError, theirs, data: bytes) -> bool:
    """Whether we mean to refuse what llama.cpp reads; see the reader's docstring."""
    message = str(error)
    if "holds a NUL" in message:
        return True
    if "UTF-8" in message:
        return data[error.offset] >= 0x80
    if "unknown tensor type" in message:
        return any(t["type"] not in QUANTIZATIONS for t in theirs["tensors"])
    ends = [theirs["data_offset"] + t["offset"] + t["n_bytes"] for t in theirs["tensors"]]
    if "after the end of the file" in message:
        return max(ends) > len(data)
    if "is too large" in message:
        return max(ends) > len(data) or any(0 in t["ne"] for t in theirs["tensors"])
    return False


def assert_same(file: GGUFFile, theirs) -> None:
    assert file.version == theirs["version"]
    assert file.alignment == theirs["alignment"]
    assert [key.encode().hex() for key in file.metadata] == [m[0] for m in theirs["metadata"]]
    for key, (_, kind, element, values) in zip(file.metadata, theirs["metadata"], strict=True):
        assert file.raw_metadata_at[key][0] == kind
        ours = decoded(file, key)
        if ours is None:
            assert element == STRING
        else:
            assert same_value(ours if kind == ARRAY else [ours], values, element)
    assert len(file.tensors) == len(theirs["tensors"])
    for ours, t in zip(file.tensors.values(), theirs["tensors"], strict=True):
        assert ours.name.encode().hex() == t["name"]
        assert [*ours.shape, *(1,) * (4 - len(ours.shape))] == t["ne"]
        assert (ours.ggml_type, ours.n_bytes) == (t["type"], t["n_bytes"])
        assert ours.offset == theirs["data_offset"] + t["offset"]


def test_reads_what_llama_cpp_reads(llama_parser):
    n_same = n_refused = 0
    for data in damaged(2_500, seed=2):
        theirs = llama_parser.parse(data)
        if theirs is None or WRONG_IN_GGUF_PY & {t["type"] for t in theirs["tensors"]}:
            continue
        try:
            file = opened(data)
        except GGUFError as error:
            if not deliberate(error, theirs, data):
                raise
            n_refused += 1
        else:
            assert_same(file, theirs)
            n_same += 1
    assert n_same > 200
    assert n_refused < n_same


@pytest.mark.parametrize("kind", sorted({*QUANTIZATIONS} - WRONG_IN_GGUF_PY))
def test_block_sizes_are_those_of_ggml(llama_parser, kind):
    block, _ = gguf_py.GGML_QUANT_SIZES[kind]
    file = draft(tensors=[("t", (block, 2, 3), int(kind), 0)], data=bytes(2_000))
    assert_same(opened(file), llama_parser.parse(bytes(file.data)))


LENIENT = {
    "no tensors, no metadata": draft(),
    "no dimensions": draft(tensors=[("", (), 0, 0)], data=bytes(4)),
    "zero dimensions": draft(
        tensors=[("a", (0,), 0, 0), ("b", (32, 0, 3), 8, 0), ("c", (1,), 0, 0)], data=bytes(4)
    ),
    "empty values": draft([("a", STRING, ""), ("b", ARRAY, (STRING, [])), ("c", ARRAY, (F64, []))]),
    "no padding at the end": draft([("a", U8, 1)]),
    "alignment 1": rich_draft(alignment=1),
    "version 2": rich_draft(version=2),
    "long key": draft([("k" * 65_535, U8, 1)]),
    "text that is not UTF-8": draft([("a", STRING, b"\xff"), ("b", ARRAY, (STRING, [b"\x80"]))]),
}


@pytest.mark.parametrize("name", LENIENT)
def test_llama_cpp_reads_it_and_so_do_we(llama_parser, name):
    theirs = llama_parser.parse(bytes(LENIENT[name].data))
    assert theirs is not None
    assert_same(opened(LENIENT[name]), theirs)
