"""Encoders of pictures and sounds (mmproj files) beside their checkpoints, whole.

``python -m tests.engine.test_audit_encoders`` prints the table of
``docs/detection-audit.md``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ggufnorm.analysis.audit.run import audit
from ggufnorm.core.audit import AuditReport, Finding
from tests.encoders import ENCODERS, HEADS, turned_over
from tests.pairs import Whole, permuted, turned, whole_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "detection-audit.md"
HEADING = "## Encoders beside their source (T, K)"


def check(folder: Path, made: Whole) -> AuditReport:
    model, checkpoint = made.write(folder)
    return audit(model, source=checkpoint, select=("S", "T", "K"))


def told(report: AuditReport) -> list[Finding]:
    return [f for f in report.findings if f.severity != "info"]


@pytest.mark.parametrize(("dtype", "file_type"), [("BF16", "F16"), ("F16", "Q8_0")])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_right_encoder_raises_no_alarm_and_is_compared_whole(
    tmp_path: Path, name: str, dtype: str, file_type: str
) -> None:
    made = whole_of(ENCODERS[name], dtype, file_type)

    report = check(tmp_path, made)

    assert told(report) == []
    coverage = next(f for f in report.findings if f.rule == "T104")
    assert coverage.evidence["n_compared"] == len(made.tensors)


Fault = Callable[[Whole], str | None]


def of(*ends: str) -> Callable[[Whole], str | None]:
    """The first tensor whose name ends so."""
    return lambda made: next((n for n in made.tensors if n.endswith(ends)), None)


def changed(
    find: Callable[[Whole], str | None], change: Callable[[np.ndarray], np.ndarray]
) -> Fault:
    def spoil(made: Whole) -> str | None:
        name = find(made)
        if name is not None:
            made.tensors[name] = change(made.tensors[name])
        return name

    return spoil


def exchanged(a: str, b: str) -> Fault:
    def spoil(made: Whole) -> str | None:
        if a not in made.tensors or b not in made.tensors:
            return None
        made.tensors[a], made.tensors[b] = made.tensors[b], made.tensors[a]
        return a

    return spoil


def everywhere(end: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def spoil(made: Whole) -> str | None:
        names = [n for n in made.tensors if n.endswith(end)]
        for n in names:
            made.tensors[n] = change(made.tensors[n])
        return names[0] if names else None

    return spoil


def lost(end: str) -> Fault:
    def spoil(made: Whole) -> str | None:
        names = [n for n in made.tensors if n.endswith(end)]
        for n in names:
            del made.tensors[n]
        return names[0] if names else None

    return spoil


def reversed_bytes(made: Whole) -> str | None:
    name = of("blk.1.ffn_down.weight")(made)
    made.swapped.update([name] if name else [])
    return name


def key(name: str, value: object) -> Fault:
    def spoil(made: Whole) -> str | None:
        for modality in ("vision.", "audio.", ""):
            full = modality + name
            if full in made.keys:
                if value is None:
                    del made.keys[full]
                else:
                    made.keys[full] = value
                return full
        return None

    return spoil


@dataclass(frozen=True)
class Planted:
    """A fault, the rules that may name it, and what the message says."""

    words: str
    spoil: Fault
    rules: tuple[str, ...]
    says: str


def _other(w: np.ndarray) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.05, w.shape).astype(np.float32)


def _shuffled(w: np.ndarray) -> np.ndarray:
    return w[np.random.default_rng(1).permutation(len(w))]


FAULTS = (
    Planted("matrix transposed", changed(of("blk.1.attn_out.weight"), turned), ("T201",),
            "transposed"),
    Planted("Q permuted in all layers", everywhere("attn_q.weight", permuted(HEADS)),
            ("T201", "T202"), "attn_q"),
    Planted("rows reordered", changed(of("blk.2.ffn_up.weight"), _shuffled), ("T202",), "rows"),
    Planted("Q and K exchanged", exchanged("v.blk.1.attn_q.weight", "v.blk.1.attn_k.weight"),
            ("T203", "T201"), "v.blk.1.attn_q.weight"),
    Planted("patches of two moments exchanged",
            exchanged("v.patch_embd.weight", "v.patch_embd.weight.1"), ("T201", "T203"), "moment"),
    Planted("patches in the order blue, green, red",
            changed(of("v.patch_embd.weight"), turned_over), ("T202", "T209"), "v.patch_embd"),
    Planted("positions reordered", changed(of("position_embd.weight"), _shuffled), ("T202",),
            "rows"),
    Planted("matrix × 0.5", changed(of("blk.0.ffn_up.weight"), lambda w: w * np.float32(0.5)),
            ("T204",), "0.5 times"),
    Planted("bytes reversed", reversed_bytes, ("T205",), "bytes"),
    Planted("projector all zero", changed(of("mm.2.weight", "mm.model.fc.weight", "mm.a.fc.weight",
            "mm.input_projection.weight", "mm.model.mlp.3.weight"), np.zeros_like),
            ("T206", "T103"), "mm."),
    Planted("projector of another checkpoint", changed(of("mm.2.weight", "mm.model.fc.weight",
            "mm.a.fc.weight", "mm.input_projection.weight", "mm.model.mlp.3.weight"), _other),
            ("T209", "T103"), "mm."),
    Planted("biases lost", lost("attn_out.bias"), ("T102",), "is missing"),
    Planted("another projector", key("projector_type", "mlp"), ("K101",), "projector_type"),
    Planted("another patch size", key("patch_size", 4), ("K101",), "patch"),
    Planted("another size of the picture", key("image_size", 64), ("K101",), "picture"),
    Planted("another number of heads", key("attention.head_count", 2), ("K101",), "heads"),
    Planted("a block too many counted", key("block_count", 5), ("K101",), "blocks"),
    Planted("another pooling of patches", key("projector.scale_factor", 4), ("K101",), "patches"),
    Planted("GELU missing", key("use_gelu", None), ("K102",), "GELU"),
    Planted("another number of bands", key("num_mel_bins", 128), ("K101",), "bands"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What was said of a planted fault."""

    planted: Planted
    name: str
    found: bool
    findings: tuple[Finding, ...]

    @property
    def is_misnamed(self) -> bool:
        """Whether something else was said to be wrong."""
        # Orders and offsets depend on the projector, norms that are due on the blocks.
        beside = {"S102", "S201", "T201"} if self.planted.rules == ("K101",) else set()
        return any(f.rule not in {*self.planted.rules, *beside} for f in self.findings)


