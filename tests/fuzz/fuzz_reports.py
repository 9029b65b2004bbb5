"""Feed damaged JSON documents to ``ggufnorm.load``.

python tests/fuzz/fuzz_reports.py --cases 100000 [--seed 0]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

from ggufnorm.core.drift import DriftSet
from ggufnorm.errors import InputError
from ggufnorm.report.document import document, from_json, to_json
from tests import results
from tests.fuzz.harness import Fuzzer, damaged_bytes, damaged_json, json_bytes

_DRIFT = results.drift_report(1)
_RESULTS = results.one_of_each() | {
    "ggufnorm/drift": _DRIFT,
    "ggufnorm/drift-set": DriftSet((_DRIFT,)),
}
SEEDS = tuple(document(result) for result in _RESULTS.values())


def damage(rng: random.Random, seed: Any, seeds: Sequence[Any]) -> bytes:
    """A document that says something else, or bytes gone wrong."""
    if rng.random() < 0.1:
        return damaged_bytes(rng, json_bytes(rng, seed), [json_bytes(rng, rng.choice(seeds))])
    return json_bytes(rng, damaged_json(rng, seed))


def examine(data: bytes) -> None:
    """Read a document; what was read must be written as a document that is read alike."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InputError("not UTF-8") from None  # as ggufnorm.load says
    result = from_json(text, "r.json")
    assert from_json(to_json(result), "r.json") == result


FUZZER = Fuzzer(SEEDS, damage, examine, 1 << 23)

if __name__ == "__main__":
    sys.exit(FUZZER.main(__doc__ or ""))
