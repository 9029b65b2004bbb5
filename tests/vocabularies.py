"""Small vocabularies for whole checkpoints and their files, as the converter writes them.

Made of ``get_vocab_base`` and ``_create_vocab_sentencepiece`` of llama.cpp's
``conversion/base.py``, and of the tokenizers of Llama 3, Qwen 2, GPT-4o, Mistral and others.
"""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from string import ascii_lowercase
from typing import Any

from tests.pairs import TOKENS, Whole

GPT2 = {"type": "ByteLevel", "use_regex": True}
_PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def split(*expressions: str) -> dict[str, Any]:
    """A pre-tokenizer of some expressions, one after the other."""
    parts = [{"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False}
             for e in expressions]  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [*parts, _PLAIN]}


def cased(suffix: str, digits: str) -> str:
    """Words that end where capitals begin."""
    words = f"{_WORD}{_UPPER}*{_LOWER}+{suffix}|{_WORD}{_UPPER}+{_LOWER}*{suffix}"
    return f"{words}|{digits}{_REST}"


SPLITS: dict[str, tuple[dict[str, Any], bool]] = {
    "llama-bpe": (split(_LLAMA3), True),
    "dbrx": (split(_LLAMA3), False),
    "qwen2": (split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), False),
    "qwen35": (
        split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}").replace(r"?\p{L}+", r"?[\p{L}\p{M}]+")
              .replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")), False,
    ),
    "seed-coder": (
        split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}"
              r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"), False,
    ),
    "gpt-4o": (split(cased(_SUFFIX, r"\p{N}{1,3}")), False),
    "tekken": (split(cased("", r"\p{N}")), True),
    "deepseek-v3": (
        split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
              r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"""
              r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), False,
    ),
    "deepseek-coder": (
        split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"), False,
    ),
    "gpt-2": (GPT2, False),
    "starcoder": (
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                               GPT2]}, False,
    ),
}  # fmt: skip
"""The pre-tokenizer of the models that a name is for, and whether words are taken unmerged."""

_LETTERS = [*ascii_lowercase, "Ġ"]
_MERGES = [f"{a} {b}" for a, b in pairwise(ascii_lowercase)]
_MERGES += [f"Ġ {a}" for a in ascii_lowercase[:15]]
_WORDS = [*_LETTERS, *(m.replace(" ", "") for m in _MERGES)]
_ADDED = ["<|bos|>", "<|end_of_text|>", "<|turn|>", "<|stop|>"]
N_WORDS = len(_WORDS)
EOS, STOP = N_WORDS + 1, N_WORDS + 3
TEMPLATE = "{% for m in messages %}{{ '<|turn|>' + m['content'] + '<|stop|>' }}{% endfor %}"
_CONTROL, _UNUSED = 3, 5


def byte_pairs(made: Whole, pre: str = "llama-bpe") -> Whole:
    """Letters, merges, special tokens, and ids that no token has."""
    pre_tokenizer, ignores = SPLITS[pre]
    added = [{"id": N_WORDS + i, "content": t, "special": True} for i, t in enumerate(_ADDED)]
    vocabulary = {t: i for i, t in enumerate(_WORDS)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": _MERGES, "ignore_merges": ignores}
    fast = {"added_tokens": added, "model": model, "pre_tokenizer": pre_tokenizer}
    made.extra["tokenizer.json"] = json.dumps(fast)
    config = {"bos_token": _ADDED[0], "eos_token": _ADDED[1], "chat_template": TEMPLATE,
              "add_bos_token": True}  # fmt: skip
    made.extra["tokenizer_config.json"] = json.dumps(config)
    made.extra["generation_config.json"] = json.dumps({"eos_token_id": [EOS, STOP]})
    made.config |= {"bos_token_id": N_WORDS, "eos_token_id": EOS}
    tokens = [*_WORDS, *_ADDED]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), TOKENS)]
    types = [1] * N_WORDS + [_CONTROL] * len(_ADDED)
    facts = {
        "model": "gpt2", "pre": pre, "tokens": tokens, "merges": list(_MERGES),
        "token_type": types + [_UNUSED] * (TOKENS - len(types)), "bos_token_id": N_WORDS,
        "eos_token_id": EOS, "eot_token_id": STOP, "add_bos_token": True,
    }  # fmt: skip
    made.keys |= {f"tokenizer.ggml.{k}": v for k, v in facts.items()}
    made.keys["tokenizer.chat_template"] = TEMPLATE
    return made


def word_pieces(made: Whole) -> Whole:
    """Words and their parts, capitals kept."""
    made.keys.pop("tokenizer.ggml.merges", None)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *ascii_lowercase, *(f"##{a}" for a in ascii_lowercase)]
    words += [a + b for a, b in pairwise(ascii_lowercase)][: TOKENS - len(words)]
    model = {"type": "WordPiece", "vocab": {t: i for i, t in enumerate(words)}}
    fast = {"model": model, "normalizer": {"type": "BertNormalizer", "lowercase": False}}
    made.extra["tokenizer.json"] = json.dumps(fast)
    config = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    made.extra["tokenizer_config.json"] = json.dumps(config)
    tokens = [t if t[0] == "[" else t[2:] if t[0] == "#" else f"▁{t}" for t in words]
    facts = {
        "model": "bert", "tokens": tokens, "token_type": [3] * 5 + [1] * (len(tokens) - 5),
        "cls_token_id": 2, "seperator_token_id": 3, "unknown_token_id": 1,
        "padding_token_id": 0, "normalizer.lowercase": False,
    }  # fmt: skip
    made.keys |= {f"tokenizer.ggml.{k}": v for k, v in facts.items()}
    return made


def unigrams(made: Whole) -> Whole:
    """T5's kind: a SentencePiece model that normalizes letters and joins spaces."""
    made = pieces(made)
    del made.binary["tokenizer.model"]
    made.binary["spiece.model"] = sentencepiece(_PIECES, _SCORES, _KINDS, bytes(8), joins=True)
    made.extra.pop("tokenizer.json")
    made.keys |= {
        "tokenizer.ggml.model": "t5", "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.precompiled_charsmap": [0, 0, 0, 0, 0, 0, 0, 0],
        "tokenizer.ggml.add_eos_token": True,
    }  # fmt: skip
    return made


_PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(8))]
_PIECES += [f"▁{a}{b}" for a in "abcdefgh" for b in ascii_lowercase][: TOKENS - len(_PIECES)]
_SCORES = [0.0] * 11 + [-float(i) for i in range(TOKENS - 11)]
_KINDS = [2, 3, 3] + [6] * 8 + [1] * (TOKENS - 11)


