"""An engine that shows a run whole (Transformers, ONNX Runtime) as a runner.

Its hook points bear the norms' names, ``{norm} (input)`` and ``{norm}``, and each block is one
by what leaves it. So a run compares with another one of its engine: two versions of a model,
another machine's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ggufnorm.core.drift import SideFacts
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedNorm, ObservedRun
from ggufnorm.core.rows import Rows
from ggufnorm.core.trace import NetworkFacts
from ggufnorm.engines.base import (
    Array,
    Batch,
    Capabilities,
    EngineInfo,
    Graph,
    HookPoint,
    Node,
    NormPlan,
    OnActivation,
    OperationRole,
    StatedNorm,
    Tokens,
    rows_of,
)
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.errors import InputError

_LAYER = re.compile(r"[./](\d+)(?=[./]|$)")
_PLAIN = SideFacts("off", "f32", "f32", use_extra_bufts=False, unfused_norms=False)

Value = tuple[str, OperationRole, Array]
"""Key, role and value of a hook point, the value ``(tokens, heads, channels)``."""


class ObservedActivation:
    """A value of a finished run; see :class:`~ggufnorm.engines.base.Activation`."""

    def __init__(self, value: Array, batch: Batch) -> None:
        self.value, self._batch = value, batch

    def rows(self, stride: int = 1) -> Rows:
        """Its rows, of every ``stride``-th token."""
        return rows_of(self.value, self._batch).subsample(self._batch.chunk_start, stride)

    def replace(self, values: Array) -> None:
        """The run is over: nothing goes on."""


class ObservedRunner:
    """A model whose norms are shown whole, chunk by chunk.

    Args:
        path: what messages call it.
        run: runs the ids of a chunk.
        architecture: what two runs must share, beside the vocabulary.
        n_threads: CPU threads.
        tokenizer: None for none.
        n_vocab: tokens in the vocabulary, for a model without logits.
    """

    def __init__(
        self,
        path: str,
        run: Callable[[Tokens], ObservedRun],
        *,
        architecture: str,
        n_threads: int,
        tokenizer: Tokenizer | None,
        n_vocab: Callable[[], int],
    ) -> None:
        self.path, self.graphs, self.dtypes, self.start = path, [], {}, None
        self.n_vocab = 0
        self._run, self._architecture, self._n_threads = run, architecture, n_threads
        self._tokenizer, self._count_vocab = tokenizer, n_vocab
        self._stated: dict[str, StatedNorm] = {}
        self._chunk: tuple[Batch, ObservedRun] | None = None

    graphs: list[Graph]
    dtypes: dict[str, str]
    start: int | None

    @property
    def info(self) -> EngineInfo:
        """Which engine ran it."""
        return EngineInfo(self._planned.engine, _PLAIN, self._n_threads, 0)

    @property
    def capabilities(self) -> Capabilities:
        """It shows values, and logits if the model predicts."""
        logits = self._planned.logits is not None
        return Capabilities(pin=False, add=False, predicts=logits, logits=logits, weights=False)

    def stated(self, plan: NormPlan, output_key: str) -> StatedNorm:
        """What the model's code or file says of a norm."""
        return self._stated[plan.key]

    def piece(self, token: int) -> str:
        """The text of a token id."""
        return "" if self._tokenizer is None else self._tokenizer.piece(token)

    def network(self) -> NetworkFacts:
        """What another run must share to be compared, once it is planned."""
        residuals = self._planned.residuals
        return NetworkFacts(
            architecture=self._architecture,
            n_layers=len(residuals) or None,
            n_embd=residuals[0].value.shape[-1] if residuals else None,
            n_vocab=self.n_vocab,
            vocabulary="" if self._tokenizer is None else self._tokenizer.vocabulary(),
        )

    def batches(self, tokens: Tokens, first: int) -> list[Batch]:
        """A chunk is one batch, and its second half is scored."""
        half = len(tokens) // 2
        return [Batch(tokens, 0, len(tokens), tokens[half + 1 :], first, first, first + half)]

    def plan(self, chunk: Sequence[Batch]) -> None:
        """Run a chunk, and learn what it shows."""
        (batch,) = chunk
        run = self._planned = self._observed(batch)
        self.graphs = [_graph(run, len(batch.tokens))]
        self.dtypes = {n.weight_name: "F32" for n in run.norms if n.weight_name}
        self._stated = {
            _key(n): StatedNorm(_layer(n.name), _role(n), n.epsilon_stated) for n in run.norms
        }
        self.n_vocab = self._count_vocab() if run.logits is None else run.logits.shape[1]

    def begin_chunk(self) -> None:
        """Every chunk starts afresh."""

    def forward(self, k: int, batch: Batch, at: Sequence[int], on_activation: OnActivation) -> None:
        """Run a chunk, then show its values; see :meth:`ggufnorm.engines.base.Runner.forward`."""
        values = list(_values(self._observed(batch)))
        for n, hook in enumerate(at):
            value = np.asarray(values[hook][2], np.float32)
            if not on_activation(n, ObservedActivation(value, batch)):
                return

    def logits(self, k: int, batch: Batch, positions: range) -> Array:
        """Logits of the last chunk, ``(positions, vocabulary)``."""
        found = self._observed(batch).logits
        assert found is not None
        return found[np.asarray(positions, np.intp) - batch.chunk_start]

    def _observed(self, batch: Batch) -> ObservedRun:
        """The chunk's run; the last one is kept."""
        if self._chunk is None or self._chunk[0].first != batch.first:
            self._chunk = None  # frees its values first
            run = _by_token(self._run(batch.tokens), len(batch.tokens))
            self._chunk = batch, run
        return self._chunk[1]


