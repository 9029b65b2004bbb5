"""Types of tokens, and tokens that end a generation, beside what the source says of them.

Made of ``get_vocab_base`` and ``_create_vocab_sentencepiece`` of ``conversion/base.py``, and of
``llama_vocab::impl::load`` in ``src/llama-vocab.cpp``, which finds special tokens in a text by
their types.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ggufnorm.analysis.audit.source.keys.facts import Configs
from ggufnorm.analysis.audit.source.keys.tokenizer import Tokenizer
from ggufnorm.analysis.audit.source.keys.tokens import TokenDifference
from ggufnorm.errors import InputError
from ggufnorm.formats.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    SentencePiece,
    parse,
)

TYPES, TOKENS = "tokenizer.ggml.token_type", "tokenizer.ggml.tokens"

_TEXT = (NORMAL, UNUSED, BYTE)
"""Types of tokens that llama.cpp does not look for in a text as a whole."""

PLACEHOLDER = re.compile(r"\[PAD\d*\]|<dummy\d+>|<pad\d+>|<extra_id_\d+>")
"""What converters write for ids that no token has."""

_LOOKS_SPECIAL = re.compile(r"[<\[].*[>\]]")

_NAMED = """
<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>
<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos>
<turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[ <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]
<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""

_ENDS = frozenset(_NAMED.split())
"""Texts of tokens at which llama.cpp ends a generation whatever the keys say."""

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class TypeDifference:
    """Tokens whose type is not what the source makes of them.

    Attributes:
        message: one sentence.
        n: how many.
        first: the id of the first.
        expected: its type.
        actual: the file's; None if the file has no types.
    """

    message: str
    n: int
    first: int
    expected: int
    actual: int | None


def type_differences(c: Configs) -> list[TypeDifference] | None:
    """Tokens of a wrong type; None where the source names neither these nor words."""
    special = special_tokens(c)
    types, tokens = c.file.metadata.get(TYPES), c.file.metadata.get(TOKENS)
    if not isinstance(tokens, list):
        return None
    words = _ordinary(c, tokens)
    if not special and (not words or not isinstance(types, list)):
        return None
    if not isinstance(types, list):
        first = min(special)
        message = (
            f"{TYPES} is missing: {len(special)} special tokens of the source, the first"
            f" {special[first]!a} ({first}), are not found in a text"
        )
        return [TypeDifference(message, len(special), first, CONTROL, None)]
    found = []
    plain = [
        i
        for i in sorted(special)
        if i < min(len(types), len(tokens)) and types[i] in _TEXT
        and not PLACEHOLDER.fullmatch(str(tokens[i]))  # lost altogether: that is told elsewhere
    ]  # fmt: skip
    if plain:
        first = plain[0]
        message = (
            f"{TYPES}: {len(plain)} of {len(special)} special tokens of the source are typed as"
            f" ordinary text, the first {special[first]!a} ({first}): in a prompt they fall into"
            " pieces"
        )
        found.append(TypeDifference(message, len(plain), first, CONTROL, _kind(types[first])))
    hidden = [i for i in words if i < len(types) and types[i] == CONTROL]
    if hidden:
        first = hidden[0]
        message = (
            f"{TYPES}: {len(hidden)} of {len(words)} ordinary tokens are typed as control tokens,"
            f" the first {str(tokens[first])!a} ({first}): what the model writes with them is not"
            " shown"
        )
        found.append(TypeDifference(message, len(hidden), first, NORMAL, CONTROL))
    return found


def special_tokens(c: Configs) -> dict[int, str]:
    """Added tokens of the source that are special, by id."""
    return {i: text for i, (text, is_special) in added_tokens(c).items() if is_special}