def pieces(made: Whole) -> Whole:
    """A SentencePiece model, and the file's lists."""
    made.binary["tokenizer.model"] = sentencepiece(_PIECES, _SCORES, _KINDS)
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    made.extra["tokenizer_config.json"] = json.dumps(config)
    normalizer = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]}  # fmt: skip
    made.extra["tokenizer.json"] = json.dumps({"normalizer": normalizer})
    made.config |= {"bos_token_id": 1, "eos_token_id": 2}
    facts = {"model": "llama", "tokens": list(_PIECES), "scores": list(_SCORES),
             "token_type": list(_KINDS), "bos_token_id": 1, "eos_token_id": 2,
             "add_bos_token": True}  # fmt: skip
    made.keys |= {f"tokenizer.ggml.{k}": v for k, v in facts.items()}
    return made


def sentencepiece(
    texts: list[str],
    scores: list[float],
    kinds: list[int],
    charsmap: bytes = b"",
    *,
    joins: bool = False,
    merges: bool = False,
    prefix: bool = True,
) -> bytes:
    """``ModelProto`` with pieces; a space may be put before texts, runs of spaces joined.

    Args:
        merges: whether pieces are merged by their scores, and bytes stand for unknown letters.
    """

    def of_length(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    found = b""
    for text, score, kind in zip(texts, scores, kinds, strict=True):
        piece = of_length(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        found += of_length(1, piece + bytes([3 << 3, kind]))
    if merges:  # TrainerSpec.model_type and byte_fallback
        found += of_length(2, bytes([3 << 3, 2, 0x98, 0x02, 1]))
    spec = of_length(2, charsmap) if charsmap else b""
    return found + of_length(3, spec + bytes([3 << 3, prefix, 4 << 3, joins]))
