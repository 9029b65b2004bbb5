"""The file's tokens and merges beside tokenizer.json's, id by id.

Made of ``get_vocab_base`` of ``conversion/base.py``: ids that no token has are written as
``[PAD…]``, and WordPiece's words and their parts change their marks (conversion/bert.py). Added
tokens may be written in other words there, and are left out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufnorm.analysis.audit.source.keys.facts import Configs

TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"

_SHOWN = 40
"""Characters of a token that a message shows."""


@dataclass(frozen=True)
class Difference:
    """Tokens or merges that are not the source's.

    Attributes:
        key: of the list.
        n: how many differ.
        total: how many were compared.
        first: the place of the first.
        here: what the file has there; None if its list has ended.
        there: what the source has; None if its list has ended.
    """

    key: str
    n: int
    total: int
    first: int
    here: str | None
    there: str | None

    @property
    def message(self) -> str:
        """In words."""
        what = "token" if self.key == TOKENS else "merge"
        return (
            f"{self.key}: {self.n:,} of {self.total:,} {what}s are not tokenizer.json's, the first"
            f" is {what} {self.first:,}: {_quoted(self.here)} for {_quoted(self.there)}"
        )


def vocabulary_differences(c: Configs) -> list[Difference] | None:
    """Tokens and merges that differ; None where nothing tells what they should be."""
    fast = c.source.read_json("tokenizer.json") or {}
    model = fast.get("model")
    if not isinstance(model, dict):
        return None
    found: list[Difference] = []
    compared = False
    wanted = _tokens(model, fast.get("added_tokens"))
    here = c.file.metadata.get(TOKENS)
    if wanted and isinstance(here, list):
        compared = True
        bad = [i for i, t in wanted.items() if i >= len(here) or not _same(here[i], t)]
        if bad:
            i = min(bad)
            own = str(here[i]) if i < len(here) else None
            found.append(Difference(TOKENS, len(bad), len(wanted), i, own, wanted[i]))
    merges, own_merges = _merges(model), c.file.metadata.get(MERGES)
    if merges is not None and isinstance(own_merges, list):
        compared = True
        difference = _of_merges(own_merges, merges)
        found += [difference] if difference else []
    return found if compared else None


def _tokens(model: Mapping[str, Any], added: object) -> dict[int, str]:
    """Tokens by id, those that no list of added tokens names."""
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        return {}
    listed = added if isinstance(added, list) else []
    left_out = {t.get("id") for t in listed if isinstance(t, dict)}
    is_word_piece = model.get("type") == "WordPiece"
    return {
        i: _word(text) if is_word_piece else text
        for text, i in vocabulary.items()
        if isinstance(i, int) and not isinstance(i, bool) and i >= 0 and i not in left_out
    }


def _word(text: str) -> str:
    """As conversion/bert.py writes it."""
    if text.startswith("[") and text.endswith("]"):
        return text
    return text[2:] if text.startswith("##") else "\u2581" + text


def _merges(model: Mapping[str, Any]) -> list[str] | None:
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges:
        return None
    if all(isinstance(m, str) for m in merges):
        return merges
    pairs = [m for m in merges if isinstance(m, list) and len(m) == 2]
    if len(pairs) < len(merges) or not all(isinstance(p, str) for m in pairs for p in m):
        return None
    # A space within a part stands as Ġ (gguf.SpecialVocab).
    return [" ".join(p.replace(" ", "\u0120") for p in m) for m in pairs]


def _of_merges(here: Sequence[Any], there: Sequence[str]) -> Difference | None:
    n = max(len(here), len(there))
    bad = [i for i in range(n) if here[i : i + 1] != there[i : i + 1]]
    if not bad:
        return None
    i = bad[0]
    own, other = [*here[i : i + 1], None][0], [*there[i : i + 1], None][0]
    return Difference(MERGES, len(bad), n, i, own, other)


def _same(here: object, there: str) -> bool:
    return here == there or (
        isinstance(here, str) and here.replace("\u2581", " ") == there.replace("\u2581", " ")
    )


def _quoted(text: str | None) -> str:
    return "nothing" if text is None else ascii(text[:_SHOWN])
