"""What runs say of the suspects: beside the source, beside a better quant, with other caches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ggufnorm.analysis.crosscheck.token_ids import BOS_ADDED
from ggufnorm.analysis.drift.causes import key_text
from ggufnorm.analysis.drift.files import forward_keys, tokenizer_keys
from ggufnorm.core.check import State, SuspectName
from ggufnorm.core.diff import MetadataDifference
from ggufnorm.core.drift import Culprit, DriftReport
from ggufnorm.core.frameworks import EngineComparison, FrameworksReport, TokenizerFinding
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.severity import FEW_POSITIONS, severity
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.verbs.check import by_rules
from ggufnorm.verbs.check.case import Case
from ggufnorm.verbs.check.suspects import Judgement


def of_compare(report: FrameworksReport, case: Case, command: str) -> Iterator[Judgement]:
    """What the file does beside its source in Transformers."""
    found = report.comparisons[0]
    compared = ", ".join(found.compared)
    if found.tokenizer is not None:
        yield _ids_differ(found.tokenizer, command)
    elif any(words.startswith("token ids") for words in found.compared):
        ids = next(words for words in found.compared if words.startswith("token ids"))
        left = next((s for s in found.not_compared if s.what == BOS_ADDED), None)
        if left is None:
            yield Judgement("tokenizer", "cleared", f"{ids} are the source's", "", command)
        else:
            words = f"{ids} are the source's, but {left.what} is open: {left.reason}"
            yield Judgement("tokenizer", "partly", words, _ASK_BOS, command)
    for pixels in found.pixels:
        if pixels.severity == "error":
            yield Judgement("preprocessing", "guilty", pixels.message, "", command)
    if found.first_wrong is not None:
        yield _wrong(found, command)
        return
    if case.pools and not found.not_compared:
        yield Judgement("pooling", "cleared", f"compared with the source: {compared}", "", command)
    if compared:
        words = f"run beside Transformers ({compared}), {_lower(found.verdict)}"
        yield Judgement("engine and device", "partly", words, "", command)


def _ids_differ(found: TokenizerFinding, command: str) -> Judgement:
    """Who is to blame for other token ids, and what there is to do."""
    if found.is_engines:
        if found.is_common:
            return Judgement("engine and device", "guilty", found.message, _REPORT_IDS, command)
        words = (
            f"only llama.cpp's own splitting differs, in {found.differing} of {found.n_texts} texts"
        )
        return Judgement("tokenizer", "partly", words, _REPORT_IDS, command, note=found.message)
    keys = " ".join(f"--override-kv {key}" for key in found.keys)
    again = "convert again with the source's tokenizer files"
    if keys and found.same_again:
        do = f"run with {keys}"
    elif keys:
        do = f"run with {keys}, and {again}"
    elif found.same_again is None:
        do = f"{again}; if the ids stay as they are, {_REPORT_IDS}"
    else:
        do = again
    return Judgement("tokenizer", "guilty", found.message, do, command)


_REPORT_IDS = (
    "report it to llama.cpp with that text; where such texts matter, tokenize with the source's"
    " tokenizer and pass ids"
)
_ASK_BOS = "look in the model card, or at add_bos_token of the tokenizer that it was trained with"


def _wrong(found: EngineComparison, command: str) -> Judgement:
    wrong = found.first_wrong
    assert wrong is not None
    suspect: SuspectName = "file against source"
    if wrong.where in ("norm", "fold"):
        suspect = "normalization"
    if "pixels" in wrong.causes:
        suspect = "preprocessing"
    at = wrong.operation.name if wrong.operation else wrong.key
    layer = "" if wrong.layer is None else f" (layer {wrong.layer})"
    words = f"first wrong at {at}{layer}: {wrong.reason}"
    do = "mend the file, or convert it again"
    figures = {"key": wrong.key} | ({} if wrong.layer is None else {"layer": wrong.layer})
    return Judgement(suspect, "guilty", words, do, command, figures=figures)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


# -- two headers ------------------------------------------------------------------------


def of_headers(better: ModelFile, model: ModelFile, command: str) -> Iterator[Judgement]:
    """What the keys of a better quant of the same model say."""
    keys, tokens = forward_keys(better, model), tokenizer_keys(better, model)
    if keys:
        words = f"keys are not the better quant's: {_keys(keys)}"
        do = "find out which of the two is right: add the checkpoint"
        yield Judgement("file against source", "probable", words, do, command)
    else:
        words = "its keys are the better quant's"
        yield Judgement("file against source", "partly", words, by_rules.ADD_SOURCE, command)
    lists = [d for d in tokens if d.key not in _MENDED]
    if lists:
        words = f"keys of the tokenizer are not the better quant's: {_keys(lists)}"
        do = "find out which of the two is right: add the checkpoint"
        yield Judgement("tokenizer", "probable", words, do, command)
        return
    also = "; the chat template is another one, as publishers mend them" if tokens else ""
    words = f"its tokenizer's keys are the better quant's{also}"
    yield Judgement("tokenizer", "partly", words, by_rules.ADD_SOURCE, command)


_MENDED = ("tokenizer.chat_template", "tokenizer.chat_templates")


def _keys(found: Sequence[MetadataDifference]) -> str:
    more = f"; and {len(found) - 2} more" if len(found) > 2 else ""
    return "; ".join(map(key_text, found[:2])).replace("the reference", "the better quant") + more


# -- two runs of llama.cpp ---------------------------------------------------------------


def of_cache(report: DriftReport, command: str) -> Iterator[Judgement]:
    """What the user's cache types and attention do to the same file."""
    side = report.run.quant
    state = _state(report.culprit, report.logits)
    words = f"{_predictions(report.logits)}{_verdict(report)}"
    figures = _figures(report)
    changed = {"-ctk": side.cache_type_k, "-ctv": side.cache_type_v}
    if set(changed.values()) == {_DEFAULT_TYPE}:  # the kernel of the attention, then
        mode = side.flash_attention
        yield Judgement("K/V cache", "not examined", CACHED_IN_F16, NAME_TYPES)
        yield Judgement(
            "engine and device",
            "partly" if state == "cleared" else state,
            f"-fa {mode}: {words}",
            f"run with -fa {'off' if mode == 'on' else 'auto'}",
            command,
            figures=figures,
        )
        return
    types = " ".join(f"{option} {name}" for option, name in changed.items())
    yield Judgement(
        "K/V cache",
        state,
        f"{types} -fa {side.flash_attention}: {words}",
        _better_cache(changed),
        command,
        figures=figures,
    )


