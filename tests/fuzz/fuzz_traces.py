"""Feed damaged traces to their reader.

python tests/fuzz/fuzz_traces.py --cases 100000 [--seed 0]
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ggufnorm.core.model import Skipped
from ggufnorm.core.trace import BatchFacts, NetworkFacts, NormFacts, StopFacts, TraceFacts
from ggufnorm.engines.trace import layout
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.formats.safetensors_header import pack_header
from tests import results
from tests.fuzz.harness import Fuzzer, damaged_bytes, damaged_json, json_bytes

_PATH = Path(tempfile.mkdtemp()) / "t.safetensors"


def _stop(key: str, channels: int) -> StopFacts:
    return StopFacts(key, "NORM", "norm", "w", "F32", 0, (channels, 4, 1, 1), 0, 4, 1, channels)


def _facts(stride: int, logits: bool) -> TraceFacts:
    stops = (_stop("inp", 6), _stop("norm-0", 6), *((_stop("result_output", 5),) * logits))
    norm = NormFacts("w", "rms", 1e-5, None, 0, "attn", None, "w", None, "inp", "norm-0")
    drift = results.drift_report()
    return TraceFacts(
        model=drift.reference,
        network=NetworkFacts("llama", 1, 6, 5, "00"),
        engine="llama.cpp",
        options=drift.run.reference,
        n_threads=1,
        n_gpu_layers=0,
        text="text",
        n_text_tokens=8,
        n_ctx=4,
        n_chunks=2,
        start=None,
        stride=stride,
        dtype="f32",
        n_vocab=5,
        predicts=True,
        logits=True,
        batches=(BatchFacts(1, 2, stops, (norm,)),),
        skipped=(Skipped("x", "y"),),
        pieces={"0": "a", "4": "é"},
    )


def _written(facts: TraceFacts) -> bytes:
    entries = layout.entries(facts)
    data = pack_header(entries, layout.metadata(facts))
    for name, entry in entries.items():
        n = entry.n_bytes // entry.numpy_dtype.itemsize
        tokens = name == layout.TOKENS
        data += (np.arange(n) % (5 if tokens else 97)).astype(entry.numpy_dtype).tobytes()
    return data


SEEDS = tuple(
    _written(facts)
    for facts in (_facts(1, True), _facts(2, False), replace(_facts(1, False), dtype="f16"))
)


def damage(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """A description that lies, a header that lies, or bytes gone wrong."""
    if rng.random() < 0.2:
        return damaged_bytes(rng, data, seeds)
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    if rng.random() < 0.8:
        facts = json.loads(header["__metadata__"]["trace"])
        text = json_bytes(rng, damaged_json(rng, facts))
        header["__metadata__"]["trace"] = text.decode("utf-8", "replace")
    else:
        header = damaged_json(rng, header)
    made = json_bytes(rng, header)
    return struct.pack("<Q", len(made)) + made + data[8 + n :]


def examine(data: bytes) -> None:
    """Read every value."""
    _PATH.write_bytes(data)
    with Trace(_PATH) as trace:
        f = trace.facts
        for chunk in range(f.n_chunks):
            for i, batch in enumerate(f.batches):
                for k in range(len(batch.stops)):
                    trace.rows(i, k, chunk, f.stride)
                if batch.n_scored:
                    trace.logits(i, chunk, f.stride)
        for token in range(len(trace.tokens)):
            trace.piece(token)


FUZZER = Fuzzer(SEEDS, damage, examine, 1 << 22)

if __name__ == "__main__":
    sys.exit(FUZZER.main(__doc__ or ""))
