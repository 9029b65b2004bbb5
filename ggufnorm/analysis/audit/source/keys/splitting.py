"""How a byte-pair tokenizer splits a text before it merges, by its regular expressions.

``tokenizer.json`` has the expressions, and a file has a name for which llama.cpp has its own
(``llm_tokenizer_bpe`` in ``src/llama-vocab.cpp``). Both are reduced to traits that other ids
follow from. A name whose expressions llama.cpp only approximates has none here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel splits by itself (``ByteLevel`` of tokenizers)."""


@dataclass(frozen=True)
class Traits:
    """How a text is split; None for a trait that is not known.

    Attributes:
        digits: how many one piece holds: one, three, all.
        contractions: ``'s`` and the like: lower case, any case, left at the word, or not split.
        before: what may begin a word: a space, any mark, or nothing.
        case: whether a word ends where capitals begin.
        accents: whether combining marks belong to words.
        lines: what becomes of line ends: joined to punctuation, runs of their own, single, or
            spaces like others.
        cjk: whether Chinese and Japanese letters are split off.
    """

    digits: str | None
    contractions: str | None = None
    before: str | None = None
    case: str | None = None
    accents: str | None = None
    lines: str | None = None
    cjk: str | None = None

    def parting(self, other: Traits) -> str | None:
        """The first trait that both have and that is not the same; None if there is none."""
        both = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return next((name for name, a, b in both if None not in (a, b) and a != b), None)

    def words(self, trait: str) -> str:
        """A trait, after "it splits off"."""
        return _WORDS[trait][getattr(self, trait)]


_WORDS: Mapping[str, Mapping[str, str]] = {
    "digits": {"one": "single digits", "three": "up to three digits",
               "all": "all digits together"},
    "contractions": {"lower": "contractions in lower case alone", "any": "contractions in any case",
                     "attached": "contractions with their words", "none": "no contractions"},
    "before": {"space": "words with the space before them",
               "mark": "words with any mark before them",
               "none": "words without what is before them"},
    "case": {"yes": "words where capitals begin", "no": "words whatever their capitals"},
    "accents": {"yes": "accents with their words", "no": "accents apart from their words"},
    "lines": {"joined": "line ends with the punctuation before them", "runs": "runs of line ends",
              "single": "each line end", "spaces": "line ends as other spaces"},
    "cjk": {"yes": "Chinese and Japanese apart", "no": "Chinese as other letters"},
}  # fmt: skip

OTHER_IDS: Mapping[str, str] = {
    "digits": "numbers", "contractions": "contractions", "before": "words behind punctuation",
    "case": "words in mixed case", "accents": "combining accents", "lines": "line ends",
    "cjk": "Chinese and Japanese",
}  # fmt: skip
"""What has other ids where a trait differs."""

_LIKE_GPT2 = Traits("all", "lower", "space", "no", "no", "spaces", "no")
_LIKE_LLAMA3 = Traits("three", "any", "mark", "no", "no", "joined", "no")
_LIKE_GPT4O = Traits("three", "attached", "mark", "yes", "yes", "joined", "no")
_LIKE_DEEPSEEK3 = Traits("three", "none", "mark", "no", "yes", "joined", "yes")

