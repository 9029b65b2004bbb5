"""The work of a recipe: types tried, types chosen, and the choice written and measured."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ggufnorm.analysis.attribution.arguments import compressed
from ggufnorm.analysis.attribution.job import Wanted
from ggufnorm.analysis.attribution.options import Tried, options_of
from ggufnorm.analysis.attribution.tensors import role_of
from ggufnorm.analysis.inspection import model_facts
from ggufnorm.core.attribution import AttributionReport
from ggufnorm.core.drift import RunCost
from ggufnorm.core.engine import Engine
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.core.progress import OnProgress, Progress, duration
from ggufnorm.core.recipe import (
    Assignment,
    Choice,
    Option,
    RecipeReport,
    Trial,
    lowest_kld,
    recipe_verdict,
    smallest_size,
    total_bytes,
    total_kld,
)
from ggufnorm.engines.llama.quantize import Importance, quantize, quantized_sizes
from ggufnorm.errors import EngineError, InputError, OutputError, RefusedError
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of
from ggufnorm.formats.output import move_to
from ggufnorm.runs.journal import Journal

_BASE = "Q4_K_M"
"""A mix under which llama-quantize looks at tensor types at all; every tensor gets its own."""
_LOCAL_CHUNKS = 2
"""Chunks run where only local errors are wanted: they are the same in all text."""
_RIVALS = 3
"""Standard mixes that a recipe is compared with."""
_ROUNDING = 0.01 * (1 << 20)
"""To which llama-quantize prints sizes."""


@dataclass
class Work:
    """One recipe: types tried, types chosen, and the choice tried."""

    reference: ModelFile
    under_test: ModelFile
    folder: Path
    run: Callable[..., AttributionReport]
    chunks: int | None
    budget: float
    importance: Importance | None
    n_threads: int | None
    on_progress: OnProgress
    journal: Journal
    phase: str = ""
    """What is being done, for a person."""
    overhead: int = 0
    """Bytes of a quantized file that no tensor takes."""

    def execute(
        self,
        types: Sequence[str],
        max_bytes: int | None,
        target_kld: float | None,
        apply: str | os.PathLike[str] | None,
        imatrix: str | None,
    ) -> RecipeReport:
        """Try, choose, and write if asked to."""
        started = time.monotonic()
        tried, skipped = self._try_types(types)
        anchors = self._anchors(tried, max_bytes)
        for name in anchors:
            skipped += self._measure_anchor(name, tried)
        options = options_of(tried)
        rest = self._rest_of_file(options)
        chosen = self._choose(options, rest, max_bytes, target_kld)
        base = self._base()
        arguments = compressed({t: o.dtype for t, o in chosen.items()})
        under_test = self.under_test
        quant, ran = self._trial(under_test.path, Path(under_test.path).name, under_test.size)
        measured: Trial | None = None
        uniform: tuple[Trial, ...] = ()
        failure: EngineError | OutputError | None = None
        if apply is not None:
            try:
                measured, uniform = self._apply(apply, base, arguments)
            except (EngineError, OutputError) as error:
                failure = error
        n_bytes = rest + total_bytes(chosen)
        predicted = total_kld(chosen)
        report = RecipeReport(
            reference=model_facts(self.reference),
            quant=model_facts(self.under_test),
            max_bytes=max_bytes,
            target_kld=target_kld,
            imatrix=imatrix,
            anchors=anchors,
            file_type=base,
            choices=self._choices(chosen),
            arguments=arguments,
            predicted_kld=predicted,
            predicted_quant_kld=self._predicted_quant(options),
            bytes=n_bytes,
            measured_quant=quant,
            measured=measured,
            uniform=uniform,
            n_tokens=ran["n_tokens"],
            verdict=recipe_verdict(predicted, n_bytes, quant, measured, uniform),
            skipped=skipped,
            cost=RunCost(time.monotonic() - started, 0.0, None),
            engine=None if ran["engine"] is None else from_plain(Engine, ran["engine"]),
        )
        if failure is not None:
            failure.result = report
            raise failure
        return report

    def tell(self, phase: str) -> None:
        """Say what is being done."""
        self.phase = phase
        self.on_progress(Progress(phase))

    def _show(self, p: Progress, *, notes: bool) -> None:
        """Pass on how far one of many runs is."""
        if p.total:
            left = "" if p.seconds_left is None else f", {p.seconds_left:.0f} s left"
            self.on_progress(Progress(f"{self.phase}, {100 * p.done // p.total} %{left}"))
        elif p.note and notes:
            self.on_progress(replace(p, phase=f"{self.phase}: {p.phase}"))

    # -- trying ---------------------------------------------------------------------------

    def _try_types(
        self, types: Sequence[str]
    ) -> tuple[dict[str, dict[str, Tried]], tuple[Skipped, ...]]:
        """Each tensor in each type that llama.cpp gives it, with its local error.

        Raises:
            RefusedError: llama.cpp refuses all types.
            EngineError: llama.cpp fails, crashes or is killed.
        """
        tried: dict[str, dict[str, Tried]] = defaultdict(dict)
        skipped: list[Skipped] = []
        refusal: RefusedError | None = None
        for i, name in enumerate(types):
            begun = time.monotonic()
            try:
                found = self.journal.step(f"type {name}", partial(self._try_type, name))
            except RefusedError as error:
                refusal = error
                skipped.append(Skipped(name, str(error)))
                continue
            if not tried:
                self._tell_time(len(types) - i - 1, time.monotonic() - begun)
            self.overhead = found["overhead"]
            for tensor, (dtype, size, error_of) in found["tensors"].items():
                tried[tensor].setdefault(dtype, Tried(size, error_of))
        if not tried:
            raise refusal or EngineError(f"llama.cpp quantizes no tensor of {self.reference.path}")
        return dict(tried), tuple(skipped)

    def _tell_time(self, n: int, seconds: float) -> None:
        """Say what is left after the first type: the others, then shares in two of them."""
        text = (
            f"about {duration(n * seconds)} for {n} more types, then shares in two of them for at"
            f" most {duration(self.budget)} each"
        )
        self.on_progress(Progress(text, note=True))

    def _try_type(self, name: str) -> dict[str, Any]:
        """Each tensor's type, bytes and local error in a copy of one type."""
        path = self._quantized(name)
        chunks = min(_LOCAL_CHUNKS, self.chunks or _LOCAL_CHUNKS)
        report = self._run(path, shares=False, chunks=chunks)
        errors = {u.tensor: u.local_rel_l2 for u in report.unmeasured}
        with open_model(path) as file:
            sizes = {n: padded(t.n_bytes, file) for n, t in file.tensors.items()}
            found = {
                "overhead": file.size - sum(sizes.values()),
                "tensors": {
                    n: (file.tensors[n].dtype, sizes[n], errors.get(n)) for n in self._changed(file)
                },
            }
        path.unlink()
        return found

    def _changed(self, file: ModelFile) -> list[str]:
        """Tensors that have another type than in the reference."""
        ref = self.reference.tensors
        return [n for n, t in file.tensors.items() if n in ref and t.dtype != ref[n].dtype]

    def _quantized(self, name: str) -> Path:
        """The reference with every tensor in one type, where llama.cpp allows it."""
        self.tell(f"quantizing to {name}")
        path = self.folder / f"{name}.gguf"
        self._write(path, _BASE, {".": name})
        return path

    def _write(self, path: Path, file_type: str, types: Mapping[str, str] | None) -> None:
        quantize(
            self.reference.path,
            path,
            file_type,
            tensor_types=types,
            importance=self.importance,
            n_threads=self.n_threads,
        )

    def _run(self, path: str | Path, *, shares: bool, **options: Any) -> AttributionReport:
        """Run a quantized copy in step with the reference.

        Raises:
            KeyboardInterrupt: after a Ctrl-C.
        """
        wanted = Wanted(rest=0.0, norms=False, shares=shares)
        show = partial(self._show, notes=shares)
        report = self.run(
            self.reference.path, path, wanted, self.budget, on_progress=show, **options
        )
        if report.interrupted:
            raise KeyboardInterrupt
        return report

    def _anchors(
        self, tried: Mapping[str, Mapping[str, Tried]], max_bytes: int | None
    ) -> tuple[str, ...]:
        """The two types, of those that most tensors can have, around the mean one wanted."""
        common = Counter(name for of in tried.values() for name in of)
        sizes = {
            name: sum(of[name].bytes for of in tried.values() if name in of)
            for name, n in common.items()
            if n == max(common.values())
        }
        fixed = sum(padded(self.under_test.tensors[t].n_bytes, self.under_test) for t in tried)
        wanted = fixed + (max_bytes - self.under_test.size if max_bytes is not None else 0)
        below = sorted((s, n) for n, s in sizes.items() if s <= wanted)
        above = sorted((s, n) for n, s in sizes.items() if s > wanted)
        chosen = below[-1:] + above[:1]
        if len(chosen) < 2:
            chosen = (below[-2:] + above[:2])[:2]
        return tuple(name for _size, name in chosen)

    def _measure_anchor(
        self, name: str, tried: Mapping[str, dict[str, Tried]]
    ) -> tuple[Skipped, ...]:
        """Measure every tensor's share in one type; what there was no time for.

        Raises:
            InputError: there was time for none.
        """
        found = self.journal.step(f"shares {name}", partial(self._shares, name))
        for tensor, dtype, kld in found["shares"]:
            of = tried.get(tensor or "", {})
            if dtype in of:
                of[dtype].kld = kld
        if not found["unmeasured"]:
            return ()
        what = f"{found['unmeasured']} tensors in {name}"
        reason = f"{found['reason']}; their cost is taken from others of their role"
        return (Skipped(what, reason),)

    def _shares(self, name: str) -> dict[str, Any]:
        """Every tensor's share in a copy of one type."""
        path = self._quantized(name)
        self.tell(f"measuring the shares of tensors in {name}")
        report = self._run(path, shares=True)
        path.unlink()
        if not report.shares:
            raise InputError(
                f"the budget of {self.budget:g} s leaves no time to measure a tensor:"
                " raise --budget, or run less text (--chunks)"
            )
        return {
            "shares": [(s.tensor, s.dtype, s.kld) for s in report.shares],
            "unmeasured": len(report.unmeasured),
            "reason": report.unmeasured[0].reason if report.unmeasured else "",
        }

    # -- choosing -------------------------------------------------------------------------

    def _rest_of_file(self, options: Mapping[str, Sequence[Option]]) -> int:
        """Bytes of a quantized file without the tensors to be chosen for."""
        left = (t for name, t in self.reference.tensors.items() if name not in options)
        return self.overhead + sum(padded(t.n_bytes, self.reference) for t in left)

    def _choose(
        self,
        options: Mapping[str, Sequence[Option]],
        rest: int,
        max_bytes: int | None,
        target_kld: float | None,
    ) -> Assignment:
        if max_bytes is not None:
            chosen = lowest_kld(options, max_bytes - rest)
            if chosen is None:
                least = rest + sum(min(o.bytes for o in of) for of in options.values())
                raise InputError(
                    f"the smallest file of these types takes {least / 1e6:,.2f} MB, more than"
                    f" {max_bytes / 1e6:,.2f} MB: allow more (--max-size) or add smaller types"
                    " (--types)"
                )
            return chosen
        assert target_kld is not None
        chosen = smallest_size(options, target_kld)
        if chosen is None:
            least_kld = sum(min(o.kld for o in of) for of in options.values())
            raise InputError(
                f"the largest of these types are predicted to give {least_kld:.3g} nats, more than"
                f" {target_kld:g}: raise --target-kld or add types (--types)"
            )
        return chosen

    def _choices(self, chosen: Assignment) -> tuple[Choice, ...]:
        found = []
        for tensor, option in chosen.items():
            t = self.under_test.tensors[tensor]
            found.append(
                Choice(
                    tensor=tensor,
                    layer=layer_of(tensor),
                    role=role_of(tensor),
                    dtype=option.dtype,
                    dtype_quant=t.dtype,
                    bytes=option.bytes,
                    bytes_quant=padded(t.n_bytes, self.under_test),
                    kld=option.kld,
                )
            )
        return tuple(found)

    def _predicted_quant(self, options: Mapping[str, Sequence[Option]]) -> float | None:
        """What the same sum gives for the model under test."""
        total = 0.0
        for tensor, of in options.items():
            dtype = self.under_test.tensors[tensor].dtype
            costs = [o.kld for o in of if o.dtype == dtype]
            if not costs:
                return None
            total += costs[0]
        return total

    def _base(self) -> str:
        """The standard mix that the model under test says it is, if llama.cpp can make it."""
        claimed = (model_facts(self.under_test).file_type or "").removeprefix("MOSTLY_")
        try:
            sizes = quantized_sizes(
                self.reference.path, [claimed], with_importance=self.importance is not None
            )
        except ValueError:
            return _BASE
        return claimed if claimed in sizes and claimed not in ("F16", "BF16") else _BASE

    # -- writing --------------------------------------------------------------------------

    def _trial(
        self, path: str | Path, name: str, n_bytes: int | None = None
    ) -> tuple[Trial, dict[str, Any]]:
        """A file that was run, and what :meth:`_measure` gave of it."""
        n_bytes = n_bytes or Path(path).stat().st_size
        found = self.journal.step(f"trial {name}", partial(self._measure, path, name))
        return Trial(name, n_bytes, found["kld"], found["kld_se"]), found

    def _measure(self, path: str | Path, name: str) -> dict[str, Any]:
        self.tell(f"measuring {name}")
        report = self._run(path, shares=False)
        return {
            "kld": report.total_kld,
            "kld_se": report.total_kld_se,
            "n_tokens": report.n_tokens,
            "engine": to_plain(report.run.engine_quant),
        }

    def _apply(
        self, out: str | os.PathLike[str], base: str, arguments: Sequence[str]
    ) -> tuple[Trial, tuple[Trial, ...]]:
        """Write the recipe's file, measure it, and measure its uniform rivals."""
        self.tell("quantizing by the recipe")
        written = self.folder / "recipe.gguf"
        self._write(written, base, dict(a.rsplit("=", 1) for a in arguments))
        measured, _ran = self._trial(written, "recipe")
        uniform = tuple(self._uniform(written))
        move_to(written, out)
        return measured, uniform

    def _uniform(self, written: Path) -> Iterator[Trial]:
        """The standard mixes that take as many bytes or the next more."""
        from ggufnorm.formats.gguf_constants import LlamaFileType

        with open_model(written) as file:
            least = sum(t.n_bytes for t in file.tensors.values()) - _ROUNDING
        names = [m.name.removeprefix("MOSTLY_") for m in LlamaFileType if "Q" in m.name]
        sizes = quantized_sizes(
            self.reference.path, names, with_importance=self.importance is not None
        )
        larger = sorted((n for n, size in sizes.items() if size >= least), key=sizes.__getitem__)
        n_tried = 0
        for name in larger:
            path = self.folder / f"{name}.gguf"
            self.tell(f"quantizing to {name}")
            try:
                self._write(path, name, None)
            except RefusedError:  # an importance matrix without this mix's tensors
                continue
            if path.stat().st_size >= written.stat().st_size:
                yield self._trial(path, name)[0]
                n_tried += 1
            path.unlink()
            if n_tried == _RIVALS:
                return


def padded(n_bytes: int, file: ModelFile) -> int:
    """Bytes that a tensor takes in a file: up to the next one's start."""
    alignment = file.shards[0].alignment
    return -(-n_bytes // alignment) * alignment
