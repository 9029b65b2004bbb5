"""Models that llama.cpp runs as their files say, and models that it does not.

``python -m tests.engine.test_audit_capture`` prints the family's table of
``docs/detection-audit.md``.

llama.cpp reads the file that is audited, so most faults of a graph cannot be put into a
file. Instead llama.cpp runs one file, and what it does is held against another.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.analysis.audit.capture import N_TOKENS, CaptureJob, capture, run_capture
from ggufnorm.analysis.audit.registry import SECTIONS, NotApplicableError, Rule
from ggufnorm.analysis.audit.rules import RULES as ALL_RULES
from ggufnorm.analysis.audit.rules.capture import RULES
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Finding
from ggufnorm.core.capture import Capture, NormCapture, Sample
from ggufnorm.core.formula import Formula
from ggufnorm.core.plain import to_plain
from ggufnorm.engines import worker
from ggufnorm.engines.llama import binding
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.errors import EngineMissingError, GgufnormError, InputError, MemoryLimitError
from ggufnorm.formats.hf import open_source
from ggufnorm.formats.location import open_model
from ggufnorm.formats.naming import norm_sites
from ggufnorm.runs.options import RunSettings
from ggufnorm.runs.probes import norms as capturing
from ggufnorm.samples import default_text
from tests import in_process, models
from tests.engine.test_architectures_run import BUILD, N_NORMS
from tests.paths import DOCS

DOCUMENT = DOCS / "detection-audit.md"
HEADING = "## Rules of a run (C)"
ONE_THREAD = RunSettings(n_threads=1)

Change = Callable[[np.ndarray], np.ndarray]
Tamper = Callable[[NormCapture], NormCapture]

NORM = {
    "llama": "blk.1.ffn_norm.weight",
    "gpt2": "blk.1.ffn_norm.weight",
    "qwen3": "blk.1.attn_q_norm.weight",
    "qwen3moe": "blk.1.attn_k_norm.weight",
    "gemma3": "blk.1.post_attention_norm.weight",
    "stablelm": "blk.1.attn_q_norm.weight",
    "phi2": "blk.1.attn_norm.weight",
    "mamba": "blk.1.attn_norm.weight",
    "jamba": "blk.1.attn_norm.weight",
    "rwkv7": "blk.1.attn_norm_2.weight",
    "t5": "dec.blk.1.cross_attn_norm.weight",
    "bert": "blk.1.layer_output_norm.weight",
}
"""The norm that is spoilt, in layer 1 of each network."""

FIRST = {
    "llama": "blk.0.attn_norm.weight",
    "gpt2": "blk.0.attn_norm.weight",
    "mamba": "blk.0.attn_norm.weight",
    "t5": "enc.blk.0.attn_norm.weight",
    "bert": "token_embd_norm.weight",
}
"""The first norm of each graph."""


def epsilon_key(network: str) -> str:
    kind = "layer_norm" if network in ("gpt2", "stablelm", "phi2", "bert") else "layer_norm_rms"
    return f"{network}.attention.{kind}_epsilon"


def bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


# Making and looking.


@dataclass(frozen=True)
class Case:
    """What is audited.

    Attributes:
        file: says what the norms are.
        model: what llama.cpp runs.
        tamper: done to each norm that was seen.
        config: of the source, None for no source.
    """

    file: Path
    model: Path
    tamper: Tamper = lambda norm: norm
    config: dict[str, Any] | None = None


def build(
    network: str,
    path: Path,
    tensors: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda t: t,
    metadata: Callable[[gguf.GGUFWriter], None] = lambda w: None,
) -> Path:
    """A test model with its tensors and metadata changed before they are written."""
    write = models._write

    def spoil(path, arch, s, own_tensors, own_metadata, **options) -> Path:
        def both(w: gguf.GGUFWriter) -> None:
            own_metadata(w)
            metadata(w)

        return write(path, arch, s, tensors(dict(own_tensors)), both, **options)

    with mock.patch.object(models, "_write", spoil):
        return BUILD[network](path)


def changed(change: Change, *names: str) -> Callable[..., dict[str, np.ndarray]]:
    return lambda t: t | {name: change(t[name]).astype(t[name].dtype) for name in names}


def watch(case: Case, n_tokens: int = 32) -> Capture:
    """What :func:`capture` sees when llama.cpp runs ``model`` for ``file``."""
    options = EngineOptions(n_tokens, 1)
    seen = worker.call(
        run_capture,
        CaptureJob(
            file=str(case.file),
            model=str(case.model),
            text=default_text()[: 64 * n_tokens],
            options=options,
        ),
    )
    return replace(seen, norms=tuple(case.tamper(norm) for norm in seen.norms))


def audit(
    case: Case, run: Callable[[], Capture] | None = None, rules: tuple[Rule, ...] = RULES
) -> tuple[list[Finding], dict[str, str]]:
    """What the rules find, and why some did not run."""
    findings: list[Finding] = []
    not_run: dict[str, str] = {}
    with ExitStack() as stack:
        file = stack.enter_context(open_model(case.file))
        source = None
        if case.config is not None:
            folder = case.file.parent / "hf"
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(case.config))
            (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
            source = stack.enter_context(open_source(folder))
        sites, skipped = norm_sites(file)
        subject = Subject(file, sites, skipped, {}, {}, source, run=run or (lambda: watch(case)))
        for rule in rules:
            try:
                findings += rule.findings(subject)
            except NotApplicableError as error:
                not_run[rule.id] = str(error)
    return findings, not_run


# Faults.


Spoil = Callable[[str, Path], Case]


@dataclass(frozen=True)
class Fault:
    """A fault, and what is to be found.

    Attributes:
        where: by network: tensor and layer of the finding.
        says: in the message.
        severity: of the finding.
        also: rules that rightly speak up too.
        in_child: llama.cpp would take the test's process with it.
    """

    name: str
    rule: str
    networks: str
    spoil: Spoil
    where: Callable[[str], tuple[str | None, int | None]] = lambda network: (NORM[network], 1)
    says: str = ""
    severity: str = "error"
    also: frozenset[str] = frozenset()
    in_child: bool = False


def nowhere(_network: str) -> tuple[str | None, int | None]:
    return None, None


def first(network: str) -> tuple[str | None, int | None]:
    return FIRST[network], None if network == "bert" else 0


def at(tensor: str | None, layer: int | None) -> Callable[[str], tuple[str | None, int | None]]:
    return lambda _network: (tensor, layer)


def itself(
    tensors: Callable[[str], Callable[..., dict[str, np.ndarray]]] = lambda _n: lambda t: t,
    metadata: Callable[[gguf.GGUFWriter], None] = lambda w: None,
) -> Spoil:
    """The spoilt file is audited and run."""

    def spoil(network: str, folder: Path) -> Case:
        path = build(network, folder / "model.gguf", tensors(network), metadata)
        return Case(path, path)

    return spoil


def with_epsilon(
    value: float,
    scale: float = 1.0,
    config: dict[str, Any] | None = None,
    *,
    run_only: bool = False,
) -> Spoil:
    """A file, or only what llama.cpp runs, has another epsilon; embeddings are scaled."""

    def spoil(network: str, folder: Path) -> Case:
        embeddings = [n for n in ("token_embd.weight", "position_embd.weight")
                      if network == "gpt2" or n.startswith("token")]  # fmt: skip
        path = build(network, folder / "model.gguf", changed(lambda w: w * scale, *embeddings))
        other = models.edited(path, folder / "other.gguf", floats={epsilon_key(network): value})
        return Case(path if run_only else other, other, config=config)

    return spoil


def key_lost(network: str, folder: Path) -> Case:
    path = build(network, folder / "model.gguf")
    content = path.read_bytes()
    assert content.count(b"_epsilon") == 1
    path.write_bytes(content.replace(b"_epsilon", b"_epsilom"))
    return Case(path, path)


def run_as(other: dict[str, str]) -> Spoil:
    """llama.cpp runs another architecture's graph, its norms holding the same numbers."""

    def spoil(network: str, folder: Path) -> Case:
        file = build(network, folder / "model.gguf")
        norms = {
            t.name: np.array(t.data)
            for t in gguf.GGUFReader(file).tensors
            if t.name.endswith("norm.weight")
        }
        model = build(
            other[network],
            folder / "other.gguf",
            lambda t: t | {name: norms[name] for name in norms if name in t},
        )
        return Case(file, model)

    return spoil


