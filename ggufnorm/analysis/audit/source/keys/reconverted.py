"""Whether a new conversion would have the tokenizer that a file has now.

Made of ``_create_vocab_sentencepiece`` and ``get_vocab_base`` of ``conversion/base.py`` and of
``set_vocab`` of ``conversion/*.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ggufnorm.analysis.audit.source.keys.added import (
    TYPES,
    added_tokens,
    normalizer_differences,
    pieces_of,
    type_differences,
)
from ggufnorm.analysis.audit.source.keys.facts import Configs
from ggufnorm.analysis.audit.source.keys.tokenizer import Tokenizer
from ggufnorm.analysis.audit.source.keys.vocabulary import SCORES, vocabulary_differences
from ggufnorm.formats.sentencepiece import NORMAL, USER_DEFINED

_PREFIX, _MODEL = "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.model"

_NEVER_PREFIXED = ("gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "plamo2", "plamo3")
"""Architectures whose conversion puts no space before a text, whatever the source does."""

_COPIED = ("llama", "ernie4_5", "ernie4_5-moe", "pangu-embedded")
"""Those whose conversion goes by ``add_prefix_space`` of tokenizer_config.json."""

_AS_PIECES = ("internlm2",)
"""Those whose conversion goes by the SentencePiece model, as all Unigram models' do."""

_NO_SCORE = -1000.0
"""What the converter writes without a SentencePiece model (``gguf.LlamaHfVocab``)."""

_KINDS: dict[str, tuple[str, ...]] = {
    "BPE": ("gpt2", "llama", "gemma4"), "Unigram": ("t5", "llama"), "WordPiece": ("bert",),
}  # fmt: skip
"""``tokenizer.ggml.model`` of the models of tokenizer.json."""


def same_again(c: Configs, keys: Iterable[str]) -> bool | None:
    """Whether the converter would write the tokenizer's lists and these keys as they are.

    Args:
        c: the source's configs, and the file.
        keys: of the tokenizer, without which the file's ids are not the source's.

    Returns:
        None where it is not known: the source has no lists that can be compared, or the
        converter knows a key by other means (``tokenizer.ggml.pre`` by a digest of ids).
    """
    agrees = lists_agree(c)
    return agrees if not agrees else _all_written(c, keys)


def lists_agree(c: Configs) -> bool | None:
    """Whether tokens, scores, merges, types and normalization are the source's."""
    if _kind_differs(c):
        return False
    lists = vocabulary_differences(c)
    if lists is None or _scores_unknown(c):
        return None
    found = [*lists, *(type_differences(c) or ()), *normalizer_differences(c, Tokenizer(c))]
    return not found and not _piece_types_differ(c)


def _kind_differs(c: Configs) -> bool:
    model = Tokenizer(c).fast.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    kinds = _KINDS.get(str(kind), ("llama", "t5") if pieces_of(c) is not None else ())
    return bool(kinds) and c.file.metadata.string(_MODEL) not in kinds


def _scores_unknown(c: Configs) -> bool:
    """Whether pieces are joined by scores that nothing of the source gives."""
    scores = c.file.metadata.get(SCORES)
    if c.file.metadata.string(_MODEL) != "llama" or pieces_of(c) is not None:
        return False
    return not isinstance(scores, list) or {*scores} != {_NO_SCORE}


def _piece_types_differ(c: Configs) -> bool:
    """Whether pieces have other types, but for added tokens; users' own become ordinary ones."""
    types, pieces = c.file.metadata.get(TYPES), pieces_of(c)
    if pieces is None or not isinstance(types, list) or len(types) < len(pieces.pieces):
        return False
    if c.file.metadata.string(_MODEL) != "llama":
        return False  # ids are moved in XLM-RoBERTa's, and its special tokens are others
    added = added_tokens(c)
    return any(
        t != p.type and i not in added and (p.type, t) != (USER_DEFINED, NORMAL)
        for i, (t, p) in enumerate(zip(types, pieces.pieces, strict=False))
    )


def _all_written(c: Configs, keys: Iterable[str]) -> bool | None:
    known = [_is_written(c, key) for key in keys]
    if False in known:
        return False
    return None if None in known else True


def _is_written(c: Configs, key: str) -> bool | None:
    """Whether the converter writes a key as the file has it; None where that is not known."""
    if key != _PREFIX:
        return None
    stated, pieces = c.file.metadata.get(key), pieces_of(c)
    if c.architecture in _NEVER_PREFIXED:
        return stated is False
    told = Tokenizer(c).config.get("add_prefix_space")
    if c.architecture in _COPIED and isinstance(told, bool):
        return stated is told
    goes_by = c.architecture in _AS_PIECES or c.file.metadata.string(_MODEL) == "t5"
    if goes_by and pieces is not None:
        return stated is pieces.add_dummy_prefix
    return stated is None
