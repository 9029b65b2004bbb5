"""Keys of the tokenizer and the chat template, as far as the source's files tell.

Made of ``gguf.SpecialVocab`` and ``set_vocab`` of ``conversion/*.py``, and of
``llama_vocab::impl::load`` in ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ggufnorm.analysis.audit.source.keys.facts import UNKNOWN, Configs, Expected

SPECIAL = ("bos", "eos", "sep", "cls", "pad", "unk", "mask")

_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id", "eos": "tokenizer.ggml.eos_token_id",
    "sep": "tokenizer.ggml.seperator_token_id", "cls": "tokenizer.ggml.cls_token_id",
    "pad": "tokenizer.ggml.padding_token_id", "unk": "tokenizer.ggml.unknown_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}  # fmt: skip
"""gguf-py's names: "seperator" is how the format spells it."""

_DEFAULT_ADDS: dict[str, tuple[bool, bool | None]] = {
    "llama": (True, False), "bert": (True, None), "t5": (False, True), "rwkv": (False, False),
}  # fmt: skip
"""Whether BOS and EOS are added where no key says so, by ``tokenizer.ggml.model``; WordPiece
has SEP in the place of EOS."""

_DIGITS = {
    "three": """minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2
jina-v5-nano deepseek-v3 spark2_5 jais-2 dbrx smaug-bpe chatglm-bpe glm4 glm5 gpt-4o
llama4 kanana2 talkie granite-embed-multi-97m tiny_aya cohere2moe hunyuan-dense hy_v4
joyai-llm minimax-m2""",
    "all": """deepseek-llm mpt gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de
modern-bert jina-v1-en jina-v2-code roberta-bpe olmo jais""",
    "one": """deepseek-coder youtu starcoder refact command-r qwen2 deepseek-r1-qwen kormo
f2llmv2 qwen35 stablelm2 viking tekken smollm codeshell exaone exaone-moe chameleon
minerva-7b megrez bailingmoe bailingmoe2 llada-moe hunyuan grok-2 laguna
solar-open mellum2""",
}
"""How many digits one piece holds before merging, by ``tokenizer.ggml.pre`` (the regular
expressions of ``llm_tokenizer_bpe`` in ``src/llama-vocab.cpp``)."""

_OF_PRE = {pre: digits for digits, pres in _DIGITS.items() for pre in pres.split()}


@dataclass(frozen=True)
class TokenDifference:
    """A key of the tokenizer that is not what the source's files say.

    Attributes:
        key: whole.
        message: one sentence.
        expected: the value; None if it is not known.
        actual: the file's; None if it lacks the key.
        type: GGUF's type of the value.
        severity: how grave it is.
    """

    key: str
    message: str
    expected: Any
    actual: Any
    type: str
    severity: str = "error"