def only_file(tensors: Callable[[str], Callable[..., dict[str, np.ndarray]]]) -> Spoil:
    """The file that is audited is spoilt, llama.cpp runs the right one."""

    def spoil(network: str, folder: Path) -> Case:
        file = build(network, folder / "model.gguf", tensors(network))
        return Case(file, build(network, folder / "other.gguf"))

    return spoil


def only_model(change: Change, bias: bool = False) -> Spoil:
    """llama.cpp runs with another weight, or bias, of the norm."""

    def spoil(network: str, folder: Path) -> Case:
        name = bias_of(NORM[network]) if bias else NORM[network]
        model = build(network, folder / "other.gguf", changed(change, name))
        return Case(build(network, folder / "model.gguf"), model)

    return spoil


def kernel(formula: Callable[[NormCapture], Formula]) -> Spoil:
    """llama.cpp's kernel computes another formula: done to the rows that it showed."""

    def spoil(network: str, folder: Path) -> Case:
        # A weight changed by a thousandth makes the capture keep rows of this norm.
        case = only_model(lambda w: w * 1.001)(network, folder)

        def tamper(norm: NormCapture) -> NormCapture:
            if norm.tensor != NORM[network]:
                return norm
            s = norm.sample
            assert s is not None
            # The smallest row is made small, so that it tells its epsilon.
            x = np.array(s.input)
            x[0] *= 0.003 / np.sqrt(np.mean(x[0] ** 2))
            y = formula(norm).apply(x, s.weight, s.bias).astype(np.float32)
            sample = Sample(rows(x), rows(y), s.weight, s.bias)
            return replace(norm, sample=sample, residual=0.1)

        return replace(case, tamper=tamper)

    return spoil


def rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))


def without(name: str) -> Callable[..., dict[str, np.ndarray]]:
    return lambda t: {
        n: v for n, v in t.items() if n.removesuffix(".bias") != name[:-7] and n != name
    }


def extra(name: str, n: int = 256) -> Callable[..., dict[str, np.ndarray]]:
    return lambda t: t | {name: np.ones(n, np.float32)}


def element(value: float) -> Change:
    def change(w: np.ndarray) -> np.ndarray:
        w = w.copy()
        w.reshape(-1)[7] = value
        return w

    return change


def on_norm(change: Change) -> Callable[[str], Callable[..., dict[str, np.ndarray]]]:
    return lambda network: changed(change, NORM[network])


def on(change: Change, *names: str) -> Callable[[str], Callable[..., dict[str, np.ndarray]]]:
    return lambda _network: changed(change, *names)


def last_matrix(factor: float) -> Callable[[str], Callable[..., dict[str, np.ndarray]]]:
    return lambda network: changed(
        lambda w: w.astype(np.float32) * factor,
        f"blk.{5 if network == 'gemma3' else 2}.ffn_down.weight",
    )


def as_f32(factor: float, *names: str) -> Callable[..., dict[str, np.ndarray]]:
    """Matrices too large for F16, stored as F32."""
    return lambda t: t | {name: t[name].astype(np.float32) * np.float32(factor) for name in names}


def bos_zero(w: np.ndarray) -> np.ndarray:
    w = w.copy()
    w[1] = 0
    return w


def largest(network: str) -> tuple[str | None, int | None]:
    """Where the values are largest after :func:`last_matrix`: gpt2's bias makes them larger."""
    layer = 5 if network == "gemma3" else 2
    return (None if network == "gpt2" else f"blk.{layer}.ffn_down.weight"), layer