def require_vocabulary(runner: ObservedRunner, tokens: Tokens) -> None:
    """Refuse ids that the model does not have.

    Raises:
        InputError: there is one.
    """
    if len(tokens) and int(tokens.max()) >= runner.n_vocab:
        raise InputError(
            f"{runner.path}: token {int(tokens.max())} is not in its vocabulary of {runner.n_vocab}"
        )


def _by_token(run: ObservedRun, n_tokens: int) -> ObservedRun:
    """The run with the norms that have rows for each token, no two of one name."""
    good = [n for n in run.norms if n.x.shape[0] == n_tokens]
    skipped = [
        Skipped(n.name, f"its rows are {n.x.shape[0]} and not the tokens")
        for n in run.norms
        if n.x.shape[0] != n_tokens
    ]
    seen: Counter[str] = Counter()
    norms = []
    for norm in good:
        k = seen[norm.name]
        seen[norm.name] += 1
        norms.append(replace(norm, name=f"{norm.name}@{k}") if k else norm)
    return replace(run, norms=tuple(norms), skipped=(*run.skipped, *skipped))


def _values(run: ObservedRun) -> Iterator[Value]:
    """All values, in the order of the run."""
    left = list(run.residuals)
    for i, norm in enumerate(run.norms):
        while left and left[0].n_norms <= i:
            yield left[0].name, "residual", left.pop(0).value
        yield _input_key(norm), "norm_input", norm.x
        yield norm.name, "norm", norm.y
    for residual in left:
        yield residual.name, "residual", residual.value


def _graph(run: ObservedRun, n_tokens: int) -> Graph:
    weights = {n.name: n.weight_name for n in run.norms}
    values = list(_values(run))
    at = {key: i for i, (key, _role, _value) in enumerate(values)}
    nodes, hooks = [], []
    for i, (key, role, value) in enumerate(values):
        op = "module" if role == "residual" else "norm"
        _tokens, heads, channels = value.shape
        shape = (channels, heads, n_tokens, 1)
        nodes.append(Node(i, key, key, op, "F32", shape, b"", (), ()))
        hooks.append(HookPoint(i, key, op, role, weights.get(key), _layer(key), pin=False))
    norms = [
        NormPlan(
            key=_key(n),
            kind=n.formula.kind,
            epsilon=n.formula.epsilon,
            groups=n.formula.groups,
            input=at[_input_key(n)],
            norm=at[n.name],
            output=at[n.name],
            weight=n.weight_name,
            weight_shape=(),
            bias=n.bias_name,
            bias_shape=(),
        )
        for n in run.norms
    ]
    return Graph(tuple(nodes), tuple(norms), tuple(hooks), run.skipped)


def _key(norm: ObservedNorm) -> str:
    return norm.weight_name or norm.name


def _input_key(norm: ObservedNorm) -> str:
    return f"{norm.name} (input)"


def _role(norm: ObservedNorm) -> str:
    return norm.name.removesuffix(".weight").rpartition(".")[2]


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None
