"""From the finished probes of two replicas to a DriftReport, whatever their engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggufnorm.analysis.drift import assemble
from ggufnorm.analysis.drift.localise import localise
from ggufnorm.core.drift import (
    Culprit,
    DriftReport,
    ExpertDrift,
    ModelFacts,
    NormDrift,
    OperationDrift,
    RunCost,
    RunFacts,
)
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.model import Skipped
from ggufnorm.engines.base import Runner, Tokens
from ggufnorm.engines.worker import peak_memory
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.loop import Loop
from ggufnorm.runs.probes.drift import FREE, REFERENCE, DriftSums
from ggufnorm.runs.probes.logits import LogitSums
from ggufnorm.runs.session import Session

POOLED = "result_embd_pooled"
"""Label of an embedding model's output (llm_graph_context::build_pooling, llama-graph.cpp)."""

Judge = Callable[
    [Sequence[NormDrift], Sequence[OperationDrift], LogitStatistics | None],
    tuple[Culprit | None, str],
]
"""Finds the culprit and words the verdict."""


@dataclass(frozen=True)
class Text:
    """The text that was run.

    Attributes:
        name: what reports call it.
        tokens: ids of what was run at least.
        n_tokens: of the whole text.
        n_ctx: tokens of a chunk.
        n_chunks: planned.
    """

    name: str
    tokens: Tokens
    n_tokens: int
    n_ctx: int
    n_chunks: int


def drift_report(
    models: tuple[ModelFacts, ModelFacts],
    session: Session,
    sums: DriftSums,
    logits: LogitSums,
    files: Mapping[int, ModelFile],
    text: Text,
    loop: Loop,
    judge: Judge,
    skipped: Sequence[Skipped] = (),
    output: str | None = None,
) -> DriftReport:
    """Put together what was measured.

    Args:
        models: the reference and the model under test.
        session: whose first two runners they are.
        sums: per hook point and norm.
        logits: of the model under test, and of the reference against itself if there is one.
        files: by side; a trace has none.
        text: that was run.
        loop: how far it was run.
        judge: finds the culprit.
        skipped: what cannot be told from this kind of run.
        output: key of the hook point that holds an encoder's result; None for a language
            model, whose result is its logits or a pooled embedding.
    """
    ref, quant = session.runners[REFERENCE], session.runners[FREE]
    types = {REFERENCE: ref.dtypes, FREE: quant.dtypes}
    operations = assemble.operations(session.matches, sums, types)
    norms = assemble.norms(sums, files, quant.stated)
    has_logits = ref.capabilities.logits and quant.capabilities.logits
    measured, *floor = (total.result() if has_logits else None for total in logits.totals)
    culprit, verdict = judge(norms, operations, measured)
    pooled = sums.hooks.get(output or POOLED)
    experts = assemble.experts(operations, sums)
    left_out = _skipped(session, sums, skipped, predicts=output is None)
    left_out += _unused(experts, operations)
    unseen = not_compared(
        len(operations), left_out, measured, pooled is not None, loop.cut, output is None
    )
    return DriftReport(
        reference=models[REFERENCE],
        quant=models[FREE],
        norms=norms,
        operations=operations,
        logits=measured,
        floor=floor[0] if floor else None,
        embedding=pooled.free.result() if pooled else None,
        localisation=localise(
            operations,
            sums.hooks,
            logits.totals[0],
            lambda token: ref.piece(int(text.tokens[token])),
        ),
        culprit=culprit,
        verdict=f"{verdict}{unseen}",
        skipped=left_out,
        experts=experts,
        run=_run_facts(ref, quant, text, loop),
        cost=RunCost(loop.seconds, loop.speed, peak_memory()),
    )


def not_compared(
    n: int,
    skipped: Sequence[Skipped],
    logits: LogitStatistics | None,
    pooled: bool,
    cut: str | None,
    predicts: bool = True,
) -> str:
    """The verdict's last sentence where something was not compared; else nothing.

    Args:
        n: operations that were compared.
        skipped: what was not.
        logits: None where predictions were not compared.
        pooled: whether an embedding was.
        cut: why the run ended early.
        predicts: whether a model of this kind may make predictions.
    """
    found = [f"{s.what} ({s.reason})" for s in skipped if s.what != "logits"]
    if len(found) > 1:
        found = [f"{found[0]} and {len(found) - 1} more"]
    if logits is None and predicts:
        found.append("predictions" + (", but the embedding was" if pooled else ""))
    left = [f"not compared: {'; '.join(found)}"] if found else []
    left += [f"the run was cut short ({cut})"] if cut else []
    return f" {n} operations were compared; {'; '.join(left)}." if left else ""


def _unused(
    experts: Sequence[ExpertDrift], operations: Sequence[OperationDrift]
) -> tuple[Skipped, ...]:
    """Experts that the text did not use, of tensors that differ: of them nothing was seen."""
    differ = {o.node for o in operations if o.local.rel_l2 != 0}
    of_both = [e for e in experts if e.node in differ]
    idle = {(e.layer, e.expert) for e in of_both if not e.rows}
    if not idle:
        return ()
    n = len({(e.layer, e.expert) for e in of_both})
    return (Skipped("experts", f"no token was routed to {len(idle)} of {n}"),)


def _run_facts(ref: Runner, quant: Runner, text: Text, loop: Loop) -> RunFacts:
    a, b = ref.info, quant.info
    return RunFacts(
        engine=" and ".join(dict.fromkeys((a.engine, b.engine))),
        text=text.name,
        n_text_tokens=text.n_tokens,
        n_ctx=text.n_ctx,
        n_chunks=loop.done,
        n_chunks_planned=text.n_chunks,
        n_threads=b.n_threads,
        n_gpu_layers=b.n_gpu_layers,
        reference=a.options,
        quant=b.options,
        cut=loop.cut,
        engine_ref=a.build,
        engine_quant=b.build,
    )


def _skipped(
    session: Session, sums: DriftSums, more: Sequence[Skipped], *, predicts: bool
) -> tuple[Skipped, ...]:
    found = [*more, *sums.skipped.values(), *session.skipped()]
    if predicts and not all(r.capabilities.predicts for r in session.runners[: FREE + 1]):
        found.append(Skipped("logits", "the model makes no next-token predictions"))
    return tuple(dict.fromkeys(found))