FAULTS = [
    Fault("epsilon negative", "C101", "llama gpt2 bert", with_epsilon(-1e-5), nowhere,
          "eps >= 0", in_child=True),
    Fault("epsilon is NaN", "C101", "qwen3moe stablelm", with_epsilon(np.nan), nowhere,
          "eps >= 0", in_child=True),
    Fault("norm missing", "C101", "llama gemma3", itself(lambda n: without(NORM[n])), nowhere,
          "not found", in_child=True),
    Fault("norm that the architecture has not", "C101", "llama gpt2",
          itself(lambda n: extra("blk.0.attn_norm_2.weight" if n == "llama"
                                 else "blk.0.attn_q_norm.weight")),
          nowhere, "wrong number of tensors", in_child=True),
    Fault("norm stored as F16", "C101", "llama qwen3",
          itself(lambda n: lambda t: t | {NORM[n]: t[NORM[n]].astype(np.float16)}), nowhere,
          "unsupported types", in_child=True),
    Fault("epsilon key missing", "C101", "llama stablelm", key_lost, nowhere, "epsilon",
          in_child=True),
    Fault("runs with twice the epsilon", "C201", "llama gpt2 t5 bert",
          with_epsilon(2e-5, run_only=True), first, "with epsilon 2e-05"),
    Fault("runs with an infinite epsilon", "C201", "llama mamba",
          with_epsilon(np.inf, run_only=True), first, "with epsilon inf",
          also=frozenset({"C402"})),
    Fault("runs as LayerNorm", "C202", "llama mamba", run_as({"llama": "gpt2", "mamba": "phi2"}),
          first, "as LayerNorm, the file tells of RMSNorm"),
    Fault("runs as RMSNorm", "C202", "gpt2", run_as({"gpt2": "llama"}), first,
          "as RMSNorm, the file tells of LayerNorm"),
    Fault("norm that is not run", "C203", "llama gpt2 bert",
          only_file(lambda n: extra("blk.1.attn_q_norm.weight")),
          at("blk.1.attn_q_norm.weight", 1), "no node", "info"),
    Fault("bias that is not run", "C203", "llama qwen3",
          only_file(lambda n: extra("blk.1.ffn_norm.bias")), at("blk.1.ffn_norm.bias", 1),
          "no node", "info"),
    Fault("norm that the file lacks", "C204", "llama gpt2 qwen3moe gemma3",
          only_file(lambda n: without(NORM[n])), at(None, 1), "without a weight", "info"),
    Fault("norms switched on by a flag", "C204", "mamba",
          itself(metadata=lambda w: w.add_ssm_dt_b_c_rms(True)), at(None, 0),
          "an RMSNorm without a weight", "info"),
    Fault("runs with weight + 1", "C301", "llama gpt2 qwen3moe gemma3 bert",
          only_model(lambda w: w + 1), says="weight + 1"),
    Fault("runs with weight - 1", "C301", "llama stablelm t5", only_model(lambda w: w - 1),
          says="weight - 1"),
    Fault("runs with weight + 2", "C301", "gemma3 gpt2", only_model(lambda w: w + 2),
          says="weight + 2"),
    Fault("runs without the weight", "C301", "llama qwen3 jamba", only_model(np.ones_like),
          says="without the weight"),
    Fault("runs without the bias", "C301", "gpt2 phi2 bert",
          only_model(np.zeros_like, bias=True), says="without the bias"),
    Fault("runs with the weight shuffled", "C301", "llama rwkv7", only_model(np.flip),
          says="no formula fits"),
    Fault("runs with one element wrong", "C301", "llama bert", only_model(element(9)),
          says="no formula fits"),
    Fault("kernel takes the mean off", "C301", "llama t5",
          kernel(lambda n: Formula("layer", n.epsilon or 0)), says="that of LayerNorm"),
    Fault("kernel leaves the mean", "C301", "gpt2 bert stablelm",
          kernel(lambda n: Formula("rms", n.epsilon or 0)), says="that of RMSNorm"),
    Fault("kernel has an epsilon of its own", "C301", "llama gpt2",
          kernel(lambda n: Formula(n.kind, 3e-6)), says="with epsilon 3e-06"),
    Fault("kernel adds epsilon outside the root", "C301", "llama gpt2 qwen3moe",
          kernel(lambda n: Formula(n.kind, n.epsilon or 0, divisor="outside")),
          says="added outside the root"),
    Fault("kernel divides by n - 1", "C301", "gpt2 bert",
          kernel(lambda n: Formula(n.kind, n.epsilon or 0, divisor="unbiased")),
          says="variance of n - 1"),
    Fault("kernel forgets the root", "C301", "llama gemma3",
          kernel(lambda n: Formula(n.kind, n.epsilon or 0, divisor="no-root")), says="no root"),
    Fault("kernel forgets to divide by n", "C301", "llama qwen3",
          kernel(lambda n: Formula("l2", n.epsilon or 0)), says="that of L2 norm"),
    Fault("kernel normalizes 4 groups", "C301", "gpt2 stablelm",
          kernel(lambda n: Formula("group", n.epsilon or 0, 4)), says="GroupNorm of 4 groups"),
    Fault("NaN in a norm's weight", "C401", "llama gpt2 qwen3moe bert",
          itself(on_norm(element(np.nan))), says="NaN"),
    Fault("infinity in a norm's weight", "C401", "llama gpt2 mamba",
          itself(on_norm(element(-np.inf))), says="infinity"),
    Fault("NaN in a norm's bias", "C401", "gpt2 bert",
          itself(lambda n: changed(element(np.nan), bias_of(NORM[n]))),
          lambda n: (bias_of(NORM[n]), 1), "NaN"),
    Fault("NaN in a matrix", "C401", "llama gpt2 gemma3 qwen3",
          itself(on(element(np.nan), "blk.1.ffn_up.weight")), at("blk.1.ffn_up.weight", 1), "NaN"),
    Fault("norm's weight zero", "C402", "llama qwen3moe gemma3 mamba",
          itself(on_norm(np.zeros_like)), says="zero at all"),
    Fault("norm's weight and bias zero", "C402", "gpt2 bert",
          itself(lambda n: changed(np.zeros_like, NORM[n], bias_of(NORM[n]))),
          says="zero at all"),
    Fault("epsilon infinite", "C402", "llama t5", with_epsilon(np.inf), first, "zero at all"),
    Fault("token embedding zero", "C403", "llama mamba",
          itself(on(np.zeros_like, "token_embd.weight")), first, "zero at all", "warning"),
    Fault("embedding of one token zero", "C403", "llama mamba",
          itself(on(bos_zero, "token_embd.weight")), first, "zero at 1 of 32 rows", "info"),
    Fault("matrix before a norm zero", "C403", "qwen3moe gemma3",
          itself(on(np.zeros_like, "blk.1.attn_k.weight")), at("blk.1.attn_k_norm.weight", 1),
          "zero at all", "warning"),
    Fault("too large for a product in F16", "C404", "llama gpt2",
          itself(on_norm(lambda w: w * 1e6)), says="turns it into half precision",
          also=frozenset({"C401"})),
    Fault("too large for the cache", "C404", "llama qwen3",
          itself(lambda n: as_f32(1e6, "blk.1.attn_v.weight")), at("blk.1.attn_v.weight", 1),
          "turns it into half precision", also=frozenset({"C401"})),
    Fault("too large for half precision", "C404", "llama gpt2 gemma3",
          itself(last_matrix(8e4)), largest, "above 65504", "warning"),
    Fault("nearly too large for half precision", "C404", "llama gpt2 gemma3",
          itself(last_matrix(2e4)), largest, "ends at 65504", "info"),
    Fault("hidden states near epsilon", "C501", "llama gpt2 mamba",
          with_epsilon(1e-5, scale=0.01), first, "counts at", "info"),
    Fault("unusual epsilon without effect", "C502", "llama gpt2", with_epsilon(3e-7, scale=8),
          first, "are usual", "info"),
    Fault("another epsilon than the source's, without effect", "C502", "llama gpt2",
          with_epsilon(2e-6, scale=8, config={"rms_norm_eps": 1e-6, "layer_norm_epsilon": 1e-6}),
          first, "config.json has", "info"),
]  # fmt: skip

