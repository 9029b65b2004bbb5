"""``audit``'s rules of the file alone (N and E): what they miss, and what they accuse wrongly.

``python -m tests.unit.analysis.test_audit_file`` prints their part of docs/detection-audit.md.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from ggufnorm.analysis.audit.rules import RULES
from ggufnorm.analysis.audit.run import audit
from ggufnorm.core.audit import AuditReport
from ggufnorm.formats.gguf import GGUFFile
from tests import conversions
from tests.conversions import LAYER_NORM, N_EMBD, N_LAYERS, Model, build, encoder, write
from tests.paths import DOCS

FAMILIES = ("N", "E")
RMS = "{arch}.attention.layer_norm_rms_epsilon"
LAYER = "{arch}.attention.layer_norm_epsilon"

Fault = Callable[[Model], None]


@dataclass(frozen=True)
class Case:
    """A fault in one sound conversion.

    Attributes:
        arch: of the conversion; ``clip`` for an encoder.
        rule: that describes it.
        fault: in words.
        plant: damages the model before it is written.
        tensor: that the rule names.
        layer: that the rule names.
        also: rules that rightly have something to say too.
        patch: damages the file.
        precision: of the conversion.
        full: whether all tensors are read.
        rename: what the architecture is called in the file instead.
    """

    arch: str
    rule: str
    fault: str
    plant: Fault = field(compare=False, default=lambda model: None)
    tensor: str | None = None
    layer: int | None = None
    also: tuple[str, ...] = ()
    patch: Callable[[Path], None] = field(compare=False, default=lambda path: None)
    precision: conversions.Precision = "bf16"
    full: bool = False
    rename: str | None = None

    def __str__(self) -> str:
        return f"{self.rule}-{self.arch}-{self.fault}".replace(" ", "_")


# -- faults ------------------------------------------------------------------------------


def drop(*names: str) -> Fault:
    def plant(model: Model) -> None:
        for name in names:
            del model.tensors[name]

    return plant


def drop_like(part: str) -> Fault:
    def plant(model: Model) -> None:
        for name in [n for n in model.tensors if part in n]:
            del model.tensors[name]

    return plant


def put(name: str, n: int = N_EMBD, seed: int = 5) -> Fault:
    def plant(model: Model) -> None:
        rng = np.random.default_rng(seed)
        model.tensors[name] = conversions.trained(n, 3, 0, "bf16", rng)

    return plant


def put_each(part: str, n: int = N_EMBD) -> Fault:
    def plant(model: Model) -> None:
        for layer in range(N_LAYERS):
            put(f"blk.{layer}.{part}", n, seed=layer)(model)

    return plant


def change(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def plant(model: Model) -> None:
        model.tensors[name] = np.asarray(how(model.tensors[name].copy()))

    return plant


def change_like(part: str, how: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def plant(model: Model) -> None:
        for name in model.tensors:
            if part in name:
                model.tensors[name] = how(model.tensors[name].copy())

    return plant


def set_value(value: float, *at: int) -> Callable[[np.ndarray], np.ndarray]:
    def how(w: np.ndarray) -> np.ndarray:
        w.flat[list(at) or slice(None)] = value
        return w

    return how


def copy(source: str, target: str) -> Fault:
    def plant(model: Model) -> None:
        model.tensors[target] = model.tensors[source].copy()

    return plant


def copy_block(source: int, target: int) -> Fault:
    def plant(model: Model) -> None:
        for name in [n for n in model.tensors if n.startswith(f"blk.{source}.") and "norm" in n]:
            copy(name, name.replace(f"blk.{source}.", f"blk.{target}."))(model)

    return plant


def store(name: str, kind: T) -> Fault:
    def plant(model: Model) -> None:
        model.types[name] = kind

    return plant


def entry(key: str, value: object) -> Fault:
    def plant(model: Model) -> None:
        model.metadata[key] = value

    return plant


def without(*keys: str) -> Fault:
    def plant(model: Model) -> None:
        for key in keys:
            model.metadata.pop(key, None)

    return plant


def both(*faults: Fault) -> Fault:
    def plant(model: Model) -> None:
        for fault in faults:
            fault(model)

    return plant


def cut_off(n: int) -> Callable[[Path], None]:
    def patch(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-n])

    return patch


def overlap(tensor: str, other: str) -> Callable[[Path], None]:
    """The header says that a tensor begins where another does."""

    def patch(path: Path) -> None:
        with GGUFFile(path) as file:
            start = -(-file.header_size // file.alignment) * file.alignment
            a, b = file.tensors[tensor], file.tensors[other]
        data = path.read_bytes()
        name = tensor.encode()
        at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        at += 4 + 8 * len(a.shape) + 4
        assert struct.unpack_from("<Q", data, at) == (a.offset - start,)
        path.write_bytes(data[:at] + struct.pack("<Q", b.offset - start) + data[at + 8 :])

    return patch


def spoil(tensor: str, at: int, raw: bytes) -> Callable[[Path], None]:
    """Other bytes in a tensor's data."""

    def patch(path: Path) -> None:
        with GGUFFile(path) as file:
            offset = file.tensors[tensor].offset + at
        data = bytearray(path.read_bytes())
        data[offset : offset + len(raw)] = raw
        path.write_bytes(bytes(data))

    return patch


