"""Made-up results: small ones of every kind, and one of 80 layers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ggufnorm.core.attribution import AttributionReport, Restoration, Share, Unmeasured
from ggufnorm.core.audio_report import (
    AudioComparison,
    AudioPipeline,
    AudioReport,
    ExpectedMel,
    SoundFacts,
)
from ggufnorm.core.audit import (
    AuditReport,
    AuditSet,
    AuditSummary,
    Finding,
    Ignored,
    NotRun,
    Provenance,
)
from ggufnorm.core.check import SUSPECTS, CheckReport, CheckStep, Given, Suspect
from ggufnorm.core.diff import (
    DiffReport,
    GroupDifference,
    MetadataDifference,
    NonFinite,
    NormDifference,
    TensorDifference,
    Unmatched,
)
from ggufnorm.core.drift import (
    ChannelDrift,
    Culprit,
    DriftReport,
    DriftSet,
    LayerDrift,
    Localisation,
    ModelFacts,
    NormDrift,
    NormSplit,
    OperationDrift,
    Place,
    RunFacts,
    SideFacts,
    TokenDrift,
)
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.fingerprint import OffsetFingerprint
from ggufnorm.core.fix import FixReport, Left
from ggufnorm.core.frameworks import (
    AppliedNorm,
    Cause,
    EngineComparison,
    FedPicture,
    FirstWrong,
    FoldedNorm,
    FrameworksReport,
    OperationMatch,
    RunSide,
    SiteComparison,
    TokenizerFinding,
    WrongOperation,
)
from ggufnorm.core.logits import KLD_PERCENTS, LogitSum
from ggufnorm.core.mend import Mend
from ggufnorm.core.metrics import Difference, Peak
from ggufnorm.core.model import (
    Inspection,
    InspectionSet,
    NormSite,
    Outlier,
    Skipped,
    TensorFacts,
    TypeCount,
    TypesInside,
    WeightStatistics,
)
from ggufnorm.core.onnx_drift import (
    OnnxDriftReport,
    OnnxFacts,
    OnnxOperation,
    OnnxRunFacts,
    OutlierChannel,
    OutputDrift,
    Remedy,
)
from ggufnorm.core.pixel_report import (
    ExpectedPixels,
    ModelInput,
    Pipeline,
    PixelComparison,
    PixelReport,
)
from ggufnorm.core.pixels import Normalization
from ggufnorm.core.quants import Contrast, QuantFile, QuantsReport, Speed, Standing
from ggufnorm.core.recipe import Choice, RecipeReport, Trial
from ggufnorm.core.result import Result
from ggufnorm.core.verify import TensorProof, VerifyReport

HOSTILE = "<img src=x onerror=alert(1)></script><script>document.title='owned'</script>'\"&|`*_"
"""A name that is HTML, script and Markdown."""

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
"""A PNG of one red pixel."""

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def drift_report(n_layers: int = 3, *, name: str = "blk", faulty: bool = False) -> DriftReport:
    """A report of a Q4_K_M model whose error grows over the layers.

    Args:
        n_layers: how many.
        name: what tensors' and models' names begin with.
        faulty: whether a tensor is out of line.
    """
    norms = tuple(_norm(i, role, name) for i in range(n_layers) for role in ("attn", "ffn"))
    operations = tuple(o for i in range(n_layers) for o in _layer(i, name))
    culprit = None
    if faulty:
        bad = next(o for o in operations if o.node == f"ffn_down-{n_layers // 2}")
        culprit = Culprit(bad.tensor, bad.node, bad.layer, f"{bad.tensor} is damaged")
        operations = tuple(replace(o, local=difference(0.5)) if o is bad else o for o in operations)
    return DriftReport(
        reference=model(f"{name}-f16.gguf", "MOSTLY_F16"),
        quant=model(f"{name}-Q4_K_M.gguf", "MOSTLY_Q4_K_M"),
        norms=norms,
        operations=operations,
        logits=_logits(),
        floor=None,
        embedding=None,
        localisation=_localisation(n_layers, name),
        culprit=culprit,
        verdict=f"Drift enters at {name}." if faulty else "Drift enters gradually.",
        skipped=(Skipped(f"{name}.extra", "has no partner"),),
        run=RunFacts("llama-cpp-python 0", "text.txt", 4096, 512, 8, 8, 2, 0, SIDE, SIDE),
    )


SIDE = SideFacts("auto", "f16", "f16", False, False)


def onnx_drift_report(name: str = "blk") -> OnnxDriftReport:
    """An int8 file in which one matrix makes most of the error."""
    nodes = [f"/{name}/layer.{i}/MatMul" for i in range(3)]
    operations = tuple(
        OnnxOperation(
            node=node,
            value=f"{node}_output_0",
            op="MatMul",
            op_quant=("DynamicQuantizeLinear", "MatMulInteger", "Mul"),
            layer=i,
            dtype="INT8 per tensor",
            dtype_ref="FLOAT",
            local=difference(0.02 if i else 0.3),
            cumulative=difference(0.3),
            expected=0.02,
            weight_error=0.01,
            weight_expected=0.01,
            share=0.1 if i else 0.8,
            outliers=() if i else (OutlierChannel("input", 7, 50.0),),
            change="" if i < 2 else "axis of Softmax is 1, the reference's -1",
            together=() if i else (f"/{name}/Softmax",),
        )
        for i, node in enumerate(nodes)
    )
    return OnnxDriftReport(
        reference=OnnxFacts(f"{name}.onnx", "pytorch", 17, 7_006_912, 354),
        quant=OnnxFacts(f"{name}-int8.onnx", "onnx.quantize", 17, 2_006_912, 423),
        scheme="dynamic",
        operations=operations,
        outputs=(OutputDrift(f"{name}-out", (1, 384), difference(0.3), difference(0.3), True),),
        remedies=(
            Remedy("per_channel=True", tuple(nodes), 0.05, 0.001, 51_750),
            Remedy(f"nodes_to_exclude=['{nodes[0]}']", (nodes[0],), None, None, 1_769_472),
        ),
        culprit=Culprit(None, nodes[0], 0, f"{name} makes 80 %"),
        verdict=f"Drift enters at {nodes[0]}.",
        skipped=(Skipped(f"{name}.extra", "has no partner"),),
        run=OnnxRunFacts("onnxruntime 0", "random token ids", 2, 1, 3, 1 << 28, "names"),
    )


def model(path: str, file_type: str) -> ModelFacts:
    return ModelFacts(path, "llama", "A model", file_type, 7_006_912, "57f2e12ea2dc9a02")


def difference(rel_l2: float) -> Difference:
    cosine = 1 - rel_l2**2 / 2
    return Difference(rel_l2, cosine, 1.0, 3 * rel_l2, 17, 5, 4096, 0, None)


def _layer(i: int, name: str) -> list[OperationDrift]:
    grown = 0.02 + 0.001 * i
    made = [
        OperationDrift(
            node=f"{m}-{i}",
            op="MUL_MAT",
            role="matmul",
            tensor=f"{name}.{i}.{m}.weight",
            layer=i,
            dtype="Q4_K",
            dtype_ref="F16",
            cumulative=difference(grown * (1 + k / 10)),
            local=difference(0.01 * (1 + k / 10) * (1 + 0.3 * math.sin(i))),
            peak=Peak(3.0, 1, 2),
            peak_ref=Peak(3.1, 1, 2),
        )
        for k, m in enumerate(MATRICES)
    ]
    others = [("kqv_out", "RESHAPE", "attention"), ("ffn_inp", "ADD", "residual"),
              ("ffn_norm", "MUL", "norm"), ("ffn_swiglu", "GLU", "activation"),
              ("l_out", "ADD", "residual")]  # fmt: skip
    made += [
        OperationDrift(
            f"{n}-{i}",
            op,
            role,
            None,
            i,
            None,
            None,
            difference(grown),
            difference(0.0),
            None,
            None,
        )
        for n, op, role in others
    ]
    return made


def _norm(i: int, role: str, name: str) -> NormDrift:
    d = difference(0.02 + 0.001 * i)
    zero = difference(0.0)
    return NormDrift(
        f"{name}.{i}.{role}_norm.weight", f"{role}_norm-{i}", i, role, "rms", 1e-5, 1e-5, 1e-5,
        d, d, zero, zero, None, NormSplit(0.0, 0.0, 0.02, 6e-8), 6e-8, 6e-8,
    )  # fmt: skip


def _logits() -> Any:
    empty = LogitSum().result()
    return replace(
        empty,
        n_tokens=2040,
        mean_kld=0.0042,
        mean_kld_se=0.0001,
        p999_kld=0.0435,
        max_kld=0.0493,
        kld_percentiles={f"{p:g}": 1e-5 * 1.09**p for p in KLD_PERCENTS},
        same_top1=0.947,
        same_top1_se=0.005,
        ppl_ref=51.5,
        ppl_quant=51.6,
        ppl_ratio=1.0019,
        ppl_ratio_se=0.002,
        rms_delta_p=0.0139,
    )


def _localisation(n_layers: int, name: str) -> Localisation:
    layers = tuple(
        LayerDrift(i, f"l_out-{i}", 0.02 + 0.001 * i, 1.05 if i else None) for i in range(n_layers)
    )
    peak = Place(f"l_out-{n_layers - 1}", None, n_layers - 1, 415, 82, -220.0)
    token = TokenDrift(865, f" {name}", "is at\nthe highest", 0.049, 0.009, 0.006)
    channel = ChannelDrift(1, "l_out-1", 82, 0.4, 0.1)
    return Localisation(None, None, layers, (token,), (channel,), peak, 298.0)


def inspection(n_layers: int = 3, *, name: str = "blk") -> Inspection:
    norms = tuple(
        NormSite(
            f"{name}.{i}.{role}_norm.weight",
            None,
            i,
            role,
            "rms",
            1e-5,
            "llama.epsilon",
            None,
            "F32",
            (256,),
            _weight(i),
            "" if i else "an odd one",
        )
        for i in range(n_layers)
        for role in ("attn", "ffn")
    )
    tensors = (TensorFacts(f"{name}.x", "F32", (256,), 1024, 64),)
    skipped = (Skipped(f"{name}.y", "is no norm"),)
    return Inspection(
        f"{name}.gguf", "llama", name, n_layers, "MOSTLY_F16", norms, skipped, tensors, types(name)
    )


def types(name: str = "") -> TypesInside:
    """Of a file whose label says Q4_K_M."""
    counts = (TypeCount("Q5_0", 81, 1000, 688), TypeCount("Q4_K", 27, 512, 288))
    note = f"called Q4_K_M, but not throughout: {name} has short rows"
    return TypesInside("Q4_K_M", counts, (), 1512, 976, 5.16, note)


def quants_report(name: str = "blk") -> QuantsReport:
    """Five files: two of the frontier, one dominated, one undecided, one that is broken."""
    standings: tuple[Standing, ...] = (
        "frontier", "frontier", "dominated", "undecided", "broken",
    )  # fmt: skip
    names = [f"{name}-{t}.gguf" for t in ("Q8_0", "Q4_K_M", "Q4_1", "Q5_K_S", "Q2_K")]
    files = tuple(
        QuantFile(
            replace(model(path, "MOSTLY_Q4_K_M"), n_bytes=10_000_000 - 1_000_000 * i),
            types(name),
            replace(
                _logits(),
                mean_kld=None if standing == "broken" else 0.001 * 3**i,
                non_finite_tokens=7 if standing == "broken" else 0,
            ),
            Speed(1200.0 + i, 31.5),
            standing,
            (names[1],) if standing in ("dominated", "undecided") else (),
        )
        for i, (path, standing) in enumerate(zip(names, standings))
    )
    reference = QuantFile(
        model(f"{name}-f16.gguf", "MOSTLY_F16"), types(), None, Speed(1000.0, None), "frontier", ()
    )
    run = RunFacts("llama-cpp-python 0", "text.txt", 4096, 512, 8, 8, 2, 0, SIDE, SIDE)
    return QuantsReport(
        reference,
        0,
        files,
        names[0],
        (
            Contrast(names[0], names[1], -0.002, 0.0001, True),
            Contrast(names[1], names[3], 0.0001, 0.0002, False),
        ),
        f"{names[0]} is closest to the reference.",
        run,
        "text",
        (Skipped(f"{name}-mmproj.gguf", f"{name} is no version of it"),),
        (Skipped(names[2], "its chat template is another"),),
    )


def _weight(i: int) -> WeightStatistics:
    offset = OffsetFingerprint(None, {"0": 0.0, "1": 0.0, "2": 0.0, "-1": 0.0}, 1.0, "F16 values")
    mean = 1 + i / 10
    histogram = (1, 3, 9, 40, 120, 60, 20, 3)
    return WeightStatistics(
        mean, mean, mean - 0.5, mean + 2, 0, histogram, 1, (Outlier(7, mean + 2, 12.0),), offset
    )


def diff_report(n_layers: int = 3, *, name: str = "blk") -> DiffReport:
    tensors = tuple(
        TensorDifference(
            f"{name}.{i}.{m}.weight",
            i,
            m,
            (256, 256),
            "F16",
            "Q4_K",
            0.01,
            65536,
            False,
            0.07 + i / 100,
            1e-5,
            1e-3,
            0.005,
            22.5,
            0.997,
            0.02,
            3,
            4,
        )
        for i in range(n_layers)
        for m in MATRICES
    )
    norm = NormDifference(f"{name}.0.attn_norm.weight", 0, "attn", "F32", "F32", 256, 1, 1, 1e-7,
                          0, 3, 1e-8)  # fmt: skip
    return DiffReport(
        a=model(f"{name}-a.gguf", "MOSTLY_F16"),
        b=model(f"{name}-b.gguf", "MOSTLY_Q4_K_M"),
        metadata=(
            MetadataDifference(f"{name}.eps", "forward", 1e-5, 1e-6, None, None),
            MetadataDifference(f"{name}.tokens", "tokens", "a", name, 3, 7),
            MetadataDifference("general.name", "nothing", "a", [name], None, None),
        ),
        norms=(norm,),
        tensors=tensors,
        layers=tuple(
            GroupDifference(str(i), 7, 0.1, 0.07, 22.5, tensors[0].tensor) for i in range(n_layers)
        ),
        roles=tuple(GroupDifference(m, 3, 0.1, 0.07, 22.5, tensors[0].tensor) for m in MATRICES),
        types=(GroupDifference("F16→Q4_K", 21, 1.0, 0.07, 22.5, tensors[0].tensor),),
        non_finite=(NonFinite(tensors[0].tensor, "b", 3, 1, 2, 5, 0),),
        unmatched=(Unmatched(f"{name}.lost", (256,), None),),
        skipped=(Skipped(f"{name}.odd", "is of type 99"),),
        identical=False,
        different_checkpoints=False,
        verdict=f"{name} differs.",
        n_weights=1_376_256,
        seconds=0.5,
    )


def audit_report(name: str = "blk") -> AuditReport:
    """An error that is known, one that is accepted, and one of a rule to come."""
    tensor = f"{name}.0.attn_norm.weight"
    finding = Finding("N302", "error", tensor, 0, f"{tensor}: all 64 values are 0", {"n": 64})
    option = f"--override-kv {name}.epsilon=float:1"
    mend = Mend("key", f"{name}.epsilon", f"set {name}.epsilon", True, "f32", 1.0, None, option)
    finding = replace(finding, mend=mend)
    later = replace(finding, rule="N999", severity="warning")
    return AuditReport(
        path=f"{name}.gguf",
        architecture="llama",
        name=name,
        findings=(finding, later),
        ignored=(Ignored(finding, f"{name} is known"),),
        not_run=(NotRun("S101", f"no source of {name}"),),
        summary=AuditSummary(1, 1, 0, 1, 7, ("N302", "N999")),
        provenance=Provenance(1 << 20, "Q4_K_M", "somebody", "7B", None, True),
    )


def attribution_report(n_layers: int = 3, *, name: str = "blk") -> AttributionReport:
    """A report in which each layer's first matrix costs most."""
    drift = drift_report(n_layers, name=name)
    tensors = [(i, role) for i in range(n_layers) for role in MATRICES]
    shares = tuple(
        _share(f"{name}.{i}.{role}.weight", i, role, 1.0 / (2 + 7 * i + k))
        for (i, role), k in zip(tensors, 7 * n_layers * [0, 1, 2, 3, 4, 5, 6])
    )
    return AttributionReport(
        reference=drift.reference,
        quant=drift.quant,
        by="tensor",
        total_kld=0.01,
        total_kld_se=0.0005,
        n_tokens=200,
        shares=tuple(sorted(shares, key=lambda s: -s.kld)),
        layers=tuple(_share(None, i, None, 0.2) for i in range(n_layers)),
        sum_of_shares=0.97,
        sum_of_layers=1.01,
        unmeasured=(
            Unmeasured(f"{name}.output.weight", None, "output", "too cheap", 0.01, "Q6_K", 5, 9),
        ),
        unmeasured_share=0.02,
        restorations=tuple(
            Restoration(f"{name}.{i}.{role}_norm.weight", f"l-{i}", i, role, 0.01 / (i + 1), 1e-4,
                        1 / (i + 1))
            for i in range(n_layers) for role in ("attn", "ffn")
        ),
        interrupted=False,
        verdict=f"{name}.0.attn_q.weight costs half.",
        skipped=(Skipped(name, "has no partner"),),
        run=drift.run,
        cost=drift.cost,
    )  # fmt: skip


