"""``drift`` of two ONNX files: own error of every operation, shares, and what would help."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufnorm.analysis.drift.onnx.culprits import LOSSY, Reshaped, damage
from ggufnorm.analysis.drift.onnx.explain import Explanation, explain
from ggufnorm.analysis.drift.onnx.hooks import MOVES, Hook, Sides
from ggufnorm.analysis.drift.onnx.measure import (
    HELD_BYTES,
    Feeds,
    HookSums,
    Outputs,
    groups_of,
    shares,
    sweep,
)
from ggufnorm.analysis.drift.onnx.remedies import try_remedies
from ggufnorm.analysis.drift.onnx.verdict import judge, needs_help
from ggufnorm.core.model import Skipped
from ggufnorm.core.onnx_drift import (
    OnnxDriftReport,
    OnnxFacts,
    OnnxOperation,
    OnnxRunFacts,
    OutputDrift,
    Remedy,
    Scheme,
)
from ggufnorm.core.progress import OnProgress, Progress, no_progress
from ggufnorm.engines.onnx.cut import FLOATS, Session, region, whole
from ggufnorm.engines.onnx.feeds import (
    Tokens,
    feeds_of,
    made_feeds,
    n_tokens,
    read_feeds,
    takes_ids,
    vocabulary_size,
)
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.norms import find_layer
from ggufnorm.engines.onnx.opened import open_integers
from ggufnorm.engines.onnx.pairs import pair_values
from ggufnorm.engines.onnx.session import optimize, require_onnxruntime
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.errors import EngineMissingError
from ggufnorm.samples import text_to_run

N_TOKENS, N_RUNS = 127, 2
_MOST_CLOSER = 64
"""Operations that are looked at closer, those with the largest own errors."""


def drift_onnx(
    ref: str | os.PathLike[str],
    quant: str | os.PathLike[str],
    *,
    inputs: str | os.PathLike[str] | None = None,
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int | None = None,
    chunks: int | None = None,
    n_threads: int | None = None,
    held_bytes: int = HELD_BYTES,
    on_progress: OnProgress = no_progress,
) -> OnnxDriftReport:
    """Give each operation of an ONNX file the reference's input, and compare its result.

    Args:
        ref: the file that is right by definition.
        quant: the file under test: quantized, converted to half precision, optimized, or in
            another opset. The same file, to see what ONNX Runtime's optimizer makes of it.
        inputs: ``.npz`` with an array for each input, or ``.npy`` for a single one; None for a
            text's tokens, or for normal values where no tokens are taken.
        text: to run, by the tokenizer beside the reference; None for the bundled text, or
            without a tokenizer for random ids, the same each time.
        text_name: the name of the text in the report.
        n_ctx: tokens of a run; None for 127, or as many as the model takes.
        chunks: runs, each on other tokens or values; None for two.
        n_threads: CPU threads; None leaves ONNX Runtime's choice.
        held_bytes: of activations that are held at once. Less takes more passes.
        on_progress: called as the run goes on.

    Raises:
        EngineMissingError: onnx or onnxruntime is not installed.
        InputError: a file cannot be opened or is not ONNX, or the inputs do not fit.
        MismatchError: the two have no operation in common.
        EngineError: ONNX Runtime does not take a model or fails.
    """
    with tempfile.TemporaryDirectory(prefix="ggufnorm-") as folder:
        a = OnnxModel(ref)
        b = _under_test(a, os.fspath(quant), Path(folder))
        for model in (a, b):
            open_integers(model)
        fed = _Inputs.of(a, inputs, text, text_name, n_ctx, chunks or N_RUNS)
        return _Run(a, b, os.fspath(quant), fed, n_threads, held_bytes, on_progress).report()


def _under_test(ref: OnnxModel, quant: str, folder: Path) -> OnnxModel:
    """The file under test; of the reference itself, what the runtime's optimizer makes of it."""
    with suppress(OSError):
        if Path(ref.path).samefile(quant):
            return OnnxModel(optimize(ref, folder / "optimized.onnx"))
    return OnnxModel(quant)


