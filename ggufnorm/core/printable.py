"""Text from files, made harmless for a terminal, a log or a page."""

from __future__ import annotations

MOST = 2000
"""Characters of a text that are shown: a name in a GGUF file can have 20 million."""


def printable(text: str, limit: int = MOST) -> str:
    """Text without characters that could steer a terminal or reorder a line, and not too long.

    Args:
        text: from a file, a file's name or a command line.
        limit: characters of it to show; behind them is said how many more there are.

    Returns:
        One line. Control and format characters (escapes, line ends, bidirectional overrides),
        halves of surrogate pairs and unassigned characters are written as Python escapes.
    """
    shown = text if text.isprintable() else "".join(map(_escaped, text[:limit]))
    left = len(text) - limit
    return shown if left <= 0 else f"{shown[:limit]}… ({left:,} more characters)"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
