"""Feed damaged GGUF files to the header reader.

Each case damages a small well-formed file: numbers that the layout is known to hold are
set to nasty values, bits are flipped, the file is cut, pieces of other files are spliced
in. Then everything that the file claims to hold is read. A case may end in a valid file
or in a GGUFError of one line; anything else, a second of time or memory beyond a small
multiple of the file, is a failure.

    python tests/fuzz/fuzz_gguf.py --cases 100000 [--seed 0]
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import struct
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ggufnorm.errors import GGUFError
from ggufnorm.formats import gguf_header
from ggufnorm.formats.gguf import GGUFFile

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"}
CODES |= {U64: "Q", I64: "q", F64: "d"}

MAX_SECONDS = 1.0
MAX_BYTES = 1 << 15
"""Most memory of one case; the files have up to 1,400 bytes."""


class MemoryStorage:
    """A storage over bytes in memory, which keeps a record of what is read."""

    name = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, n: int, into: memoryview | None = None) -> bytes:
        assert 0 <= offset <= offset + n <= self.size, "read outside the file"
        self.reads.append((offset, n))
        return self.data[offset : offset + n]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.read(*r) for r in ranges]

    def close(self) -> None:
        pass


@dataclass
class Draft:
    """GGUF written field by field, sane or not.

    Attributes:
        order: byte order of the numbers.
        data: what is written so far.
        numbers: (offset, width) of each number in it.
    """

    order: str = "<"
    data: bytearray = field(default_factory=bytearray)
    numbers: list[tuple[int, int]] = field(default_factory=list)

    def number(self, code: str, value: float) -> None:
        raw = struct.pack(self.order + code, value)
        self.numbers.append((len(self.data), len(raw)))
        self.data += raw

    def string(self, text: str | bytes) -> None:
        raw = text.encode() if isinstance(text, str) else text
        self.number("Q", len(raw))
        self.data += raw

    def value(self, kind: int, value: Any) -> None:
        if kind == STRING:
            self.string(value)
        elif kind == ARRAY:
            element, items = value
            self.number("I", element)
            self.number("Q", len(items))
            for item in items:
                self.value(element, item)
        else:
            self.number(CODES[kind], value)

    def metadata(self, key: str | bytes, kind: int, value: Any) -> None:
        self.string(key)
        self.number("I", kind)
        self.value(kind, value)

    def tensor(self, name: str | bytes, shape: Sequence[int], kind: int, offset: int) -> None:
        self.string(name)
        self.number("I", len(shape))
        for dimension in shape:
            self.number("Q", dimension)
        self.number("I", kind)
        self.number("Q", offset)

    def pad(self, alignment: int) -> None:
        self.data += bytes(-len(self.data) % alignment)


def draft(
    metadata: Sequence[tuple[str | bytes, int, Any]] = (),
    tensors: Sequence[tuple[str | bytes, Sequence[int], int, int]] = (),
    *,
    data: bytes = b"",
    alignment: int = 32,
    order: str = "<",
    version: int = 3,
    n_metadata: int | None = None,
    n_tensors: int | None = None,
) -> Draft:
    """A file of the given parts; the counts may lie."""
    file = Draft(order)
    file.data += b"GGUF"
    file.number("I", version)
    file.number("Q", len(tensors) if n_tensors is None else n_tensors)
    file.number("Q", len(metadata) if n_metadata is None else n_metadata)
    for entry in metadata:
        file.metadata(*entry)
    for tensor in tensors:
        file.tensor(*tensor)
    if tensors:
        file.pad(alignment)
        file.data += data
    return file


RICH_TENSORS = (
    ("token_embd.weight", (4, 3), 0, 48),
    ("blk.0.attn_norm.weight", (4,), 0, 16),
    ("blk.0.ffn_down.weight", (32, 2), 8, 68),
    ("cube", (2, 2, 2, 2), 24, 16),
)
"""Name, shape, ggml type and bytes."""


def rich_draft(order: str = "<", version: int = 3, alignment: int = 32) -> Draft:
    """Every value type, arrays of each, plain and quantized tensors."""
    tensors, end = [], 0
    for name, shape, kind, n_bytes in RICH_TENSORS:
        tensors.append((name, shape, kind, end))
        end += n_bytes + -n_bytes % alignment
    return draft(
        [
            ("general.architecture", STRING, "llama"),
            ("general.alignment", U32, alignment),
            ("u8", U8, 200),
            ("i8", I8, -100),
            ("u16", U16, 60_000),
            ("i16", I16, -30_000),
            ("i32", I32, -(2**31)),
            ("f32", F32, 1e-5),
            ("bool", BOOL, True),
            ("u64", U64, 2**64 - 1),
            ("i64", I64, -(2**63)),
            ("f64", F64, 0.1),
            ("empty", STRING, ""),
            ("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "", "▁the", "\0", "é" * 9])),
            ("tokenizer.ggml.scores", ARRAY, (F32, [0.0, -1.5, 2.5])),
            ("flags", ARRAY, (BOOL, [True, False])),
            ("bytes", ARRAY, (U8, list(range(40)))),
            ("nothing", ARRAY, (I32, [])),
        ],
        tensors,
        data=bytes(i % 251 for i in range(tensors[-1][3] + RICH_TENSORS[-1][3])),
        alignment=alignment,
        order=order,
        version=version,
    )


def nested_draft() -> Draft:
    """Arrays of arrays, which the format allows, and no tensors."""
    inner = (ARRAY, [(U8, [1, 2]), (STRING, ["a", "b"]), (ARRAY, [(I16, [-1])])])
    return draft([("nested", ARRAY, inner), ("tail", ARRAY, (U64, [1, 2, 3]))])


SEEDS = (
    rich_draft(),
    rich_draft(order=">"),
    rich_draft(version=2, alignment=8),
    nested_draft(),
    draft([("general.architecture", STRING, "bert")], [("scalar", (), 0, 0)], data=bytes(4)),
)


def nasty_numbers(rng: random.Random, width: int, size: int) -> int:
    top = 1 << 8 * width
    small = (*range(14), 31, 32, 40, 41, 42, 64, 255, 1 << 16, 1 << 30)
    large = (top - 1, top - 8, top // 2, top // 2 - 1, top // 8, top // 24)
    near = (size - 1, size, size + 1, rng.randrange(top))
    return rng.choice(small + large + near) % top


def set_number(rng: random.Random, seed: Draft, data: bytearray) -> None:
    at, width = rng.choice(seed.numbers)
    value = nasty_numbers(rng, width, len(data))
    data[at : at + width] = value.to_bytes(width, "little" if seed.order == "<" else "big")


def flip_bits(rng: random.Random, _seed: Draft, data: bytearray) -> None:
    for _ in range(rng.randint(1, 4) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, _seed: Draft, data: bytearray) -> None:
    del data[rng.randint(0, len(data)) :]


def splice(rng: random.Random, _seed: Draft, data: bytearray) -> None:
    other = rng.choice(SEEDS).data
    start = rng.randrange(len(other))
    piece = other[start : start + rng.randint(0, 64)]
    at = rng.randint(0, len(data))
    data[at : at + rng.choice((0, len(piece), rng.randint(0, 64)))] = piece


DAMAGES = (set_number, set_number, set_number, flip_bits, cut, splice)


def damaged(n: int, seed: int) -> Iterator[bytes]:
    """``n`` damaged files, the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(n):
        source = rng.choice(SEEDS)
        data = bytearray(source.data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(DAMAGES)(rng, source, data)
        yield bytes(data)


def examine(data: bytes) -> str:
    """Read all that a file claims to hold.

    Returns:
        How it ended: ``"valid"``, ``"bad value"`` (the header is well-formed, a string in
        it is not) or ``"refused"``.

    Raises:
        AssertionError: what was read makes no sense.
        Exception: any other is the reader's failure.
    """
    try:
        file = GGUFFile(MemoryStorage(data))
    except GGUFError as error:
        check_message(error, len(data))
        return "refused"
    with file:
        check_tensors(file, len(data))
        outcome = "valid"
        for key in file.metadata:
            try:
                _ = file.metadata[key]
            except GGUFError as error:
                check_message(error, len(data))
                outcome = "bad value"
        return outcome


def check_message(error: GGUFError, size: int) -> None:
    assert 0 <= error.offset <= size, f"offset {error.offset} in a file of {size} bytes"
    assert error.field, "no field"
    assert len(str(error).splitlines()) == 1, "the message is not one line"


def check_tensors(file: GGUFFile, size: int) -> None:
    end = file.header_size
    for tensor in sorted(file.tensors.values(), key=lambda t: (t.offset, t.n_bytes)):
        assert tensor.offset + tensor.n_bytes <= size, "outside the file"
        assert tensor.offset >= end or not tensor.n_bytes, "overlaps"
        assert len(file.read_bytes(tensor.name)) == tensor.n_bytes
        end = max(end, tensor.offset + tensor.n_bytes)


@dataclass
class Findings:
    """How the cases ended.

    Attributes:
        tally: how many ended which way.
        failures: (case, what went wrong, the file) of each that did not end as it should.
        seconds: of the slowest case, as the processor counts them.
        n_bytes: most memory that one case took.
    """

    tally: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    n_bytes: int = 0


def fuzz(n: int, seed: int) -> Findings:
    """Examine ``n`` damaged files."""
    found = Findings()
    first_reads = random.Random(seed)
    normal = gguf_header._FIRST_READ
    tracemalloc.start()
    try:
        for case, data in enumerate(damaged(n, seed)):
            gguf_header._FIRST_READ = first_reads.choice((normal, normal, 1, 100))
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                outcome = examine(data)
            except Exception as error:
                outcome = "failed"
                found.failures.append((case, f"{type(error).__name__}: {error}", data))
            seconds = time.process_time() - start
            n_bytes = tracemalloc.get_traced_memory()[1] - before
            found.tally[outcome] += 1
            found.seconds = max(found.seconds, seconds)
            found.n_bytes = max(found.n_bytes, n_bytes)
            if seconds > MAX_SECONDS:
                found.failures.append((case, f"took {seconds:.1f} s", data))
            if n_bytes > MAX_BYTES:
                found.failures.append((case, f"took {n_bytes:,} bytes", data))
    finally:
        tracemalloc.stop()
        gguf_header._FIRST_READ = normal
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(60 + arguments.cases // 100, exit=True)
    found = fuzz(arguments.cases, arguments.seed)
    lines = [f"{sum(found.tally.values()):,} cases of seed {arguments.seed}"]
    lines += [f"{count:>9,}  {outcome}" for outcome, count in found.tally.most_common()]
    lines += [f"{len(found.failures):>9,}  failures"]
    lines += [f"slowest {found.seconds * 1e3:.1f} ms, most memory {found.n_bytes:,} bytes"]
    lines += [f"case {case}: {why}\n  {data.hex()}" for case, why, data in found.failures[:10]]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