_DEFAULT_TYPE = "f16"
CACHED_IN_F16 = "keys and values are cached in f16, llama.cpp's default"
NAME_TYPES = "name the types that you run with: -ctk q8_0 -ctv q8_0"


def _better_cache(types: Mapping[str, str]) -> str:
    """The options of a finer cache, for the types that are not f16."""
    coarse = [option for option, name in types.items() if name != _DEFAULT_TYPE]
    finest = " ".join(f"{option} {_DEFAULT_TYPE}" for option in coarse)
    finer = " ".join(f"{option} q8_0" for option in coarse)
    is_fine = all(types[option] in ("q8_0", "bf16", "f32") for option in coarse)
    return f"run with {finest}" if is_fine else f"run with {finest}, or {finer}"


def _figures(report: DriftReport) -> dict[str, float | str]:
    """The numbers of a run, for scripts."""
    found: dict[str, float | str | None] = {}
    s, culprit = report.logits, report.culprit
    if s is not None:
        found |= {"mean_kld": s.mean_kld, "same_top1": s.same_top1, "ppl_ratio": s.ppl_ratio,
                  "n_tokens": s.n_tokens}  # fmt: skip
    if culprit is not None:
        found |= {"node": culprit.node, "tensor": culprit.tensor, "layer": culprit.layer}
    return {name: value for name, value in found.items() if value is not None}


def of_drift(report: DriftReport, command: str) -> Iterator[Judgement]:
    """What a better quant of the same model shows."""
    culprit = report.culprit
    state = _state(culprit, report.logits)
    words = f"{_predictions(report.logits)}{_verdict(report)}"
    if culprit is None:
        yield Judgement(
            "quantization", state, words, "take a larger quant", command, figures=_figures(report)
        )
        return
    suspect = _suspect_of(culprit, report)
    do = "quantize again from the source" if suspect == "quantization" else "convert again"
    yield Judgement(suspect, "guilty", words, do, command, figures=_figures(report))
    if suspect != "quantization":
        others = "what else the types cost is hidden behind that"
        yield Judgement("quantization", "not examined", others, "mend that first", command)


def _suspect_of(culprit: Culprit, report: DriftReport) -> SuspectName:
    if any(culprit.node == n.node and (n.local.rel_l2 or 0) > 0 for n in report.norms):
        return "normalization"
    at = next((o for o in report.operations if o.node == culprit.node), None)
    if at is not None and at.tensor is not None and at.dtype != at.dtype_ref:
        return "quantization"
    return "file against source"


_STATES: Mapping[str, State] = {"large": "partly", "severe": "probable"}
"""By severity: up to moderate, nothing is out of the ordinary."""


def _state(culprit: Culprit | None, logits: LogitStatistics | None) -> State:
    if culprit is not None:
        return "guilty"
    if logits is None or logits.mean_kld is None or logits.n_tokens < FEW_POSITIONS:
        return "partly"
    return _STATES.get(severity(logits.mean_kld), "cleared")


def _predictions(s: LogitStatistics | None) -> str:
    if s is None or s.mean_kld is None:
        return ""
    top = "" if s.same_top1 is None else f", same top token {100 * s.same_top1:.1f} %"
    word = f"{severity(s.mean_kld)}: " if s.n_tokens >= FEW_POSITIONS else ""
    return f"{word}KL divergence {s.mean_kld:.3g} nats{top} at {s.n_tokens:,} positions; "


def _verdict(report: DriftReport) -> str:
    return report.verdict.rstrip(".")