class Tokenizer:
    """What a source's files say of its tokenizer.

    Args:
        c: the source's configs.
    """

    def __init__(self, c: Configs) -> None:
        self._c = c
        self.config: Mapping[str, Any] = c.source.read_json("tokenizer_config.json") or {}
        self.fast: Mapping[str, Any] = c.source.read_json("tokenizer.json") or {}
        self.generation: Mapping[str, Any] = c.source.read_json("generation_config.json") or {}
        self.special: Mapping[str, Any] = c.source.read_json("special_tokens_map.json") or {}

    @property
    def exists(self) -> bool:
        """Whether the source has any tokenizer."""
        names = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json",
                 "sentencepiece.bpe.model", "spiece.model")  # fmt: skip
        return any(self._c.source.has(n) for n in names)

    def token(self, kind: str) -> str | None:
        """The text of a special token."""
        for config in (self.config, self.special):
            value = config.get(f"{kind}_token")
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
        return None

    def ids(self, kind: str) -> set[int]:
        """All ids that the configs name for a special token."""
        found: set[int] = set()
        for config in (self._c.config, self._c.source.config, self.generation):
            value = config.get(f"{kind}_token_id")
            values = [*value] if isinstance(value, list) else [value]
            if kind == "eos":
                values += [config.get("eod_token_id"), config.get("eot_token_id")]
            found |= {v for v in values if isinstance(v, int) and not isinstance(v, bool)}
        return found

    @cached_property
    def added(self) -> dict[str, int]:
        """Ids of the tokens that are named in tokenizer.json."""
        listed = self.fast.get("added_tokens")
        tokens = listed if isinstance(listed, list) else []
        found = {
            t["content"]: t["id"]
            for t in tokens
            if isinstance(t, dict)
            and isinstance(t.get("content"), str)
            and isinstance(t.get("id"), int)
        }
        model = self.fast.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        return {**(vocabulary if isinstance(vocabulary, dict) else {}), **found}

    def adds(self, kind: str) -> tuple[bool, str] | None:
        """Whether BOS or EOS is put around a text, and who says so; None if nobody does."""
        flag = self.config.get(f"add_{kind}_token")
        template = self._template(kind)
        if template is not None:
            return template
        if isinstance(flag, bool):
            return flag, f"tokenizer_config.json has add_{kind}_token {str(flag).lower()}"
        if self._c.model_type in ("xlm-roberta", "roberta", "camembert"):
            return True, f"the tokenizer of {self._c.model_type} does"
        return None

    def _template(self, kind: str) -> tuple[bool, str] | None:
        processors = self.fast.get("post_processor")
        if not isinstance(processors, dict):
            return None
        inner = processors.get("processors")
        for p in inner if isinstance(inner, list) else [processors]:
            if not isinstance(p, dict):
                continue
            if p.get("type") == "TemplateProcessing" and isinstance(p.get("single"), list):
                single = p["single"]
                special = [isinstance(s, dict) and "SpecialToken" in s for s in single]
                if not special:
                    return None
                there = special[0] if kind == "bos" else special[-1]
                verb = "begin" if kind == "bos" else "end"
                said = f"{verb}s" if there else f"does not {verb}"
                return there, f"tokenizer.json's template {said} with a special token"
            if p.get("type") in ("BertProcessing", "RobertaProcessing"):
                return True, f"tokenizer.json has {p['type']}"
        return None

    @cached_property
    def digits(self) -> str | None:
        """How many digits one piece holds before merging: one, three, all; None if unknown."""
        parts = list(_parts(self.fast.get("pre_tokenizer")))
        for p in parts:
            if p.get("type") == "Digits":
                return "one" if p.get("individual_digits") else "all"
            pattern = p.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            if isinstance(regex, str) and (found := _digits(regex)) is not None:
                return found
        gpt2 = any(p.get("type") == "ByteLevel" and p.get("use_regex", True) for p in parts)
        return "all" if gpt2 else None


