"""T1xx: is it the checkpoint, and did all of it become something?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from ggufnorm.analysis.audit.registry import Problem, Rule, rule
from ggufnorm.analysis.audit.rules.source.common import source_of
from ggufnorm.analysis.audit.rules.tensors.common import (
    another_checkpoint,
    compared,
    same_checkpoint,
)
from ggufnorm.analysis.audit.source.arrange import words
from ggufnorm.analysis.audit.source.plan import NO_ORIGIN, role_of, source_layer
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Severity
from ggufnorm.core.mend import Mend
from ggufnorm.formats.conversion import EMBEDDING, embedding_source, n_blocks
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.hf import Source
from ggufnorm.formats.naming import layer_of

# What no conversion keeps: tables and masks that are computed, statistics of training, other
# parts of the model, and what quantized checkpoints keep beside their weights.
_NO_WEIGHT = re.compile(
    r"rotary_emb|inv_freq|position_ids|masked_bias|attn(ention)?\.bias$|rope\.freqs"
    r"|num_batches_tracked|token_type_ids|\.cos_cached|\.sin_cached|act_fn\.(alpha|beta|eps)"
    r"|talker|token2wav|code2wav"
    r"|_scale(_inv)?$|\.(input|weight|k|v)_scale|\.lora_|tokens_per_expert"
)
_OF_ENCODERS = re.compile(r"visual\.|vision|audio|vit\.|vpm\.")
_BEHIND_ENCODERS = re.compile(r"resampler|projector|mlp1\.|connector")
"""What leads from an encoder into the language model; without one it is something else."""

# A head that a model for another purpose has beside the network, and that is not run.
_HEADS = re.compile(r"^(cls\.|lm_head\.|pooler\.|bert\.pooler|roberta\.pooler|score\.|classifier)")

_OUTPUT = ("lm_head.weight", "embed_out.weight")
"""Names of a head of its own, in any architecture."""


@rule("T101", "tensors-different", "error")
def different(subject: Subject) -> Iterator[Problem]:
    """The source's matrices are not those that the file was made of.

    What it does:
        If more than half of all tensors have values of which nothing is the source's, the
        source is another checkpoint.

    Why it matters:
        Everything that is compared with another checkpoint differs.

    What to do:
        Give the checkpoint that was converted: check the repository, the revision and
        whether it is the base model or a fine-tune. The other rules of this family are not
        run.

    Example:
        ``the source is another checkpoint: 290 of 291 tensors have other values``
    """
    tensors = compared(subject)
    if another_checkpoint(tensors):
        n = len(tensors.differences)
        message = (
            f"the source is another checkpoint: {n} of {tensors.n_compared} tensors have"
            " other values"
        )
        evidence = {"source": source_of(subject).path, "n_different": n}
        yield Problem(message, evidence=evidence)


@rule("T102", "source-tensor-lost", "error")
def lost(subject: Subject) -> Iterator[Problem]:
    """A tensor of the source became nothing in the file.

    What it does:
        Lists the source's tensors that no tensor of the file was made of. Buffers that are
        computed (rotary frequencies, positions, masks), other parts of the model (vision,
        audio), and copies of tied weights are excepted. It is an information where the
        architecture's converter leaves the tensor out on purpose.

    Why it matters:
        What is not in the file is not computed. Without ``output.weight`` llama.cpp uses
        the token embedding for the logits, whatever head was trained; without its pooler's
        dense layer a reranker scores something else.

    What to do:
        Convert again with a converter that knows the tensor. A trained head is only
        converted where ``tie_word_embeddings`` is false in ``config.json``.

    Example:
        ``lm_head.weight became nothing: output.weight is missing, so llama.cpp uses
        token_embd.weight, which has other values``
    """
    tensors = same_checkpoint(subject)
    source = source_of(subject)
    groups: dict[str, list[tuple[str, str | None]]] = {}
    for name, target in tensors.unused:
        if _is_left_out(subject, name) or _is_copy(source, name, subject):
            continue
        if source.why_unreadable(name) is not None:  # told by T104
            continue
        pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
        groups.setdefault(re.sub(r"\.(weight|bias)$", "", pattern), []).append((name, target))
    for group in groups.values():
        yield _lost(subject, group)


def _is_left_out(subject: Subject, name: str) -> bool:
    """Whether no file of this kind has such a tensor."""
    if _NO_WEIGHT.search(name) or _is_beyond(subject, name):
        return True
    if subject.architecture == "clip":
        return False
    return _OF_ENCODERS.search(name) is not None or (
        _BEHIND_ENCODERS.search(name) is not None and _has_encoder(source_of(subject))
    )


def _has_encoder(source: Source) -> bool:
    """Whether the source takes pictures or sounds, by its config or its tensors."""
    return any(_OF_ENCODERS.search(f"{n}.") for n in (*source.config, *source.tensors))


def _lost(subject: Subject, group: list[tuple[str, str | None]]) -> Problem:
    name, target = group[0]
    if target is None and name.endswith(_OUTPUT) and "output.weight" not in subject.file.tensors:
        target = "output.weight"
    severity: Severity | None = None
    stems = {n.rpartition(".")[0] for n, _ in group}
    if len(stems) == 1 and len(group) == 2:
        said = f"{group[1][0]} and its bias became nothing"
    elif len(group) > 1:
        said = f"{name} and {len(group) - 1} more like it became nothing"
    else:
        said = f"{name} became nothing"
    if target == "output.weight":
        said += (
            ": output.weight is missing, so llama.cpp uses token_embd.weight, which has other"
            " values"
        )
    elif target is not None and target in subject.file.tensors:
        said += f": {target} was made of something else"
    elif target is not None:
        said += f": {target} is missing"
    elif _HEADS.match(name):
        severity = None if _is_run(subject, name) else "info"
        said += (
            ": the source's result passes through it"
            if severity is None
            else ": a head that this file's use does not run"
        )
    elif subject.architecture == "clip":
        # Heads of an encoder's own pre-training, blocks behind the one whose output is taken.
        severity = "info"
    else:
        severity = "warning"
    evidence = {"sources": [n for n, _ in group[:40]], "n_sources": len(group), "target": target}
    return Problem(said, target if target in subject.file.tensors else None,
                   source_layer(name) if len(group) == 1 else None, evidence, severity,
                   None if severity == "info" else _added(subject, group))  # fmt: skip


def _added(subject: Subject, group: list[tuple[str, str | None]]) -> Mend | None:
    """Add the tensors that the file lacks, where names and orders say what they are."""
    targets = [target for _, target in group]
    lacking = [t for t in targets if t is not None and t not in subject.file.tensors]
    if len(lacking) < len(group) or any(subject.tensors.layout_of(t) is None for t in lacking):
        return None
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    action = f"add {lacking[0]}{more} from the source"
    return Mend("missing", lacking[0], action, True, also=tuple(lacking[1:]))


def _is_run(subject: Subject, name: str) -> bool:
    """Whether a head is part of what the source's class computes."""
    source = source_of(subject)
    classes = source.config.get("architectures") or []
    ranks = any("SequenceClassification" in str(c) for c in classes)
    if "pooler" in name:
        return ranks
    return ranks and name.startswith(("score", "classifier"))


