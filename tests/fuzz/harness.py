"""What the fuzzers have in common: damaged inputs, each read or refused in one line.

A case may end in a result or in a GgufnormError of one line; anything else, a second of the
processor's time or more memory than the reader may take is a failure.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ggufnorm.errors import GgufnormError

MAX_SECONDS = 1.0

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e150, 1e308, float("inf"), float("nan"), "", "a", "\0",
    "\ud800", "é" * 40, "x" * 5000, "F32", [], {}, [[]], [0, 2**62], {"": None},
)  # fmt: skip


@dataclass(frozen=True)
class Fuzzer:
    """A kind of input.

    Attributes:
        seeds: sound inputs.
        damage: makes one of them unsound.
        examine: reads all of an input.
        max_bytes: most memory of one case.
    """

    seeds: Sequence[Any]
    damage: Callable[[random.Random, Any, Sequence[Any]], bytes]
    examine: Callable[[bytes], None]
    max_bytes: int

    def cases(self, n: int, seed: int) -> Iterator[bytes]:
        """``n`` damaged inputs, the same ones for the same seed."""
        rng = random.Random(seed)
        for _ in range(n):
            yield self.damage(rng, rng.choice(self.seeds), self.seeds)

    def run(self, n: int, seed: int) -> Findings:
        """Examine ``n`` damaged inputs."""
        found = Findings()
        for case, data in enumerate(self.cases(n, seed)):
            self._examine(case, data, found)
        return found

    def _examine(self, case: int, data: bytes, found: Findings) -> None:
        tracemalloc.start()
        start = time.process_time()
        outcome, why = "read", ""
        try:
            self.examine(data)
        except GgufnormError as error:
            outcome = "refused"
            if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
                why = f"the message is no short line: {str(error)[:200]!r}"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:300]
        seconds = time.process_time() - start
        n_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if seconds > MAX_SECONDS:
            why = f"took {seconds:.1f} s"
        elif n_bytes > self.max_bytes:
            why = f"took {n_bytes:,} bytes"
        if why:
            outcome = "failed"
            found.failures.append((case, why, data))
        found.tally[outcome] += 1
        found.seconds = max(found.seconds, seconds)
        found.n_bytes = max(found.n_bytes, n_bytes)

    def main(self, description: str) -> int:
        """Run as a program; the exit code."""
        parser = argparse.ArgumentParser(description=description.partition("\n")[0])
        parser.add_argument("--cases", type=int, default=100_000)
        parser.add_argument("--seed", type=int, default=0)
        arguments = parser.parse_args()
        faulthandler.dump_traceback_later(60 + arguments.cases // 20, exit=True)
        found = self.run(arguments.cases, arguments.seed)
        lines = [f"{sum(found.tally.values()):,} cases of seed {arguments.seed}"]
        lines += [f"{count:>9,}  {outcome}" for outcome, count in found.tally.most_common()]
        lines += [f"{len(found.failures):>9,}  failures"]
        lines += [f"slowest {found.seconds * 1e3:.1f} ms, most memory {found.n_bytes:,} bytes"]
        lines += [f"case {n}: {why}\n  {data[:2000]!r}" for n, why, data in found.failures[:5]]
        sys.stdout.write("\n".join(lines) + "\n")
        return 1 if found.failures else 0


@dataclass
class Findings:
    """How the cases ended.

    Attributes:
        tally: how many ended which way.
        failures: (case, what went wrong, the input) of each that did not end as it should.
        seconds: of the slowest case, as the processor counts them.
        n_bytes: most memory that one case took.
    """

    tally: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    n_bytes: int = 0


def damaged_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bits flipped, bytes set, the end cut off, a piece of another input put in."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(4)
        at = rng.randrange(len(made)) if made else 0
        if kind == 0 and made:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and made:
            width = rng.choice((1, 4, 8))
            made[at : at + width] = rng.choice((0, 1, 255, 1 << 20, -1)).to_bytes(
                9, "little", signed=True
            )[:width]
        elif kind == 2:
            del made[at:]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            made[at : at + rng.randint(0, 64)] = other[start : start + rng.randint(0, 64)]
    return bytes(made)


def damaged_json(rng: random.Random, document: Any) -> Any:
    """A copy with nasty values, lost and added entries, things where others belong."""
    made = json.loads(json.dumps(document))
    places = list(_places(made))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        try:
            if kind == 0:
                del holder[key]
            elif kind == 1:
                other, its = rng.choice(places)
                holder[key] = copy.deepcopy(other[its])
            elif kind == 2 and isinstance(holder, dict):
                holder[rng.choice(("", "x" * 5000, "\ud800", "new"))] = holder.pop(key)
            else:
                holder[key] = rng.choice(NASTY)
        except (KeyError, IndexError):
            continue  # an earlier damage has taken it away
    return made


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """As text, now and then with more nesting or longer numbers than a parser takes."""
    text = json.dumps(value)
    if rng.random() < 0.01:
        text = text.replace("1", rng.choice(("9" * 5000, "[" * 2000, "-", "1e999")), 1)
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)