NAN16 = struct.pack("<e", float("nan"))


def cases() -> Iterator[Case]:
    yield from presence()
    yield from layout()
    yield from values()
    yield from peers()
    yield from offsets()
    yield from data()
    yield from epsilons()


def presence() -> Iterator[Case]:
    for arch, part in (("llama", "ffn_norm"), ("qwen3", "attn_k_norm"), ("gpt2", "attn_norm")):
        name = f"blk.3.{part}.weight"
        gone = [name, f"blk.3.{part}.bias"] if arch == "gpt2" else [name]
        yield Case(arch, "N101", "norm missing in a block", drop(*gone), name, 3)
    for arch, part in (("glm4", "post_attention_norm"), ("gemma2", "post_ffw_norm")):
        first = f"blk.0.{part}.weight"
        yield Case(arch, "N101", "norm missing in all blocks", drop_like(part), first, 0)
    for arch in ("llama", "nemotron", "qwen3"):
        yield Case(arch, "N101", "last norm missing", drop_like("output_norm"),
                   "output_norm.weight")  # fmt: skip
    for arch, part in (("gpt2", "ffn_norm"), ("starcoder2", "attn_norm")):
        name = f"blk.5.{part}.bias"
        yield Case(arch, "N101", "bias missing in a block", drop(name), name, 5)
    for arch, part in (("falcon", "ffn_norm"), ("gpt2", "post_ffw_norm"), ("olmo2", "attn_norm")):
        first = f"blk.0.{part}.weight"
        yield Case(arch, "N102", "norm that is not of the architecture",
                   put_each(f"{part}.weight"), first, 0)  # fmt: skip
    for arch in ("llama", "gemma3"):
        name = "blk.2.attn_norm.bias"
        yield Case(arch, "N102", "bias beside an RMSNorm", put_each("attn_norm.bias"), name, 2)
    for arch in ("falcon", "llama"):
        part = "attn_norm_2" if arch == "falcon" else "attn_q_norm"
        n = N_EMBD if arch == "falcon" else conversions.HEAD_DIM
        name = f"blk.4.{part}.weight"
        alone = both(drop_like(part), put(name, n))
        yield Case(arch, "N102", "norm in one block only", alone, name, 4)
    for arch in ("llama", "gemma2", "bert"):
        key = "{arch}.block_count"
        yield Case(arch, "N103", "last block missing", drop_like(f"blk.{N_LAYERS - 1}."), None,
                   N_LAYERS - 1)  # fmt: skip
        yield Case(arch, "N103", "too few blocks counted", entry(key, 8), None, 8)
    yield Case("qwen3", "N103", "block missing in the middle", drop_like("blk.4."), None, 4)
    yield Case("gpt2", "N103", "block missing in the middle", drop_like("blk.4."), None, 4)