def outcomes() -> Iterator[Outcome]:
    for planted in FAULTS:
        for i, name in enumerate(ENCODERS):
            file_type = "F32" if planted.spoil is reversed_bytes else ("F16", "Q8_0")[i % 2]
            made = whole_of(ENCODERS[name], "F16", file_type)
            if planted.spoil(made) is None:
                continue
            with tempfile.TemporaryDirectory() as folder:
                findings = told(check(Path(folder), made))
            right = [f for f in findings if f.rule in planted.rules and planted.says in f.message]
            yield Outcome(planted, name, bool(right), tuple(findings))


_OUTCOMES: list[Outcome] = []


def _cached() -> list[Outcome]:
    if not _OUTCOMES:
        _OUTCOMES.extend(outcomes())
    return _OUTCOMES


def table() -> str:
    lines = [
        "| fault | rule | planted in | found | misnamed | missed |",
        "|---|---|---|---|---|---|",
    ]
    for planted in FAULTS:
        mine = [o for o in _cached() if o.planted is planted]
        n_found, n_wrong = sum(o.found for o in mine), sum(o.is_misnamed for o in mine)
        lines.append(
            f"| {planted.words} | {', '.join(planted.rules)} | {', '.join(o.name for o in mine)} |"
            f" {n_found} | {n_wrong} | {len(mine) - n_found} |"
        )
    total = _cached()
    lines += [
        "",
        f"{len(total)} faults in {len(ENCODERS)} encoders: {sum(o.found for o in total)} found,"
        f" {sum(o.is_misnamed for o in total)} misnamed, {sum(not o.found for o in total)} missed.",
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("planted", FAULTS, ids=lambda p: p.words)
def test_a_planted_fault_is_found_and_named(planted: Planted) -> None:
    mine = [o for o in _cached() if o.planted is planted]

    assert mine
    wrong = [o for o in mine if not o.found or o.is_misnamed]
    assert [(o.name, [f"{f.rule} {f.message}" for f in o.findings]) for o in wrong] == []


def test_the_document_tells_what_was_found() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]

    assert table() in section


if __name__ == "__main__":
    print(table())