@dataclass(frozen=True)
class _Inputs:
    """What the reference is fed, run by run."""

    feeds: tuple[Mapping[str, Any], ...]
    name: str

    @classmethod
    def of(
        cls,
        model: OnnxModel,
        inputs: str | os.PathLike[str] | None,
        text: str | None,
        text_name: str,
        n_ctx: int | None,
        n_runs: int,
    ) -> _Inputs:
        if inputs is not None:
            return cls((read_feeds(model, os.fspath(inputs)),), os.fspath(inputs))
        if not takes_ids(model):
            none = np.empty(0, np.int32)
            feeds = tuple(made_feeds(model, none, i) for i in range(n_runs))
            return cls(feeds, "normal values, the same each time")
        length = n_tokens(model, n_ctx or N_TOKENS)
        ids, name = _ids(model, text, text_name, length * n_runs)
        runs = [ids[i * length : (i + 1) * length] for i in range(n_runs)]
        whole_runs = [run for run in runs if len(run) == length] or runs[:1]
        return cls(tuple(made_feeds(model, run, 0) for run in whole_runs), name)


def _ids(model: OnnxModel, text: str | None, name: str, n: int) -> tuple[Tokens, str]:
    tokenizer = None
    with suppress(EngineMissingError):
        tokenizer = Tokenizer.beside(model.path)
    if tokenizer is not None:
        words, name = text_to_run(text, name)
        ids = tokenizer.ids(words[: 64 * n])
        if ids is not None and len(ids):
            return np.asarray(ids[:n], np.int32), name
    rng = np.random.default_rng(0)
    return rng.integers(0, vocabulary_size(model), n).astype(np.int32), "random token ids"


class _Run:
    """One drift run."""

    def __init__(
        self,
        ref: OnnxModel,
        quant: OnnxModel,
        shown: str,
        fed: _Inputs,
        n_threads: int | None,
        held_bytes: int,
        on_progress: OnProgress,
    ) -> None:
        self._ref, self._quant, self._shown, self._fed = ref, quant, shown, fed
        self._n_threads, self._held, self._on_progress = n_threads, held_bytes, on_progress
        self._pairing = pair_values(ref, quant)
        self._feeds: list[Feeds] = [
            (feeds, feeds_of(quant, self._pairing.inputs, feeds)) for feeds in fed.feeds
        ]

    def report(self) -> OnnxDriftReport:
        on_progress = self._on_progress
        on_progress(Progress("pairing operations"))
        sides = Sides(self._ref, self._quant, self._pairing, self._feeds[0], self._n_threads)
        groups = groups_of(sides.hooks, sides, self._held)
        sums: dict[str, HookSums] = {}
        on_progress(Progress("own errors"))
        for found in sweep(sides, groups, self._feeds):
            sums.update(found)
        on_progress(Progress("outputs"))
        outputs = Outputs(sides, self._feeds)
        drifts = tuple(self._outputs(sides, outputs))
        main = next((o for o in drifts if o.main), None)
        closer = self._closer(sides, sums)
        close_groups = groups_of(closer, sides, self._held) if closer else []
        on_progress(Progress("a closer look"))
        explained = explain(sides, close_groups, self._feeds, sums)
        portions: dict[str, float] = {}
        skipped = list(sides.skipped)
        if main is not None and closer:
            on_progress(Progress("shares of the output's error"))
            whole_error = main.difference.rel_l2 or 0.0
            made = shares(sides, close_groups, self._feeds, outputs, main.name)
            portions = {n: e / whole_error**2 for n, e in made.items() if whole_error}
        scheme = _scheme(sides)
        operations = tuple(_rows(sides, sums, explained, portions))
        remedies: list[Remedy] = []
        if main is not None and closer and needs_help(main):
            on_progress(Progress("trying settings"))
            wrong = {o.value for o in operations if damage(o) is not None}
            remedies, failed = try_remedies(
                sides,
                scheme,
                closer,
                portions,
                sums,
                outputs,
                main.name,
                [h for h in closer if h.name in wrong],
            )
            skipped += failed
        reshaped = [
            Reshaped(*_where(sides, graft.ref), theirs, mine)
            for graft, theirs, mine in sides.reshaped
            if self._pairing.by_name
        ]
        culprit, verdict = judge(scheme, operations, reshaped, drifts, remedies)
        return OnnxDriftReport(
            reference=_facts(self._ref, self._ref.path),
            quant=_facts(self._quant, self._shown),
            scheme=scheme,
            operations=operations,
            outputs=drifts,
            remedies=tuple(remedies),
            culprit=culprit,
            verdict=verdict,
            skipped=(
                *skipped,
                *self._outputs_alone(outputs),
                *_not_closer(sides, sums, closer),
            ),
            run=OnnxRunFacts(
                engine=f"onnxruntime {require_onnxruntime().__version__}",
                inputs=self._fed.name,
                n_runs=len(self._feeds),
                n_threads=self._n_threads,
                n_groups=len(groups),
                held_bytes=self._held,
                paired_by="names" if self._pairing.by_name else "weights and topology",
            ),
        )

    def _closer(self, sides: Sides, sums: Mapping[str, HookSums]) -> list[Hook]:
        """Hooks with an own error of more than rounding, the largest, in graph order."""
        lossy = [h for h in sides.hooks if _error(sums[h.name]) > LOSSY]
        lossy.sort(key=lambda h: -_error(sums[h.name]))
        chosen = {h.name for h in lossy[:_MOST_CLOSER]}
        return [h for h in sides.hooks if h.name in chosen]

    def _outputs_alone(self, outputs: Outputs) -> Iterator[Skipped]:
        for name, kind in self._output_types.items():
            if name not in outputs.names and kind in FLOATS:
                yield Skipped(f"output {name}", "the reference has no such output")

    def _outputs(self, sides: Sides, outputs: Outputs) -> Iterator[OutputDrift]:
        session = Session(whole(self._quant), self._quant, self._n_threads)
        self._output_types = session.types
        plain = outputs.of(session)
        fast = outputs.of(Session(whole(self._quant), self._quant, self._n_threads, optimized=True))
        sizes = {name: len(region(self._quant, [name], ())) for name in plain}
        main = max(sizes, key=lambda name: sizes[name], default=None)
        for name, total in plain.items():
            yield OutputDrift(
                name, outputs.shape(name), total.result(), fast[name].result(), name == main
            )


