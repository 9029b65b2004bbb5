"""What a source's files say of its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from ggufnorm.analysis.audit.source.keys.facts import Configs
from ggufnorm.analysis.audit.source.keys.splitting import Traits, source_traits


class Tokenizer:
    """What a source's files say of its tokenizer.

    Args:
        c: the source's configs.
    """

    def __init__(self, c: Configs) -> None:
        self._c = c
        self.config: Mapping[str, Any] = c.source.read_json("tokenizer_config.json") or {}
        self.fast: Mapping[str, Any] = c.source.read_json("tokenizer.json") or {}
        self.generation: Mapping[str, Any] = c.source.read_json("generation_config.json") or {}
        self.special: Mapping[str, Any] = c.source.read_json("special_tokens_map.json") or {}

    @property
    def exists(self) -> bool:
        """Whether the source has any tokenizer."""
        names = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json",
                 "sentencepiece.bpe.model", "spiece.model")  # fmt: skip
        return any(self._c.source.has(n) for n in names)

    def token(self, kind: str) -> str | None:
        """The text of a special token."""
        for config in (self.config, self.special):
            value = config.get(f"{kind}_token")
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
        return None

    def ids(self, kind: str) -> set[int]:
        """All ids that the configs name for a special token."""
        found: set[int] = set()
        for config in (self._c.config, self._c.source.config, self.generation):
            value = config.get(f"{kind}_token_id")
            values = [*value] if isinstance(value, list) else [value]
            if kind == "eos":
                values += [config.get("eod_token_id"), config.get("eot_token_id")]
            found |= {v for v in values if isinstance(v, int) and not isinstance(v, bool)}
        return found

    @cached_property
    def added(self) -> dict[str, int]:
        """Ids of the tokens that are named in tokenizer.json."""
        listed = self.fast.get("added_tokens")
        tokens = listed if isinstance(listed, list) else []
        found = {
            t["content"]: t["id"]
            for t in tokens
            if isinstance(t, dict)
            and isinstance(t.get("content"), str)
            and isinstance(t.get("id"), int)
        }
        model = self.fast.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        return {**(vocabulary if isinstance(vocabulary, dict) else {}), **found}

    def adds(self, kind: str) -> tuple[bool, str] | None:
        """Whether BOS or EOS is put around a text, and who says so; None if nobody does."""
        flag = self.config.get(f"add_{kind}_token")
        template = self._template(kind)
        if template is not None:
            return template
        if isinstance(flag, bool):
            return flag, f"tokenizer_config.json has add_{kind}_token {str(flag).lower()}"
        if self._c.model_type in ("xlm-roberta", "roberta", "camembert"):
            return True, f"the tokenizer of {self._c.model_type} does"
        return None

    def _template(self, kind: str) -> tuple[bool, str] | None:
        processors = self.fast.get("post_processor")
        if not isinstance(processors, dict):
            return None
        inner = processors.get("processors")
        for p in inner if isinstance(inner, list) else [processors]:
            if not isinstance(p, dict):
                continue
            if p.get("type") == "TemplateProcessing" and isinstance(p.get("single"), list):
                single = p["single"]
                special = [isinstance(s, dict) and "SpecialToken" in s for s in single]
                if not special:
                    return None
                there = special[0] if kind == "bos" else special[-1]
                verb = "begin" if kind == "bos" else "end"
                said = f"{verb}s" if there else f"does not {verb}"
                return there, f"tokenizer.json's template {said} with a special token"
            if p.get("type") in ("BertProcessing", "RobertaProcessing"):
                return True, f"tokenizer.json has {p['type']}"
        return None

    @cached_property
    def traits(self) -> Traits | None:
        """How texts are split before merging; None if that is not known."""
        return source_traits(self.fast)

    @cached_property
    def normalizers(self) -> list[Mapping[str, Any]]:
        """What is done to letters and spaces first, one after the other."""
        return [*_nested(self.fast.get("normalizer"), "normalizers")]

    @property
    def prefixes(self) -> bool | None:
        """Whether a text gets a space before it; None if tokenizer.json does not tell."""
        kinds = {p.get("type") for p in self.normalizers}
        if "Prepend" in kinds:
            return True
        parts = [*_nested(self.fast.get("pre_tokenizer"), "pretokenizers")]
        scheme = next((p for p in parts if p.get("type") == "Metaspace"), None)
        if scheme is not None:
            if isinstance(scheme.get("prepend_scheme"), str):
                return bool(scheme["prepend_scheme"] != "never")
            return bool(scheme.get("add_prefix_space", True))
        return False if "Replace" in kinds else None

    @property
    def ignores_merges(self) -> bool:
        """Whether a word that is a token is taken without merging."""
        model = self.fast.get("model")
        return isinstance(model, dict) and model.get("ignore_merges") is True


def _nested(value: object, name: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a normalizer or pre-tokenizer that may be a sequence of them."""
    if isinstance(value, dict):
        inner = value.get(name)
        for part in inner if isinstance(inner, list) else [value]:
            if part is value:
                yield part
            else:
                yield from _nested(part, name)