def _is_beyond(subject: Subject, name: str) -> bool:
    """Whether a tensor belongs to blocks that the file leaves out (multi-token prediction)."""
    layer = source_layer(name)
    return name.startswith(("mtp.", "model.mtp.")) or (
        layer is not None and layer >= n_blocks(subject.file) > 0
    )


def _is_copy(source: Source, name: str, subject: Subject) -> bool:
    """Whether a tensor has the values of the embedding, to which it is tied."""
    if name not in source.tensors or source.why_unreadable(name) is not None:
        return False
    embedding = embedding_source(subject.file, source.tensors)
    if embedding is None or embedding == name:
        return embedding == name and EMBEDDING in subject.file.tensors
    here, there = source.tensors[name], source.tensors[embedding]
    if here.shape != there.shape or source.why_unreadable(embedding) is not None:
        return False
    n = 64
    return np.array_equal(source.read(name, n), source.read(embedding, n))


@rule("T103", "tensor-unknown", "warning")
def unknown(subject: Subject) -> Iterator[Problem]:
    """A tensor of the file was not compared: nothing in the source is known to become it.

    What it does:
        Lists tensors whose name leads to no tensor of the source, and whose values none
        has, in whatever order; and those whose source is of a type that is not read. It is
        a warning where tensors of the same role in other layers have an origin, or one of the
        source of its size became nothing; an error for a head or a bias that is run and
        that the source has not; else an information.

    Why it matters:
        What was not compared may be wrong.

    What to do:
        Check that the source is complete and is the one that was converted.

    Example:
        ``blk.3.ffn_up.weight was not compared: no tensor of the source has its name or its
        values``
    """
    tensors = same_checkpoint(subject)
    joined = {m.site.role for m in tensors.right}
    joined |= {d.making.site.role for d in tensors.differences}
    rest = []
    for name, why in tensors.not_compared:
        left = _left_over(subject, name) if why == NO_ORIGIN else None
        more = _has_more(subject, name) if why == NO_ORIGIN and left is None else None
        if more is not None:
            yield Problem(f"{name} {more}", name, layer_of(name), {"reason": why}, "error")
        elif left is not None:
            said = f"{name} was not compared: {why}; {left}, of its size, became nothing"
            yield Problem(said, name, layer_of(name), {"reason": why, "left_over": left})
        elif role_of(name) in joined and why == NO_ORIGIN:
            yield Problem(f"{name} was not compared: {why}", name, layer_of(name), {"reason": why})
        else:
            rest.append((name, why))
    if rest:
        names = [n for n, _ in rest]
        message = f"{len(rest)} tensors were not compared, the first is {names[0]}: {rest[0][1]}"
        yield Problem(message, evidence={"tensors": names[:40]}, severity="info")


