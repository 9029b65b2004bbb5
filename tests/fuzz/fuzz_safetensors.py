"""Feed damaged safetensors files to the reader of checkpoints.

python tests/fuzz/fuzz_safetensors.py --cases 100000 [--seed 0]
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
import sys
from collections.abc import Sequence

import numpy as np

from ggufnorm.errors import InputError
from ggufnorm.formats.safetensors import SafetensorsFile
from tests.checkpoints import safetensors
from tests.fuzz.fuzz_gguf import MemoryStorage
from tests.fuzz.harness import Fuzzer, damaged_bytes, damaged_json, json_bytes

_VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)

SEEDS = (
    safetensors({f"model.layers.{i}.{t}": (t, _VALUES) for i, t in enumerate(("F32", "BF16"))}),
    safetensors({"a": ("F16", _VALUES), "b": ("F64", _VALUES[0]), "c": ("F32", _VALUES[:0])}),
    safetensors({}),
)


def damage(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """A header that lies, or bytes gone wrong."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, data, seeds)
    n = struct.unpack("<Q", data[:8])[0]
    header = json_bytes(rng, damaged_json(rng, json.loads(data[8 : 8 + n])))
    length = rng.choice((len(header),) * 8 + (0, len(header) - 1, len(header) + 9, 2**63))
    return struct.pack("<Q", max(0, length)) + header + data[8 + n :]


def examine(data: bytes) -> None:
    """Read all that can be read."""
    file = SafetensorsFile(MemoryStorage(data))
    for name in file.places:
        with contextlib.suppress(InputError):
            values = file.read(name)
            assert values.shape == file.places[name].shape
            file.read(name, rows=1)
    with contextlib.suppress(InputError):
        file.read_many(file.places)


FUZZER = Fuzzer(SEEDS, damage, examine, 1 << 20)

if __name__ == "__main__":
    sys.exit(FUZZER.main(__doc__ or ""))
