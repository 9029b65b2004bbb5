"""One run of a GGUF model in llama.cpp, in which every row of every norm is kept."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import gguf
import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.kept import ByToken, KeptRun, keep_norms
from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.formula import Formula
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedNorm, ObservedRun
from ggufnorm.core.rounding import HALF_ULP, MATRIX_ROUNDING, quantized
from ggufnorm.core.tokens import halves
from ggufnorm.core.tolerances import PRODUCT_ON_DEVICE, STRETCH_OF_MATRICES
from ggufnorm.core.trace import NormFacts
from ggufnorm.engines import worker
from ggufnorm.engines.base import Batch, Graph
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.session import MAX_BATCH, EngineOptions, LlamaModel
from ggufnorm.engines.row_file import Place, RowFile, Rows
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import EngineError, InputError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.options import EXACT, RunSettings, placed
from ggufnorm.runs.placement import Side, on_host, settle
from ggufnorm.runs.recompute import WeightCache

KERNELS = HALF_ULP["F16"]
"""Relative rounding of llama.cpp's own kernels on the CPU: GELU is read from a table of half
precision (``ggml_vec_gelu_f32`` in ``ggml/src/ggml-cpu/vec.h``)."""

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class RunJob:
    """A model to run once.

    Attributes:
        options: exact: see :data:`ggufnorm.runs.options.EXACT`.
        text: cut into tokens by the file's own tokenizer; None where there are ids.
        tokens: ids to run; None where there is a text.
    """

    model: str
    options: EngineOptions
    text: str | None
    tokens: Tokens | None


@dataclass(frozen=True)
class ObserveJob:
    """A model to run once, and the name of the file that its norms' rows go to."""

    run: RunJob
    rows: str


@dataclass(frozen=True)
class LlamaRun:
    """What a run showed.

    Attributes:
        tokens: ids that were run.
        n_rows: tokens of one pass through the network: of an encoder-decoder half of them.
        kept: its norms.
        logits: ``(n_rows, vocabulary)`` in the same file; None of a model that predicts nothing.
    """

    tokens: Tokens
    n_rows: int
    kept: KeptRun
    logits: Place | None


def exactly(how: RunSettings) -> RunSettings:
    """The same with nothing rounded that need not be; build and devices stay."""
    return replace(how, side=placed(EXACT, how.side))


EXACTLY = exactly(RunSettings())
"""On the CPU, with all threads."""


@dataclass(frozen=True)
class LlamaResult:
    """What came of a run.

    Attributes:
        run: what was observed.
        tokens: ids that were run.
        how: it was run, the number of layers on devices being settled.
    """

    run: ObservedRun
    tokens: Tokens
    how: RunSettings


def run_llama(
    location: str | os.PathLike[str],
    *,
    text: str,
    n_tokens: int,
    tokens: Tokens | None = None,
    how: RunSettings = EXACTLY,
) -> LlamaResult:
    """Run a model once and keep what goes into its norms and what comes out.

    The cache is F32 and there is no flash attention, so that all that differs from a float32
    run elsewhere is in the file and in the kernels.

    Args:
        location: of the model; it must be on this machine.
        text: what to run, cut into tokens by the file's own tokenizer.
        n_tokens: of the text at most, fewer where the model's context is shorter.
        tokens: ids to run in the place of a text.
        how: it is run, by :func:`exactly`.

    Raises:
        InputError: the model cannot be opened or is not on this machine, or an id is not in
            its vocabulary.
        RefusedError: a device that it is to be put on is not there.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp does not load the model, or fails or crashes with it.
    """
    path = local_path(location)
    with open_model(path) as file:
        longest = file.metadata.integer(f"{file.architecture}.context_length") or n_tokens
        n_ctx = min(n_tokens if tokens is None else len(tokens), longest, MAX_BATCH)
        side = Side(file, how.engine(n_ctx), 1)
        (options,) = settle([side], check_memory=how.check_memory)
        rows = RowFile()
        job = ObserveJob(RunJob(os.fspath(path), options, text, tokens), rows.name)
        found = worker.call(observe, job, descriptors=rows.descriptors)
        run = observed_run(file, os.fspath(location), found.kept, rows, found.n_rows, found.logits)
        layers = options.n_gpu_layers
        settled = replace(how, side=replace(how.side, n_gpu_layers=layers))
        return LlamaResult(run, found.tokens, settled)


@dataclass(frozen=True)
class Planned:
    """A model with its graphs, in which every token gives an output.

    Attributes:
        tokens: that are run.
        batches: one with all tokens; of an encoder-decoder one for each of its parts, which
            read half of them each.
    """

    file: ModelFile
    runner: LlamaRunner
    tokens: Tokens
    batches: tuple[Batch, ...]

    @property
    def n_rows(self) -> int:
        """Tokens of one batch."""
        return len(self.batches[-1].tokens)

    @property
    def parts(self) -> list[tuple[Graph, Batch]]:
        """Each batch with its graph."""
        return list(zip(self.runner.graphs, self.batches, strict=True))

    def logits(self) -> Array | None:
        """Of the last run, ``(n_rows, vocabulary)``; None of a model that predicts nothing."""
        if not self.runner.capabilities.predicts or self.runner.model.is_embedding:
            return None
        found: Array = self.runner.all_logits(self.batches[-1])[0].copy()
        return found