def _share(tensor: str | None, layer: int, role: str | None, share: float) -> Share:
    tensors = (tensor,) if tensor else (f"blk.{layer}.a", f"blk.{layer}.b")
    kld = 0.01 * share
    return Share(
        tensor, tensors, layer, role, "Q4_K", "F16", kld, kld / 20, share, 200, 0.07, 100, 300, None
    )


def recipe_report(name: str = "blk") -> RecipeReport:
    """A recipe that was applied."""
    drift = drift_report(name=name)
    choices = tuple(
        Choice(f"{name}.0.{role}.weight", 0, role, dtype, "Q4_K", 200, 100, 0.001)
        for role, dtype in zip(MATRICES, ("Q5_K", "Q4_K", "Q6_K"), strict=False)
    )
    return RecipeReport(
        reference=drift.reference,
        quant=drift.quant,
        max_bytes=2_000_000,
        target_kld=None,
        imatrix=f"{name}.imatrix",
        anchors=("Q4_K", "Q6_K"),
        file_type="Q4_K_M",
        choices=choices,
        arguments=(f"{name}.0.attn_q=Q5_K",),
        predicted_kld=0.003,
        predicted_quant_kld=0.004,
        bytes=1_900_000,
        measured_quant=Trial("Q4_K_M", 1_800_000, 0.0041, 0.0001),
        measured=Trial("recipe", 1_900_000, 0.0031, 0.0001),
        uniform=(Trial("Q5_K_S", 2_100_000, 0.0035, 0.0001),),
        n_tokens=200,
        verdict=f"{name} gets better.",
        skipped=(Skipped(name, "has no partner"),),
        cost=drift.cost,
    )


