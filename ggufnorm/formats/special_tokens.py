"""The special tokens that a file's tokenizer names, as chat templates know them."""

from __future__ import annotations

from collections.abc import Sequence

from ggufnorm.formats.gguf import Metadata

_NAMES = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id", "sep_token": "seperator_token_id",
}  # fmt: skip
"""What templates call them, and GGUF's keys (``seperator`` is GGUF's spelling)."""


def special_tokens(metadata: Metadata) -> dict[str, str]:
    """``bos_token`` … as text, of those that the file names.

    BOS and EOS that it does not name are empty, as in llama.cpp (``common_chat_templates_init``
    in ``common/chat.cpp``).
    """
    found = {"bos_token": "", "eos_token": ""}
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return found
    for name, key in _NAMES.items():
        number = metadata.integer(f"tokenizer.ggml.{key}")
        if number is not None and 0 <= number < len(tokens):
            found[name] = str(tokens[number])
    return found


_PARSED = (2, 3, 4)
"""``llama_token_type``: unknown, control and user-defined tokens are found in a text as a whole
(``llama_vocab::impl::load`` in ``src/llama-vocab.cpp``)."""


def are_special(metadata: Metadata, texts: Sequence[str]) -> dict[str, bool | None]:
    """Whether the file's tokens of these texts are special; None where it has no such token.

    A file that does not type its tokens has them all as text; of one whose list of types is of
    another length nothing is known.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    known = list(tokens) if isinstance(tokens, list) else []
    kinds = list(types) if isinstance(types, list) else []
    found: dict[str, bool | None] = dict.fromkeys(texts)
    if kinds and len(kinds) != len(known):
        return found
    for i, token in enumerate(known):
        if token in found:
            found[token] = i < len(kinds) and kinds[i] in _PARSED
    return found
