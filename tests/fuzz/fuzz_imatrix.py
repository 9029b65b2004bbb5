"""Feed damaged importance matrices, GGUF and legacy, to their reader.

python tests/fuzz/fuzz_imatrix.py --cases 100000 [--seed 0]
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ggufnorm.formats.imatrix import read_imatrix
from tests.fuzz.fuzz_gguf import STRING, draft
from tests.fuzz.harness import Fuzzer, damaged_bytes

_PATH = Path(tempfile.mkdtemp()) / "i.dat"


def _gguf(experts: int) -> bytes:
    tensors, data = [], b""
    for name in ("blk.0.ffn_up.weight", "blk.0.attn_q.weight"):
        for part, shape in ((".in_sum2", (8, experts)), (".counts", (1, experts))):
            tensors.append((name + part, shape, 0, len(data)))
            values = np.ones(shape[0] * shape[1], np.float32).tobytes()
            data += values + bytes(-len(values) % 32)
    made = draft([("general.type", STRING, "imatrix")], tensors, data=data)
    return bytes(made.data)


def _legacy() -> bytes:
    data = struct.pack("<i", 2)
    for name in (b"blk.0.ffn_up.weight", b"output.weight"):
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", 3, 8)
        data += np.arange(8, dtype=np.float32).tobytes()
    return data + struct.pack("<i", 3) + struct.pack("<i", 4) + b"text"


SEEDS = (_gguf(1), _gguf(4), _legacy())


def damage(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Bytes gone wrong, of a GGUF file behind its magic number most of the time."""
    kept = rng.choice((0, 4, 4, 24)) if data[:4] == b"GGUF" else 0
    return data[:kept] + damaged_bytes(rng, data[kept:], seeds)


def examine(data: bytes) -> None:
    """Read all weights."""
    _PATH.write_bytes(data)
    for values in read_imatrix(_PATH).values():
        assert values.ndim == 1
        assert np.isfinite(values).all()
        assert (values >= 0).all()


FUZZER = Fuzzer(SEEDS, damage, examine, 1 << 21)

if __name__ == "__main__":
    sys.exit(FUZZER.main(__doc__ or ""))