def _parts(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        inner = value.get("pretokenizers")
        if isinstance(inner, list):
            for part in inner:
                yield from _parts(part)
        else:
            yield value


def _digits(regex: str) -> str | None:
    if r"\p{N}{1,3}" in regex or r"\d{1,3}" in regex:
        return "three"
    pieces = [p.strip(" ()?:") for p in regex.split("|")]
    if any(p in (r"\p{N}", r"\p{Nd}", r"\d", "[0-9]") for p in pieces):
        return "one"
    if any(re.fullmatch(r"\s*\??(\\p\{N\}|\\d|\[0-9\])\+", p) for p in pieces):
        return "all"
    return None


def token_differences(c: Configs) -> Iterator[TokenDifference]:
    """What the file's tokenizer keys have that the source's files do not say."""
    tokenizer = Tokenizer(c)
    metadata = c.file.metadata
    if "tokenizer.ggml.model" not in metadata or metadata.string("tokenizer.ggml.model") in (
        "no_vocab", "none",
    ):  # fmt: skip
        return
    tokens = metadata.get("tokenizer.ggml.tokens")
    for kind in SPECIAL:
        yield from _special(c, tokenizer, kind, tokens if isinstance(tokens, list) else [])
    model = metadata.string("tokenizer.ggml.model") or ""
    for at, kind in enumerate(("bos", "eos")):
        yield from _adds(c, tokenizer, kind, _DEFAULT_ADDS.get(model, (None, None))[at])
    pre, digits = metadata.string("tokenizer.ggml.pre"), tokenizer.digits
    if model == "gpt2" and digits is not None:
        yield from _pre(c, pre, digits)


def _pre(c: Configs, pre: str | None, digits: str) -> Iterator[TokenDifference]:
    key = "tokenizer.ggml.pre"
    if pre in (None, "default"):
        what = "missing" if pre is None else "'default'"
        message = f"{key} is {what}: llama.cpp splits texts in a way of its own before merging"
        yield TokenDifference(key, message, None, pre, "str")
    elif pre is not None and _OF_PRE.get(pre, digits) != digits:
        message = (
            f"{key} is {pre!a}, which splits off {_words(_OF_PRE[pre])};"
            f" tokenizer.json splits off {_words(digits)}: other ids for numbers"
        )
        # The name that the converter has for the model's family: the tokenizer was changed.
        family = (re.match(r"[a-z]+", pre) or [pre])[0]
        own = family in (c.model_type, c.architecture) or c.model_type.startswith(family)
        yield TokenDifference(key, message, None, pre, "str", "info" if own else "error")


def _words(digits: str) -> str:
    return {"one": "single digits", "three": "up to three digits", "all": "all digits together"}[
        digits
    ]


def _special(
    c: Configs, tokenizer: Tokenizer, kind: str, tokens: list[Any]
) -> Iterator[TokenDifference]:
    key = _KEYS[kind]
    actual = c.file.metadata.integer(key)
    text, ids = tokenizer.token(kind), tokenizer.ids(kind)
    known = set(ids)
    if text is not None and text in tokenizer.added:
        known.add(tokenizer.added[text])
    if actual is None or not known:
        return
    here = tokens[actual] if 0 <= actual < len(tokens) else None
    if actual in known or (text is not None and here == text):
        return
    if kind in ("pad", "unk", "mask") or (kind in ("sep", "cls") and not ids):
        return
    wanted = tokenizer.added.get(text or "", min(known))
    shown = f" ({text!a})" if text else ""
    message = f"{key} is {actual} ({here!a}), the source's {kind.upper()} is {wanted}{shown}"
    yield TokenDifference(key, message, wanted, actual, "u32")


def _adds(
    c: Configs, tokenizer: Tokenizer, kind: str, default: bool | None
) -> Iterator[TokenDifference]:
    told = tokenizer.adds(kind)
    if told is None:
        return
    value, origin = told
    key = f"tokenizer.ggml.add_{kind}_token"
    actual = c.file.metadata.get(key)
    name = kind.upper()
    if isinstance(actual, bool):
        if actual != value:
            message = f"{key} is {str(actual).lower()}, but {origin}"
            yield TokenDifference(key, message, value, actual, "bool")
    elif default is not None and default != value:
        does = "adds" if default else "does not add"
        message = f"{key} is missing, so llama.cpp {does} {name}, but {origin}"
        yield TokenDifference(key, message, value, None, "bool")


def vocabulary_key(c: Configs) -> Iterator[Expected]:
    """The size of the vocabulary, where the file states it."""
    size = c.first("vocab_size")
    key = c.key("vocab_size")
    if size and isinstance(size[1], int) and key in c.file.metadata and c.reads("vocab_size"):
        origin = f"config.json has vocab_size {size[1]}"
        does = "the size of the vocabulary"
        rows = c.file.tensors.get("token_embd.weight")
        also = (rows.shape[1],) if rows is not None and len(rows.shape) > 1 else ()
        yield Expected(key, size[1], "u32", origin, does, UNKNOWN, also)


def template(c: Configs) -> str | None:
    """The chat template of the source; None if it has none."""
    text = c.source.read_text("chat_template.jinja")
    if text is not None:
        return text
    config = c.source.read_json("tokenizer_config.json") or {}
    found = config.get("chat_template")
    if isinstance(found, list):
        named = [t for t in found if isinstance(t, dict) and t.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None
