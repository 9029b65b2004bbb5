"""The source's tokenizer beside a file's, on texts that tokenizers split in different ways.

Which key of the file makes them differ is tried, not guessed: llama.cpp reads the vocabulary
again with the key set to another value, and the setting that brings the source's ids is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from ggufnorm.core.frameworks import TokenizerFinding
from ggufnorm.core.model import Skipped
from ggufnorm.engines.llama.vocabulary import Change, Ids, tokenize
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.errors import EngineError
from ggufnorm.formats.location import local_path, open_model

TOKEN_IDS = "token ids"
BOS_ADDED = "whether BOS is added"

PROBES = {
    "plain words": "The quick brown fox jumps over the lazy dog.",
    "one word": "hello",
    "capitals": "NASA and McDonald's in New YORK",
    "digits": "In 1984 it was 3141592653 and 27.18 or 1,000,000",
    "contractions": "I'm sure they'll say we've done it, HE'S right and don't",
    "runs of spaces": "a  b   c    d     e",
    "a space at either end": " between ",
    "line ends": "one\ntwo\n\nthree\r\nfour",
    "tabs": "if x:\n\treturn\t1\n",
    "code": "for (int i = 0; i <= n; ++i) { a[i] += b->c(i) && !d; }",
    "code, indented": "def f(x):\n    return {'a': [x ** 2, -1]}  # done",
    "punctuation": 'Well... (so "it" goes) -- no?! 50% & #1 @ $9.99; e.g. a/b',
    "a web address": "https://example.org/path?q=1&r=a_b#top",
    "accents": "Él leyó über français, naïve façade, Ångström",
    "Cyrillic and Greek": "Привет мир, καλημέρα κόσμε",
    "Chinese": "今天天气很好，我们去公园吧。",
    "Japanese and Korean": "日本語のテスト 안녕하세요 세계",
    "Arabic and Hindi": "مرحبا بالعالم नमस्ते दुनिया",
    "emoji": "ok 😀 👍🏽 👩‍💻 🇩🇪",
    "long words": "antidisestablishmentarianism aaaaaaaaaaaaaaaaaaaaaaaa",
}  # fmt: skip
"""What each text tries, and the text. No letters that a normalization would compose or fold:
Transformers applies it and llama.cpp does not, in files that are right."""
_FAIRSEQ, _MASK = ["<s>", "<pad>", "</s>", "<unk>"], "<mask>"
"""XLM-RoBERTa's first tokens, and the one that its SentencePiece model lacks."""
_MOST_SPECIAL = 8
_AROUND = 12
"""Letters shown on either side of where two tokenizers part."""
_SHOWN = 8
_ROUNDS = 4
"""Keys that may be wrong together."""

_FLAGS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix",
          "remove_extra_whitespaces")  # fmt: skip
_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id",
        "sep": "seperator_token_id"}  # fmt: skip
"""Transformers' names of special tokens, and the file's (``LLM_KV_NAMES`` in llama-arch.cpp)."""
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


@dataclass(frozen=True)
class TokenIds:
    """Two tokenizers side by side.

    Attributes:
        finding: where they part; None if they do not, or were not compared.
        n_texts: that were compared.
        skipped: why they were not compared; None if they were.
        undecided: what of them cannot be judged; None for nothing.
    """

    finding: TokenizerFinding | None
    n_texts: int
    skipped: Skipped | None
    undecided: Skipped | None = None