def frameworks_report(name: str = "blk") -> FrameworksReport:
    """A checkpoint beside one right and one wrong engine."""
    source = AppliedNorm(f"{name}.norm", "rms", "RMSNorm", 1e-6, 1e-6, 1.0, 1e-7)
    engine = AppliedNorm(f"{name}.norm.weight", "rms", "RMSNorm", 1e-5, None, 0.0, None)
    near, far = difference(1e-7), difference(0.3)
    cause = Cause("elsewhere", f"its weight holds the values of {name}", 0.3, f"{name}.1")
    right = SiteComparison(name, 0, "attn", source, engine, near, near, 1e-7, 2e-5, "agrees", ())
    wrong = replace(
        right,
        key=f"{name}.1",
        layer=None,
        output=far,
        local=None,
        status="mistake",
        causes=(cause,),
    )
    kept = FoldedNorm(
        norm=f"{name}.bn",
        layer=f"{name}.conv",
        op="Conv",
        side="after",
        status="kept",
        weight_error=0.0,
        bias_error=None,
        weight_allowed=1e-5,
        bias_allowed=1e-5,
        epsilon=1e-5,
        epsilon_applied=1e-3,
        cause=None,
        message="",
        of=None,
    )
    operation = OperationMatch(name, "ADD", f"{name}.weight", f"{name}: add", 1e-7, "same")
    wrong_operation = WrongOperation(f"{name}.2", "ROPE", None, f"{name} turns halves")
    operations = (
        operation,
        replace(operation, name=f"{name}.2", counterpart=None, distance=None, status="wrong"),
    )
    first = FirstWrong(
        f"{name}.1", None, "norm", name, f"{name} is wrong", ("elsewhere",), wrong_operation
    )
    good = EngineComparison(
        engine=RunSide(f"{name}.onnx", "onnxruntime 1", 2, 0.0),
        sites=(right,),
        unmatched_source=(),
        unmatched_engine=(),
        logits=None,
        tokenizer=None,
        first_wrong=None,
        verdict=f"{name} agrees.",
        skipped=(),
        pixels=(),
    )
    bad = replace(
        good,
        engine=RunSide(f"{name}.gguf", "llama-cpp-python 1", 2, 0.01),
        sites=(right, wrong),
        unmatched_source=(name,),
        unmatched_engine=(name,),
        logits=drift_report(name=name).logits,
        tokenizer=TokenizerFinding(1, (1, 2), (3, 4), f"{name} parts"),
        first_wrong=first,
        verdict=f"First wrong at {name}.",
        skipped=(Skipped(name, "is of another shape"),),
        operations=operations,
        folds=(kept, replace(kept, status="mistake", cause="epsilon", message=f"{name} is off")),
        result=far,
        pixels=(FeedFinding("error", "constants-differ", None, f"{name} has other constants"),),
    )
    side = RunSide(name, "transformers 1", 3, 0.0)
    picture = FedPicture(f"{name}.png", "llama.cpp's mtmd", (1, 32, 48, 3))
    return FrameworksReport(side, (good, bad), f"{name}.txt", 31, picture)


