"""The file's tokens, scores and merges beside those of the source's tokenizer, id by id.

Made of ``get_vocab_base`` and ``_create_vocab_sentencepiece`` of ``conversion/base.py``: ids that
no token has are written as ``[PAD…]``, and WordPiece's words and their parts change their marks
(conversion/bert.py). Added tokens may be written in other words there; they may not be lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufnorm.analysis.audit.source.keys.added import PLACEHOLDER, added_tokens, pieces_of
from ggufnorm.analysis.audit.source.keys.facts import Configs
from ggufnorm.formats.sentencepiece import NORMAL

TOKENS, MERGES, SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores"

_SHOWN = 40
"""Characters of a token that a message shows."""

_FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]
"""XLM-RoBERTa's first tokens, after which ids are SentencePiece's plus 1."""


@dataclass(frozen=True)
class Difference:
    """Tokens, scores or merges that are not the source's.

    Attributes:
        key: of the list.
        what: one of its entries, in words.
        n: how many differ.
        total: how many were compared.
        first: the place of the first.
        here: what the file has there; None if its list has ended.
        there: what the source has; None if its list has ended.
    """

    key: str
    what: str
    n: int
    total: int
    first: int
    here: str | None
    there: str | None

    @property
    def message(self) -> str:
        """In words."""
        return (
            f"{self.key}: {self.n:,} of {self.total:,} {self.what}s are not the source's, the first"
            f" is {self.what} {self.first:,}: {_quoted(self.here)} for {_quoted(self.there)}"
        )


def vocabulary_differences(c: Configs) -> list[Difference] | None:
    """What differs of the lists; None where nothing tells what they should be."""
    fast = c.source.read_json("tokenizer.json") or {}
    model = fast.get("model")
    model = model if isinstance(model, dict) else {}
    metadata = c.file.metadata
    here = metadata.get(TOKENS)
    if not isinstance(here, list):
        return None
    found: list[Difference | None] = []
    added = added_tokens(c)
    listed = _listed(c, model, here)
    if listed:
        plain = {i: t for i, (t, _) in listed.items() if i not in added}
        found.append(_of_tokens(here, plain, "token"))
        scores = metadata.get(SCORES)
        wanted = {i: s for i, (_, s) in listed.items() if s is not None and i not in added}
        if wanted and isinstance(scores, list):
            found.append(_of_scores(scores, wanted))
    if added:
        wanted_texts = {i: text for i, (text, _) in added.items()}
        found.append(_of_added(here, _without_mask(here, wanted_texts)))
    merges, own = _merges(model), metadata.get(MERGES)
    if merges is not None and isinstance(own, list):
        found.append(_of_merges(own, merges))
    return [d for d in found if d is not None] if found else None


def _listed(
    c: Configs, model: Mapping[str, Any], here: list[Any]
) -> dict[int, tuple[str, float | None]]:
    """Tokens and scores by id, as tokenizer.json lists them; else the SentencePiece model."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        is_word_piece = model.get("type") == "WordPiece"
        return {
            i: (_word(text) if is_word_piece else text, None)
            for text, i in vocabulary.items()
            if isinstance(i, int) and not isinstance(i, bool) and i >= 0
        }
    if isinstance(vocabulary, list):
        rows = [v for v in vocabulary if isinstance(v, list) and len(v) == 2]
        whole = len(rows) == len(vocabulary) and all(isinstance(t, str) for t, _ in rows)
        return {i: (t, float(s)) for i, (t, s) in enumerate(rows)} if whole else {}
    pieces = pieces_of(c) if c.file.metadata.string("tokenizer.ggml.model") == "llama" else None
    shift = 1 if here[:4] == _FAIRSEQ else 0
    return {
        i + shift: (p.text, p.score)
        for i, p in enumerate(pieces.pieces if pieces else ())
        if p.type == NORMAL
    }


def _of_tokens(here: Sequence[Any], wanted: Mapping[int, str], what: str) -> Difference | None:
    bad = [i for i, t in wanted.items() if i >= len(here) or not _same(here[i], t)]
    if not bad:
        return None
    i = min(bad)
    own = str(here[i]) if i < len(here) else None
    return Difference(TOKENS, what, len(bad), len(wanted), i, own, wanted[i])


def _of_scores(here: Sequence[Any], wanted: Mapping[int, float]) -> Difference | None:
    bad = [i for i, s in wanted.items() if i >= len(here) or not _near(here[i], s)]
    if not bad:
        return None
    i = min(bad)
    own = f"{here[i]:.6g}" if i < len(here) else None
    return Difference(SCORES, "score", len(bad), len(wanted), i, own, f"{wanted[i]:.6g}")


def _near(a: object, b: float) -> bool:
    return isinstance(a, (int, float)) and abs(a - b) <= 1e-5 * max(1.0, abs(b))


def _without_mask(here: Sequence[Any], added: Mapping[int, str]) -> Mapping[int, str]:
    """The added tokens but for XLM-RoBERTa's mask where the converter leaves a gap for it.

    It stands in no SentencePiece model (``_xlmroberta_set_vocab`` in ``conversion/bert.py``).
    """
    if here[:4] != _FAIRSEQ:
        return added
    gaps = {i for i, t in enumerate(here) if PLACEHOLDER.fullmatch(str(t))}
    return {i: text for i, text in added.items() if text != "<mask>" or i not in gaps}


def _of_added(here: Sequence[Any], added: Mapping[int, str]) -> Difference | None:
    """Added tokens in whose place there is nothing, or another of them."""
    texts = set(added.values())

    def is_lost(i: int, text: str) -> bool:
        if i >= len(here):
            return True
        own = str(here[i])
        if own == text or PLACEHOLDER.fullmatch(text):
            return False
        return bool(PLACEHOLDER.fullmatch(own)) or own in texts

    bad = [i for i, text in added.items() if is_lost(i, text)]
    if not bad:
        return None
    i = min(bad)
    own = str(here[i]) if i < len(here) else None
    return Difference(TOKENS, "added token", len(bad), len(added), i, own, added[i])


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
    return Difference(MERGES, "merge", len(bad), n, i, own, other)


def _same(here: object, there: str) -> bool:
    return here == there or (
        isinstance(here, str) and here.replace("\u2581", " ") == there.replace("\u2581", " ")
    )


def _quoted(text: str | None) -> str:
    return "nothing" if text is None else ascii(text[:_SHOWN])
