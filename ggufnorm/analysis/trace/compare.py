"""Compares a trace with another trace, or with a model that runs beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ggufnorm.analysis.drift.cumulative import judge_cumulative
from ggufnorm.analysis.drift.report import Text, drift_report
from ggufnorm.core.drift import DriftReport, ModelFacts
from ggufnorm.core.model import Skipped
from ggufnorm.core.tolerances import FLOAT32_ROUNDING, HALF_ROUNDING
from ggufnorm.engines.base import Runner
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.engines.trace.runner import TraceRunner
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import MismatchError
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.checks import require_same_network
from ggufnorm.runs.identity import identify
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.loop import Loop, Policy
from ggufnorm.runs.probes.drift import FREE, REFERENCE, DriftSums
from ggufnorm.runs.probes.logits import LogitSums
from ggufnorm.runs.session import Session

_NAMES = {REFERENCE: "the reference", FREE: "the side under test"}

Side = tuple[Runner, ModelFacts]


def compare_runs(
    sides: tuple[Side, Side],
    files: Mapping[int, ModelFile],
    trace: Trace,
    cutter: Runner,
    channel: Channel,
    policy: Policy,
    stride: int | None = None,
) -> DriftReport:
    """Run two sides in lockstep, of which a trace is one at least; nothing is pinned.

    Args:
        sides: the reference and the side under test, both planned.
        files: of the side that is a GGUF model, whose norms are recomputed.
        trace: whose tokens are run.
        cutter: whose batches are run.
        channel: for progress and cancellation.
        policy: how long the run lasts.
        stride: compare one of so many tokens; None for the trace's own.
    """
    f = trace.facts
    stride = stride or f.stride
    runners = [runner for runner, _facts in sides]
    graphs = list(zip(*(runner.graphs for runner in runners), strict=True))
    half = any(isinstance(r, TraceRunner) and r.trace.facts.dtype == "f16" for r in runners)
    sums = DriftSums(graphs, files, stride=stride, half=half)
    logits = LogitSums([FREE], stride)
    session = Session([Replica(r) for r in runners], [sums, logits], trace.tokens, f.n_ctx, cutter)
    paths = [r.path for r in runners]
    job = identify(*(r.info for r in runners), paths=paths, tokens=trace.tokens)
    loop = Loop(channel, policy, job, {"drift": sums, "logits": logits}, f.n_ctx)
    for i in loop.units(f.n_chunks, "comparing"):
        session.chunk(i)
    return drift_report(
        (sides[REFERENCE][1], sides[FREE][1]),
        session,
        sums,
        logits,
        files,
        Text(f.text, trace.tokens, f.n_text_tokens, f.n_ctx, f.n_chunks),
        loop,
        partial(judge_cumulative, rounding=HALF_ROUNDING if half else FLOAT32_ROUNDING),
        _untold(files, stride, [r.trace for r in runners if isinstance(r, TraceRunner)]),
    )


def _untold(files: Mapping[int, ModelFile], stride: int, traces: Sequence[Trace]) -> list[Skipped]:
    """What a trace cannot tell."""
    found = [Skipped("local errors", "they are told only by `drift`, from both models")]
    found += [
        Skipped(f"recompute of norms of {_NAMES[side]}", "a trace holds no weights")
        for side in _NAMES
        if side not in files
    ]
    found += [
        Skipped("layers", f"{t.path} has the first {t.facts.layers} alone")
        for t in traces
        if t.facts.layers is not None
    ]
    if stride > 1:
        found.append(Skipped("tokens", f"1 of {stride} is compared: no more were kept"))
    return found


def compare_traces(ref: Trace, quant: Trace, channel: Channel, policy: Policy) -> DriftReport:
    """Compare two traces; llama.cpp is not needed.

    Args:
        ref: the run that is right by definition.
        quant: the run under test.
        channel: for progress and cancellation.
        policy: how long the comparison lasts.

    Raises:
        MismatchError: they are not runs of one network on the same tokens.
        InputError: a trace cannot be read to its end.
    """
    _require_same_run(ref, quant)
    stride = _common_stride(ref, quant)
    first, second = TraceRunner(ref), TraceRunner(quant)
    sides = ((first, ref.facts.model), (second, quant.facts.model))
    return compare_runs(sides, {}, ref, first, channel, policy, stride)


def _require_same_run(ref: Trace, quant: Trace) -> None:
    a, b = ref.facts, quant.facts
    require_same_network(a.network, b.network, ref.path, quant.path)
    start = f"{quant.path} cannot be compared with {ref.path}:"
    for what, left, right in (
        ("chunks have {} tokens and not {}", a.n_ctx, b.n_ctx),
        ("it has {} chunks and not {}", a.n_chunks, b.n_chunks),
        ("chunks start with the token {} and not {}", a.start, b.start),
        ("a chunk took {} decodes and not {}", len(a.batches), len(b.batches)),
        ("a position has {} logits and not {}", a.n_vocab, b.n_vocab),
    ):
        if left != right:
            raise MismatchError(f"{start} {what.format(right, left)}")
    if not np.array_equal(ref.tokens, quant.tokens):
        i = int(np.argmax(ref.tokens != quant.tokens))
        raise MismatchError(
            f"{start} they ran different texts (the first other token is number {i}): trace"
            " both with the same text (-f)"
        )
    scored = [[(x.first_scored, x.n_scored) for x in f.batches] for f in (a, b)]
    if a.logits and b.logits and scored[0] != scored[1]:
        raise MismatchError(f"{start} other positions are scored")


def _common_stride(ref: Trace, quant: Trace) -> int:
    stride = math.lcm(ref.facts.stride, quant.facts.stride)
    if stride > ref.facts.n_ctx:
        raise MismatchError(
            f"{quant.path} and {ref.path} keep no token in common (1 of {quant.facts.stride} and"
            f" 1 of {ref.facts.stride}): trace both with the same --budget"
        )
    return stride