CASES = [(fault, network) for fault in FAULTS for network in fault.networks.split()]


@cache
def found(name: str, network: str) -> tuple[tuple[Finding, ...], dict[str, str]]:
    """What all rules say of a fault in a network."""
    fault = next(f for f in FAULTS if f.name == name)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if not fault.in_child:
            stack.enter_context(in_process.engine())
        findings, not_run = audit(fault.spoil(network, Path(folder)))
    return tuple(findings), not_run


def hits(fault: Fault, network: str) -> list[Finding]:
    """The findings that describe a fault."""
    tensor, layer = fault.where(network)
    return [
        f
        for f in found(fault.name, network)[0]
        if (f.rule, f.severity, f.tensor, f.layer) == (fault.rule, fault.severity, tensor, layer)
        and fault.says in f.message
    ]


@pytest.mark.parametrize(
    ("fault", "network"), CASES, ids=[f"{f.name}-{network}" for f, network in CASES]
)
def test_a_fault_is_described_by_its_rule_alone(fault: Fault, network: str) -> None:
    findings, not_run = found(fault.name, network)
    assert hits(fault, network), findings
    others = {f.rule for f in findings if f.severity != "info"} - {fault.rule}
    assert others == fault.also
    json.dumps([to_plain(f) for f in findings], allow_nan=False)
    if fault.rule == "C101":
        assert set(not_run.values()) == {"llama.cpp cannot run the model (C101)"}
    elif "C401" not in {fault.rule, *fault.also}:
        assert not_run == {}


