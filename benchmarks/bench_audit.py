"""What auditing all tensors costs, beside reading the same bytes once with all cores.

    python -m benchmarks.bench_audit [--layers 16] [--width 2048] [--ff 5632]

Writes a random Llama as a checkpoint (F16) and, of the same values, as GGUF in F16, Q8_0 and
Q4_K_M to a temporary folder. Then times, in turns, the best of several:

- reading all bytes into a buffer that each thread keeps, nothing done with them;
- the same with a SHA-256 of each piece, which is what telling two files apart would cost;
- ``audit --full``, which looks for values that are not finite;
- the same and a conversion of a quantized file's values by ggml, nothing done with them, which is
  the least that comparing them takes;
- ``audit --source`` of the whole file, which reads the checkpoint too.

Prints Markdown tables of seconds and ratios, of the clock and of the processors: where others use
the machine, the second is the one to look at. All files are in the page cache.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import local

import numpy as np
from numpy.typing import NDArray

import ggufnorm
from benchmarks.bench_drift import write_model
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.formats.dequantize import dequantize_rows, read_raw_rows
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.gguf_tensors import Tensor
from ggufnorm.formats.storage import Scratch

PIECE = 1 << 20
CONVERTED = 1 << 18
"""Values that are converted at once, which a core's own cache holds."""
ROUNDS = 5
N_VOCAB = 8192
TYPES = ("F16", "Q8_0", "Q4_K_M")
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
HEAD = 128

Cost = tuple[float, float]
"""Seconds of the clock and of the processors."""