def pixel_report(name: str = "blk") -> PixelReport:
    """An encoder's file with another model's constants."""
    three = (0.1, 0.2, 0.3)
    pipelines = tuple(
        Pipeline(
            name=pipeline,
            source=name,
            shape=(2, 32, 48, 3),
            mean=three,
            std=three,
            minimum=(-1.0, -1.5, -2.0),
            maximum=(1.0, 2.0, 2.5),
            histogram=((3, 4, 5, 6),) * 3,
            picture="stretched, bilinear",
            picture_residual=1e-7,
            normalization=f"normalized with the constants of {name}",
            mistakes=("constants-of-another",),
            told=True,
            mean_used=three,
            std_used=None,
            residual=1e-7,
            thumbnail=png,
        )
        for pipeline, png in (("transformers", DOT), (name, name))
    )
    message = f"{name}: normalized with the constants of {name}"
    return PixelReport(
        image=f"{name}.png",
        expected=ExpectedPixels(name, "CLIP", Normalization(three, three)),
        pipelines=pipelines,
        comparisons=(PixelComparison("transformers", name, 0.4, f"as {name} does", 0.1, 12.0),),
        model_input=ModelInput(f"{name}.onnx", name, "float", ("n", "3", "32", "48")),
        findings=(FeedFinding("error", "constants-of-another", name, message),),
        verdict=f"Not as expected: {name}",
    )