def only(rule_id: str, case: Case) -> list[Finding]:
    with in_process.engine():
        return audit(case, rules=tuple(r for r in RULES if r.id == rule_id))[0]


def test_what_is_never_turned_into_half_precision_is_no_error(tmp_path: Path) -> None:
    """The fault "too large for a product in F16", but the matrices are F32."""
    matrices = [f"blk.{i}.ffn_{m}.weight" for i in (1, 2) for m in ("gate", "up", "down")]

    def spoil(t: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return changed(lambda w: w * 1e6, NORM["llama"])(as_f32(1, *matrices)(t))

    path = build("llama", tmp_path / "model.gguf", spoil)
    assert {f.severity for f in only("C404", Case(path, path))} == {"warning"}
    assert only("C401", Case(path, path)) == []


def test_a_sample_that_fits_tells_that_other_rows_do_not(tmp_path: Path) -> None:
    case = kernel(lambda n: Formula(n.kind, n.epsilon or 0))("llama", tmp_path)
    (finding,) = only("C301", case)
    assert "in some rows only" in finding.message


@pytest.mark.parametrize("zeros", [True, False])
def test_a_sample_that_tells_nothing_leaves_the_formula_open(tmp_path: Path, zeros: bool) -> None:
    case = only_model(lambda w: w + 1)("llama", tmp_path)

    def tamper(norm: NormCapture) -> NormCapture:
        if norm.sample is None or not zeros:
            return replace(norm, sample=None)
        return replace(norm, sample=replace(norm.sample, output=rows(np.zeros((4, 256)))))

    (finding,) = only("C301", replace(case, tamper=tamper))
    assert finding.message.endswith("(relative L2) from RMSNorm with epsilon 1e-05")
    assert "formula" not in finding.evidence


def test_a_weight_that_something_else_reads_is_told_as_such(tmp_path: Path) -> None:
    """The graph's norm has lost its weight, but the weight is read."""
    path = build("llama", tmp_path / "model.gguf")

    def tamper(norm: NormCapture) -> NormCapture:
        return replace(norm, tensor=None) if norm.tensor == NORM["llama"] else norm

    (finding,) = only("C203", Case(path, path, tamper))
    assert finding.message == "blk.1.ffn_norm.weight is read, but by no norm"
    (finding,) = only("C204", Case(path, path, tamper))
    assert (finding.tensor, finding.layer) == (None, 1)


def test_a_norm_whose_weight_is_not_named_like_one_is_told(tmp_path: Path) -> None:
    path = build("llama", tmp_path / "model.gguf")

    def tamper(norm: NormCapture) -> NormCapture:
        is_it = norm.tensor == NORM["llama"]
        return replace(norm, tensor="blk.1.scale.weight") if is_it else norm

    (finding,) = only("C204", Case(path, path, tamper))
    assert finding.message == (
        "the weight of an RMSNorm in the graph is blk.1.scale.weight, no norm's name"
    )


def test_where_llama_cpp_was_built_is_not_told() -> None:
    (finding,) = found("epsilon negative", "llama")[0]
    assert re.fullmatch(
        r"llama.cpp crashed \(SIGABRT\): ops.cpp:\d+: GGML_ASSERT\(eps >= 0.0f\) failed",
        finding.message,
    )


# No false alarm.


@pytest.mark.parametrize("network", BUILD)
def test_a_sound_model_raises_no_alarm(network: str, tmp_path: Path) -> None:
    path = build(network, tmp_path / "model.gguf")
    with in_process.engine():
        assert audit(Case(path, path)) == ([], {})


def test_the_sample_is_run_in_a_child_and_raises_no_alarm(sample: Path) -> None:
    assert audit(Case(sample, sample), lambda: capture(sample)) == ([], {})


# The capture.


@pytest.mark.parametrize("network", ["llama", "gpt2", "t5", "bert"])
def test_every_norm_is_seen_and_recomputed(network: str, tmp_path: Path) -> None:
    path = build(network, tmp_path / "model.gguf")
    with in_process.engine():
        seen = capture(path, how=ONE_THREAD)
    assert len(seen.norms) == N_NORMS[network]
    assert seen.n_tokens == N_TOKENS
    assert seen.first_non_finite is None
    assert seen.peaks == seen.skipped == ()
    for norm in seen.norms:
        assert norm.tensor in seen.tensors
        assert norm.residual is not None
        assert 0 < norm.residual < 1e-6
        assert norm.sample is None
        assert norm.spread is not None
        assert 0 < norm.spread.smallest <= norm.spread.median
        assert 0 <= norm.spread.token < N_TOKENS


def test_the_spread_is_the_mean_square_of_what_goes_in(tmp_path: Path) -> None:
    """The first norm's input is the embedding, so it can be computed from the file."""
    path = build("llama", tmp_path / "model.gguf")
    with in_process.engine():
        first_norm = capture(path, text="the end", how=ONE_THREAD).norms[0]
    table = next(
        np.array(t.data) for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight"
    )
    squares = np.mean(table.astype(np.float64) ** 2, axis=1)
    assert first_norm.spread is not None
    at_bos = first_norm.spread.token == 0
    assert first_norm.spread.smallest in (squares[1] if at_bos else squares)
    assert first_norm.n_rows > 1


def test_a_context_shorter_than_the_text_is_kept_to(tmp_path: Path) -> None:
    with mock.patch.dict(BUILD, llama=lambda p: models.llama(p, models.Shape(n_ctx=24))):
        path = build("llama", tmp_path / "model.gguf")
    with in_process.engine():
        assert capture(path, how=ONE_THREAD).n_tokens == 24


def test_a_sample_is_of_rows_from_the_smallest_to_the_largest(tmp_path: Path) -> None:
    with in_process.engine():
        seen = watch(only_model(lambda w: w + 1)("qwen3moe", tmp_path))
    (odd,) = [n for n in seen.norms if n.sample is not None]
    assert odd.tensor == NORM["qwen3moe"]
    s = odd.sample
    assert s is not None
    sizes = [sum(x * x for x in row) for row in s.input]
    assert sizes == sorted(sizes)
    assert len(sizes) == 4
    assert s.weight is not None
    assert s.bias is None
    assert np.shape(s.output) == np.shape(s.weight) == (4, 64)


def test_norms_over_heads_count_all_rows(tmp_path: Path) -> None:
    path = build("qwen3", tmp_path / "model.gguf")
    with in_process.engine():
        norms = {n.tensor: n.n_rows for n in watch(Case(path, path)).norms}
    heads = models.Shape()
    assert norms["blk.1.attn_norm.weight"] == 32
    assert norms["blk.1.attn_q_norm.weight"] == 32 * heads.n_head
    assert norms["blk.1.attn_k_norm.weight"] == 32 * heads.n_head_kv


# Through the front door.


def test_audit_runs_the_model_where_it_is_told_to(tmp_path: Path) -> None:
    path = build("llama", tmp_path / "model.gguf", changed(element(np.nan), NORM["llama"]))
    ids = {rule.id for rule in RULES}
    with in_process.engine():
        report = ggufnorm.audit(path, run=True, select=["C"])
    assert [(f.rule, f.tensor) for f in report.findings] == [("C401", NORM["llama"])]
    assert set(report.summary.rules_run) == ids
    report = ggufnorm.audit(path, select=["C"])
    assert report.findings == ()
    assert {n.rule: n.reason for n in report.not_run} == dict.fromkeys(
        ids, "the model was not run (--run)"
    )


def test_audit_tells_of_a_model_that_llama_cpp_does_not_survive(tmp_path: Path) -> None:
    case = with_epsilon(-1e-5)("gpt2", tmp_path)
    report = ggufnorm.audit(case.file, run=True)
    assert {"C101", "E103"} <= {f.rule for f in report.findings}
    reasons = {n.reason for n in report.not_run if n.rule.startswith("C")}
    assert reasons == {"llama.cpp cannot run the model (C101)"}


# Why rules are not run.


def reasons(path: Path, run: Callable[[], Capture] | None) -> set[str]:
    with open_model(path) as file:
        subject = Subject(file, *norm_sites(file), {}, {}, run=run)
        found = set()
        for rule in RULES:
            try:
                assert list(rule.findings(subject)) == []
            except NotApplicableError as error:
                found.add(str(error))
    return found


def failing(error: GgufnormError) -> Callable[[], Capture]:
    def run() -> Capture:
        raise error

    return run


def test_without_a_run_no_rule_applies(tmp_path: Path) -> None:
    assert reasons(build("llama", tmp_path / "x.gguf"), None) == {"the model was not run (--run)"}


@pytest.mark.parametrize("error", [
    EngineMissingError(f"this needs llama.cpp: {binding.INSTALL_HINT}"),
    MemoryLimitError("running it takes 900 GB"),
    InputError("download it first"),
])  # fmt: skip
def test_what_is_not_the_models_fault_is_no_finding(error: GgufnormError, tmp_path: Path) -> None:
    assert reasons(build("llama", tmp_path / "x.gguf"), failing(error)) == {str(error)}


def test_a_model_larger_than_the_memory_is_not_loaded(tmp_path: Path) -> None:
    path = build("llama", tmp_path / "model.gguf")
    with (
        mock.patch("psutil.virtual_memory", return_value=mock.Mock(available=1000)),
        pytest.raises(MemoryLimitError, match="of memory"),
    ):
        capture(path)


def test_an_encoders_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    w = gguf.GGUFWriter(path, "clip")
    w.add_tensor("v.post_ln.weight", np.ones(8, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    assert reasons(path, failing(AssertionError())) == {
        "an encoder's file (mmproj) is not run by itself"
    }


def test_a_model_is_run_once_for_all_rules(tmp_path: Path) -> None:
    path = build("llama", tmp_path / "model.gguf")
    for outcome in ("runs", "fails"):
        runs = []

        def run(outcome: str = outcome, runs: list[str] = runs) -> Capture:
            runs.append(outcome)
            if outcome == "fails":
                raise MemoryLimitError("too large")
            return watch(Case(path, path))

        with in_process.engine():
            audit(Case(path, path), run)
        assert runs == [outcome]


def test_norms_that_could_not_be_recomputed_are_told(tmp_path: Path) -> None:
    path = build("llama", tmp_path / "model.gguf")
    with (
        in_process.engine(),
        mock.patch.object(capturing, "recompute", side_effect=ValueError("odd shape")),
    ):
        findings, not_run = audit(Case(path, path))
    assert findings == []
    assert not_run == {"C301": "7 of the norms could not be recomputed: odd shape"}


# The rules themselves, and the table.


def test_every_rule_is_documented_and_has_a_fault_in_two_networks() -> None:
    assert set(RULES) <= set(ALL_RULES)
    for rule in RULES:
        assert tuple(rule.sections) == SECTIONS
        networks = {n for f in FAULTS if f.rule == rule.id for n in f.networks.split()}
        assert len(networks) >= 2, rule.id


def lines() -> Iterator[str]:
    yield "| Fault | Rule | Found | Architectures |"
    yield "|---|---|---|---|"
    for fault in FAULTS:
        networks = fault.networks.split()
        n = sum(bool(hits(fault, network)) for network in networks)
        rule, names = fault.rule, ", ".join(networks)
        yield f"| {fault.name} | {rule} | {n} of {len(networks)} | {names} |"


def test_the_document_has_the_table() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert f"{HEADING}\n" in document
    assert "\n".join(lines()) in document


if __name__ == "__main__":
    print("\n".join(lines()))