def compare_token_ids(
    tokenizer: Tokenizer | None, location: str, text: str, missing: str | None = None
) -> TokenIds:
    """The ids of a checkpoint's tokenizer beside those of a file's.

    Args:
        tokenizer: the checkpoint's; None if it has none that loads.
        location: of the GGUF file.
        text: that was run, besides the probes.
        missing: package that the checkpoint's tokenizer needs and that is not installed.
    """
    if tokenizer is None and missing:
        return _not_compared(f"the checkpoint's tokenizer needs {missing}: pip install {missing}")
    if tokenizer is None:
        return _not_compared("no tokenizer that loads lies beside the checkpoint")
    texts = {"the text that was run": text, **PROBES, **_special(tokenizer)}
    path = local_path(location)
    try:
        (ours,) = tokenize(path, tuple(texts.values()))
    except EngineError as error:
        return _not_compared(str(error))
    try:
        theirs = tuple(tuple(tokenizer.ids(t).tolist()) for t in texts.values())
    except Exception as error:  # whatever a tokenizer's own code raises
        return _not_compared(f"the checkpoint's tokenizer fails: {type(error).__name__}: {error}")
    said = list(_sayable(path, list(texts.values()), theirs))
    texts = {name: text for (name, text), ok in zip(texts.items(), said, strict=True) if ok}
    theirs, ours = (tuple(compress(ids, said)) for ids in (theirs, ours))
    unstated = None
    if not tokenizer.states_bos:
        theirs, unstated = _with_bos(theirs, ours)
    if theirs == ours:
        return TokenIds(None, len(texts), None, unstated)
    wrong = [i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
    every = list(texts.values())
    keys, left = _search(
        path,
        tokenizer.special_ids,
        [every[i] for i in wrong],
        [theirs[i] for i in wrong],
        [ours[i] for i in wrong],
    )
    finding = _finding(tokenizer, list(texts.items()), theirs, ours, wrong, keys, left)
    return TokenIds(finding, len(texts), None, unstated)


def _with_bos(
    theirs: tuple[Ids, ...], ours: tuple[Ids, ...]
) -> tuple[tuple[Ids, ...], Skipped | None]:
    """The source's ids behind the file's BOS, where nothing says whether there is to be one."""
    first = {ids[0] for ids in ours if ids}
    plain = theirs[0] if theirs else ()  # one of the others may be the text of BOS itself
    if len(first) != 1 or plain[:1] == tuple(first):
        return theirs, None
    (bos,) = first
    why = f"the source's files do not say; the file begins each text with {bos}, Transformers none"
    return tuple((bos, *ids) for ids in theirs), Skipped(BOS_ADDED, why)


def _sayable(path: Path, texts: Sequence[str], theirs: Sequence[Ids]) -> Iterator[bool]:
    """Whether a file can be held to the source's ids of each text.

    It cannot where the source has tokens that the network has no row for (T5's ``<extra_id_0>``
    of a smaller vocabulary), nor at line ends and tabs where a Unigram model came without the map
    that makes spaces of them: Transformers has a map of its own then. Nor at XLM-RoBERTa's mask,
    for which the converter leaves a gap (``_xlmroberta_set_vocab`` in ``conversion/bert.py``).
    """
    with open_model(path) as file:
        rows = file.tensors.get("token_embd.weight")
        most = rows.shape[-1] if rows is not None else None
        is_unigram = file.metadata.string("tokenizer.ggml.model") == "t5"
        has_map = "tokenizer.ggml.precompiled_charsmap" in file.metadata
        tokens = file.metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    gap = _MASK if tokens[: len(_FAIRSEQ)] == _FAIRSEQ and _MASK not in tokens else None
    for text, ids in zip(texts, theirs, strict=True):
        has_row = most is None or max(ids, default=0) < most
        yield (
            has_row
            and text != gap
            and not (is_unigram and not has_map and set(text) & set("\n\r\t"))
        )


def with_decoder_start(ids: TokenIds, start: int | None, location: str) -> TokenIds:
    """The same, and the token that an encoder-decoder's decoder begins with.

    Args:
        ids: what was found of the tokenizers.
        start: of the source; None where there is no decoder, or it does not say.
        location: of the GGUF file.
    """
    with open_model(local_path(location)) as file:
        key = f"{file.architecture}.decoder_start_token_id"
        ours = file.metadata.integer(key)
    if start is None or ours == start or ids.finding is not None:
        return ids
    state = f"is {ours}" if ours is not None else "is missing"
    message = f"{key} {state}, and the source's decoder starts with {start}"
    told = f"{message}; with {(setting := f'{key}=int:{start}')} the file does too"
    engine = () if ours is None else (ours,)
    finding = TokenizerFinding(0, (start,), engine, told, "the decoder's start", keys=(setting,))
    return replace(ids, finding=finding)


def _not_compared(why: str) -> TokenIds:
    return TokenIds(None, 0, Skipped(TOKEN_IDS, why))


def _special(tokenizer: Tokenizer) -> dict[str, str]:
    tokens = tokenizer.special_tokens[:_MOST_SPECIAL]
    return {f"the special token {token}": token for token in tokens}


def _parting(a: Ids, b: Ids) -> int:
    """Position of the first other id."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _distance(a: Ids, b: Ids) -> int:
    """Ids that are not in the same place, from the beginning or from the end."""
    if a == b:
        return 0
    start, end = _parting(a, b), _parting(a[::-1], b[::-1])
    return max(1, max(len(a), len(b)) - min(start + end, len(a), len(b)))


def _total(theirs: Sequence[Ids], ours: Sequence[Ids]) -> int:
    return sum(map(_distance, theirs, ours))


# -- which key ------------------------------------------------------------------------------


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
    if kind == "gpt2":
        found += [Change({}, {"tokenizer.ggml.pre": p}) for p in _PRE_TOKENIZERS if p != pre]
    return found


def _search(
    path: str | os.PathLike[str],
    special: Mapping[str, int],
    texts: Sequence[str],
    theirs: Sequence[Ids],
    ours: Sequence[Ids],
) -> tuple[Change, int]:
    """The settings that bring the ids nearest to the source's, and how many texts are left."""
    best, left = Change(), _total(theirs, ours)
    n_left = len(texts)
    candidates = _candidates(path, special)
    for _ in range(_ROUNDS):
        tried = _tried(path, texts, best, candidates)
        sums = [_total(theirs, ids) if ids else left for ids in tried]
        nearest = min(sums, default=left)
        if nearest >= left:
            break
        i = sums.index(nearest)
        best, left = best | candidates[i], nearest
        n_left = sum(a != b for a, b in zip(theirs, tried[i], strict=True))
        if not left:
            break
    return best, n_left


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


# -- in words -------------------------------------------------------------------------------


def _settings(change: Change) -> Iterator[str]:
    yield from (f"{key}=bool:{str(value).lower()}" for key, value in change.flags.items())
    yield from (f"{key}=str:{value}" for key, value in change.names.items())
    yield from (f"{key}=int:{value}" for key, value in change.numbers.items())


def _finding(
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, str]],
    theirs: Sequence[Ids],
    ours: Sequence[Ids],
    wrong: Sequence[int],
    change: Change,
    left: int,
) -> TokenizerFinding:
    at = wrong[0]
    probe, text = texts[at]
    first = _parting(theirs[at], ours[at])
    a, b = (ids[at][first : first + _SHOWN] for ids in (theirs, ours))
    start, end = tokenizer.span(text, first)
    around = text[max(0, start - _AROUND) : end + _AROUND]
    keys = tuple(_settings(change)) if left < len(wrong) else ()  # nearer, and no text is right
    message = (
        f"token ids differ in {len(wrong)} of {len(texts)} texts, first in {probe} at id {first},"
        f" in {around!r}: the source's tokenizer gives {list(a)}, the file's {list(b)}"
    )
    if keys:
        rest = f", but for {left} of the texts" if left else ""
        message += f"; with {' and '.join(keys)} the file gives the source's ids{rest}"
    else:
        message += "; no key that was tried explains it"
    return TokenizerFinding(first, a, b, message, probe, around, len(wrong), keys, left)
