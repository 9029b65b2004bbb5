"""How long it takes to read a header with a large vocabulary.

Writes a file of its own: 262,144 tokens with scores and types, 262,144 merges and 700
small tensors; then opens it with ggufnorm, with llama.cpp's own parser (the C library
that llama-cpp-python ships) and with gguf-py. Then one of a million tensors, in a process whose
memory it watches.

    python benchmarks/bench_header.py
"""

from __future__ import annotations

import ctypes
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from ggufnorm.formats.gguf import GGUFFile

N_TOKENS = 262_144
N_TENSORS = 700
LETTERS = "abcdefghijklmnopqrstuvwxyzäλдあ▁"


class InitParams(ctypes.Structure):
    """``struct gguf_init_params`` in ``ggml/include/gguf.h``."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def write_model(path: Path) -> None:
    """Write the model with gguf-py, as a converter would."""
    rng = random.Random(0)
    tokens = [f"{''.join(rng.choices(LETTERS, k=rng.randint(1, 10)))}{i}" for i in range(N_TOKENS)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(N_TOKENS)])
    writer.add_token_types([1] * N_TOKENS)
    writer.add_token_merges([f"{a} {b}" for a, b in zip(tokens, reversed(tokens), strict=True)])
    for i in range(N_TENSORS):
        writer.add_tensor(f"blk.{i // 10}.part_{i % 10}.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_many(path: Path, n: int) -> None:
    """Write a header of ``n`` tensors of 32 bytes, and as many bytes as they need."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, n, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    with path.open("wb") as file:
        file.write(head)
        for i in range(n):
            name = text(f"blk.{i // 100}.ffn_part_{i % 100}.weight")
            file.write(name + struct.pack("<IQIQ", 1, 8, 0, 32 * i))
        file.truncate(-(-file.tell() // 32) * 32 + 32 * n)


OPEN = """
import sys
from ggufnorm.engines.worker import peak_memory
from ggufnorm.formats.gguf import GGUFFile
before = peak_memory()
file = GGUFFile(sys.argv[1])
print(len(file.tensors), file.header_size, before, peak_memory())
"""


def show_many(path: Path) -> None:
    """What opening a header of a million tensors takes of memory."""
    write_many(path, 1_000_000)
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)], check=True, capture_output=True, text=True
    )
    n, header, before, peak = map(int, done.stdout.split())
    print(
        f"\nA header of {n:,} tensors, {header / 1e6:.0f} MB: {peak / 1e6:.0f} MB at the peak, of"
        f" which Python and NumPy are {before / 1e6:.0f} MB."
    )


def ggufnorm_reader(path: Path) -> None:
    """What is measured of ggufnorm: all but the decoding of arrays."""
    with GGUFFile(path) as file:
        assert len(file.tensors) == N_TENSORS


def ggufnorm_reader_and_tokens(path: Path) -> None:
    """The same, and a Python string for every token."""
    with GGUFFile(path) as file:
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, list)
        assert len(tokens) == N_TOKENS


def llama_cpp_reader() -> Callable[[Path], None]:
    """llama.cpp's parser, bound through ctypes; it decodes all as it goes."""
    from llama_cpp._ggml import libggml

    init, free = libggml.gguf_init_from_file, libggml.gguf_free
    init.argtypes, init.restype = [ctypes.c_char_p, InitParams], ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None

    def read(path: Path) -> None:
        context = init(bytes(path), InitParams(no_alloc=True, ctx=None))
        assert context
        free(context)

    return read


def gguf_py_reader(path: Path) -> None:
    """gguf-py's own reader."""
    assert len(gguf.GGUFReader(path).tensors) == N_TENSORS


def seconds(read: Callable[[Path], None], path: Path, repetitions: int) -> float:
    """The shortest of several runs."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        read(path)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_model(path)
        with GGUFFile(path) as file:
            header_mb = file.header_size / 1e6
        runs = [
            ("ggufnorm", ggufnorm_reader, 20),
            ("ggufnorm, and all tokens decoded", ggufnorm_reader_and_tokens, 5),
            ("llama.cpp, gguf_init_from_file", llama_cpp_reader(), 20),
            ("gguf-py, GGUFReader", gguf_py_reader, 1),
        ]
        times = {name: seconds(read, path, n) for name, read, n in runs}
    ours = times["ggufnorm"]
    print(f"A header of {header_mb:.1f} MB: {N_TOKENS:,} tokens and merges, {N_TENSORS} tensors.\n")
    print("| Reader | Seconds | Times ggufnorm |")
    print("|---|---:|---:|")
    for name, time_taken in times.items():
        print(f"| {name} | {time_taken:.4f} | {time_taken / ours:.1f} |")
    with tempfile.TemporaryDirectory() as folder:
        show_many(Path(folder) / "many.gguf")


if __name__ == "__main__":
    main()