def _error(sums: HookSums) -> float:
    found = sums.local.result()
    return np.inf if found.non_finite_rows else found.rel_l2 or 0.0


def _rows(
    sides: Sides,
    sums: Mapping[str, HookSums],
    explained: Mapping[str, Explanation],
    portions: Mapping[str, float],
) -> Iterator[OnnxOperation]:
    for hook in sides.hooks:
        local = sums[hook.name].local.result()
        if hook.op in MOVES and not local.rel_l2 and not local.non_finite_rows:
            continue
        yield OnnxOperation(
            node=hook.label,
            value=hook.name,
            op=hook.op,
            op_quant=hook.ops,
            layer=hook.layer,
            dtype=hook.dtype,
            dtype_ref=hook.dtype_ref,
            local=local,
            cumulative=sums[hook.name].cumulative.result(),
            share=portions.get(hook.name),
            together=hook.together,
            **vars(explained.get(hook.name, Explanation())),
        )


def _not_closer(
    sides: Sides, sums: Mapping[str, HookSums], closer: Sequence[Hook]
) -> Iterator[Skipped]:
    names = {h.name for h in closer}
    rest = [h for h in sides.hooks if h.name not in names and _error(sums[h.name]) > LOSSY]
    if rest:
        yield Skipped(
            f"{len(rest)} operations",
            f"their shares were not measured: their own errors are below those of {_MOST_CLOSER}"
            " others",
        )


def _where(sides: Sides, value: str) -> tuple[str, int | None]:
    name = sides.ref.producers[value].name or value
    layer = find_layer(name)
    return name, int(layer[1]) if layer else None


def _scheme(sides: Sides) -> Scheme:
    ops = {node.op_type for node in sides.quant.nodes}
    if ops & {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "ConvInteger"}:
        return "dynamic"
    if any(op.startswith("QLinear") or op == "QuantizeLinear" for op in ops):
        return "static"
    if any(h.is_quantized for h in sides.hooks):
        return "weights"
    if any(h.kind == 10 and h.kind_ref != 10 for h in sides.hooks):
        return "half"
    return "float"


def _facts(model: OnnxModel, shown: str) -> OnnxFacts:
    opset = max(
        (o.version for o in model.proto.opset_import if o.domain in ("", "ai.onnx")), default=0
    )
    producer = model.proto.producer_name or "an unknown exporter"
    size = sum(file.stat().st_size for file in model.files())
    return OnnxFacts(shown, producer, opset, size, len(model.nodes))
