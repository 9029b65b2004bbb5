"""A folder's tokenizer, by Transformers."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.pretrained import quiet
from ggufnorm.errors import EngineMissingError
from ggufnorm.formats.files import read_regular

Tokens = NDArray[np.int32]

_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Files one of which a tokenizer is made of; without any, Transformers makes up an empty one."""


_MOST_BYTES = 1 << 26
_SPECIAL = ("bos", "eos", "unk", "sep", "cls")


def _states_bos(folder: Path) -> bool:
    """Whether a tokenizer's files say if BOS is added."""
    if (folder / "tokenizer.json").exists():  # by its post-processor, or that there is none
        return True
    try:
        config = json.loads(read_regular(folder / "tokenizer_config.json", _MOST_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and isinstance(config.get("add_bos_token"), bool)


def needs(folder: str | os.PathLike[str]) -> str | None:
    """The package without which Transformers does not load the tokenizer in a folder."""
    has = {name for name in _FILES if (Path(folder) / name).exists()}
    pieces = has & {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"}
    if pieces and "tokenizer.json" not in has and find_spec("sentencepiece") is None:
        return "sentencepiece"
    return None


class Tokenizer:
    """A tokenizer of Transformers; see :meth:`of`.

    Attributes:
        states_bos: whether its files say if BOS is added, or it is left to Transformers, whose
            releases differ (5 adds none where 4 did).
    """

    def __init__(self, inner: Any, *, states_bos: bool = True) -> None:
        self._inner = inner
        self.states_bos = states_bos

    @classmethod
    def of(
        cls, folder: str | os.PathLike[str], *, trust_remote_code: bool = False
    ) -> Tokenizer | None:
        """The tokenizer in a folder; None if there is none that loads.

        Args:
            folder: nothing is fetched.
            trust_remote_code: run the Python files in the folder; only for code that you trust.

        Raises:
            EngineMissingError: there is one, and transformers is not installed.
        """
        if not any((Path(folder) / name).exists() for name in _FILES):
            return None
        try:
            with quiet():
                import transformers
        except ImportError as error:
            raise EngineMissingError(
                f"the tokenizer in {os.fspath(folder)} needs transformers ({error}):"
                ' pip install "ggufnorm[hf]"'
            ) from None
        try:
            with quiet():
                inner = transformers.AutoTokenizer.from_pretrained(
                    os.fspath(folder), local_files_only=True, trust_remote_code=trust_remote_code
                )
        except Exception:  # a tokenizer that does not load raises one of many errors
            return None
        return cls(inner, states_bos=_states_bos(Path(folder)))

    @classmethod
    def beside(cls, model: str | os.PathLike[str]) -> Tokenizer | None:
        """The tokenizer in a model file's folder or in the one above; None if neither has one.

        Raises:
            EngineMissingError: there is one, and transformers is not installed.
        """
        folder = Path(model).resolve().parent
        return cls.of(folder) or cls.of(folder.parent)

    def ids(self, text: str) -> Tokens:
        """Ids of a text."""
        with quiet():
            return np.array(self._inner(text)["input_ids"], np.int32)

    def span(self, text: str, position: int) -> tuple[int, int]:
        """Which letters of a text an id stands for; all of them where that cannot be told."""
        try:
            with quiet():
                offsets = self._inner(text, return_offsets_mapping=True)["offset_mapping"]
        except (NotImplementedError, KeyError, ValueError):  # not by Rust's tokenizers
            return 0, len(text)
        if position >= len(offsets):
            return len(text), len(text)
        start, end = offsets[position]
        return int(start), int(end)

    @property
    def padding_side(self) -> Literal["left", "right"]:
        """Where it pads the shorter texts of a batch."""
        return "left" if getattr(self._inner, "padding_side", "right") == "left" else "right"

    @property
    def gives_types(self) -> bool:
        """Whether it gives the tokens of a second text another type."""
        return "token_type_ids" in getattr(self._inner, "model_input_names", ())

    def id_of(self, token: str) -> int | None:
        """Id of a token; None where it knows none of that name."""
        found = self._inner.get_vocab().get(token)
        return found if isinstance(found, int) else None

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of special tokens by the name that Transformers gives them, ``bos`` …"""
        found = {n: getattr(self._inner, f"{n}_token_id", None) for n in _SPECIAL}
        return {name: token for name, token in found.items() if isinstance(token, int)}

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Tokens such as BOS, in the order in which the tokenizer names them."""
        return tuple(dict.fromkeys(str(t) for t in self._inner.all_special_tokens))

    def piece(self, token: int) -> str:
        """The text of a token."""
        return str(self._inner.decode([token]))

    def vocabulary(self) -> str:
        """Digest of the texts and their ids."""
        known = sorted(self._inner.get_vocab().items())
        return hashlib.sha256(repr(known).encode()).hexdigest()
