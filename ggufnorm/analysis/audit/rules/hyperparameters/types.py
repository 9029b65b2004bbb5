"""H203 and H204: types of tensors that llama.cpp's quantizer never gives."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.gguf_tensors import Tensor
from ggufnorm.formats.naming import layer_of

_KEPT = frozenset(
    (
        "ffn_gate_inp", "ffn_gate_tid2eid", "position_embd", "token_types", "ssm_conv1d",
        "per_layer_model_proj", "altup_proj", "altup_unembd_proj", "altup_correct_coef",
        "altup_predict_coef", "altup_router", "laurel_l", "laurel_r", "attn_rel_b",
        "time_mix_first", "time_mix_w0", "time_mix_w1", "time_mix_w2", "time_mix_v0",
        "time_mix_v1", "time_mix_v2", "time_mix_a0", "time_mix_a1", "time_mix_a2",
        "time_mix_g1", "time_mix_g2", "time_mix_decay_w1", "time_mix_decay_w2",
        "time_mix_lerp_fused", "ssm_a", "ssm_d", "attn_sinks", "exp_probs_b",
    )
)  # fmt: skip
"""Roles of tensors that ``tensor_allows_quantization`` (``src/llama-quant.cpp``) leaves alone."""

_WORDS = {
    "ffn_gate_inp": "routers choose experts", "ssm_conv1d": "the convolution is tiny",
    "ssm_a": "the state's decay", "ssm_d": "the state's skip", "attn_sinks": "attention's sinks",
}  # fmt: skip
_FEW_ROLES = 3


@rule("H203", "tensor-type", "warning")
def tensor_type(subject: Subject) -> Iterator[Problem]:
    """A tensor is quantized that llama.cpp's quantizer never quantizes.

    What it does:
        Looks at the types of routers, convolutions and decays of states, position and type
        embeddings, and other small tensors.

    Why it matters:
        They are small, and much depends on them: a router that is off sends tokens to other
        experts, a decay that is off grows with the length of the text.

    What to do:
        Quantize again with ``llama-quantize``, or keep these tensors in F32.

    Example:
        ``blk.0.ffn_gate_inp.weight and 27 more like it are Q4_0: llama.cpp's quantizer leaves
        routers alone``
    """
    if subject.architecture == "clip":
        raise NotApplicableError("the file is an encoder")
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, tensor in subject.file.tensors.items():
        role = _role(name)
        if role in _KEPT and _is_quantized(tensor.ggml_type):
            found[role, tensor.dtype].append(name)
    for (role, dtype), names in found.items():
        more = f" and {len(names) - 1} more like it are" if len(names) > 1 else " is"
        why = f" ({_WORDS[role]})" if role in _WORDS else ""
        message = f"{names[0]}{more} {dtype}: llama.cpp's quantizer leaves them as they are{why}"
        evidence = {"dtype": dtype, "tensors": names[:40]}
        yield Problem(message, names[0], layer_of(names[0]), evidence)


def _role(name: str) -> str:
    parts = name.split(".")
    return parts[-2] if parts[-1] in ("weight", "bias") and len(parts) > 1 else parts[-1]


def _is_quantized(ggml_type: int) -> bool:
    try:
        return int(GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)][0]) > 1
    except (ValueError, KeyError):
        return False


@rule("H204", "shard-type", "warning")
def shard_type(subject: Subject) -> Iterator[Problem]:
    """A shard of a split model is of another quantization than the others.

    What it does:
        Compares the types of each role's matrices shard by shard. A mixture gives some roles
        several types; a shard in which no role has a type that it has in the others is not
        of the same file.

    Why it matters:
        The set loads and runs, and a part of the model is coarser than its name says.

    What to do:
        Download that shard again.

    Example:
        ``model-00002-of-00003.gguf holds Q2_K where the other shards hold Q6_K: it is from
        another quantization``
    """
    shards = subject.file.shards
    if len(shards) < 2:
        raise NotApplicableError("the model is one file")
    types = [_types_of_roles(shard.tensors) for shard in shards]
    for i, (shard, own) in enumerate(zip(shards, types, strict=True)):
        others: dict[str, set[str]] = defaultdict(set)
        for j, of_shard in enumerate(types):
            for role, kinds in of_shard.items() if j != i else ():
                others[role] |= set(kinds)
        shared = [role for role in own if role in others]
        alike = [role for role in shared if others[role].intersection(own[role])]
        if len(shared) < _FEW_ROLES or alike or (i > 0 and len(shards) == 2):
            continue
        if len(shards) == 2:
            message = f"{_most(types[0])} in {shard.path}, {_most(types[1])} in {shards[1].path}"
            yield Problem(f"the shards are of two quantizations: {message}")
            continue
        where = Counter(t for role in shared for t in others[role]).most_common(1)[0][0]
        message = (
            f"{shard.path} holds {_most(own)} where the other shards hold {where}: it is from"
            " another quantization"
        )
        yield Problem(message, evidence={"shard": i + 1, "roles": shared[:40]})


def _types_of_roles(tensors: Mapping[str, Tensor]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, tensor in tensors.items():
        if layer_of(name) is not None and len(tensor.shape) > 1 and _role(name) not in _KEPT:
            found[_role(name)][tensor.dtype] += 1
    return {role: kinds for role, kinds in found.items() if "norm" not in role.split("_")}


def _most(types: Mapping[str, Counter[str]]) -> str:
    total: Counter[str] = Counter()
    for kinds in types.values():
        total += kinds
    return total.most_common(1)[0][0] if total else "nothing"


RULES: tuple[Rule, ...] = (tensor_type, shard_type)
