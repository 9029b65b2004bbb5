"""S1xx: is it the checkpoint, and are all its norms there?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ggufnorm.analysis.audit.registry import Problem, Rule, rule
from ggufnorm.analysis.audit.rules.source.common import (
    compared,
    explained,
    same_checkpoint,
    source_of,
)
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.mend import undo
from ggufnorm.formats.naming import layer_of


@rule("S101", "source-different", "error")
def different(subject: Subject) -> Iterator[Problem]:
    """The source is not the checkpoint that the file was made of.

    What it does:
        Looks at all norms together. If half of them or more have values or sizes that no
        transform explains, and the first rows of the token embedding do not show that it
        is the same checkpoint all the same, it is another one.

    Why it matters:
        Everything that is compared with another checkpoint differs. Reports of "corrupt
        norms" have turned out to be a base model beside its fine-tune.

    What to do:
        Give the checkpoint that was converted: check the repository, the revision and
        whether it is the base model or a fine-tune. The other rules of this family that
        compare values are not run.

    Example:
        ``the source is another checkpoint: 65 of 65 norm weights and biases have other
        values, which no transform explains``
    """
    matches = compared(subject)
    if matches.different:
        evidence = {"source": source_of(subject).path, "n_compared": len(matches.found)}
        kinds = Counter(m.explanation.kind for m in matches.found)
        message = f"the source is another checkpoint: {matches.different}"
        yield Problem(message, evidence={**evidence, "explanations": dict(kinds)})


@rule("S102", "source-norm-missing", "error")
def missing(subject: Subject) -> Iterator[Problem]:
    """The source has a norm that the file lacks.

    What it does:
        Looks up the name of each of the source's tensors in gguf-py's table for the
        architecture and expects every norm, weight and bias, in the file.

    Why it matters:
        A norm that was lost in conversion is not computed. The model may load and produce
        one character again and again (GLM-4-0414 without its post-norms).

    What to do:
        Convert again with a converter that knows the architecture.

    Example:
        ``blk.0.post_attention_norm.weight is missing: the source has
        model.layers.0.post_self_attn_layernorm.weight``
    """
    for origin in same_checkpoint(subject).missing:
        message = f"{origin.tensor} is missing: the source has {origin.sources[0]}"
        evidence = {"sources": list(origin.sources)}
        mend = undo("missing", origin.tensor, f"add {origin.tensor}, of the source")
        yield Problem(message, origin.tensor, layer_of(origin.tensor), evidence, mend=mend)


@rule("S103", "source-norm-unknown", "warning")
def unknown(subject: Subject) -> Iterator[Problem]:
    """The file has a norm that nothing in the source becomes.

    What it does:
        Lists norms of the file whose origin was not found. It is a warning where the same
        norm of another layer has one, else an information: gguf-py's table does not have
        every name, and some converters make norms of their own.

    Why it matters:
        A norm that the source does not have should not be computed; and what has no known
        origin was not compared.

    What to do:
        Check that the source is complete and is the one that was converted.

    Example:
        ``blk.3.attn_q_norm.weight: nothing in the source becomes this norm``
    """
    matches = same_checkpoint(subject)
    joined = {(m.site.role, m.is_bias) for m in matches.found}
    alone = [(n, s) for n, s in matches.unmatched if (s.role, n == s.bias) not in joined]
    for name, site in matches.unmatched:
        if (name, site) not in alone:
            message = f"{name}: nothing in the source becomes this norm"
            yield Problem(message, name, site.layer, {"role": site.role})
    if alone:
        names = [name for name, _ in alone]
        message = f"the origin of {len(alone)} tensors is not known, the first is {names[0]}"
        yield Problem(message, evidence={"tensors": names}, severity="info")


@rule("S104", "source-norm-size", "error")
def size(subject: Subject) -> Iterator[Problem]:
    """A norm has more or fewer elements than its source.

    What it does:
        Compares the number of elements; a conversion may reshape a norm, but keeps them.

    Why it matters:
        llama.cpp refuses a weight of the wrong size, or normalizes with the wrong width
        (OLMo2 32B's k_norm was written as wide as its q_norm).

    What to do:
        Convert again; if the converter is current, report it.

    Example:
        ``blk.0.attn_k_norm.weight has 5120 elements, its source 1024``
    """
    yield from explained(subject, "size")


RULES: tuple[Rule, ...] = (different, missing, unknown, size)
