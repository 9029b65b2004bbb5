"""One run of a GGUF model in llama.cpp, in which every row of every norm is kept."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.assemble import stated_norm
from ggufnorm.analysis.drift.observe import WeightCache
from ggufnorm.analysis.drift.run import require_memory
from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.formula import Formula
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedNorm, ObservedRun, by_token
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.core.rounding import HALF_ULP, MATRIX_ROUNDING, quantized
from ggufnorm.engines.child import Emit, run_in_child
from ggufnorm.engines.llama.binding import engine_version, read_node
from ggufnorm.engines.llama.graph import Graph, NormPlan
from ggufnorm.engines.llama.session import MAX_BATCH, Batch, EngineOptions, LlamaModel
from ggufnorm.engines.llama.walk import Lane
from ggufnorm.errors import EngineError, InputError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile

KERNELS = HALF_ULP["F16"]
"""Relative rounding of llama.cpp's own kernels on the CPU: GELU is read from a table of half
precision (``ggml_vec_gelu_f32`` in ``ggml/src/ggml-cpu/vec.h``)."""

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]


def run_llama(
    location: str | os.PathLike[str],
    *,
    text: str,
    n_tokens: int,
    tokens: Tokens | None = None,
    n_threads: int | None = None,
    check_memory: bool = True,
) -> tuple[ObservedRun, Tokens]:
    """Run a model once and keep what goes into its norms and what comes out.

    The cache is F32 and there is no flash attention, so that all that differs from a float32
    run elsewhere is in the file and in the kernels.

    Args:
        location: of the model; it must be on this machine.
        text: what to run, cut into tokens by the file's own tokenizer.
        n_tokens: of the text at most, fewer where the model's context is shorter.
        tokens: ids to run in the place of a text.
        n_threads: CPU threads; None for all.
        check_memory: refuse a model that does not fit into the memory that is free.

    Returns:
        What was observed, and the ids that were run.

    Raises:
        InputError: the model cannot be opened, is not on this machine or is an
            encoder-decoder, or an id is not in its vocabulary.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp does not load the model, or fails or crashes with it.
    """
    path = local_path(location)
    with open_model(path) as file, tempfile.TemporaryDirectory(prefix="ggufnorm-") as folder:
        longest = file.metadata.integer(f"{file.architecture}.context_length") or n_tokens
        n_ctx = min(n_tokens if tokens is None else len(tokens), longest, MAX_BATCH)
        if check_memory:
            require_memory([file], n_ctx, 1)
        rows = Path(folder) / "rows.npz"
        job = {**plain_job(path, n_ctx, n_threads, tokens, rows), "text": text}
        facts = run_in_child(observe, job, lambda _message: None)
        with np.load(rows, allow_pickle=False) as values:
            run = observed_run(file, os.fspath(location), facts, values, len(facts["tokens"]))
        return run, np.array(facts["tokens"], np.int32)


def plain_job(
    path: Path, n_ctx: int, n_threads: int | None, tokens: Tokens | None, rows: Path
) -> dict[str, Any]:
    """What a child needs to run a model: no flash attention, and a cache in F32.

    Args:
        path: of the model.
        n_ctx: most tokens.
        n_threads: CPU threads; None for all.
        tokens: ids to run; None where the job has a text.
        rows: file for the values.
    """
    options = EngineOptions(
        n_ctx,
        n_threads or os.cpu_count() or 1,
        flash_attention="off",
        cache_type_k="f32",
        cache_type_v="f32",
    )
    return {
        "model": os.fspath(path),
        "options": to_plain(options),
        "tokens": None if tokens is None else tokens.tolist(),
        "rows": os.fspath(rows),
    }


@dataclass(frozen=True)
class Planned:
    """A model with the graph of all tokens in one batch, in which every token gives an output."""

    file: ModelFile
    model: LlamaModel
    lane: Lane
    batch: Batch

    @property
    def graph(self) -> Graph:
        """Of the batch."""
        return self.lane.graphs[0]

    def values(self, nodes: Iterable[int]) -> dict[str, Array]:
        """Run the batch and copy the values of some nodes; see :func:`node_values`."""
        self.lane.context.clear()
        return node_values(nodes, self._walk)

    def norm_ends(self) -> dict[str, Array]:
        """The same of what goes into all norms and what comes out."""
        self.lane.context.clear()
        return norm_ends(self.graph, self._walk)

    def _walk(self, stops: Sequence[int], on_stop: Callable[[int, int], bool]) -> None:
        self.lane.walk(self.graph, stops, self.batch, on_stop)


@contextmanager
def planned(job: dict[str, Any]) -> Iterator[Planned]:
    """The model of a job, ready to run its tokens; for the child.

    Raises:
        InputError: it is an encoder-decoder, or a token is not in its vocabulary.
        EngineError: llama.cpp does not load it, or cuts its text into no tokens.
    """
    options = from_plain(EngineOptions, job["options"])
    with ExitStack() as stack:
        file = stack.enter_context(open_model(job["model"]))
        model = stack.enter_context(LlamaModel(job["model"], options))
        if model.has_encoder:
            raise InputError(f"{file.path}: encoder-decoder models are not compared yet")
        lane = Lane(model, options, frozenset(file.tensors), pin=False)
        stack.enter_context(lane.context)
        tokens = _ids(job, model)[: options.n_ctx]
        # Every token gives an output: or the last block's norms would show some rows only.
        batch = Batch(tokens, 0, len(tokens), tokens[:0], 0)
        lane.plan([batch])
        yield Planned(file, model, lane, batch)


def observe(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    """The child's part of :func:`run_llama`: facts as JSON, values in the file ``rows``."""
    with planned(job) as run:
        graph, tokens = run.graph, run.batch.tokens
        values = run.norm_ends()
        if not run.model.is_embedding:
            values["logits"] = run.lane.context.logits(len(tokens)).copy()
        np.savez(job["rows"], allow_pickle=False, **values)
        return {
            "tokens": tokens.tolist(),
            "engine": engine_version(),
            "norms": [norm_facts(run.file, graph, norm) for norm in graph.norms],
            "skipped": to_plain(graph.skipped),
        }