def layout() -> Iterator[Case]:
    for arch, kind in (("llama", T.F16), ("gemma2", T.BF16), ("gpt2", T.Q8_0), ("qwen3", T.F16)):
        name = "blk.1.ffn_norm.weight"
        yield Case(arch, "N201", f"weight stored as {kind.name}", store(name, kind), name, 1)
    for arch in ("gpt2", "phi2"):
        name = "output_norm.bias"
        yield Case(arch, "N201", "bias stored as F16", store(name, T.F16), name)
    for arch, name in (("llama", "blk.2.ffn_norm.weight"), ("gemma3", "output_norm.weight")):
        half = change(name, lambda w: w[: N_EMBD // 2])
        yield Case(arch, "N202", "too narrow", half, name, 2 if "blk" in name else None)
    for arch in ("olmo2", "minimax-m2"):
        name = "blk.2.attn_k_norm.weight"
        wide = change(name, lambda w: np.concatenate([w, w[::-1]]))
        yield Case(arch, "N202", "K norm as wide as the Q norm", wide, name, 2)
    for arch in ("qwen3", "gemma3"):
        name = "blk.2.attn_q_norm.weight"
        whole = change(name, lambda w: np.tile(w, 3))
        yield Case(arch, "N202", "Q norm of another head size", whole, name, 2)
    for arch in ("deepseek2", "minicpm3"):
        name = "blk.2.attn_kv_a_norm.weight"
        yield Case(arch, "N202", "norm of another rank", change(name, lambda w: w[:-8]), name, 2)
    for arch in ("gpt2", "phi2"):
        name = "blk.2.attn_norm.bias"
        yield Case(arch, "N202", "bias of another width", change(name, lambda w: w[:-8]), name, 2)


def values() -> Iterator[Case]:
    for arch in ("llama", "gemma2", "gpt2"):
        name = "blk.3.attn_norm.weight"
        yield Case(arch, "N301", "NaN", change(name, set_value(np.nan, 7)), name, 3)
        yield Case(arch, "N301", "infinity", change(name, set_value(np.inf, 0, 9)), name, 3)
        yield Case(arch, "N302", "all zero", change(name, set_value(0)), name, 3)
        yield Case(arch, "N303", "all one", change(name, set_value(1)), name, 3)
        signal = spoil(name, 8, struct.pack("<I", 0x7F800001))
        yield Case(arch, "N301", "NaN that signals", tensor=name, layer=3, patch=signal)
    for arch in ("bert", "starcoder2"):
        name = "blk.3.layer_output_norm.bias" if arch == "bert" else "blk.3.ffn_norm.bias"
        yield Case(arch, "N301", "NaN in a bias", change(name, set_value(np.nan, 1)), name, 3)
    for arch in ("qwen3", "olmo2"):
        name = "blk.3.attn_k_norm.weight"
        yield Case(arch, "N302", "Q or K norm all zero", change(name, set_value(0)), name, 3)
        part = "attn_q_norm.weight"
        first = f"blk.0.{part}"
        yield Case(arch, "N303", "never trained", change_like(part, set_value(1)), first, 0)
    for arch in ("llama", "nemotron"):
        name = "blk.6.ffn_norm.weight"
        yield Case(arch, "N304", "channel of 100", change(name, set_value(100, 11)), name, 6)


def peers() -> Iterator[Case]:
    for arch, part in (("llama", "ffn_norm"), ("gpt2", "attn_norm"), ("qwen3", "attn_q_norm")):
        name = f"blk.4.{part}.weight"
        yield Case(arch, "N401", "one layer × 32", change(name, lambda w: w * 32), name, 4)
        yield Case(arch, "N401", "one layer / 32", change(name, lambda w: w / 32), name, 4)
    for arch in ("llama", "gemma2", "gpt2"):
        a, b = "blk.3.ffn_norm.weight", "blk.4.ffn_norm.weight"
        yield Case(arch, "N402", "norm of the layer before", copy(a, b), b, 4)
        c = "blk.3.attn_norm.weight"
        yield Case(arch, "N402", "norm of another role", copy(c, a), a, 3)
    for arch in ("llama", "gemma2"):
        yield Case(arch, "N402", "block repeated", copy_block(2, 3), None, 3)
        yield Case(arch, "N403", "made of a bfloat16 checkpoint")
        yield Case(arch, "N404", "made of an F16 checkpoint", precision="f16")
    for arch, part in (("llama", "ffn_norm"), ("gpt2", "attn_norm"), ("olmo2", "attn_q_norm")):
        name = f"blk.5.{part}.weight"
        scaled = change(name, lambda w: w * np.float32(1.01))
        yield Case(arch, "N405", "one norm scaled by 1.01", scaled, name, 5)


def offsets() -> Iterator[Case]:
    one = np.float32(1)
    for arch in ("gemma", "gemma2", "gemma3", "nemotron", "qwen3next"):
        part = "attn_norm" if arch == "qwen3next" else "ffn_norm"
        names = ("output_norm.weight", f"blk.3.{part}.weight")
        for name, layer in zip(names, (None, 3)):
            off, twice = change(name, lambda w: w - one), change(name, lambda w: w + one)
            # A layer's mean is out of line, too, with or without its 1.
            also = ("N401",) if layer else ()
            yield Case(arch, "N501", f"1 missing in {'a block' if layer else 'the last norm'}",
                       off, name, layer, also)  # fmt: skip
            yield Case(arch, "N502", f"1 doubled in {'a block' if layer else 'the last norm'}",
                       twice, name, layer, also)  # fmt: skip
    for arch in ("gemma2", "step35"):
        all_off = change_like("norm.weight", lambda w: w - one)
        yield Case(arch, "N501", "1 missing everywhere", all_off, "blk.0.attn_norm.weight", 0)
    for arch in ("gemma", "nemotron"):
        all_off = change_like("norm.weight", lambda w: w - one)
        yield Case(arch, "N501", "1 missing everywhere, F16 checkpoint", all_off,
                   "blk.0.attn_norm.weight", 0, precision="f16")  # fmt: skip
    for arch in ("llama", "qwen3", "gemma3n"):
        name = "blk.3.attn_norm.weight"
        yield Case(arch, "N503", "1 added", change(name, lambda w: w + one), name, 3)
        all_on = change_like("norm.weight", lambda w: w + one)
        yield Case(arch, "N503", "1 added everywhere", all_on, name, 3)
    for arch in ("qwen3next", "qwen35"):
        name = "blk.2.ssm_norm.weight"
        yield Case(arch, "N503", "1 added to the gated norm",
                   change(name, lambda w: w + one), name, 2)  # fmt: skip
    for arch in ("gemma2", "nemotron"):
        name = "output_norm.weight"
        yield Case(arch, "N504", "1 missing in one norm of an unknown architecture",
                   change(name, lambda w: w - one), name, rename=f"new-{arch}")  # fmt: skip
        yield Case(arch, "N504", "1 doubled in one norm of an unknown architecture",
                   change(name, lambda w: w + one), name, rename=f"new-{arch}")  # fmt: skip


def data() -> Iterator[Case]:
    for arch in ("llama", "gpt2", "gemma2"):
        last = list(build(arch).tensors)[-1]
        yield Case(arch, "N601", "file cut off", patch=cut_off(64), tensor=last)
        a, b = "blk.2.attn_norm.weight", "blk.1.attn_norm.weight"
        yield Case(arch, "N601", "data of two tensors overlaps", patch=overlap(a, b), tensor=a,
                   layer=2)  # fmt: skip
    name = "blk.2.ffn_down.weight"
    for arch, kind, at in (("llama", T.Q8_0, 0), ("gemma2", T.Q4_0, 0), ("qwen3", T.Q5_0, 22)):
        yield Case(arch, "N602", f"NaN block scale in {kind.name}", store(name, kind), name, 2,
                   patch=spoil(name, at, NAN16), full=True)  # fmt: skip
    for arch in ("gpt2", "llama"):
        yield Case(arch, "N602", "infinity in F16", change(name, set_value(np.inf, 300)), name, 2,
                   full=True)  # fmt: skip
    for arch in ("llama", "gemma2", "gpt2"):
        yield Case(arch, "N603", "matrix all zero", change(name, np.zeros_like), name, 2,
                   full=True)  # fmt: skip


def epsilons() -> Iterator[Case]:
    clip = "clip.vision.attention.layer_norm_epsilon"
    for arch in ("llama", "gpt2", "gemma2", "clip"):
        key = clip if arch == "clip" else LAYER if arch in LAYER_NORM else RMS
        yield Case(arch, "E101", "no epsilon", without(key))
        yield Case(arch, "E102", "epsilon 0", entry(key, 0.0))
        yield Case(arch, "E103", "epsilon negative", entry(key, -1e-5))
        yield Case(arch, "E104", "epsilon NaN", entry(key, float("nan")))
        yield Case(arch, "E104", "epsilon infinite", entry(key, float("inf")))
        yield Case(arch, "E105", "epsilon 0.1", entry(key, 0.1))
        yield Case(arch, "E105", "epsilon 1e-20", entry(key, 1e-20))
        yield Case(arch, "E105", "epsilon 3.3e-5", entry(key, 3.3e-5))
    for arch in ("llama", "gpt2"):
        key = LAYER if arch in LAYER_NORM else RMS
        yield Case(arch, "E104", "epsilon is a text", entry(key, "1e-5"), also=("E101",))
    for arch in ("llama", "qwen3", "gpt2", "command-r"):
        right, wrong = (LAYER, RMS) if arch in LAYER_NORM else (RMS, LAYER)
        yield Case(arch, "E106", "epsilon under the other key",
                   both(without(right), entry(wrong, 1e-5)))  # fmt: skip


CASES = list(cases())
FOLDER = Path(tempfile.mkdtemp(prefix="ggufnorm-audit-"))


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    yield
    for path in FOLDER.iterdir():
        path.unlink()
    FOLDER.rmdir()


@cache
def report(case: Case) -> AuditReport:
    model = encoder() if case.arch == "clip" else build(case.arch, case.precision)
    case.plant(model)
    if case.rename:
        model.arch = case.rename
    FOLDER.mkdir(exist_ok=True)
    path = write(FOLDER / "faulty.gguf", model)
    case.patch(path)
    return audit(path, select=FAMILIES, full=case.full)


def found(case: Case) -> bool:
    """Whether the right rule names the right tensor and layer."""
    where = {(f.rule, f.tensor, f.layer) for f in report(case).findings}
    return (case.rule, case.tensor, case.layer) in where


def others(case: Case) -> set[str]:
    """Rules that have something to say about the fault and should not."""
    grave = {f.rule for f in report(case).findings if f.severity != "info"}
    return grave - {case.rule, *case.also}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_is_found_by_the_rule_that_describes_it(case: Case) -> None:
    assert found(case)
    assert others(case) == set()


def test_every_rule_has_faults_in_two_architectures() -> None:
    rules = [r.id for r in RULES if r.id[0] in FAMILIES]
    planted = {rule: {c.arch for c in CASES if c.rule == rule} for rule in rules}
    assert {rule for rule, archs in planted.items() if len(archs) < 2} == set()
    assert len(CASES) >= 70


@pytest.mark.slow
@pytest.mark.parametrize("arch", conversions.ARCHITECTURES)
def test_a_sound_conversion_is_not_accused(arch: str, tmp_path: Path) -> None:
    for seed, precision in enumerate(("bf16", "f16", "f32")):
        if precision != "bf16" and conversions.ARCHITECTURES.index(arch) % 3:
            continue
        found = audit(write(tmp_path / "m.gguf", build(arch, precision, seed)), select=FAMILIES)
        assert [f for f in found.findings if f.severity != "info"] == []
        assert found.summary.n_norms > 0


def test_a_sound_encoder_is_not_accused(tmp_path: Path) -> None:
    found = audit(write(tmp_path / "m.gguf", encoder()), select=FAMILIES, full=True)
    assert [f for f in found.findings if f.severity != "info"] == []


# -- the document ------------------------------------------------------------------------


def table() -> str:
    """Per fault: the rule, and in which architectures it was found."""
    rows = ["| fault | rule | found in |", "|---|---|---|"]
    for rule, fault in dict.fromkeys((c.rule, c.fault) for c in CASES):
        these = [c for c in CASES if (c.rule, c.fault) == (rule, fault)]
        archs = ", ".join(c.arch for c in these if found(c))
        rows.append(f"| {fault} | {rule} | {archs} |")
    n = sum(map(found, CASES))
    alone = sum(not others(c) for c in CASES)
    rows.append("")
    rows.append(
        f"{n} of {len(CASES)} faults found by the rule that describes them, with tensor and"
        f" layer; in {alone} of {len(CASES)} files no other rule warned without need."
    )
    return "\n".join(rows)


def test_the_document_says_what_is_found() -> None:
    document = DOCS / "detection-audit.md"
    assert table() in document.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