def source_name(name: str) -> str:
    """What the checkpoint calls a tensor."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, part, end = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{end}"


def write_checkpoint(model: Path, folder: Path) -> None:
    """The checkpoint that a F16 Llama would have been converted from."""
    folder.mkdir()
    header: dict[str, object] = {}
    at = 0
    with GGUFFile(model) as file, (folder / "data").open("wb") as data:
        for t in file.tensors.values():
            raw = read_raw_rows(file, t)
            if ".attn_q." in t.name or ".attn_k." in t.name:  # undo what the converter does
                raw = raw.reshape(-1, HEAD // 2, 2, raw.shape[1]).swapaxes(1, 2)
            values = raw.tobytes()
            header[source_name(t.name)] = {
                "dtype": t.dtype,
                "shape": t.shape[::-1],
                "data_offsets": [at, at + len(values)],
            }
            data.write(values)
            at += len(values)
        width, ff = file.tensors["blk.0.ffn_up.weight"].shape
        layers = file.metadata.integer("llama.block_count")
    head = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as out, (folder / "data").open("rb") as data:
        out.write(len(head).to_bytes(8, "little") + head)
        while piece := data.read(PIECE):
            out.write(piece)
    (folder / "data").unlink()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
        "intermediate_size": ff, "num_hidden_layers": layers, "vocab_size": N_VOCAB,
        "num_attention_heads": width // HEAD, "num_key_value_heads": width // 256,
        "head_dim": HEAD, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "torch_dtype": "float16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def pieces(paths: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """Files cut into pieces."""
    for path in paths:
        yield from ((path, at) for at in range(0, path.stat().st_size, PIECE))


def read_all(paths: Sequence[Path], use: Callable[[memoryview], object]) -> None:
    """Read files once, in all threads, each into a buffer of its own."""
    n = os.cpu_count() or 1
    files = {path: os.open(path, os.O_RDONLY) for path in paths}
    every = list(pieces(paths))

    def work(first: int) -> None:
        buffer = memoryview(bytearray(PIECE))
        for path, at in every[first::n]:
            use(buffer[: os.preadv(files[path], [buffer], at)])

    with ThreadPoolExecutor(n) as pool:
        for _ in pool.map(work, range(n)):
            pass
    for number in files.values():
        os.close(number)


def convert_all(path: Path) -> None:
    """Have all tensors of a file turned into float32 by ggml, in all threads, and forget them."""
    with GGUFFile(path) as file, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        parts = []
        for t in file.tensors.values():
            rows = t.n_elements // t.shape[0]
            step = max(1, CONVERTED // t.shape[0])
            parts += [(t, start, min(rows, start + step)) for start in range(0, rows, step)]
        kept = local()

        def work(part: tuple[Tensor, int, int]) -> None:
            t, start, stop = part
            if not hasattr(kept, "memory"):
                kept.memory, kept.scratch = np.empty(CONVERTED, np.float32), Scratch()
            raw = read_raw_rows(file, t, start, stop, kept.scratch)
            n = (stop - start) * t.shape[0]
            if n <= CONVERTED:
                dequantize_rows(raw, t.ggml_type, kept.memory[:n].reshape(stop - start, -1))

        for _ in pool.map(work, parts):
            pass


def copy_in_memory() -> float:
    """Bytes a second that all cores together read when they copy large arrays."""
    n = os.cpu_count() or 1
    arrays: list[NDArray[np.uint8]] = [np.ones(1 << 26, np.uint8) for _ in range(2 * n)]
    best = float("inf")
    with ThreadPoolExecutor(n) as pool:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for _ in pool.map(np.copyto, arrays[:n], arrays[n:]):
                pass
            best = min(best, time.perf_counter() - started)
    return n * (1 << 26) / best


def measured(works: dict[str, Callable[[], object]]) -> dict[str, Cost]:
    """The least that each of several takes, in turns."""
    found: dict[str, list[Cost]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            gc.collect()
            clock, processors = time.perf_counter(), time.process_time()
            work()
            found[name].append((time.perf_counter() - clock, time.process_time() - processors))
    return {name: (min(c for c, _ in v), min(p for _, p in v)) for name, v in found.items()}


def show(title: str, paths: Sequence[Path], works: Mapping[str, Callable[[], object]]) -> None:
    """A table of one audit, beside what else can be done with the same bytes."""
    size = sum(path.stat().st_size for path in paths)
    costs = measured({"reading": lambda: read_all(paths, len), **works})
    clock, processors = costs["reading"]
    print(f"\n{title}, {size / 1e6:,.0f} MB\n")
    print(
        "| | seconds | GB/s | ratio to reading | ratio of processor time |\n|---|---|---|---|---|"
    )
    for name, (c, p) in costs.items():
        speed = f"{size / c / 1e9:.1f}"
        print(f"| {name} | {c:.3f} | {speed} | {c / clock:.2f} | {p / processors:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--ff", type=int, default=5632)
    args = parser.parse_args()
    print(f"All cores copy {copy_in_memory() / 1e9:.1f} GB/s in memory.")
    with tempfile.TemporaryDirectory() as folder:
        models = {name: Path(folder) / f"{name}.gguf" for name in TYPES}
        write_model(models["F16"], args.layers, args.width, args.ff, N_VOCAB)
        for name in TYPES[1:]:
            quantize(models["F16"], models[name], name)
        checkpoint = Path(folder) / "checkpoint"
        write_checkpoint(models["F16"], checkpoint)
        for name, path in models.items():
            hashing = partial(read_all, [path], lambda b: hashlib.sha256(b).digest())
            works = {"reading and SHA-256": hashing, "`audit --full`": partial(full, path)}
            show(name, [path], works)
        for name, path in models.items():
            paths = [path, checkpoint / "model.safetensors"]
            works = {"`audit --source`": partial(beside, path, checkpoint)}
            if name != "F16":
                works = {"reading and converting": partial(converted, paths), **works}
            show(f"{name} and its checkpoint", paths, works)


def converted(paths: Sequence[Path]) -> None:
    """Read files, and convert the first."""
    convert_all(paths[0])
    read_all(paths[1:], len)


def full(path: Path) -> None:
    """``audit --full``, which must find nothing wrong with any tensor."""
    found = ggufnorm.audit(path, full=True)
    assert not [f for f in found.findings if f.rule.startswith("N6")]
    assert {"N602", "N603"} <= set(found.summary.rules_run)


def beside(path: Path, checkpoint: Path) -> None:
    """``audit --source``, which must find every tensor to be the source's."""
    found = ggufnorm.audit(path, source=checkpoint)
    assert not [f for f in found.findings if f.rule.startswith("T") and f.severity != "info"]
    assert "T201" in found.summary.rules_run


if __name__ == "__main__":
    main()
