"""Reads SentencePiece's models: pieces with their scores and types, and how texts are normalized.

A model is one protocol buffer, ``ModelProto`` of ``sentencepiece_model.proto``. Fields that are
not asked for are passed by.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ggufnorm.errors import InputError

_MOST_PIECES = 1 << 22
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
"""Wire types of protocol buffers."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces; those of GGUF's tokens have the same numbers."""


@dataclass(frozen=True)
class Piece:
    """A token.

    Attributes:
        text: with ``▁`` for a space.
        score: the larger, the sooner it is taken.
        type: :data:`NORMAL` and so on.
    """

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePiece:
    """A model.

    Attributes:
        pieces: by id.
        add_dummy_prefix: whether a text gets a space before it.
        remove_extra_whitespaces: whether runs of spaces become one.
        charsmap: compiled map of letters that are replaced by others first (NFKC and the like);
            empty for none.
    """

    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    charsmap: bytes = b""


def parse(data: bytes, name: str) -> SentencePiece:
    """Parse a model.

    Args:
        data: the file.
        name: as messages call it.

    Raises:
        InputError: it is no such model.
    """
    pieces: list[Piece] = []
    prefix, spaces, charsmap = True, True, b""
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):  # ModelProto.pieces
                pieces.append(_piece(value))
            elif number == 3 and isinstance(value, bytes):  # ModelProto.normalizer_spec
                spec = list(_fields(value))
                switches = {n: v for n, v in spec if isinstance(v, int)}
                charsmap = next((v for n, v in spec if n == 2 and isinstance(v, bytes)), b"")
                prefix, spaces = bool(switches.get(3, 1)), bool(switches.get(4, 1))
            if len(pieces) > _MOST_PIECES:
                raise InputError(f"{name}: it has more than {_MOST_PIECES:,} pieces")
    except (ValueError, IndexError, struct.error):
        raise InputError(f"{name}: this is no SentencePiece model") from None
    if not pieces:
        raise InputError(f"{name}: this is no SentencePiece model: it has no pieces")
    return SentencePiece(tuple(pieces), prefix, spaces, charsmap)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Numbers and values of a message's fields."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        value: int | float | bytes
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _FLOAT:
            (value,) = struct.unpack_from("<f", data, at)
            at += 4
        elif wire == _DOUBLE:
            (value,) = struct.unpack_from("<d", data, at)
            at += 8
        elif wire == _BYTES:
            size, at = _varint(data, at)
            if size > len(data) - at:
                raise ValueError("a field is longer than its message")
            value, at = data[at : at + size], at + size
        else:
            raise ValueError("unknown wire type")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
