"""N1: which norms there are, against the architecture and from block to block."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.formats.gguf_constants import Keys
from ggufnorm.formats.naming.language import expected_kind
from ggufnorm.formats.naming.presence import known_norms, needed_norms

_BLOCK = re.compile(r"((?:enc\.|dec\.)?blk)\.(\d{1,6})\.(.+)")

_MOST_BLOCKS = 1 << 16
"""More blocks than any model has; a header can claim four billion."""

# Norms that the graph leaves out in one block: src/models/modern-bert.cpp begins its first
# block with the embedding's norm.
_LEFT_OUT = frozenset({("modern-bert", 0, "attn_norm.weight")})


@dataclass(frozen=True)
class _Block:
    """One block of the network.

    Attributes:
        stem: ``blk.3``.
        number: of the block.
        norms: names of its norms' weights and biases without the stem.
        make: names of its other tensors: blocks of one make have the same norms.
    """

    stem: str
    number: int
    norms: frozenset[str]
    make: frozenset[str]


@rule("N101", "norm-missing", "error")
def missing(subject: Subject) -> Iterator[Problem]:
    """A norm that the architecture needs is missing.

    What it does:
        Expects the norms that llama.cpp requires of the architecture, and in every block
        the norms, weights and biases, of the other blocks with the same tensors.

    Why it matters:
        llama.cpp refuses the file, or leaves the norm out without a word (GLM-4-0414
        without its post-norms wrote one letter again and again).

    What to do:
        Convert again with a converter that knows the architecture.

    Example:
        ``blk.3.ffn_norm.weight is missing: 31 other blocks of the same make have it``
    """
    _language(subject)
    needed = needed_norms(subject.architecture)
    blocks = _blocks(subject)
    reported: set[str] = set()
    for name in needed or ():
        if not _has_any(subject, name):
            first = name.format(bid=0)
            where = "no block has it" if "{bid}" in name else "the architecture needs it"
            reported.add(name.partition("{bid}.")[2])
            yield Problem(f"{first} is missing: {where}", first, 0 if "{bid}" in name else None)
    for part, having, lacking in _uneven(blocks):
        essential = any(name.endswith(f".{part}") for name in needed or ())
        if part in reported or (len(having) < len(lacking) and not essential):
            continue
        for block in lacking:
            if (subject.architecture, block.number, part) not in _LEFT_OUT:
                tensor = f"{block.stem}.{part}"
                others = "block" if len(having) == 1 else "blocks"
                message = f"{tensor} is missing: {len(having)} other {others} of the same make"
                message += " has it" if len(having) == 1 else " have it"
                yield Problem(message, tensor, block.number, {"n_having": len(having)})
    if needed is None:
        raise NotApplicableError(
            f"gguf-py does not know the architecture {subject.architecture!a}: blocks were only"
            " compared with each other"
        )


@rule("N102", "norm-extra", "warning")
def extra(subject: Subject) -> Iterator[Problem]:
    """The file has a norm that the architecture does not have.

    What it does:
        Looks up every norm in gguf-py's list of the architecture's tensors, and reports a
        bias beside an RMSNorm and a norm that stands in a few blocks only, among others
        with the same tensors.

    Why it matters:
        llama.cpp refuses files with tensors that it does not use. If a newer llama.cpp does
        use it, this gguf-py is too old to say.

    What to do:
        Convert again with the converter of the llama.cpp that runs the model, or update
        gguf-py (``pip install -U gguf``).

    Example:
        ``blk.0.attn_q_norm.weight: nothing of this name is known of the architecture falcon``
    """
    _language(subject)
    known = known_norms(subject.architecture)
    strange: set[str] = set()
    for site in subject.sites:
        if site.tensor is None or known is None:
            continue
        if _template(site.tensor) not in known:
            strange.add(site.tensor)
            message = "nothing of this name is known of the architecture " + subject.architecture
            yield Problem(f"{site.tensor}: {message}", site.tensor, site.layer, {"role": site.role})
        elif site.bias and site.kind == "rms" and expected_kind(subject.architecture) == "rms":
            message = f"{site.bias}: no RMSNorm of llama.cpp adds a bias"
            yield Problem(message, site.bias, site.layer, {"role": site.role})
    essential = [name.partition("{bid}.")[2] for name in needed_norms(subject.architecture) or ()]
    for part, having, lacking in _uneven(_blocks(subject)):
        if part in essential or len(having) >= len(lacking):
            continue
        for block in having:
            tensor = f"{block.stem}.{part}"
            if tensor not in strange:
                message = f"{tensor}: {len(lacking)} other blocks of the same make lack it"
                yield Problem(message, tensor, block.number, {"n_lacking": len(lacking)})
    if known is None:
        raise NotApplicableError(
            f"gguf-py does not know the architecture {subject.architecture!a}: blocks were only"
            " compared with each other"
        )


@rule("N103", "block-count", "error")
def block_count(subject: Subject) -> Iterator[Problem]:
    """The number of blocks in the metadata is not that of the tensors.

    What it does:
        Compares ``{arch}.block_count``, and ``{arch}.decoder_block_count`` if there is one,
        with the numbers in the names of tensors. The blocks of a multi-token predictor, the
        last ones, may be absent.

    Why it matters:
        llama.cpp refuses a file with too few blocks; of one with too many it would use a
        part, and refuses that too.

    What to do:
        Convert again; the conversion was cut short, or the metadata was edited.

    Example:
        ``llama.block_count is 32, but there are tensors of 31 blocks: blk.31 is missing``
    """
    _language(subject)
    arch = subject.architecture
    for stem, key in _counted_parts(subject):
        count = subject.metadata.integer(key)
        present = {b.number for b in _blocks(subject) if b.stem.startswith(f"{stem}.")}
        if count is None or not present:
            continue
        predictors = subject.metadata.integer(f"{arch}.nextn_predict_layers") or 0
        needed = range(min(count, _MOST_BLOCKS) - max(0, predictors))
        absent = [i for i in needed if i not in present]
        beyond = sorted(i for i in present if i >= count)
        evidence = {"key": key, "block_count": count, "n_present": len(present)}
        if absent or beyond:
            what = f"{stem}.{(absent or beyond)[0]} is {'missing' if absent else 'beyond that'}"
            message = f"{key} is {count}, but there are tensors of {len(present)} blocks: {what}"
            yield Problem(message, layer=(absent or beyond)[0], evidence=evidence)
    if subject.integer(Keys.LLM.BLOCK_COUNT) is None:
        raise NotApplicableError(f"{arch}.block_count is not present")


def _language(subject: Subject) -> None:
    if subject.architecture == "clip":
        raise NotApplicableError("the file is an encoder's (see V301)")


def _counted_parts(subject: Subject) -> Iterator[tuple[str, str]]:
    """The first part of blocks' names, and the key that counts them."""
    key = Keys.LLM.BLOCK_COUNT.format(arch=subject.architecture)
    decoder = f"{subject.architecture}.decoder_block_count"
    yield from (("blk", key), ("enc.blk", key))
    yield "dec.blk", decoder if decoder in subject.metadata else key


