"""What an audit says of the suspects: each rule speaks of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ggufnorm.analysis.audit.rules import BY_ID
from ggufnorm.core.audit import AuditReport, Finding
from ggufnorm.core.check import FIXABLE, State, SuspectName
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.placement import on_host
from ggufnorm.verbs.check.case import FLOATS, Case
from ggufnorm.verbs.check.suspects import Judgement

_OF_RULES: tuple[tuple[str, SuspectName], ...] = (
    ("N601", "download"),
    ("H202", "download"),
    ("H204", "download"),
    ("H203", "quantization"),
    ("H3", "tokenizer"),
    ("N602", "quantization"),
    ("N603", "file against source"),
    ("T207", "quantization"),
    ("K104", "pooling"),
    ("K4", "tokenizer"),
    ("C1", "engine and device"),
    ("C3", "engine and device"),
    ("C4", "engine and device"),
    ("N103", "file against source"),
    ("V", "preprocessing"),
    ("N", "normalization"),
    ("E", "normalization"),
    ("S", "normalization"),
    ("C", "normalization"),
    ("H", "file against source"),
    ("T", "file against source"),
    ("K", "file against source"),
)  # fmt: skip
"""Beginnings of ids, the first that fits, and the suspect that their rules speak of."""

_NOTES = ("H201", "T103", "C404")
"""Rules whose warnings tell of no fault: of a label, of what was not compared, of a limit that
belongs to the checkpoint."""

_DOUBTFUL = ("C101",)
"""Rules whose findings may be another suspect's doing: a damaged file does not run either."""

_CONVERT_WIDER = (
    "Convert again to BF16 or F32: the source holds it too, or a value that F16 cannot hold"
)
_POOLING = frozenset({"pooler", "classifier", "score", "pooling_type"})
"""Elements of the names of keys and tensors that make one vector or score of a text."""


def accusations(report: AuditReport, command: str) -> Iterator[Judgement]:
    """A judgement for each finding that is an error or a warning."""
    for finding in report.findings:
        if finding.severity != "info" and not _is_note(finding):
            is_certain = finding.severity == "error" and finding.rule not in _DOUBTFUL
            state: State = "guilty" if is_certain else "probable"
            yield Judgement(
                suspect_of(finding), state, _sentence(finding), _do(finding), command,
                finding.rule, finding.evidence, finding.mend is not None,
            )  # fmt: skip


def notes(report: AuditReport) -> list[str]:
    """Sentences that limit what may be said, and accuse nobody."""
    return [f.message for f in report.findings if _is_note(f)]


def _is_note(finding: Finding) -> bool:
    return finding.rule in _NOTES and finding.severity == "warning"


def suspect_of(finding: Finding) -> SuspectName:
    """Whom a finding speaks of."""
    if finding.rule[:1] in "KT" and not finding.rule.startswith("K4"):
        named = [finding.evidence.get("key"), *(finding.evidence.get("sources") or ())]
        if any(_POOLING.intersection(str(name).split(".")) for name in named if name):
            return "pooling"
    if finding.rule == "N602" and finding.evidence.get("dtype") in FLOATS:
        return "file against source"
    return next(s for start, s in _OF_RULES if finding.rule.startswith(start))


def ran(report: AuditReport, *starts: str) -> list[str]:
    """The rules that were checked, of those whose id begins so."""
    return [rule for rule in report.summary.rules_run if rule.startswith(starts)]


def why_not(report: AuditReport, start: str) -> str:
    """Why the rules whose id begins so were not checked, the first reason; empty if all were."""
    return next((n.reason for n in report.not_run if n.rule.startswith(start)), "")


def info(report: AuditReport, rule: str) -> str:
    """What a rule says of its own coverage; empty where it did not run."""
    return next((f.message for f in report.findings if f.rule == rule), "")


def _sentence(finding: Finding) -> str:
    about = [part for part in (finding.tensor,) if part and part not in finding.message]
    return f"{', '.join(about)}: {finding.message}" if about else finding.message


def _do(finding: Finding) -> str:
    mend = finding.mend
    if mend is not None:
        option = f", or run with {mend.override_kv}" if mend.override_kv else ""
        return f"{mend.action} ({FIXABLE}){option}"
    if finding.rule == "N602" and finding.evidence.get("dtype") in FLOATS:
        return _CONVERT_WIDER
    rule = BY_ID.get(finding.rule)
    return " ".join(rule.sections["What to do"].replace("``", "").split()) if rule else ""


def joined(parts: Sequence[str]) -> str:
    """Sentences in one."""
    return "; ".join(part for part in parts if part)


# -- what an audit clears ----------------------------------------------------------------

ADD_SOURCE = "add its checkpoint: ggufnorm check MODEL FOLDER"


def of_file_alone(report: AuditReport, case: Case, command: str) -> Iterator[Judgement]:
    """What the file by itself says of the suspects, beside the accusations."""
    n = report.summary.n_norms
    add = ADD_SOURCE if case.evidence.source is None else ""
    whole = f"{case.size:,} bytes are there, and every tensor lies within them"
    more = "; none holds NaN or infinity" if "N602" in report.summary.rules_run else ""
    yield Judgement("download", "partly", whole + more, add, command)
    if ran(report, "H101"):
        said = joined(["the shapes bear out the hyperparameters", *notes(report)])
        yield Judgement("file against source", "partly", said, add, command)
    checked = len(ran(report, "N", "E"))
    if n and checked:
        norms = f"{checked} rules find nothing wrong with its {n} norms, taken by themselves"
        yield Judgement("normalization", "partly", norms, add, command)
    if ran(report, "H301"):
        words = "its lists, special tokens and merges agree with each other"
        yield Judgement("tokenizer", "partly", words, add, command)
    if case.is_encoder and ran(report, "V"):
        constants = "mean and deviation of pixels are plausible, taken by themselves"
        yield Judgement("preprocessing", "partly", constants, add, command)
    if not case.pools and not case.is_encoder:
        words = "it states no pooling, and predicts tokens"
        yield Judgement("pooling", "partly", words, add, command)


