"""Where drift enters, and what is at fault: one culprit at most, and a few sentences.

The judgement rests on *local* errors: what an operation does to the reference's own
input. They do not depend on what happened upstream, so a fault is told where it is made,
not where it is passed on. They are weighed against what the two files say:

- Weights of one type on both sides and with other values are an edit, whatever their peers
  do (:mod:`~ggufnorm.analysis.drift.edits`).
- A norm's weight, bias and epsilon are never quantized: any local error is a difference
  between the files (:mod:`~ggufnorm.analysis.drift.norms`).
- An operation that is off although it reads no weight that differs is off by a key, by a
  tensor that one file lacks, or by the options (:mod:`~ggufnorm.analysis.drift.causes`).
- Any other operation that reads a tensor has its local error from that tensor. A typical
  one of each role, and each that is out of line with its peers, is measured against what
  both files' types cost (:mod:`~ggufnorm.analysis.drift.damage`).

Where a trace stands for a model there are no local errors:
:mod:`~ggufnorm.analysis.drift.cumulative` says what cumulative drift alone shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ggufnorm.analysis.drift import damage
from ggufnorm.analysis.drift.causes import (
    Sides,
    beyond_weights,
    key_text,
    lost_head,
    other_keys,
    out_of_line,
)
from ggufnorm.analysis.drift.files import Changed, Files
from ggufnorm.analysis.drift.norms import (
    about_norms,
    norm_faults,
    typical_local_error,
    worst_fault,
    wrong_formula,
)
from ggufnorm.analysis.drift.wording import (
    NO_DRIFT,
    enters_at,
    gradual,
    non_finite,
    nothing_drifts,
)
from ggufnorm.core.diff import MetadataDifference
from ggufnorm.core.drift import Culprit, NormDrift, OperationDrift
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.matrices import ABLITERATION, is_abliteration
from ggufnorm.formats.naming import layer_of


@dataclass(frozen=True)
class Evidence:
    """What the files and the options of a run show.

    Attributes:
        files: compared.
        sides: how each was run.
        check_weight: asked about tensors that look damaged.
        sample_weight: asked about a tensor of each role.
        how_edited: says what was done to weights that changed.
        how_differs: says what was done to a tensor of another type.
        typical: of nodes of attention, the error of a typical channel, given the
            reference's input, relative.
        bad_ref: nodes at which the reference itself shows NaN or infinity.
    """

    files: Files
    sides: Sides
    check_weight: damage.WeightCheck
    sample_weight: damage.WeightCheck
    how_edited: Callable[[Sequence[Changed]], str | None]
    how_differs: damage.HowDiffers = damage.untold
    bad_ref: Collection[str] = ()
    typical: Mapping[str, float] = field(default_factory=dict)


def judge(
    norms: Sequence[NormDrift],
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
    evidence: Evidence,
) -> tuple[Culprit | None, str]:
    """Name the one thing that is out of line, and say in words where drift enters.

    Args:
        norms: in graph order.
        operations: in graph order.
        logits: None for a model without predictions.
        evidence: from the files.

    Returns:
        The culprit, or None; and the verdict.
    """
    if nothing_drifts(operations, logits):
        return None, " ".join([NO_DRIFT, *_about_order(evidence.files), *_about(evidence, None)])
    files = evidence.files
    noise = typical_local_error(operations)
    faults = norm_faults(norms, noise)
    groups = damage.lossy_groups(operations, norms)
    samples = damage.sample_groups(groups, evidence.sample_weight)
    edited = _edited(operations, evidence)
    culprit = (
        non_finite(operations, evidence.bad_ref)
        or (edited if _is_widespread(files) else None)
        or worst_fault(faults)
        or wrong_formula(norms)
        or other_keys(operations, norms, files, evidence.sides, noise)
        or edited
        or damage.other_weights(groups, samples, evidence.how_differs)
        or damage.damaged_weight(groups, evidence.check_weight, evidence.how_differs)
        or beyond_weights(groups, evidence.sample_weight, files)
        or lost_head(operations, files)
        or out_of_line(operations, norms, files, evidence.sides, evidence.typical)
    )
    start = gradual(operations) if culprit is None else enters_at(culprit)
    sentences = [
        *_about_order(files),
        start,
        *_about(evidence, culprit),
        *_about_grid(samples),
        about_norms(len(faults), norms),
    ]
    return culprit, " ".join(sentences)


def _changes(files: Files) -> list[Changed]:
    """What was edited: matrices, or vectors where no matrix was."""
    edited = [c for c in files.changed if c.is_edited]
    return [c for c in edited if c.n_dims > 1] or edited


def _is_widespread(files: Files) -> bool:
    """Whether so much was edited that a norm beside it is not the cause."""
    return len(_changes(files)) > 1


def _edited(operations: Sequence[OperationDrift], evidence: Evidence) -> Culprit | None:
    changes = _changes(evidence.files)
    if not changes:
        return None
    first = changes[0]
    at = next(o for o in operations if o.tensor == first.tensor)
    how = evidence.how_edited(changes)
    reason = _many(changes, evidence.files, how) if len(changes) > 1 else _one(first, how)
    return Culprit(first.tensor, at.node, at.layer, reason)


def _one(c: Changed, how: str | None) -> str:
    size = "holds NaN or infinity" if c.rel_l2 is None else f"differs by {c.rel_l2:.3g}"
    done = f", {how}" if how else ""
    cost = f" where two quantizations may by {c.expected:.3g}" if c.expected else ""
    return (
        f"its weight {size} (relative L2){cost}{done} though both files hold it in {c.dtype}:"
        " it was edited, damaged, or is another tensor"
    )


def _many(changes: Sequence[Changed], files: Files, how: str | None) -> str:
    errors = [c.rel_l2 for c in changes if c.rel_l2 is not None]
    size = f", by up to {max(errors):.3g} (relative L2)" if errors else ""
    kinds = {c.tensor.removesuffix(".weight").rpartition(".")[2] for c in changes}
    noun = "matrices" if all(c.n_dims > 1 for c in changes) else "tensors"
    total = f" of {files.n_matrices}" if noun == "matrices" else ""
    which = f" (all {next(iter(kinds))})" if len(kinds) == 1 else ""
    layer = layer_of(changes[0].tensor)
    start = "" if layer is None else f", from layer {layer} on"
    if how and is_abliteration(1 if how.startswith("by a rank-1 ") else 0, kinds):
        guess = f"{how}: {ABLITERATION}, or an adapter of rank 1 that was not merged"
    elif how and how.startswith("by a rank"):
        guess = f"{how}: an adapter that was not merged"
    elif how:
        guess = how
    elif errors and min(errors) > 1:
        guess = "another checkpoint, or other tensors"
    else:
        guess = "edited, another fine-tune, or an adapter that was not merged"
    return (
        f"the files are not two versions of the same weights: {len(changes)}{total} {noun} of"
        f" the same type differ{which}{start}{size} ({guess})"
    )


def _about_order(files: Files) -> list[str]:
    return [files.coarser.asked("drift")] if files.coarser else []


def _about(evidence: Evidence, culprit: Culprit | None) -> list[str]:
    """What the files show beside the culprit."""
    files, found = evidence.files, []
    untold = [d for d in files.keys if culprit is None or d.key not in culprit.reason]
    if untold:
        n_ctx = evidence.sides.quant.n_ctx  # 0 of an encoder
        rest = f"; what they do in texts of more than {n_ctx:,} tokens was not run" if n_ctx else ""
        found.append(f"Keys that llama.cpp reads differ: {_texts(untold)}{rest}.")
    if files.tokenizer:
        found.append(
            "The tokenizers differ, which a run of the same token ids does not show:"
            f" {_texts(files.tokenizer)}."
        )
    again = [c for c in files.changed if not c.is_edited]
    if again:
        found.append(
            f"{len(again)} tensors of the same type differ by no more than two quantizations"
            " of one weight do."
        )
    edits = _changes(files)
    told = culprit is not None and culprit.tensor in {c.tensor for c in edits}
    if edits and not told:
        found.append(
            f"{len(edits)} tensors of the same type have other values, the first {edits[0].tensor}."
        )
    return found


def _texts(keys: Sequence[MetadataDifference]) -> str:
    more = f"; and {len(keys) - 3} more" if len(keys) > 3 else ""
    return "; ".join(map(key_text, keys[:3])) + more


def _about_grid(samples: damage.Samples) -> list[str]:
    if not samples or not damage.was_dequantized(samples):
        return []
    return [
        "The reference's weights lie on a quantized type's grid: it was quantized before, and"
        " is no measure of what that cost."
    ]