def _blocks(subject: Subject) -> list[_Block]:
    norms = {name for s in subject.sites for name in (s.tensor, s.bias) if name}
    parts: dict[tuple[str, int], list[tuple[str, bool]]] = defaultdict(list)
    for name in subject.file.tensors:
        found = _BLOCK.fullmatch(name)
        if found:
            parts[found[1], int(found[2])].append((found[3], name in norms))
    return [
        _Block(
            f"{stem}.{number}",
            number,
            frozenset(part for part, is_norm in these if is_norm),
            frozenset(part for part, is_norm in these if not is_norm),
        )
        for (stem, number), these in sorted(parts.items())
    ]


def _uneven(blocks: Iterable[_Block]) -> Iterator[tuple[str, list[_Block], list[_Block]]]:
    """Norms that some of the blocks of one make have and others lack."""
    alike: dict[tuple[str, frozenset[str]], list[_Block]] = defaultdict(list)
    for block in blocks:
        alike[block.stem.rpartition(".")[0], block.make].append(block)
    for group in alike.values():
        for part in dict.fromkeys(p for block in group for p in sorted(block.norms)):
            having = [b for b in group if part in b.norms]
            if len(having) < len(group):
                yield part, having, [b for b in group if part not in b.norms]


def _has_any(subject: Subject, name: str) -> bool:
    return any(_template(t) == name for t in subject.file.tensors)


def _template(tensor: str) -> str:
    # Converters of some versions leave out the suffix (Falcon-H1's ffn_norm).
    tensor = tensor if tensor.endswith((".weight", ".bias")) else f"{tensor}.weight"
    return re.sub(r"(?<=blk\.)\d+(?=\.)", "{bid}", tensor, count=1)


RULES: tuple[Rule, ...] = (missing, extra, block_count)