def audio_report(name: str = "blk") -> AudioReport:
    """An encoder's input with another logarithm."""
    pipelines = tuple(
        AudioPipeline(
            name=pipeline,
            source=name,
            shape=(2, 80, 3000),
            mean=0.1,
            std=0.2,
            minimum=-1.0,
            maximum=1.5,
            histogram=(3, 4, 5, 6),
            normalization=f"as {name} does",
            mistakes=("natural-logarithm",),
            told=True,
            gain=0.58,
            offset=1.0,
            residual=1e-7,
            thumbnail=png,
        )
        for pipeline, png in (("transformers", DOT), (name, name))
    )
    return AudioReport(
        sound=SoundFacts(f"{name}.wav", 44_100, 2, 1.5, 0.7),
        expected=ExpectedMel(name, 16_000, 80, 3000, 400, 160),
        pipelines=pipelines,
        comparisons=(AudioComparison("transformers", name, 0.4, f"as {name} does", 0.1),),
        findings=(FeedFinding("error", "natural-logarithm", name, f"{name}: as {name} does"),),
        verdict=f"Not as expected: {name}",
    )


def verify_report(name: str = "blk") -> VerifyReport:
    """One tensor copied, one derived, one that differs and one that was skipped."""
    return VerifyReport(
        source=model(f"{name}-f16.gguf", "MOSTLY_F16"),
        quant=model(f"{name}.gguf", "MOSTLY_Q4_K_M"),
        imatrix=f"{name}.imatrix",
        engine="llama-cpp-python 0.3.36",
        tensors=(
            TensorProof(f"{name}.0.n", 0, "F32", "F32", "copied", 64, 0, None, None, 0.0),
            TensorProof(f"{name}.0.q", 0, "F16", "Q4_K", "derived", 32, 0, None, None, 0.0),
            TensorProof(f"{name}.1.q", 1, "F16", "Q4_K", "differs", 32, 3, 5, 1, 0.25),
        ),
        lacking=(f"{name}.2.q",),
        added=(f"{name}.3.q",),
        metadata=(MetadataDifference(f"{name}.key", "forward", 1, 2, None, None),),
        skipped=(Skipped(f"{name}.4.q", "its type is not known"),),
        is_derived=False,
        verdict=f"1 of 3 tensors are not what the source gives: {name}.1.q.",
    )