def _ids(job: dict[str, Any], model: LlamaModel) -> Tokens:
    if job["tokens"] is None:
        tokens = model.tokenize(job["text"])
        if len(tokens) == 0:
            raise EngineError(f"{model.path}: llama.cpp cuts the text into no tokens")
        return tokens
    tokens = np.array(job["tokens"], np.int32)
    if int(tokens.max()) >= model.n_vocab:
        raise InputError(
            f"{model.path}: token {int(tokens.max())} is not in its vocabulary of"
            f" {model.n_vocab}: it is another model"
        )
    return tokens


Walk = Callable[[Sequence[int], Callable[[int, int], bool]], None]
"""Runs a graph and calls back at the given nodes."""


def node_values(nodes: Iterable[int], walk: Walk) -> dict[str, Array]:
    """The values of some nodes, by ``node`` and the index.

    Args:
        nodes: their indices.
        walk: runs their graph.
    """
    stops = sorted(set(nodes))
    values: dict[str, Array] = {}

    def on_stop(k: int, address: int) -> bool:
        values[f"node{stops[k]}"] = read_node(address)
        return True

    walk(stops, on_stop)
    return values


def norm_ends(graph: Graph, walk: Walk) -> dict[str, Array]:
    """What goes into all norms of a graph and what comes out; see :func:`node_values`."""
    return node_values((i for n in graph.norms for i in (n.input, n.output)), walk)


def norm_facts(file: ModelFile, graph: Graph, norm: NormPlan) -> dict[str, Any]:
    """What the graph and the file say of a norm, JSON-like."""
    stated = stated_norm(file, norm, graph.nodes[norm.output].key)
    plain: dict[str, Any] = to_plain(norm)
    return {**plain, "layer": stated.layer, "role": stated.role, "stated": stated.epsilon}


def observed_run(
    file: ModelFile,
    location: str,
    facts: Mapping[str, Any],
    rows: Mapping[str, Array],
    n_tokens: int,
) -> ObservedRun:
    """What a child saw.

    Args:
        file: that it ran.
        location: of the model, as given.
        facts: ``engine``, ``norms`` of :func:`norm_facts` and ``skipped``.
        rows: of :func:`norm_ends`, and ``logits`` where there are some.
        n_tokens: how many were run; 0 in an image encoder.
    """
    weights = WeightCache(file)
    norms, skipped = [], [from_plain(Skipped, s) for s in facts["skipped"]]
    for norm in facts["norms"]:
        try:
            norms.append(_norm(norm, rows, weights, n_tokens))
        except (InputError, KeyError, ValueError) as error:
            skipped.append(Skipped(norm["key"], str(error)))
    return ObservedRun(
        engine=facts["engine"],
        location=location,
        norms=tuple(norms),
        logits=rows.get("logits"),
        skipped=tuple(skipped),
        rounding=max(KERNELS, rounding(file)),
    )


def _norm(
    norm: Mapping[str, Any], rows: Mapping[str, Array], weights: WeightCache, n_tokens: int
) -> ObservedNorm:
    x, y = (rows[f"node{norm[end]}"] for end in ("input", "output"))
    # ggml's GroupNorm reaches over two axes: one token is one flat row.
    channels = x.size // max(1, n_tokens) if norm["kind"] == "group" else x.shape[-1]
    x, y = (by_token(v, n_tokens, channels) for v in (x, y))
    weight, bias = (
        None if norm[n] is None else _per_head(weights.get(norm[n]), channels)
        for n in ("weight", "bias")
    )
    # JSON has no infinity, which is the only epsilon without a number that ggml takes.
    epsilon = shortest_float32(norm["epsilon"])
    formula = Formula(norm["kind"], np.inf if epsilon is None else epsilon, norm["groups"])
    dtype = None if norm["weight"] is None else weights.file.tensors[norm["weight"]].dtype
    return ObservedNorm(
        name=norm["key"],
        formula=formula,
        epsilon_stated=norm["stated"],
        weight=weight,
        bias=bias,
        x=x,
        y=y,
        weight_name=norm["weight"],
        bias_name=norm["bias"],
        dtype=dtype,
        layer=norm["layer"],
        role=norm["role"],
    )


def _per_head(values: Array, channels: int) -> Array:
    flat = values.reshape(-1)
    if flat.size % channels:
        raise ValueError(f"{flat.size} weights do not fit {channels} channels")
    return flat if flat.size == channels else flat.reshape(-1, channels)


def rounding(file: ModelFile) -> float:
    """Relative rounding of the coarsest type among a file's matrices; 0 for float32.

    See :mod:`ggufnorm.core.rounding`.
    """
    matrices = (t for t in file.tensors.values() if len(t.shape) > 1 and min(t.shape[:2]) > 1)
    return max((_type_rounding(t.dtype) for t in matrices), default=0.0)


def _type_rounding(dtype: str) -> float:
    if dtype in ("F64", "F32"):
        return 0.0
    if dtype in MATRIX_ROUNDING:
        return MATRIX_ROUNDING[dtype]
    try:
        block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    except KeyError:
        return 0.0
    return quantized(8 * n_bytes / block)