@contextmanager
def planned(job: RunJob) -> Iterator[Planned]:
    """The model of a job, ready to run its tokens; for the child.

    Raises:
        InputError: a token is not in its vocabulary.
        EngineError: llama.cpp does not load it, or cuts its text into too few tokens.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_model(job.model))
        model = stack.enter_context(LlamaModel(job.model, job.options))
        runner = stack.enter_context(LlamaRunner(model, job.options, file))
        tokens = _ids(job, model)[: job.options.n_ctx]
        batches = [replace(_whole(tokens), encode=model.encodes_only)]
        if model.has_encoder:
            read, written = halves(tokens)
            batches = [replace(_whole(read), encode=True), _whole(written)]
        runner.plan(batches)
        yield Planned(file, runner, tokens, tuple(batches))


def _whole(tokens: Tokens) -> Batch:
    """All tokens with an output each: or the last block's norms would show some rows only."""
    return Batch(tokens, 0, len(tokens), tokens[:0], 0, 0, 0)


def observe(job: ObserveJob, _channel: Channel) -> LlamaRun:
    """The child's part of :func:`run_llama`."""
    rows = RowFile(job.rows)
    with planned(job.run) as run:
        kept = keep_norms(run.runner, rows, *run.batches)
        logits = run.logits()
        return LlamaRun(run.tokens, run.n_rows, kept, None if logits is None else rows.put(logits))


def _ids(job: RunJob, model: LlamaModel) -> Tokens:
    if job.tokens is None:
        assert job.text is not None
        tokens = model.tokenize(job.text)
        if len(tokens) == 0:
            raise EngineError(f"{model.path}: llama.cpp cuts the text into no tokens")
        return tokens
    last = int(job.tokens.max())
    if last >= model.n_vocab:
        raise InputError(
            f"{model.path}: token {last} is not in its vocabulary of"
            f" {model.n_vocab}: it is another model"
        )
    return job.tokens


def observed_run(
    file: ModelFile,
    location: str,
    kept: KeptRun,
    rows: RowFile,
    n_tokens: int,
    logits: Place | None = None,
) -> ObservedRun:
    """What a child saw.

    Args:
        file: that it ran.
        location: of the model, as given.
        kept: its norms.
        rows: holds their rows.
        n_tokens: of one pass through the network; 0 in an image encoder.
        logits: where they are, if there are some.
    """
    weights = WeightCache(file)
    kernels = KERNELS if on_host(kept.build) else PRODUCT_ON_DEVICE / STRETCH_OF_MATRICES
    norms, skipped = [], list(kept.skipped)
    for norm in kept.norms:
        try:
            norms.append(_norm(norm, rows, kept.places, weights, n_tokens))
        except (InputError, KeyError, ValueError) as error:
            skipped.append(Skipped(norm.key, str(error)))
    return ObservedRun(
        engine=kept.engine,
        build=kept.build,
        location=location,
        norms=tuple(norms),
        logits=None if logits is None else Rows(rows, logits),
        skipped=tuple(skipped),
        rounding=max(kernels, rounding(file)),
        kernels=kernels,
    )


def _norm(
    norm: NormFacts,
    rows: RowFile,
    places: Mapping[str, Place],
    weights: WeightCache,
    n_tokens: int,
) -> ObservedNorm:
    shape = places[norm.input].shape
    # ggml's GroupNorm reaches over two axes: one token is one flat row.
    channels = math.prod(shape) // max(1, n_tokens) if norm.kind == "group" else shape[-1]
    x, y = (ByToken(rows, places[key], n_tokens, channels) for key in (norm.input, norm.output))
    for value in (x, y):
        value()  # whether it can be laid out so
    weight, bias = (
        None if name is None else _per_head(weights.get(name), channels)
        for name in (norm.weight, norm.bias)
    )
    # None stands for infinity, which is the only epsilon without a number that ggml takes.
    epsilon = shortest_float32(norm.epsilon)
    return ObservedNorm(
        name=norm.key,
        formula=Formula(norm.kind, np.inf if epsilon is None else epsilon, norm.groups),
        epsilon_stated=norm.epsilon_metadata,
        weight=weight,
        bias=bias,
        x=x,
        y=y,
        weight_name=norm.weight,
        bias_name=norm.bias,
        dtype=None if norm.weight is None else weights.file.tensors[norm.weight].dtype,
        layer=norm.layer,
        role=norm.role,
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
    return max((type_rounding(t.dtype) for t in matrices), default=0.0)


def type_rounding(dtype: str) -> float:
    """Relative rounding of one of ggml's types; see :mod:`ggufnorm.core.rounding`."""
    if dtype in ("F64", "F32"):
        return 0.0
    if dtype in MATRIX_ROUNDING:
        return MATRIX_ROUNDING[dtype]
    try:
        block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    except KeyError:
        return 0.0
    return quantized(8 * n_bytes / block)