_TRAITS: tuple[tuple[Traits, str], ...] = (
    (_LIKE_LLAMA3, "llama-bpe glm4 llama3 llama-v3 glm5"),
    (_LIKE_LLAMA3, "dbrx smaug-bpe chatglm-bpe"),
    (replace(_LIKE_LLAMA3, digits="one"),
     "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan grok-2 bailingmoe bailingmoe2 llada-moe"
     " kormo f2llmv2 solar-open"),
    (replace(_LIKE_LLAMA3, digits="one", accents="yes"), "qwen35"),
    (replace(_LIKE_LLAMA3, digits="one", lines="runs"), "seed-coder"),
    (_LIKE_GPT4O, "gpt-4o llama4 kanana2 minimax-m2 tiny_aya cohere2moe"),
    (replace(_LIKE_GPT4O, digits="one", contractions="none"), "tekken"),
    (_LIKE_DEEPSEEK3, "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    (Traits("one", "none", "space", "no", "no", "single", "yes"), "deepseek-coder"),
    (_LIKE_GPT2, "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de modern-bert mpt olmo jais"),
    (_LIKE_GPT2, "roberta-bpe jina-v1-en jina-v2-code"),
    (replace(_LIKE_GPT2, digits="one"),
     "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"),
    (Traits("three"), "falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano spark2_5 jais-2"
                      " talkie granite-embed-multi-97m minicpm5"),
    (Traits("all"), "deepseek-llm gigachat"),
    (Traits("one"), "youtu viking exaone-moe chameleon laguna"),
)  # fmt: skip
"""Names that split alike, those that read merges alike together. Traits are those of the
tokenizers that a name was made for; llama.cpp has no classes of accents in some."""

OF_NAME: Mapping[str, Traits] = {n: traits for traits, names in _TRAITS for n in names.split()}
"""By ``tokenizer.ggml.pre``."""

_IGNORING = """
llama-bpe llama3 llama-v3 glm4 glm5 tekken youtu minicpm5 granite-embed-multi-97m falcon3 falcon-h1
pixtral midm-2.0 lfm2 jina-v5-nano
"""

_WHOLE_WORDS = frozenset(_IGNORING.split())
"""Names with which llama.cpp takes a word that is a token without merging it."""


def names_of(traits: Traits, model_type: str, *, whole_words: bool) -> tuple[str, ...]:
    """Names that split so, the likeliest first.

    Args:
        traits: of the source.
        model_type: of the source; names of its family go first.
        whole_words: ``ignore_merges`` of tokenizer.json.
    """
    if None in (getattr(traits, f.name) for f in fields(traits)):
        return ()
    found = [n for n, t in OF_NAME.items() if t == traits and (n in _WHOLE_WORDS) == whole_words]
    return tuple(sorted(found, key=lambda n: not _is_of_family(n, model_type)))


def _is_of_family(name: str, model_type: str) -> bool:
    return (re.match(r"[a-z]+", name) or [name])[0] in re.findall(r"[a-z]+", model_type)


def source_traits(tokenizer: Mapping[str, Any]) -> Traits | None:
    """The traits of a ``tokenizer.json``; None if it is split by other means."""
    expressions: list[str] = []
    whole = True
    for part in _parts(tokenizer.get("pre_tokenizer")):
        kind, pattern = part.get("type"), part.get("pattern")
        if kind == "Digits":
            expressions.append(r"\p{N}" if part.get("individual_digits") else r"\p{N}+")
        elif kind == "ByteLevel":
            expressions += [_GPT2] if part.get("use_regex", True) else []
        elif (
            kind == "Split"
            and isinstance(pattern, dict)
            and isinstance(p := pattern.get("Regex"), str)
        ):
            expressions.append(p)
        else:
            whole = False  # by punctuation, by a word: what else it does is not known
    found = traits_of(expressions)
    if found is not None and whole:
        return found
    digits = next((d for e in expressions if (d := _digits(e)) is not None), None)
    return None if digits is None else Traits(digits)


def _parts(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        inner = value.get("pretokenizers")
        if isinstance(inner, list):
            for part in inner:
                yield from _parts(part)
        else:
            yield value


def traits_of(expressions: Sequence[str]) -> Traits | None:
    """The traits of expressions that split one after the other; None if they show none."""
    digits = next((d for e in expressions if (d := _digits(e)) is not None), None)
    every = "|".join(expressions)
    words = [p for p in _alternatives(every) if _LETTERS.search(p) and "'" not in p[:2]]
    if digits is None or not words:
        return None
    first = words[0]
    return Traits(
        digits=digits,
        contractions=_contractions(every),
        before="space" if re.match(r"(\(\?:)?( |\\s)\?", first)
        else "mark" if first.startswith(("[^", "(?:[^", r"\[^")) or r"]?\p{L}" in first else "none",
        case="yes" if any(r"\p{Lu}" in w or "[^a-z]" in w for w in words) else "no",
        accents="yes" if any(r"\p{M}" in w for w in words) else "no",
        lines=_lines(every),
        cjk="yes" if "一" in every or r"\p{Han}" in every or r"\u4e00" in every.lower() else "no",
    )  # fmt: skip


_LETTERS = re.compile(r"\\p\{L[ult]?\}(?![^\[]*\]\?(?!\\p|\(|\[))")
_ANY_CASE = ("(?i:'s", "'[sS]", "'(?i:[sdmt]", "'(?:[sSdDmMtT]")


def _digits(expression: str) -> str | None:
    if r"\p{N}{1,3}" in expression or r"\d{1,3}" in expression or "[0-9][0-9][0-9]" in expression:
        return "three"
    pieces = [p.strip(" ()?:") for p in _alternatives(expression)]
    if any(p in (r"\p{N}", r"\p{Nd}", r"\d", "[0-9]", r"\p{N}{1}") for p in pieces):
        return "one"
    if any(re.fullmatch(r"(\\s)?\??(\\p\{N\}|\\d|\[0-9\])\+", p) for p in pieces):
        return "all"
    return None


def _alternatives(expression: str) -> list[str]:
    """The alternatives of an expression, those within brackets left whole."""
    found, depth, start, i = [], 0, 0, 0
    while i < len(expression):
        c = expression[i]
        if c == "\\":
            i += 1
        elif c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == "|" and depth == 0:
            found.append(expression[start:i])
            start = i + 1
        i += 1
    return [*found, expression[start:]]


def _contractions(every: str) -> str:
    at = next((i for i in map(every.find, _ANY_CASE) if i >= 0), -1)
    if at < 0:
        return "lower" if "'s|'t" in every else "none"
    is_suffix = at > 0 and every[:at].endswith((")+(?:", "]+(?:", ")+", "]+"))
    return "attached" if is_suffix else "any"


def _lines(every: str) -> str:
    if re.search(r"\+\[\\?r?\\?n?(\r\n|\\r\\n)/?\]\*", every):
        return "joined"
    if re.search(r"\\s\*\[(\\r\\n|\r\n)\]\+", every):
        return "runs"
    if re.search(r"(^|\|)\[(\\r\\n|\r\n)\](\||$)", every):
        return "single"
    return "spaces"