def added_tokens(c: Configs) -> dict[int, tuple[str, bool]]:
    """Added tokens of the source by id: the text, and whether it is special."""
    config = c.source.read_json("tokenizer_config.json") or {}
    fast = c.source.read_json("tokenizer.json") or {}
    decoder, listed = config.get("added_tokens_decoder"), fast.get("added_tokens")
    rows = [{**t, "id": int(i)} for i, t in decoder.items() if isinstance(t, dict) and i.isdecimal()
            ] if isinstance(decoder, dict) else []  # fmt: skip
    rows += [t for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
    return {
        t["id"]: (t["content"], t.get("special") is True)
        for t in rows
        if isinstance(t.get("id"), int) and isinstance(t.get("content"), str) and t["id"] >= 0
    }


def _ordinary(c: Configs, tokens: Sequence[object]) -> list[int]:
    """Ids of tokens of the source's vocabulary that nothing makes special."""
    model = (c.source.read_json("tokenizer.json") or {}).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        vocabulary = _ordinary_pieces(c)
    left_out = added_tokens(c)
    return sorted(
        i
        for text, i in vocabulary.items()
        if isinstance(i, int) and 0 <= i < len(tokens) and i not in left_out
        and not _LOOKS_SPECIAL.fullmatch(text)
    )  # fmt: skip


def _ordinary_pieces(c: Configs) -> dict[str, int]:
    """Ids of ordinary pieces of a SentencePiece model, where they are the file's."""
    pieces = pieces_of(c)
    if pieces is None or c.file.metadata.string("tokenizer.ggml.model") != "llama":
        return {}
    return {p.text: i for i, p in enumerate(pieces.pieces) if p.type == NORMAL}


def end_differences(c: Configs, tokenizer: Tokenizer) -> Iterator[TokenDifference]:
    """Tokens that end a generation in the source, and not in llama.cpp."""
    tokens = c.file.metadata.get(TOKENS)
    if not isinstance(tokens, list):
        return
    ends = {c.file.metadata.integer(f"tokenizer.ggml.{key}") for key in _END_KEYS}
    named = tokenizer.generation.get("eos_token_id")
    wanted = _ids(named if isinstance(named, list) else [named], len(tokens))
    missed = [i for i in wanted if i not in ends and str(tokens[i]) not in _ENDS]
    if not missed or len(missed) == len(wanted):  # all: it is EOS that is wrong, or as intended
        return
    key = f"tokenizer.ggml.{_END_KEYS[1]}"
    actual = c.file.metadata.integer(key)
    message = (
        f"{key} is {'missing' if actual is None else actual}: generation_config.json ends at"
        f" {tokens[missed[0]]!a} ({missed[0]}), and llama.cpp goes on there"
    )
    yield TokenDifference(key, message, missed[0], actual, "u32", "warning")


def normalizer_differences(c: Configs, tokenizer: Tokenizer) -> Iterator[TokenDifference]:
    """How letters and spaces are normalized (``llm_tokenizer_wpm`` and ``_ugm``)."""
    model = c.file.metadata.string("tokenizer.ggml.model")
    if model == "bert":
        yield from _letters(c, tokenizer)
    if model != "t5":
        return
    pieces = pieces_of(c)
    key = "tokenizer.ggml.precompiled_charsmap"
    wanted = [m for m in (pieces.charsmap if pieces else b"", _charsmap(tokenizer)) if m]
    stated = c.file.metadata.get(key)
    if wanted and stated is None:
        message = f"{key} is missing: letters that the source's tokenizer replaces stay as they are"
        yield TokenDifference(key, message, None, None, "arr[u8]")
    elif wanted and isinstance(stated, list) and _bytes(stated) not in wanted:
        message = (
            f"{key} is not the source's ({len(stated):,} bytes for {len(wanted[0]):,}): letters are"
            " replaced by others"
        )
        yield TokenDifference(key, message, None, None, "arr[u8]")
    key = "tokenizer.ggml.remove_extra_whitespaces"
    taken = c.file.metadata.get(key, False)
    if pieces is not None and isinstance(taken, bool) and taken != pieces.remove_extra_whitespaces:
        does = "keeps" if pieces.remove_extra_whitespaces else "joins"
        actual = c.file.metadata.get(key)
        start = (
            f"{key} is missing, so llama.cpp" if actual is None else f"{key} is wrong: llama.cpp"
        )
        message = f"{start} {does} runs of spaces, and the source's tokenizer does not"
        right = pieces.remove_extra_whitespaces
        yield TokenDifference(key, message, right, actual, "bool")


def _charsmap(tokenizer: Tokenizer) -> bytes:
    """The map of tokenizer.json; empty where it has none."""
    maps = (p.get("precompiled_charsmap") for p in tokenizer.normalizers
            if p.get("type") == "Precompiled")  # fmt: skip
    text = next((m for m in maps if isinstance(m, str)), "")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _bytes(values: Sequence[object]) -> bytes:
    """A list of numbers, of either sign, as bytes."""
    return bytes(v % 256 if isinstance(v, int) else 0 for v in values)


def _letters(c: Configs, tokenizer: Tokenizer) -> Iterator[TokenDifference]:
    found = next((p for p in tokenizer.normalizers if p.get("type") == "BertNormalizer"), {})
    lowercase = found.get("lowercase")
    if not isinstance(lowercase, bool):
        return
    key = "tokenizer.ggml.normalizer.lowercase"
    actual = c.file.metadata.get(key)
    taken = actual if isinstance(actual, bool) else True
    if taken != lowercase:
        start = (
            f"{key} is {str(taken).lower()}, so" if actual is not None else f"{key} is missing, so"
        )
        does = "folds capitals" if taken else "keeps capitals"
        message = f"{start} llama.cpp {does}, and the source's tokenizer does not"
        yield TokenDifference(key, message, lowercase, actual, "bool")


def pieces_of(c: Configs) -> SentencePiece | None:
    """The source's SentencePiece model; None if it has none."""
    for name in _PIECES:
        data = c.source.read_bytes(name)
        if data is not None:
            try:
                return parse(data, name)
            except InputError:
                return None  # another tokenizer's file under that name
    return None


_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def _ids(values: Sequence[object], n_tokens: int) -> list[int]:
    found = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    return [i for i in found if 0 <= i < n_tokens]


def _kind(value: object) -> int | None:
    return value if isinstance(value, int) else None
