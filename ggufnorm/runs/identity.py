"""What decides a result: a checkpoint goes on only with the same, and says what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ggufnorm.core.plain import to_plain
from ggufnorm.engines.base import EngineInfo

_PLACES = ("library", "origin", "llama_cpp")
"""Fields that say where a build lies, which decides nothing."""
_LONGEST = 400
"""Characters of a value that is kept as it is; a longer one is kept as its digest."""
_FEW = 4
"""Records in a list that are kept one by one."""
_MOST = 4
"""Differences that a message names."""


@dataclass(frozen=True)
class Identity:
    """Everything that decides a result.

    Attributes:
        facts: plain data, whose long values are digests.
    """

    facts: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """Of all facts."""
        return _digest(json.dumps(self.facts, sort_keys=True).encode())

    def differences(self, earlier: Any) -> list[str]:
        """In words, where an earlier job's facts are others."""
        found = list(_differences(earlier, self.facts, ""))
        more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
        return found[:_MOST] + more


def identify(*engines: EngineInfo, **decisive: Any) -> Identity:
    """What decides a result.

    Args:
        engines: that run the models.
        decisive: everything else, by name.
    """
    facts = {"engines": list(map(to_plain, engines)), **to_plain(decisive)}
    return Identity({name: _brief(value) for name, value in facts.items()})


def _brief(value: Any) -> Any:
    """Plain data that JSON keeps and a person can read: long values by their digests."""
    if hasattr(value, "tobytes"):
        return _digest(value.tobytes())
    if isinstance(value, dict):
        return {str(k): _brief(part) for k, part in value.items() if k not in _PLACES}
    text = value if isinstance(value, str) else None
    if isinstance(value, (list, tuple)):
        value = [_brief(part) for part in value]
        text = None if 0 < len(value) <= _FEW and _are_records(value) else json.dumps(value)
    return value if text is None or len(text) <= _LONGEST else _digest(text.encode())


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _differences(before: Any, now: Any, at: str) -> Iterator[str]:
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*now, *before)):
            yield from _differences(before.get(key), now.get(key), f"{at}.{key}" if at else key)
    elif _are_records(before) and _are_records(now) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(*pair, f"{at}[{i}]" if len(now) > 1 else at)
    else:
        yield f"{at} was {_shown(before)} and is {_shown(now)}"


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)


def _shown(value: Any) -> str:
    """A value as a message has it; digests cut short."""
    if isinstance(value, str):
        return f"{value[:12]}…" if len(value) == 64 and value.isalnum() else value
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "nothing"
    return json.dumps(value)
