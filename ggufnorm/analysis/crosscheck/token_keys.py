"""Which keys of a file make its token ids differ from the source's: tried, not guessed.

llama.cpp reads the vocabulary again with a key set to another value, and the setting that brings
the source's ids is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from ggufnorm.engines.llama.vocabulary import Change, Ids, tokenize
from ggufnorm.errors import EngineError
from ggufnorm.formats.location import open_model

_ROUNDS = 4
"""Keys that may be wrong together."""

_FLAGS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix",
          "remove_extra_whitespaces", "normalizer.lowercase",
          "normalizer.strip_accents")  # fmt: skip
_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id",
        "sep": "seperator_token_id"}  # fmt: skip
"""Transformers' names of special tokens, and the file's (``LLM_KV_NAMES`` in llama-arch.cpp)."""
_KINDS = {"llama": "t5", "t5": "llama"}
"""Values of ``tokenizer.ggml.model`` that read the same lists, each in its way."""
_NAMES = """
default gpt-2 llama-bpe dbrx glm4 chatglm-bpe jais-2 minicpm5 qwen2 qwen35 stablelm2 seed-coder
bailingmoe exaone-moe laguna ufakzeka grok-2 deepseek-llm deepseek-coder deepseek-v3 spark2_5 youtu
falcon starcoder refact command-r smollm codeshell exaone minerva-7b mellum2 chameleon viking mpt
olmo jais trillion granite-docling exaone4 roberta-bpe jina-v2-en jina-v2-code
pixtral phi-2 modern-bert bloom poro-chat gpt3-finnish tekken gpt-4o llama4 minimax-m2
granite-embed-multi-97m tiny_aya kimi-k2 superbpe
hunyuan hunyuan-dense joyai-llm hy_v4 afmoe gemma4 sarvam-moe smaug-bpe megrez
solar-open deepseek-r1-qwen
"""

_PRE_TOKENIZERS = tuple(_NAMES.split())
"""Values of ``tokenizer.ggml.pre`` (``llama_vocab::impl::load`` in ``src/llama-vocab.cpp``);
one that an installed llama.cpp does not know is passed over. ``whitespace`` is left out: on two
spaces in a row llama.cpp aborts."""


def parting(a: Ids, b: Ids) -> int:
    """Position of the first other id."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _distance(a: Ids, b: Ids) -> int:
    """Ids that are not in the same place, from the beginning or from the end."""
    if a == b:
        return 0
    start, end = parting(a, b), parting(a[::-1], b[::-1])
    return max(1, max(len(a), len(b)) - min(start + end, len(a), len(b)))


def _total(theirs: Sequence[Ids], ours: Sequence[Ids]) -> int:
    return sum(map(_distance, theirs, ours))


def _differing(theirs: Sequence[Ids], ours: Sequence[Ids]) -> int:
    return sum(a != b for a, b in zip(theirs, ours, strict=True))


def _candidates(path: str | os.PathLike[str], special: Mapping[str, int]) -> list[Change]:
    with open_model(path) as file:
        stated = file.metadata
        flags = {f"tokenizer.ggml.{name}": stated.get(f"tokenizer.ggml.{name}") for name in _FLAGS}
        ids = {
            f"tokenizer.ggml.{_IDS[name]}": token
            for name, token in special.items()
            if name in _IDS and stated.get(f"tokenizer.ggml.{_IDS[name]}") != token
        }
        pre, kind = stated.get("tokenizer.ggml.pre"), stated.get("tokenizer.ggml.model")
    found = [
        Change({key: value})
        for key, now in flags.items()
        for value in (True, False)
        if value != now
    ]
    found += [Change({}, {}, {key: token}) for key, token in ids.items()]
    if other := _KINDS.get(str(kind)):
        found.append(Change({}, {"tokenizer.ggml.model": other}))
    if kind == "gpt2":
        found += [Change({}, {"tokenizer.ggml.pre": p}) for p in _PRE_TOKENIZERS if p != pre]
    return found


def search(
    path: str | os.PathLike[str],
    special: Mapping[str, int],
    texts: Sequence[str],
    theirs: Sequence[Ids],
    ours: Sequence[Ids],
) -> tuple[Change, int]:
    """The settings that bring the ids nearest to the source's, and how many texts are left."""
    best, left = Change(), _total(theirs, ours)
    n_left = _differing(theirs, ours)
    candidates = _candidates(path, special)
    for _ in range(_ROUNDS):
        tried = _tried(path, texts, best, candidates)
        sums = [_total(theirs, ids) if ids else left for ids in tried]
        nearest = min(sums, default=left)
        if nearest >= left:
            break
        i = sums.index(nearest)
        best, left = best | candidates[i], nearest
        n_left = _differing(theirs, tried[i])
        if not left:
            break
    return _needed(path, texts, theirs, best, left), n_left


def _needed(
    path: str | os.PathLike[str],
    texts: Sequence[str],
    theirs: Sequence[Ids],
    found: Change,
    left: int,
) -> Change:
    """Those of the settings without which the ids are farther from the source's."""
    for key in found.settings if len(found.settings) > 1 else ():
        fewer = found.without(key)
        (ids,) = _tried(path, texts, fewer, [Change()])
        if ids and _total(theirs, ids) <= left:
            found = fewer
    return found


def _tried(
    path: str | os.PathLike[str], texts: Sequence[str], best: Change, candidates: Sequence[Change]
) -> list[tuple[Ids, ...]]:
    """Ids with each candidate beside the best; none where llama.cpp refuses it or crashes.

    A pre-tokenizer whose pattern some text is too much for ends the child (``std::regex`` in
    ``src/unicode.cpp``): those of the same child are tried again in halves.
    """
    if not candidates:
        return []
    try:
        return list(tokenize(path, texts, (best, *(best | c for c in candidates)))[1:])
    except EngineError:
        if len(candidates) == 1:
            return [()]
    middle = len(candidates) // 2
    return [
        *_tried(path, texts, best, candidates[:middle]),
        *_tried(path, texts, best, candidates[middle:]),
    ]


def settings(change: Change) -> Iterator[str]:
    """As ``--override-kv`` takes them."""
    yield from (f"{key}=bool:{str(value).lower()}" for key, value in change.flags.items())
    yield from (f"{key}=str:{value}" for key, value in change.names.items())
    yield from (f"{key}=int:{value}" for key, value in change.numbers.items())
