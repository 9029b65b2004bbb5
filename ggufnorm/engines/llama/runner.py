"""A model in llama.cpp as a runner: its batches, its graph, its values at hook points."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.drift import SideFacts
from ggufnorm.core.engine import Engine, placement_of
from ggufnorm.core.rows import Rows
from ggufnorm.engines.base import (
    Activation,
    Array,
    Batch,
    Capabilities,
    EngineInfo,
    Graph,
    NormPlan,
    OnActivation,
    StatedNorm,
    Tokens,
    predicts,
    rows_of,
    tokens_of,
)
from ggufnorm.engines.llama.binding import (
    NodeView,
    build,
    copy_node,
    is_contiguous,
    is_host,
    read_integers,
    read_node,
    shape_of,
    view_node,
    write_node,
    write_with_gaps,
)
from ggufnorm.engines.llama.devices import as_words, find_devices, used_devices
from ggufnorm.engines.llama.places import Region, copy_there
from ggufnorm.engines.llama.session import EngineOptions, LlamaContext, LlamaModel
from ggufnorm.engines.llama.stated import stated_norm
from ggufnorm.engines.llama.stretch import Layers
from ggufnorm.engines.llama.watch import GraphWatch
from ggufnorm.errors import RefusedError
from ggufnorm.formats.model_file import ModelFile

Enter = Callable[[int, int], Array]
"""What enters a range of layers: ``(batch of its chunk, number of the chunk's first token)``."""


class LlamaActivation:
    """A just-computed node of llama.cpp's graph; see :class:`~ggufnorm.engines.base.Activation`.

    Attributes:
        address: of ggml's tensor.
    """

    def __init__(self, address: int, batch: Batch) -> None:
        self.address, self._batch = address, batch

    @functools.cached_property
    def value(self) -> Array:
        """Where it lies, read-only."""
        return view_node(self.address)

    def rows(self, stride: int = 1) -> Rows:
        """Its rows, of every ``stride``-th token."""
        return rows_of(self.value, self._batch).subsample(self._batch.chunk_start, stride)

    @property
    def is_here(self) -> bool:
        """Whether it lies in memory that NumPy reads."""
        return is_host(self.address)

    def replace(self, values: Array) -> None:
        """Go on with other values."""
        if is_contiguous(self.address):
            write_node(self.address, values)
        else:
            write_with_gaps(self.address, values)

    def region(self, part: range | None = None) -> Region | None:
        """Where it lies on its device, or the values of some of its batch's tokens there.

        Args:
            part: their numbers in the batch; None for all.

        Returns:
            None where they are not F32.
        """
        found = Region.of(self.address)
        if found is None or part is None:
            return found
        axis = self.shape.index(tokens_of(self.shape, self._batch)[0])
        return found.part(len(self.shape) - 1 - axis, part.start, len(part))

    @property
    def shape(self) -> tuple[int, ...]:
        """``(ne[3], ne[2], ne[1], ne[0])``."""
        return shape_of(self.address)

    @property
    def batch(self) -> Batch:
        """That gave it."""
        return self._batch

    def product(self) -> tuple[tuple[int, ...], Array, NDArray[np.int32] | None]:
        """Of a matrix product: the weight's shape, the input, and the experts' numbers.

        Returns:
            ggml's ``ne`` of the weight; ``(ne[3], ne[2], ne[1], ne[0])`` of the input; the same
            of the chosen experts' numbers, None where there are none.
        """
        weight, x, *ids = NodeView.at(self.address).sources
        chosen = read_integers(ids[0]) if ids else None
        return NodeView.at(weight).shape, read_node(x), chosen

    def experts(self) -> tuple[int, Region | None]:
        """Of a product with stacked experts: how many there are, and where their numbers lie.

        ``ggml_mul_mat_id`` in ggml/include/ggml.h: the weight is ``(in, out, experts)``, the
        numbers are ``(experts of a token, tokens)``.
        """
        weight, _x, ids = NodeView.at(self.address).sources
        _in, _out, *stacked = NodeView.at(weight).shape
        return stacked[0] if stacked else 1, Region.of(ids)


class LlamaRunner:
    """A model in llama.cpp. A context manager; see :class:`~ggufnorm.engines.base.Runner`.

    Args:
        model: the loaded weights.
        options: how to run them.
        file: that they were loaded from.
        n_seq: how many copies of each batch run side by side, each a sequence of its own.

    Raises:
        EngineError: llama.cpp cannot make the context.
    """

    def __init__(
        self, model: LlamaModel, options: EngineOptions, file: ModelFile, n_seq: int = 1
    ) -> None:
        self.model, self.options, self.file, self.path = model, options, file, model.path
        self.graphs: list[Graph] = []
        self.dtypes = {name: tensor.dtype for name, tensor in file.tensors.items()}
        self.n_vocab, self.start = model.n_vocab, start_token(model)
        tensors = frozenset(file.tensors)
        self._watch = GraphWatch(model.path, tensors, unfused_norms=options.unfused_norms)
        self.context = LlamaContext(model, options, self._watch.on_eval, n_seq)
        self._max_batch = self.context.max_batch
        self._enter: Enter | None = None

    def __enter__(self) -> LlamaRunner:
        self.context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.context.__exit__(kind, error, trace)

    @property
    def info(self) -> EngineInfo:
        """Which llama.cpp, and how it runs the model."""
        o = self.options
        engine = engine_of(o, self._watch)
        return EngineInfo(build().name, side_facts(o), o.n_threads, o.n_gpu_layers, engine)

    @property
    def capabilities(self) -> Capabilities:
        """What this model can do here."""
        logits = bool(self.graphs) and predicts(self.graphs[-1])
        add = self.model.attends_only
        return Capabilities(pin=True, add=add, predicts=logits, logits=logits, weights=True)

    def stated(self, plan: NormPlan, output_key: str) -> StatedNorm:
        """What the file says of a norm."""
        return stated_norm(self.file, plan, output_key)

    def piece(self, token: int) -> str:
        """The text of a token id."""
        return self.model.piece(token)

    def batches(self, tokens: Tokens, first: int) -> list[Batch]:
        """Cut a chunk into batches; see :func:`cut_chunk`."""
        return cut_chunk(self.model, tokens, first, self._max_batch)

    def vary(self, max_batch: int, *, alone: bool) -> None:
        """Plan and run otherwise from now on.

        Args:
            max_batch: most tokens in one batch, up to what the context was made for.
            alone: make every operation a hook point, so that none is fused with another.
        """
        self._max_batch = min(max_batch, self.context.max_batch)
        self._watch.alone = alone

    def restrict(self, layers: Layers, enter: Enter | None = None) -> None:
        """Compute a range of layers alone, from the next plan on.

        Args:
            layers: the first and the last.
            enter: what the range before ended with; None where the range is the first.

        Raises:
            RefusedError: the model has two stacks of layers.
        """
        if self.model.has_encoder:
            raise RefusedError(
                f"{self.path} has layers in an encoder and in a decoder: a range (--layers) is for"
                " one stack of them"
            )
        n_layers = self.file.metadata.integer(f"{self.file.architecture}.block_count") or 0
        self._watch.layers = layers, n_layers
        self._enter = enter

    @property
    def ends_early(self) -> bool:
        """Whether there are layers behind those that are computed."""
        return self._watch.ends_early

    def plan(self, chunk: Sequence[Batch]) -> None:
        """Learn the graph of each of a chunk's batches; on the CPU nothing is computed for it."""
        self.begin_chunk()
        self.graphs.clear()
        # Experts' weights that are sent to a device are chosen by the numbers that their router
        # computed (ggml_backend_sched_compute_splits): there, they have to be right.
        compute = self.options.n_gpu_layers != 0 and self._watch.layers is None
        for batch in chunk:
            self._learn(batch, compute=compute)

    def _learn(self, batch: Batch, *, compute: bool) -> None:
        """Decode a batch and learn its graph."""
        decode = functools.partial(self.context.decode, batch)
        prefix = "enc." if batch.encode else ""
        self.graphs.append(self._watch.plan(decode, prefix, compute=compute))

    def begin_chunk(self) -> None:
        """Forget all tokens."""
        self.context.clear()

    def decode(self, chunk: Sequence[Batch]) -> None:
        """Decode a chunk whose graphs are planned, and observe nothing."""
        self.begin_chunk()
        for k, batch in enumerate(chunk):
            self.forward(k, batch, (), lambda _n, _value: True)

    def forward(self, k: int, batch: Batch, at: Sequence[int], on_activation: OnActivation) -> None:
        """Decode a batch; see :meth:`ggufnorm.engines.base.Runner.forward`.

        Where nothing is to be observed, a graph that was not planned is learned on the way.
        """
        if not at and k == len(self.graphs):
            self._learn(batch, compute=True)
            return
        entry = self._watch.entry_of(self.graphs[k])

        def on_node(n: int, address: int) -> bool:
            value = LlamaActivation(address, batch)
            if at[n] == entry:
                assert self._enter is not None
                value.replace(self._enter(k, batch.chunk_start).reshape(value.value.shape))
                value = LlamaActivation(address, batch)  # the other may have read what was there
            return on_activation(n, value)

        decode = functools.partial(self.context.decode, batch)
        self._watch.forward(self.graphs[k], at, decode, on_node)

    def logits(self, k: int, batch: Batch, positions: range) -> Array:
        """Logits of the last batch, ``(positions, vocabulary)``: a view."""
        found: Array = self.all_logits(batch)[0][_within(batch, positions)]
        return found

    def all_logits(self, batch: Batch) -> Array:
        """Of every copy, ``(n_seq, outputs, vocabulary)``: a view."""
        n_seq = self.context.n_seq
        shape = (n_seq, batch.n_outputs, self.model.n_vocab)
        logits: Array = self.context.logits(batch.n_outputs).reshape(shape)
        return logits


def _within(batch: Batch, positions: range) -> slice:
    start = positions.start - batch.scored_from
    return slice(start, start + positions.stop - positions.start, positions.step)


def is_operand(value: Activation) -> bool:
    """Whether a value is a node of this process's llama.cpp."""
    return isinstance(value, LlamaActivation)


def operand(value: Activation) -> LlamaActivation:
    """A value of llama.cpp's, of which more can be told.

    Raises:
        TypeError: it comes from another engine.
    """
    if not isinstance(value, LlamaActivation):
        raise TypeError(f"{type(value).__name__} is not a node of llama.cpp's")
    return value


def engine_of(options: EngineOptions, watch: GraphWatch | None = None) -> Engine:
    """This process's llama.cpp with what it was told.

    Args:
        options: how it runs a model.
        watch: which saw the graph; None where nothing is watched.
    """
    offloads = options.n_gpu_layers or options.tensor_overrides
    usable = used_devices(find_devices(), options) if offloads else []
    return Engine(
        build(),
        options.n_gpu_layers,
        watch.devices if watch else (),
        tuple(map(as_words, usable)),
        watch.weights if watch else (),
        **vars(placement_of(options)),
    )


def pin(value: Activation, reference: Activation) -> None:
    """Let a replica go on with the reference's value; on one device it does not leave it."""
    if (
        isinstance(value, LlamaActivation)
        and isinstance(reference, LlamaActivation)
        and not value.is_here
        and is_contiguous(value.address)
    ):
        if not copy_there(reference.address, value.address):
            copy_node(reference.address, value.address)
    else:
        value.replace(reference.value)


def side_facts(options: EngineOptions) -> SideFacts:
    """What a report says of one side's options."""
    return SideFacts(
        flash_attention=options.flash_attention,
        cache_type_k=options.cache_type_k,
        cache_type_v=options.cache_type_v,
        use_extra_bufts=options.use_extra_bufts,
        unfused_norms=options.unfused_norms,
        n_ubatch=options.n_ubatch,
    )


def start_token(model: LlamaModel) -> int | None:
    """The token that a chunk starts with whatever the text says, None for none."""
    if model.is_embedding:
        return None
    return model.decoder_start if model.has_encoder else model.bos


_MOST_LOGITS = 3 << 24
"""Logits of one batch: 200 MB, which llama.cpp holds twice for each replica."""


_TILE = 64
"""Tokens that ggml's flash attention takes at a time (GGML_FA_TILE_Q in ggml-cpu/common.h): a batch
cut elsewhere would be rounded otherwise."""


def most_outputs(wanted: int, n_vocab: int) -> int:
    """How many positions of one batch may give logits, of as many as are wanted of all."""
    n_batches = -(-wanted * n_vocab // _MOST_LOGITS)
    if n_batches < 2:
        return max(1, wanted)
    return -(-wanted // n_batches // _TILE) * _TILE


def cut_chunk(model: LlamaModel, tokens: Tokens, first: int, max_batch: int) -> list[Batch]:
    """Cut a chunk into the batches that its model wants.

    - A decoder gets the chunk in batches, its first token replaced by BOS if the model
      wants one, and gives logits for the second half, as llama-perplexity does; with a large
      vocabulary a part of that half in each batch.
    - An encoder-decoder reads the first half and predicts the second.
    - An embedding model gets all at once and gives no logits.

    Args:
        model: that is going to run it.
        tokens: of the chunk.
        first: number of the chunk's first token in the whole text.
        max_batch: most tokens in one batch.
    """
    half = len(tokens) // 2
    nothing = tokens[:0]
    if model.is_embedding:
        return [Batch(tokens, 0, len(tokens), nothing, first, first, first)]
    if model.has_encoder:
        start = np.array([model.decoder_start], np.int32)
        inner = np.concatenate([start, tokens[half:-1]])
        middle = first + half
        return [
            Batch(tokens[:half], 0, half, nothing, first, first, first, encode=True),
            # The extra token that the decoder starts with predicts the half's first.
            Batch(inner, 0, len(inner), tokens[half:], middle, first, middle - 1),
        ]
    if model.bos is not None:
        tokens = np.concatenate([np.array([model.bos], np.int32), tokens[1:]])
    cut, end = [], 0
    step = most_outputs(len(tokens) - half, model.n_vocab)
    while end < len(tokens):
        at, end = end, min(end + max_batch, len(tokens))
        if end > half:
            end = min(end, max(at, half) + step)
        part = tokens[at:end]
        n_outputs = max(0, min(len(part), end - half))
        following = tokens[end - n_outputs + 1 : end + 1]
        scored_from = first + end - n_outputs
        cut.append(Batch(part, at, n_outputs, following, first + at, first, scored_from))
    return cut