def _has_more(subject: Subject, name: str) -> str | None:
    """What a tensor is that the network runs and the source has not; None if nobody knows."""
    if not subject.tensors.knows_names:
        return None
    if name == "output.weight":
        return "is no tensor of the source's, which has no head of its own: the logits are other"
    weight = f"{name.removesuffix('.bias')}.weight"
    known = {m.tensor for m in subject.tensors.right}
    known |= {d.making.tensor for d in subject.tensors.differences}
    if not name.endswith(".bias") or weight not in known:
        return None
    is_used = bool(read_tensor(subject.file, name).any())
    return "is a bias that the source has not" if is_used else None


def _left_over(subject: Subject, name: str) -> str | None:
    """The one source tensor of the same block and size that became nothing."""
    size, site = subject.file.tensors[name].n_elements, _ROLE.search(name)
    layer = layer_of(name) if site else None
    shapes = source_of(subject).tensors
    found = [
        unused
        for unused, target in subject.tensors.unused
        if target is None and source_layer(unused) == layer and not _is_left_out(subject, unused)
        and math.prod(shapes[unused].shape) == size
    ]  # fmt: skip
    return found[0] if len(found) == 1 else None


_ROLE = re.compile(r"(?:^|\.)blk\.\d+\.")


@rule("T104", "tensors-compared", "info")
def coverage(subject: Subject) -> Iterator[Problem]:
    """How much of the file was compared with the source, and by which way.

    What it does:
        Counts the tensors that were compared, and says where names did not lead to the
        source and values did, and which orders are accepted because they are the same in
        all layers of an architecture whose converter was not read.

    Why it matters:
        An all-clear covers what was looked at, and nothing else.

    What to do:
        Nothing.

    Example:
        ``291 of 291 tensors were compared with the source``
    """
    tensors = same_checkpoint(subject)
    n_norms = len(subject.matches.found)
    total = len(subject.file.tensors)
    n = tensors.n_compared + n_norms
    by_value = [m.tensor for m in tensors.right if not m.by_name]
    said = f"{n} of {total} tensors were compared with the source"
    if not tensors.knows_names:
        said += (
            f"; gguf-py does not know the architecture {subject.architecture!a}, so they were"
            " joined by values, order and shape"
        )
    elif by_value:
        said += f", {len(by_value)} of them joined by their values"
    if tensors.computed:
        said += f"; {len(tensors.computed)} are made of its config (K203)"
    if tensors.unlearned:
        said += "; taken as found: " + "; ".join(
            f"{role} {words(steps)}" for role, steps in tensors.unlearned.items()
        )
    source = source_of(subject)
    unread = [name for name, _ in tensors.unused if source.why_unreadable(name) is not None]
    if unread:
        said += f"; {len(unread)} tensors of the source are of types that are not read"
    evidence = {
        "n_compared": n,
        "unread": unread[:40],
        "n_tensors": total,
        "n_not_compared": len(tensors.not_compared),
        "n_weights": tensors.n_weights,
        "by_value": by_value[:40],
        "not_compared": [list(p) for p in tensors.not_compared[:40]],
        "taken_as_found": {r: list(s) for r, s in tensors.unlearned.items()},
    }
    yield Problem(said, evidence=evidence)


RULES: tuple[Rule, ...] = (different, lost, unknown, coverage)
