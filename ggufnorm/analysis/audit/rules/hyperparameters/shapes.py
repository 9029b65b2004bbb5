"""H1xx: hyperparameters beside the shapes of the tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.mend import set_key
from ggufnorm.formats.read_keys import KNOWN, reads

_BLOCK = re.compile(r"(?:(?:enc|dec)\.)?blk\.(\d{1,6})\.(.+?)(?:\.weight)?")

_COUNTED = (
    "feed_forward_length", "expert_feed_forward_length", "expert_count",
    "attention.q_lora_rank", "attention.kv_lora_rank", "embedding_length",
)  # fmt: skip
"""Keys that are the length of one dimension, so that the tensors tell them."""

_GATED = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp")
"""Architectures whose query projection holds a gate of the same size (src/models/qwen3next.cpp)."""


@dataclass(frozen=True)
class _Claim:
    """What a key says of the length of one dimension.

    Attributes:
        tensor: its name.
        layer: its block.
        key: without the architecture before it.
        dimension: of ggml's ``ne``.
        expected: lengths that the key allows.
    """

    tensor: str
    layer: int | None
    key: str
    dimension: int
    expected: tuple[int, ...]


@rule("H101", "hyperparameter-shape", "error")
def shape(subject: Subject) -> Iterator[Problem]:
    """A hyperparameter contradicts the shapes of the tensors.

    What it does:
        Compares the width, the length of the feed-forward network, the numbers of heads and
        their sizes, ranks, experts and tokens with the dimensions of the tensors that they
        are about. Keys with a value for each layer are compared layer by layer.

    Why it matters:
        llama.cpp refuses the file, or reads past the end of rows.

    What to do:
        Set the key to the value that the tensors show, or convert again.

    Example:
        ``llama.feed_forward_length is 96, but blk.0.ffn_down.weight has rows of 128``
    """
    if subject.architecture not in KNOWN or subject.architecture == "clip":
        raise NotApplicableError("what the keys of this architecture are about is not known")
    wrong: dict[tuple[str, int, tuple[int, ...]], list[_Claim]] = {}
    lengths: dict[str, set[int]] = {}
    for claim in _claims(subject):
        dimensions = subject.file.tensors[claim.tensor].shape
        length = dimensions[claim.dimension] if claim.dimension < len(dimensions) else 1
        lengths.setdefault(claim.key, set()).add(length)
        if length not in claim.expected:
            wrong.setdefault((claim.key, length, claim.expected), []).append(claim)
    seen: set[str] = set()
    for (key, length, expected), claims in wrong.items():
        if key in seen:
            continue
        seen.add(key)
        yield _problem(subject, key, length, expected, claims, len(lengths[key]) == 1)


def _problem(
    subject: Subject,
    key: str,
    length: int,
    expected: tuple[int, ...],
    claims: list[_Claim],
    agree: bool,
) -> Problem:
    """The problem of a key; ``agree`` is whether all tensors that it is about have one length."""
    first = claims[0]
    name = key if key.startswith("tokenizer.") else f"{subject.architecture}.{key}"
    value = subject.metadata.get(name)
    shown = f"{len(value)} long" if isinstance(value, list) else str(value)
    more = f" and {len(claims) - 1} more" if len(claims) > 1 else ""
    allowed = " or ".join(map(str, sorted(set(expected))))
    message = (
        f"{name} is {shown}, which gives {allowed}, but {first.tensor}{more} has {length} in"
        f" dimension {first.dimension}"
    )
    evidence = {
        "key": name,
        "actual": value if not isinstance(value, list) else value[:64],
        "gives": list(expected),
        "length": length,
        "tensors": [c.tensor for c in claims[:40]],
    }
    mend = None
    if key in _COUNTED and isinstance(value, int) and agree:
        mend = set_key(name, "u32", length, value, from_source=False)
    return Problem(message, first.tensor, first.layer, evidence, mend=mend)


def _claims(subject: Subject) -> Iterator[_Claim]:
    yield from _vocabulary(subject)
    linear = any("ssm" in name or "shortconv" in name for name in subject.file.tensors)
    for name in subject.file.tensors:
        block = _BLOCK.fullmatch(name)
        if block is None:
            continue
        layer, role = int(block[1]), block[2]
        if linear and role in ("attn_qkv", "attn_output"):
            continue  # it may be a linear attention's, whose heads are others
        for key, dimension, expected in _of_block(subject, role, layer):
            if expected and all(e > 0 for e in expected):
                yield _Claim(name, layer, key, dimension, expected)


def _vocabulary(subject: Subject) -> Iterator[_Claim]:
    tensors = subject.file.tensors
    n_tokens = subject.metadata.n_elements("tokenizer.ggml.tokens")
    width = subject.integer("{arch}.embedding_length")
    embedding = tensors.get("token_embd.weight")
    if embedding is not None and width and len(embedding.shape) == 2:
        yield _Claim("token_embd.weight", None, "embedding_length", 0, (width,))
    if n_tokens:
        for name in ("token_embd.weight", "output.weight"):
            if name in tensors and len(tensors[name].shape) == 2:
                yield _Claim(name, None, "tokenizer.ggml.tokens", 1, (n_tokens,))


_Length = tuple[str, int, tuple[int, ...]]


def _of_block(subject: Subject, role: str, layer: int) -> Iterator[_Length]:
    """Key, dimension and the lengths that the key allows, of a tensor of a block."""
    if role == "ffn_down":
        n = _value(subject, "feed_forward_length", layer)
        yield "feed_forward_length", 0, (n,)
    elif role == "ffn_down_exps":
        key = "expert_feed_forward_length"
        if not reads(subject.architecture, key):
            key = "feed_forward_length"
        yield key, 0, (_value(subject, key, layer),)
        yield "expert_count", 2, (_value(subject, "expert_count", layer),)
    elif role == "ffn_gate_inp":
        yield "expert_count", 1, (_value(subject, "expert_count", layer),)
    elif role == "attn_q_a":
        yield "attention.q_lora_rank", 1, (_value(subject, "attention.q_lora_rank", layer),)
    elif role == "attn_kv_a_norm":
        yield "attention.kv_lora_rank", 0, (_value(subject, "attention.kv_lora_rank", layer),)
    else:
        yield from _heads(subject, role, layer)


def _heads(subject: Subject, role: str, layer: int) -> Iterator[_Length]:
    if role not in ("attn_q", "attn_k", "attn_v", "attn_output", "attn_qkv"):
        return
    if _value(subject, "attention.kv_lora_rank", layer):
        return
    heads = _value(subject, "attention.head_count", layer)
    kv = _value(subject, "attention.head_count_kv", layer) or heads
    keys, values = _sizes(subject, "key_length", layer), _sizes(subject, "value_length", layer)
    if not heads:
        return
    if role == "attn_q":
        times = (1, 2) if subject.architecture in _GATED else (1,)
        yield "attention.head_count", 1, tuple(t * heads * k for t in times for k in keys)
    elif role == "attn_k":
        yield "attention.head_count_kv", 1, tuple(kv * k for k in keys)
    elif role == "attn_v":
        yield "attention.head_count_kv", 1, tuple(kv * v for v in (*values, *keys))
    elif role == "attn_output":
        yield "attention.head_count", 0, tuple(heads * v for v in values)
    else:
        fused = tuple(heads * k + kv * k + kv * v for k in keys for v in values)
        yield "attention.head_count_kv", 1, fused


def _sizes(subject: Subject, name: str, layer: int) -> tuple[int, ...]:
    """The sizes that a head may have in a layer: with a window it may be another."""
    heads = _value(subject, "attention.head_count", layer)
    width = subject.integer("{arch}.embedding_length") or 0
    usual = _value(subject, f"attention.{name}", layer) or (width // heads if heads else 0)
    window = _value(subject, f"attention.{name}_swa", layer)
    return (usual, window) if window else (usual,)


def _value(subject: Subject, key: str, layer: int) -> int:
    """A key's value for a layer; 0 if it has none."""
    value = subject.metadata.get(f"{subject.architecture}.{key}")
    if isinstance(value, list):
        value = value[layer] if layer < len(value) else 0
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


RULES: tuple[Rule, ...] = (shape,)
