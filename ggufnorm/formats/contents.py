"""What a file holds, by its first bytes, where that is no model.

Users name a picture where a model was meant, or have a web page under a model's name because a
download needed a login: messages say what the file is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ContentKind = Literal["picture", "sound", "array", "report", "pickle", "pointer", "page", "text"]
"""Contents that are no model:

- ``array``: NumPy's .npy or .npz; ``report``: a result that was saved as JSON;
- ``pickle``: PyTorch's weights, ``pytorch_model.bin``;
- ``pointer``: what Git LFS puts in a file's place; ``page``: HTML;
- ``text``: UTF-8 that is none of those, and no JSON object.

A ``pointer`` or a ``page`` is in the place of a file that is not there.
"""


@dataclass(frozen=True)
class _Content:
    kind: ContentKind
    words: str
    starts: bytes
    """Regular expression of the first bytes."""


_CONTENTS = (
    _Content("picture", "a picture",
             rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0\0\0\0|II\*\0|MM\0\*"
             rb"|P[1-6]\s+[\d#]"),
    _Content("sound", "a sound", rb"RIF[FX].{4}WAVE|RF64.{4}WAVE|fLaC|OggS|ID3"),
    _Content("array", "a NumPy array", rb"\x93NUMPY|PK\x03\x04.{26}[^/]{1,200}\.npy"),
    _Content("pickle", "a PyTorch pickle",
             rb"PK\x03\x04.{26}[^/]{1,200}/(data\.pkl|\.format_version)|\x80\x02\x8a\x0a"),
    _Content("pointer", "a Git LFS pointer, fetched without the file that it stands for"
             " (git lfs pull)", rb"version https://git-lfs\.github\.com/spec/"),
    _Content("page", "a web page: the download needs a login or has another address",
             rb"\s*(<!--.{0,400}?-->\s*)?<(!doctype html|html|head|\?xml)"),
    _Content("report", "a result of ggufnorm, saved as JSON", rb'\s*\{\s*"schema": "ggufnorm/'),
)  # fmt: skip

_PATTERNS = tuple((c, re.compile(c.starts, re.DOTALL | re.IGNORECASE)) for c in _CONTENTS)
_OBJECT = re.compile(rb"\s*\{\s*[\"}]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")


def content_of(start: bytes) -> ContentKind | None:
    """What begins so; None if it is not known.

    Args:
        start: the first bytes of a file, some hundred at least.
    """
    found = _known(start)
    if found is not None:
        return found.kind
    return "text" if _is_text(start) else None


def words_for(start: bytes) -> str:
    """What begins so, as part of a sentence: ``a picture``; empty if it is not known."""
    found = _known(start)
    return found.words if found else ""


def _known(start: bytes) -> _Content | None:
    return next((c for c, pattern in _PATTERNS if pattern.match(start)), None)


def _is_text(start: bytes) -> bool:
    if not start.strip() or _CONTROL.search(start) or _OBJECT.match(start):
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.end == len(start) and error.start > len(start) - 4  # cut within a character
    return True
