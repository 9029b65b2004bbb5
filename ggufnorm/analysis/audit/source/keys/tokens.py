"""Keys of the tokenizer and the chat template, as far as the source's files tell.

Made of ``gguf.SpecialVocab`` and ``set_vocab`` of ``conversion/*.py``, and of
``llama_vocab::impl::load`` in ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ggufnorm.analysis.audit.source.keys.facts import UNKNOWN, Configs, Expected
from ggufnorm.analysis.audit.source.keys.splitting import OF_NAME, OTHER_IDS, Traits, names_of
from ggufnorm.analysis.audit.source.keys.tokenizer import Tokenizer

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

_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2}, "gpt2": {"bos": 11, "eos": 11}, "t5": {"eos": 1},
    "bert": {"cls": 101, "sep": 102},
}  # fmt: skip
"""Ids of special tokens where no key gives them, by ``tokenizer.ggml.model``."""


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
    yield from _prefix(c, tokenizer, model)
    if model == "gpt2" and tokenizer.traits is not None:
        yield from _pre(c, tokenizer, tokenizer.traits)


def _pre(c: Configs, tokenizer: Tokenizer, traits: Traits) -> Iterator[TokenDifference]:
    key = "tokenizer.ggml.pre"
    pre = c.file.metadata.string(key)
    names = names_of(traits, c.model_type, whole_words=tokenizer.ignores_merges)
    right = names[0] if names else None
    found = f"; {right!a} splits as it does" if right else ""
    if pre in (None, "default"):
        what = "missing" if pre is None else "'default'"
        message = f"{key} is {what}: llama.cpp splits texts in a way of its own before merging"
        yield TokenDifference(key, message + found, right, pre, "str")
    elif pre is not None and (own := OF_NAME.get(pre)) and (trait := own.parting(traits)):
        message = (
            f"{key} is {pre!a}, which splits off {own.words(trait)};"
            f" tokenizer.json splits off {traits.words(trait)}: other ids for {OTHER_IDS[trait]}"
        )
        # The name that the converter has for the model's family: the tokenizer was changed.
        family = (re.match(r"[a-z]+", pre) or [pre])[0]
        ours = family in (c.model_type, c.architecture) or c.model_type.startswith(family)
        grave = "info" if ours else "error"
        yield TokenDifference(key, message + found, right, pre, "str", grave)


def _special(
    c: Configs, tokenizer: Tokenizer, kind: str, tokens: list[Any]
) -> Iterator[TokenDifference]:
    key = _KEYS[kind]
    actual = c.file.metadata.integer(key)
    text, ids = tokenizer.token(kind), tokenizer.ids(kind)
    known = set(ids)
    if text is not None and text in tokenizer.added:
        known.add(tokenizer.added[text])
    if not known:
        return
    if actual is None:
        yield from _default(c, tokenizer, kind, known, tokens)
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


def _default(
    c: Configs, tokenizer: Tokenizer, kind: str, known: set[int], tokens: list[Any]
) -> Iterator[TokenDifference]:
    """The token that llama.cpp takes where the key is missing, if the source has another."""
    model = c.file.metadata.string("tokenizer.ggml.model") or ""
    taken = _DEFAULT_IDS.get(model, {}).get(kind)
    if kind == "cls":  # which is BOS under another name (``llm_tokenizer_wpm_session``)
        taken = c.file.metadata.integer(_KEYS["bos"]) or taken
    if taken is None or taken in known or taken >= len(tokens):
        return
    if kind == "bos" and not _adds_bos(c, tokenizer, model):
        return
    key, wanted = _KEYS[kind], min(known)
    message = (
        f"{key} is missing, so llama.cpp takes {taken} ({tokens[taken]!a}), the source's"
        f" {kind.upper()} is {wanted}"
    )
    yield TokenDifference(key, message, wanted, None, "u32")


def _adds_bos(c: Configs, tokenizer: Tokenizer, model: str) -> bool:
    stated = c.file.metadata.get("tokenizer.ggml.add_bos_token")
    told = tokenizer.adds("bos")
    if isinstance(stated, bool):
        return stated
    return told[0] if told else bool(_DEFAULT_ADDS.get(model, (False, None))[0])


def _prefix(c: Configs, tokenizer: Tokenizer, model: str) -> Iterator[TokenDifference]:
    """Whether a space is put before a text (``LLAMA_VOCAB_TYPE_SPM`` and ``_UGM``)."""
    told = tokenizer.prefixes
    default = {"llama": True}.get(model)
    key = "tokenizer.ggml.add_space_prefix"
    actual = c.file.metadata.get(key)
    taken = actual if isinstance(actual, bool) else default
    if told is None or taken is None or taken == told or model not in ("llama", "t5"):
        return
    if tokenizer.config.get("add_prefix_space") == taken:
        return  # the source contradicts itself, and the converter goes by this file
    does = "puts a space before a text" if taken else "puts no space before a text"
    missing = actual is None
    start = (
        f"{key} is missing, so llama.cpp" if missing else f"{key} is {str(taken).lower()}, which"
    )
    message = f"{start} {does}; tokenizer.json {'does' if told else 'does not'}"
    yield TokenDifference(key, message, told, actual, "bool")


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
