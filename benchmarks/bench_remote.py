"""What inspecting the norms of a remote model costs in bytes and requests.

    python -m benchmarks.bench_remote

Serves models of its own from a loopback server that counts, each request 50 ms late.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

from ggufnorm.analysis.inspection import inspect
from ggufnorm.formats.gguf import GGUFFile
from tests import servers

LATENCY = 0.05
SPARE = 256 << 10


def write_model(path: Path, n_layers: int, width: int, n_tokens: int, between: int) -> None:
    """A model's header and norms, with ``between`` bytes of other weights between two norms."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(n_layers)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_token_list([f"token {i}".encode() for i in range(n_tokens)])
    w.add_token_scores([0.0] * n_tokens)
    w.add_token_types([1] * n_tokens)
    w.add_token_merges([f"to ken{i}" for i in range(n_tokens)])
    for i in range(n_layers):
        for norm, weight in (("attn_norm", "attn_q"), ("ffn_norm", "ffn_up")):
            w.add_tensor(f"blk.{i}.{norm}.weight", np.ones(width, np.float32))
            w.add_tensor(f"blk.{i}.{weight}.weight", np.zeros(between, np.int8))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main() -> None:
    print("| model | file | header + norms | fetched | allowed | requests | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, n_layers, width, n_tokens, between in (
        ("32 layers, width 4096, 32k tokens", 32, 4096, 32_000, 1 << 20),
        ("80 layers, width 8192, 128k tokens", 80, 8192, 128_000, 1 << 20),
        ("62 layers, width 3840, 262k tokens", 62, 3840, 262_144, 1 << 20),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.gguf"
            write_model(path, n_layers, width, n_tokens, between)
            with GGUFFile(path) as file:
                needed = file.header_size
                needed += sum(t.n_bytes for t in file.tensors.values() if "norm" in t.name)
            server = servers.RangeServer({"/m.gguf": path.read_bytes()})
            server.trouble = servers.slow(LATENCY)
            with servers.running(server):
                started = time.perf_counter()
                inspect(f"{server.url}/m.gguf")
                seconds = time.perf_counter() - started
        allowed = 1.2 * needed + SPARE
        cells = [len(server.files["/m.gguf"]), needed, server.sent, allowed]
        sizes = " | ".join(f"{n / 1024:,.0f} KiB" for n in cells)
        print(f"| {name} | {sizes} | {len(server.requests)} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