def of_source(report: AuditReport, case: Case, command: str) -> Iterator[Judgement]:
    """What the file beside its source says of the suspects, beside the accusations."""
    tensors, keys = info(report, "T104"), info(report, "K301")
    limits = [*notes(report), "" if tensors else why_not(report, "T104")]
    said = joined([tensors, keys, *limits])
    whole = bool(tensors and keys) and not notes(report) and not _uncompared(report)
    if said:
        yield Judgement("file against source", "cleared" if whole else "partly", said, "", command)
    if whole and not _differs(report):
        words = "every tensor has the values of its source, as far as its type can hold them"
        yield Judgement("download", "cleared", words, "", command)
    if ran(report, "S208"):
        epsilons = bool(ran(report, "S401"))
        what = "weights and epsilons" if epsilons else "weights"
        words = f"its {report.summary.n_norms} norms have the {what} of the source"
        why = "" if epsilons else f"epsilons: {why_not(report, 'S401')}"
        state: State = "cleared" if epsilons else "partly"
        yield Judgement("normalization", state, joined([words, why]), "", command)
    if ran(report, "T207") and not case.quantized:
        words = f"no tensor is quantized ({case.types}), nor went through a coarser type"
        yield Judgement("quantization", "cleared", words, "", command)
    if ran(report, "K401"):
        also = ("tokens", "K403"), ("types", "K404")
        words = ", ".join(["keys", *(name for name, rule in also if ran(report, rule))])
        words = f"the tokenizer's {words} are the source's"
        run = "run both tokenizers: ggufnorm compare hf:FOLDER MODEL"
        yield Judgement("tokenizer", "partly", words, run, command)
    if ran(report, "K101") and case.pools:
        words = "pooling_type and the pooler's tensors are the source's"
        yield Judgement("pooling", "partly", words, "", command)
    elif ran(report, "K101") and not case.is_encoder:
        words = "it predicts tokens, and its source asks for no pooling"
        yield Judgement("pooling", "cleared", words, "", command)
    if case.is_encoder and ran(report, "V106"):
        words = "mean and deviation of pixels are the source's"
        yield Judgement("preprocessing", "partly", words, "", command)


def _differs(report: AuditReport) -> bool:
    """Whether a tensor has not the values of its source."""
    return any(f.rule[0] in "TS" and f.severity != "info" for f in report.findings)


def _uncompared(report: AuditReport) -> bool:
    """Whether the audit says that it left out a tensor."""
    found = next((f.evidence for f in report.findings if f.rule == "T104"), {})
    return bool(found.get("n_compared", 0) < found.get("n_tensors", 0))


_ELSEWHERE = (
    "record a run on the other device or build, to compare it here:"
    " ggufnorm trace MODEL -o there.safetensors"
)


def of_encoder(encoder: ModelFile, model: ModelFile, command: str) -> Iterator[Judgement]:
    """Whether an encoder's projector is as wide as the model (``mtmd_context`` in tools/mtmd)."""
    width = model.metadata.integer(f"{model.architecture}.embedding_length")
    stated = {encoder.metadata.integer(f"clip.{kind}.projection_dim") for kind in _SENSES}
    shapes = [t.shape for name, t in encoder.tensors.items() if name.startswith(_PROJECTORS)]
    if not width or (not shapes and stated <= {None}):
        words = "its encoder's width is not known"
        yield Judgement("preprocessing", "not examined", words, _ADD_BOTH, command)
    elif width in stated or any(width in shape for shape in shapes):
        words = f"its encoder ends in vectors of {width:,}, as wide as its own"
        yield Judgement("preprocessing", "partly", words, _ADD_BOTH, command)
    else:
        found = sorted(n for n in stated if n) or [shape[-1] for shape in shapes][-1:]
        words = (
            f"its encoder ends in vectors of {found[0]:,}, and its own are {width:,} wide: the"
            " encoder is another model's"
        )
        do = "take the mmproj file that was published with the model"
        yield Judgement("preprocessing", "guilty", words, do, command)


_SENSES = ("vision", "audio")
_PROJECTORS = ("mm.", "resampler.", "v.mm", "a.mm")
_ADD_BOTH = "look at the encoder beside its source: ggufnorm check MMPROJ FOLDER"


def of_run(report: AuditReport, command: str) -> Iterator[Judgement]:
    """What llama.cpp's run says of the engine, beside the accusations."""
    checked = ran(report, "C301", "C401")
    if len(checked) == 2:
        words = (
            f"on {_place(report)} llama.cpp computes every norm as NumPy does, without NaN or"
            " infinity"
        )
        limits = notes(report)
        yield Judgement(
            "engine and device", "partly", joined([words, *limits]), _ELSEWHERE, command,
            note="; ".join(limits),
        )  # fmt: skip
    else:
        why = why_not(report, "C301") or why_not(report, "C")
        yield Judgement("engine and device", "not examined", why, "", command)


def _place(report: AuditReport) -> str:
    """Where a run's values were, in words."""
    engine = report.engine
    if engine is None or on_host(engine):
        return "this machine's processor"
    return ", ".join(engine.devices)
