"""N2: types and shapes of norms."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, at, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.mend import Mend
from ggufnorm.core.model import NormSite
from ggufnorm.formats.gguf_constants import Keys

Shape = tuple[int, ...]

# Norms of the hidden state: as wide as it is.
_WIDE = frozenset(
    {
        "token_embd", "output", "attn", "attn_2", "post_attn", "ffn", "ffn_2", "ffn_exps",
        "post_ffn", "post_ffn_1", "post_ffn_2", "layer_output", "enc.attn", "enc.ffn",
        "enc.output", "dec.attn", "dec.cross_attn", "dec.ffn", "dec.output", "nextn.embd",
        "nextn.hidden", "nextn.shared_head",
    }
)  # fmt: skip

# Norms of a low-rank projection, and the key that has its rank.
_RANKS: dict[str, str] = {
    "q_a": Keys.Attention.Q_LORA_RANK,
    "kv_a": Keys.Attention.KV_LORA_RANK,
}

# Architectures whose hidden state has another width in some part of the network.
_OTHER_WIDTHS = frozenset({"clip", "wavtokenizer-dec"})


@rule("N201", "norm-dtype", "error")
def dtype(subject: Subject) -> Iterator[Problem]:
    """A norm's weight or bias is not stored as F32.

    What it does:
        Looks at the type of every norm's weight and bias.

    Why it matters:
        llama.cpp loads norms as F16, BF16 or Q8_0 and aborts at the first token
        (``binary_op: unsupported types``).

    What to do:
        Convert with llama.cpp's converter, which always writes norms as F32.

    Example:
        ``blk.0.attn_norm.weight is stored as F16``
    """
    _any_norm(subject)
    for site in subject.sites:
        for name in (site.tensor, site.bias):
            stored = subject.file.tensors[name].dtype if name else "F32"
            if name and stored != "F32":
                evidence = {"dtype": stored, "role": site.role}
                action = f"store {name} as F32, with the values that the file has"
                mend = Mend("dtype", name, action, False)
                message = f"{name} is stored as {stored}"
                yield Problem(message, name, site.layer, evidence, mend=mend)


@rule("N202", "norm-shape", "error")
def shape(subject: Subject) -> Iterator[Problem]:
    """A norm's weight has a shape that does not fit what it normalizes.

    What it does:
        Compares the widths of norms of the hidden state with ``{arch}.embedding_length``,
        of Q and K norms with the size and number of heads (K has fewer under grouped-query
        attention), of low-rank attention with its ranks; and biases with their weight.

    Why it matters:
        llama.cpp refuses the file, or normalizes a wrong width (OLMo2 32B's K norm was
        written as wide as its Q norm).

    What to do:
        Convert again; if the converter is current, report it.

    Example:
        ``blk.0.attn_k_norm.weight has shape 5120: K heads need 1024 or 128×8``
    """
    _any_norm(subject)
    for site in subject.sites:
        expected = _expected_shapes(subject, site)
        if expected and _squeezed(site.shape) not in map(_squeezed, expected):
            shapes = " or ".join(dict.fromkeys(map(_shown, expected)))
            message = f"{site.tensor} has shape {_shown(site.shape)}: {_why(site)} {shapes}"
            evidence = {"shape": list(site.shape), "expected": [list(e) for e in expected]}
            yield at(site, message, **evidence)
        bias = subject.file.tensors[site.bias].shape if site.bias else None
        if bias is not None and prod(bias) != prod(site.shape):
            message = f"{site.bias} has shape {_shown(bias)}, its weight {_shown(site.shape)}"
            evidence = {"shape": list(bias), "expected": [list(site.shape)]}
            yield Problem(message, site.bias, site.layer, evidence)
    if subject.integer(Keys.LLM.EMBEDDING_LENGTH) is None:
        raise NotApplicableError(f"{subject.architecture}.embedding_length is not present")


def _any_norm(subject: Subject) -> None:
    if not any(s.tensor for s in subject.sites):
        raise NotApplicableError("the file has no norm with a weight")


def _expected_shapes(subject: Subject, site: NormSite) -> list[Shape]:
    """What the metadata allows; nothing if they do not tell."""
    if site.tensor is None or subject.architecture in _OTHER_WIDTHS:
        return []
    if site.role in _WIDE:
        width = subject.integer(Keys.LLM.EMBEDDING_LENGTH)
        return [(width,)] if width else []
    if site.role in _RANKS:
        rank = subject.integer(_RANKS[site.role])
        return [(rank,)] if rank else []
    return _head_shapes(subject, site) if site.role in ("q", "k") else []


def _head_shapes(subject: Subject, site: NormSite) -> list[Shape]:
    """One weight for all heads, or one for each: a row, or a row per head."""
    heads = _number(subject, Keys.Attention.HEAD_COUNT, site.layer)
    if site.role == "k":
        heads = _number(subject, Keys.Attention.HEAD_COUNT_KV, site.layer) or heads
    sizes = _head_sizes(subject, site.layer)
    if not heads or not sizes:
        return []
    whole: list[Shape] = [s for d in sizes for s in ((d * heads,), (d, heads))]
    shared: list[Shape] = [(d,) for d in sizes]
    # Talkie has a number per head: {1, n_head} (src/models/talkie.cpp).
    whole = [(1, heads)] if subject.architecture == "talkie" else whole
    beside = _beside(subject, site)
    if beside is not None and heads > 1:
        return shared if prod(beside) in sizes else whole
    return shared + whole


def _beside(subject: Subject, site: NormSite) -> Shape | None:
    """The Q norm's shape, for the K norm of the same block: both are made alike."""
    if site.role == "q":
        return None
    beside = (s for s in subject.sites if s.role == "q" and s.layer == site.layer)
    return next((s.shape for s in beside if s.tensor), None)


def _head_sizes(subject: Subject, layer: int | None) -> list[int]:
    keys = (Keys.Attention.KEY_LENGTH, Keys.Attention.KEY_LENGTH_MLA, Keys.Attention.KEY_LENGTH_SWA)
    sizes = [size for key in keys if (size := _number(subject, key, layer))]
    if Keys.Attention.KEY_LENGTH.format(arch=subject.architecture) in subject.metadata:
        return sizes
    width, heads = (
        _number(subject, key, layer)
        for key in (Keys.LLM.EMBEDDING_LENGTH, Keys.Attention.HEAD_COUNT)
    )
    return [*sizes, width // heads] if width and heads else sizes


def _number(subject: Subject, key: str, layer: int | None) -> int | None:
    """A key's integer, or of its array that of the layer."""
    key = key.format(arch=subject.architecture)
    value = subject.metadata.get(key)
    if isinstance(value, list):
        value = value[layer] if layer is not None and layer < len(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _squeezed(shape: Shape) -> Shape:
    return tuple(d for d in shape if d != 1)


def _shown(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _why(site: NormSite) -> str:
    if site.role in ("q", "k"):
        return f"{site.role.upper()} heads need"
    return "the rank is" if site.role in _RANKS else "the hidden state's is"


RULES: tuple[Rule, ...] = (dtype, shape)