def check_report(name: str = "blk") -> CheckReport:
    """A tokenizer that is guilty, and one suspect in each other state."""
    others = {
        "normalization": Suspect(
            "normalization", "probable", f"{name}.0.attn_norm: all of it is 1", do="convert again"
        ),
        "download": Suspect("download", "cleared", "the bytes have the digest"),
        "quantization": Suspect("quantization", "partly", "KL divergence 0.1 nats"),
    }
    guilty = Suspect(
        "tokenizer", "guilty", f"tokenizer.ggml.pre of {name} is 'gpt-2'", (f"and {name} too",),
        "set the key", f"ggufnorm audit {name}.gguf --source {name}",
    )  # fmt: skip
    others["tokenizer"] = guilty
    return CheckReport(
        path=f"{name}.gguf",
        architecture="llama",
        name=name,
        types="21 Q4_K, 13 F32",
        given=(Given("model", f"{name}.gguf"), Given("source", name)),
        answer=f"Guilty: tokenizer: {guilty.sentence}.",
        next_step=guilty.do,
        suspects=tuple(
            others.get(s, Suspect(s, "not examined", f"no source of {name}")) for s in SUSPECTS
        ),
        steps=(
            CheckStep("check the file by itself", f"ggufnorm audit {name}.gguf --full"),
            CheckStep("run it", f"ggufnorm drift {name}.gguf", "llama.cpp is not installed"),
        ),
        next_command=f"ggufnorm audit {name}.gguf",
        exit_code=1,
    )


