"""How fast ``ggufnorm diff`` is, beside the same comparison written with gguf-py.

    python benchmarks/bench_diff.py

Writes a pair of files (Q8_0, and Q4_K with some Q6_K) of random weights to a temporary
folder, compares them once each way, and then measures dequantization type by type.
Prints Markdown. Needs about 400 MB of disk, 1 GB of memory and, on two cores, a minute.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

import ggufnorm
from ggufnorm.engines.llama.binding import engine_version, quantize_rows
from ggufnorm.formats.dequantize import dequantize_rows

WIDTH = 4096
N_MATRICES = 12
TYPES = ("F16", "BF16", "Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4")
N_THREADS = 2
N_ROUNDS = 3


def main() -> None:
    """Print both tables."""
    print(f"{platform.machine()}, {os.cpu_count()} processors, {engine_version()}\n")
    with tempfile.TemporaryDirectory(prefix="ggufnorm-bench-") as folder:
        a, b = write_pair(Path(folder))
        compare_files(a, b)
    print()
    compare_types()


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Two quantizations of the same random matrices, and norms."""
    paths = (folder / "a-Q8_0.gguf", folder / "b-Q4_K.gguf")
    writers = [GGUFWriter(path, "llama", use_temp_file=True) for path in paths]
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(N_MATRICES):
            values = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(64)
            for writer, name in zip(
                writers, ("Q8_0", "Q6_K" if i % 4 == 0 else "Q4_K"), strict=True
            ):
                kind = GGMLQuantizationType[name]
                writer.add_tensor(
                    f"blk.{i}.ffn_up.weight", quantized(pool, values, kind), raw_dtype=kind
                )
                writer.add_tensor(f"blk.{i}.ffn_norm.weight", np.ones(WIDTH, np.float32))
    for writer in writers:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def quantized(
    pool: ThreadPoolExecutor, values: NDArray[np.float32], kind: GGMLQuantizationType
) -> NDArray[np.uint8]:
    """Quantize rows in threads; ggml runs without the interpreter's lock."""
    parts = np.array_split(values, os.cpu_count() or 1)
    return np.concatenate(list(pool.map(lambda rows: quantize_rows(rows, int(kind)), parts)))


def compare_files(a: Path, b: Path) -> None:
    """The best of several runs of each, in turns; the first also warms the page cache."""
    n = N_MATRICES * WIDTH * (WIDTH + 1)
    slow = fast = float("inf")
    for _ in range(N_ROUNDS):
        started = time.perf_counter()
        expected = naive(a, b)
        slow = min(slow, time.perf_counter() - started)
        started = time.perf_counter()
        report = ggufnorm.diff(a, b)
        fast = min(fast, time.perf_counter() - started)
    found = {t.tensor: t.rel_l2 or 0.0 for t in report.tensors}
    worst = max(abs(found[name] / rel_l2 - 1) for name, rel_l2 in expected.items())
    print("| comparison | seconds | M weights/s |\n| --- | ---: | ---: |")
    print(f"| gguf-py and NumPy | {slow:.2f} | {n / slow / 1e6:,.0f} |")
    print(f"| ggufnorm diff | {fast:.2f} | {n / fast / 1e6:,.0f} |")
    print(
        f"\n{n:,} weights: {slow / fast:.1f} times as fast; relative L2 of {len(expected)}"
        f" tensors agrees to {worst:.0e}, the rounding of float32 sums."
    )


def naive(a: Path, b: Path) -> dict[str, float]:
    """The figures of ``diff`` for every matrix, a whole tensor at a time; relative L2 back."""
    others = {t.name: t for t in GGUFReader(b).tensors}
    found = {}
    for t in GGUFReader(a).tensors:
        r = dequantize(t.data, t.tensor_type).ravel()
        q = dequantize(others[t.name].data, others[t.name].tensor_type).ravel()
        d = q - r
        dd, rr, qq, rq = (float(x @ y) for x, y in ((d, d), (r, r), (q, q), (r, q)))
        figures = (rq / np.sqrt(rr * qq), int(np.abs(d).argmax()), np.isfinite(d).all())
        if "norm" not in t.name:
            assert all(np.isfinite(figures))
            found[t.name] = float(np.sqrt(dd / rr))
    return found


def compare_types() -> None:
    """Dequantization of one matrix in memory, block by block, best of three."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((WIDTH // 4, WIDTH), dtype=np.float32)
    print(f"| type | gguf-py | ggml, 1 thread | ggml, {N_THREADS} threads | same bits |")
    print("| --- | ---: | ---: | ---: | --- |")
    with ThreadPoolExecutor(N_THREADS) as pool:
        for name in TYPES:
            kind = GGMLQuantizationType[name]
            blocks = np.array_split(quantize_rows(values, int(kind)), 32)

            by_gguf_py = partial(dequantize, qtype=kind)
            by_ggml = partial(dequantize_rows, ggml_type=int(kind))
            seconds = (
                best(partial(all_of, map, by_gguf_py, blocks)),
                best(partial(all_of, map, by_ggml, blocks)),
                best(partial(all_of, pool.map, by_ggml, blocks)),
            )
            cells = " | ".join(f"{values.size / s / 1e6:,.0f}" for s in seconds)
            same = all(
                np.array_equal(
                    dequantize(x, kind).view("u4"), dequantize_rows(x, int(kind)).view("u4")
                )
                for x in blocks
            )
            print(f"| {name} | {cells} | {'yes' if same else 'NO'} |")
    print("\nM weights/s.")


def all_of(
    way: Callable[..., Iterable[object]],
    function: Callable[[NDArray[np.uint8]], object],
    blocks: Sequence[NDArray[np.uint8]],
) -> None:
    """Call a function with each block, in the way of ``map``."""
    deque(way(function, blocks), 0)


def best(function: Callable[[], object]) -> float:
    """Seconds of the fastest of three calls."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
