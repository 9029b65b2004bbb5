"""The special tokens that a file's tokenizer names, as chat templates know them."""

from __future__ import annotations

from ggufnorm.formats.gguf import Metadata

_NAMES = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id", "sep_token": "seperator_token_id",
}  # fmt: skip
"""What templates call them, and GGUF's keys (``seperator`` is GGUF's spelling)."""


def special_tokens(metadata: Metadata) -> dict[str, str]:
    """``bos_token`` … as text, of those that the file names."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return {}
    found = {}
    for name, key in _NAMES.items():
        number = metadata.integer(f"tokenizer.ggml.{key}")
        if number is not None and 0 <= number < len(tokens):
            found[name] = str(tokens[number])
    return found
