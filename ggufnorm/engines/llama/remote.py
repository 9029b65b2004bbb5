"""A model in another build of llama.cpp, in a process of its own, as a runner of this one.

Two builds in one process would share symbols by their libraries' names, and one might call into
the other. So the other build runs in a child: frames (``frames.py``) say what to do and what was
met, and values lie in memory that both processes map.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np

from ggufnorm.core.plain import from_plain
from ggufnorm.core.rows import Rows
from ggufnorm.engines.base import (
    Array,
    Batch,
    Capabilities,
    EngineInfo,
    Graph,
    NormPlan,
    OnActivation,
    StatedNorm,
    Tokens,
    rows_of,
)
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.engines.llama.stated import stated_norm
from ggufnorm.engines.peer import Peer, Read, Write
from ggufnorm.engines.shared_memory import SharedMemory
from ggufnorm.formats.llama_libraries import VARIABLE
from ggufnorm.formats.model_file import ModelFile


@dataclass(frozen=True)
class Start:
    """The child's first frame.

    Attributes:
        path: of the model.
        options: how to run it; which build is among them.
    """

    path: str
    options: EngineOptions


@dataclass(frozen=True)
class Facts:
    """What a loaded model is."""

    n_vocab: int
    start: int | None
    info: EngineInfo
    capabilities: Capabilities


@dataclass(frozen=True)
class Planned:
    """What a planning pass learned, and how much memory the largest value takes."""

    graphs: tuple[Graph, ...]
    facts: Facts
    n_bytes: int


class RemoteActivation:
    """A value in the child; see :class:`~ggufnorm.engines.base.Activation`.

    Attributes:
        value: read-only, where both processes see it.
        is_replaced: whether the child is to go on with other values.
    """

    def __init__(self, memory: SharedMemory, shape: tuple[int, ...], batch: Batch) -> None:
        self._memory, self._batch = memory, batch
        self.value: Array = memory.array(shape)
        self.value.flags.writeable = False
        self.is_replaced = False

    def rows(self, stride: int = 1) -> Rows:
        """Its rows, of every ``stride``-th token."""
        return rows_of(self.value, self._batch).subsample(self._batch.chunk_start, stride)

    def replace(self, values: Array) -> None:
        """Go on with other values."""
        self._memory.array(self.value.shape)[...] = values
        self.is_replaced = True


class RemoteRunner:
    """A model in another build; see :class:`~ggufnorm.engines.base.Runner`. A context manager.

    Args:
        options: how to run it; ``llama_cpp`` names the build, None the one
            that is found where none is named.
        file: the model's.

    Raises:
        EngineError: the build does not load, or not the model.
    """

    def __init__(self, options: EngineOptions, file: ModelFile) -> None:
        self.file, self.path = file, file.path
        self.graphs: list[Graph] = []
        self.dtypes = {name: tensor.dtype for name, tensor in file.tensors.items()}
        self._memory = SharedMemory()
        build = {VARIABLE: options.llama_cpp}
        self._peer = Peer(serve, self._memory.name, build, self._memory.descriptors)
        try:
            self._facts: Facts = self._ask(Facts, Start(file.path, options))
        except BaseException:
            self._close()
            raise
        self.n_vocab, self.start = self._facts.n_vocab, self._facts.start

    def __enter__(self) -> RemoteRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._peer.end()
        self._memory.close()

    @property
    def info(self) -> EngineInfo:
        """Which llama.cpp, and how it runs the model."""
        return self._facts.info

    @property
    def capabilities(self) -> Capabilities:
        """It can be pinned; what needs ggml's tensors themselves is not for another process."""
        return replace(self._facts.capabilities, add=False)

    def stated(self, plan: NormPlan, output_key: str) -> StatedNorm:
        """What the file says of a norm."""
        return stated_norm(self.file, plan, output_key)

    def tokenize(self, text: str) -> Tokens:
        """Token ids of a text, by this build."""
        tokens: Tokens = self._call("tokenize", text=text)["tokens"]
        return tokens

    def piece(self, token: int) -> str:
        """The text of a token id."""
        return str(self._call("piece", token=token)["piece"])

    def batches(self, tokens: Tokens, first: int) -> list[Batch]:
        """Cut a chunk into batches, as this model wants them."""
        plain = self._call("batches", tokens=tokens, first=first)["batches"]
        return [from_plain(Batch, batch) for batch in plain]

    def plan(self, chunk: Sequence[Batch]) -> None:
        """Learn the graph of each of a chunk's batches."""
        found: Planned = self._ask(Planned, {"do": "plan", "chunk": list(chunk)})
        self.graphs, self._facts = list(found.graphs), found.facts
        self._memory.grow(found.n_bytes)

    def share_graphs(self, other: RemoteRunner) -> None:
        """Take over what another runner of the same model and options learned."""
        self._call("share", graphs=other.graphs)
        self.graphs, self._facts = other.graphs, other._facts
        self._memory.grow(other._memory.size)

    def vary(self, max_batch: int, *, alone: bool) -> None:
        """Plan and run otherwise; see :meth:`ggufnorm.engines.llama.runner.LlamaRunner.vary`."""
        self._call("vary", max_batch=max_batch, alone=alone)

    def begin_chunk(self) -> None:
        """Forget all tokens."""
        self._call("begin")

    def forward(self, k: int, batch: Batch, at: Sequence[int], on_activation: OnActivation) -> None:
        """Decode a batch; see :meth:`ggufnorm.engines.base.Runner.forward`."""
        said = self._call("forward", k=k, batch=batch, at=list(at))
        while "hook" in said:
            value = RemoteActivation(self._memory, tuple(said["shape"]), batch)
            goes_on = on_activation(said["hook"], value)
            said = self._call("go", goes_on=goes_on, is_replaced=value.is_replaced)

    def logits(self, k: int, batch: Batch, positions: range) -> Array:
        """Logits of the last batch, ``(positions, vocabulary)``: good until the next run."""
        span = [positions.start, positions.stop, positions.step]
        said = self._call("logits", k=k, batch=batch, span=span)
        # A copy: the memory is the next hook point's.
        return self._memory.array(tuple(said["shape"])).copy()

    def _call(self, what: str, **arguments: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self._peer.ask({"do": what, **arguments})
        return reply

    def _ask(self, kind: type[Any], message: Any) -> Any:
        return from_plain(kind, self._peer.ask(message))


# -- the child's side ----------------------------------------------------------------------------


def serve(read: Read, write: Write, memory: str) -> None:
    """Load the model that the first frame names, and do what the others say."""
    from ggufnorm.engines.llama.runner import LlamaRunner
    from ggufnorm.engines.llama.session import LlamaModel
    from ggufnorm.formats.location import open_model

    start = from_plain(Start, read())
    with (
        open_model(start.path) as file,
        LlamaModel(start.path, start.options) as model,
        LlamaRunner(model, start.options, file) as runner,
    ):
        server = _Server(runner, SharedMemory(memory), read, write)
        write(server.facts())
        while (message := read()) is not None:
            write(getattr(server, f"do_{message.pop('do')}")(**message))


class _Server:
    """Answers one message after the other."""

    def __init__(self, runner: Any, memory: SharedMemory, read: Read, write: Write) -> None:
        self.runner, self.memory, self.read, self.write = runner, memory, read, write

    def facts(self) -> Facts:
        r = self.runner
        return Facts(r.n_vocab, r.start, r.info, r.capabilities)

    def do_tokenize(self, text: str) -> Any:
        return {"tokens": self.runner.model.tokenize(text)}

    def do_piece(self, token: int) -> Any:
        return {"piece": self.runner.piece(token)}

    def do_batches(self, tokens: Tokens, first: int) -> Any:
        return {"batches": self.runner.batches(tokens, first)}

    def do_plan(self, chunk: list[Any]) -> Planned:
        self.runner.plan([from_plain(Batch, batch) for batch in chunk])
        return self._planned()

    def do_share(self, graphs: list[Any]) -> Any:
        self.runner.graphs = [from_plain(Graph, graph) for graph in graphs]
        self._planned()
        return {}

    def _planned(self) -> Planned:
        graphs = tuple(self.runner.graphs)
        nodes = [node for graph in graphs for node in graph.nodes]
        n_bytes = max(4 * int(np.prod(node.shape)) for node in nodes)
        self.memory.grow(n_bytes)
        return Planned(graphs, self.facts(), n_bytes)

    def do_vary(self, max_batch: int, alone: bool) -> Any:
        self.runner.vary(max_batch, alone=alone)
        return {}

    def do_begin(self) -> Any:
        self.runner.begin_chunk()
        return {}

    def do_forward(self, k: int, batch: Any, at: list[int]) -> Any:
        self.runner.forward(k, from_plain(Batch, batch), at, self._meet)
        return {}

    def _meet(self, n: int, value: Any) -> bool:
        values = value.value
        shared = self.memory.array(values.shape)
        shared[...] = values
        self.write({"hook": n, "shape": values.shape})
        answer = self.read()
        if answer is None:
            os._exit(1)  # the parent is gone
        if answer["is_replaced"]:
            value.replace(shared)
        return bool(answer["goes_on"])

    def do_logits(self, k: int, batch: Any, span: list[int]) -> Any:
        found = self.runner.logits(k, from_plain(Batch, batch), range(*span))
        self.memory.grow(found.nbytes)
        self.memory.array(found.shape)[...] = found
        return {"shape": found.shape}
