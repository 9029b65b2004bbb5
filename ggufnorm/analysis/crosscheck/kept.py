"""One run of llama.cpp whose norms' rows go to a file, which its parent reads."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.engine import Engine
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import Array, by_token
from ggufnorm.core.trace import NormFacts
from ggufnorm.engines.base import Activation, Batch, Runner
from ggufnorm.engines.row_file import Place, RowFile
from ggufnorm.runs.values import norm_facts


@dataclass(frozen=True)
class KeptRun:
    """One run, with every row of every norm.

    Attributes:
        engine: that ran it, with its version.
        norms: in graph order.
        places: of the norms' inputs and outputs, ``(ne[3], ne[2], ne[1], ne[0])``, in the
            file, by the node's key.
        skipped: norms that were not observed, and why.
        build: which llama.cpp ran it, and where.
    """

    engine: str
    norms: tuple[NormFacts, ...]
    places: dict[str, Place]
    skipped: tuple[Skipped, ...]
    build: Engine | None = None


def keep_norms(runner: Runner, rows: RowFile, *batches: Batch) -> KeptRun:
    """Run a planned model's batches, and write the inputs and results of its norms to a file."""
    norms: list[NormFacts] = []
    places: dict[str, Place] = {}
    runner.begin_chunk()
    for k, (graph, batch) in enumerate(zip(runner.graphs, batches, strict=True)):
        keys = {i: graph.nodes[i].key for n in graph.norms for i in (n.input, n.output)}
        norms += [norm_facts(runner, n, keys[n.input], keys[n.output]) for n in graph.norms]
        at = sorted(keys)
        names = [keys[i] for i in at]

        def keep(n: int, value: Activation, names: list[str] = names) -> bool:
            places[names[n]] = rows.put(value.value)
            return True

        runner.forward(k, batch, at, keep)
    return KeptRun(
        engine=runner.info.engine,
        norms=tuple(norms),
        places=places,
        skipped=tuple(s for graph in runner.graphs for s in graph.skipped),
        build=runner.info.build,
    )


@dataclass(frozen=True)
class ByToken:
    """A node's value as ``(tokens, heads, channels)``, read anew at each call.

    Raises:
        ValueError: it has no axis of tokens.
    """

    file: RowFile
    place: Place
    n_tokens: int
    channels: int

    def __call__(self) -> Array:
        """The value."""
        return by_token(self.file.get(self.place), self.n_tokens, self.channels)
