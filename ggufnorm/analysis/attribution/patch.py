"""Runs of a model with the values of some nodes changed, several at once.

Copies of a chunk run side by side as sequences of one decode, each with other values put
in or added. Where a model cannot do that, or does not give the same that way, each runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from ggufnorm.engines.base import Activation, Array, Batch, Graph
from ggufnorm.engines.llama.binding import is_contiguous
from ggufnorm.engines.llama.runner import LlamaRunner, operand
from ggufnorm.errors import EngineError

Values = Sequence[Mapping[str, Array]]
"""For each batch of a chunk, values by the keys of the hook points that they are for."""

MOST_TOKENS = 2048
"""Tokens of all copies together: more gain nothing, and the activations take memory."""
MOST_SEQUENCES = 8
_MOST_LOGITS = 1 << 27
"""Logits of all copies together: 512 MiB."""
_NOISE = 1e-4
"""Largest difference of a logit, relative to the largest logit, that passes as rounding."""
_DECODE_COST = 0.5
"""What a decode costs besides its sequences, in sequences."""


def most_side_by_side(n_ctx: int, n_vocab: int) -> int:
    """How many copies of a chunk may run at once, by tokens and by memory for logits."""
    by_logits = _MOST_LOGITS // max(1, n_ctx // 2 * n_vocab)
    return max(1, min(MOST_SEQUENCES, MOST_TOKENS // n_ctx, by_logits))


def side_by_side(n_runs: int, most: int) -> int:
    """How many of ``n_runs`` to run at once: few decodes, few places left empty."""
    return min(
        range(1, max(1, min(n_runs, most)) + 1),
        key=lambda n: (-(-n_runs // n) * (n + _DECODE_COST), -n),
    )


class Patcher:
    """A context for patched runs of a model.

    Args:
        single: a runner of the same model that has decoded ``chunk`` last, to be checked
            against.
        chunk: whose graphs are learnt.
        n_seq: how many runs to make at once.
        stack: closes the context.
        put: what is done with a node, the values of a patch, the sequence's number and how
            many there are: :func:`~ggufnorm.engines.llama.binding.write_node` or
            :func:`~ggufnorm.engines.llama.binding.add_to_node`.
    """

    def __init__(
        self,
        single: LlamaRunner,
        chunk: Sequence[Batch],
        n_seq: int,
        stack: ExitStack,
        put: Callable[[int, Array, int, int], None],
    ) -> None:
        self._put = put
        n_seq = n_seq if single.capabilities.add else 1
        self.runner = self._copies(single, chunk, n_seq, stack)
        if n_seq > 1 and not self._agrees(single, chunk[-1]):
            self.runner = self._copies(single, chunk, 1, stack)
        self.n_seq = self.runner.context.n_seq
        self._at = [{h.key: h.index for h in graph.hooks} for graph in self.runner.graphs]

    @staticmethod
    def _copies(
        single: LlamaRunner, chunk: Sequence[Batch], n_seq: int, stack: ExitStack
    ) -> LlamaRunner:
        runner = LlamaRunner(single.model, single.options, single.file, n_seq)
        stack.enter_context(runner)
        runner.plan(chunk)
        if n_seq > 1:  # its logits are held against those of the run alone
            runner.decode(chunk)
        return runner

    def _agrees(self, single: LlamaRunner, last: Batch) -> bool:
        """Whether every copy gave what the run alone gave, and every hook point has its place."""
        n_seq = self.runner.context.n_seq
        for graph, copies in zip(single.graphs, self.runner.graphs, strict=True):
            sizes, found = _sizes(graph), _sizes(copies)
            if any(found.get(key) != n_seq * size for key, size in sizes.items()):
                return False
        (alone,), together = single.all_logits(last), self.runner.all_logits(last)
        with np.errstate(invalid="ignore"):
            off = np.abs(together - alone).max()
        return bool(off <= _NOISE * np.abs(alone).max())

    def run(self, batches: Sequence[Batch], patches: Sequence[Values]) -> list[list[Array]]:
        """Decode a chunk once for all patches.

        Args:
            batches: of the chunk.
            patches: at most ``n_seq`` of them.

        Returns:
            For each patch, each batch's logits where a token follows, ``(positions, vocabulary)``.

        Raises:
            EngineError: the decode failed, or a value cannot be put in.
        """
        self.runner.begin_chunk()
        found: list[list[Array]] = [[] for _ in patches]
        for k, batch in enumerate(batches):
            self._decode(k, batch, [values[k] for values in patches])
            n = len(batch.following)
            if n == 0:
                for of_patch in found:
                    of_patch.append(np.empty((0, 0), np.float32))
                continue
            for of_patch, logits in zip(found, self.runner.all_logits(batch), strict=False):
                of_patch.append(logits[:n].copy())
        return found

    def _decode(self, k: int, batch: Batch, patches: Sequence[Mapping[str, Array]]) -> None:
        at = self._at[k]
        keys = sorted({key for patch in patches for key in patch}, key=at.__getitem__)

        def on_activation(i: int, value: Activation) -> bool:
            address = operand(value).address
            if not is_contiguous(address):
                raise EngineError(f"{keys[i]} has gaps between its values: it cannot be changed")
            for sequence, patch in enumerate(patches):
                if keys[i] in patch:
                    self._put(address, patch[keys[i]], sequence, self.n_seq)
            return True

        self.runner.forward(k, batch, [at[key] for key in keys], on_activation)


def _sizes(graph: Graph) -> dict[str, int]:
    """Number of values at each hook point that can be replaced."""
    return {h.key: int(np.prod(graph.nodes[h.index].shape)) for h in graph.hooks if h.pin}