def one_of_each(name: str = "blk") -> dict[str, Result]:
    """A result of every kind, by the name of its document."""
    return {
        "ggufnorm/inspect": inspection(name=name),
        "ggufnorm/inspect-set": InspectionSet(
            (inspection(name=name), inspection(1, name=name)), (Skipped(name, "is no model"),)
        ),
        "ggufnorm/drift": drift_report(name=name, faulty=True),
        "ggufnorm/quants": quants_report(name),
        "ggufnorm/drift-onnx": onnx_drift_report(name),
        "ggufnorm/drift-set": DriftSet((drift_report(name=name), drift_report(5, faulty=True))),
        "ggufnorm/diff": diff_report(name=name),
        "ggufnorm/attribute": attribution_report(name=name),
        "ggufnorm/recipe": recipe_report(name),
        "ggufnorm/check": check_report(name),
        "ggufnorm/verify": verify_report(name),
        "ggufnorm/frameworks": frameworks_report(name),
        "ggufnorm/pixels": pixel_report(name),
        "ggufnorm/audio": audio_report(name),
        "ggufnorm/audit": audit_report(name),
        "ggufnorm/fix": FixReport(
            f"{name}.gguf",
            f"{name}-mended.gguf",
            audit_report(name).findings[:1],
            tuple(Left(finding, f"{name} is not known") for finding in audit_report(name).findings),
            audit_report(name),
        ),
        "ggufnorm/audit-set": AuditSet(
            (audit_report(name), audit_report()), (Skipped(name, "is no model"),)
        ),
    }
