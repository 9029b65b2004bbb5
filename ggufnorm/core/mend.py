"""What would mend a finding, as plain data, where the right value is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ggufnorm.core.floats import shortest_float32

MendKind = Literal[
    "key", "offset", "scale", "permutation", "byte-order", "swap", "rounding", "dtype", "values",
    "missing",
]  # fmt: skip
"""``key``: a key is set; ``missing``: a tensor is added; otherwise what is undone in a tensor."""


@dataclass(frozen=True)
class Mend:
    """What would make right what a finding is about.

    Attributes:
        kind: what is done.
        target: the key or tensor that is written.
        action: the same for a person, from its verb on: ``set llama.rope.freq_base to 500000``.
        from_source: whether the right value is the source's; else the file itself tells it.
        type: of the key's value, as gguf-py calls it (``f32``, ``arr[bool]``).
        value: the key's value, the values of a tensor that the source's config gives, or the
            number that is to be added to a tensor's values; None for a tensor whose values the
            source has.
        renames: the key under which the value stands, wrongly.
        override_kv: options of llama.cpp that do the same without a new file; None where
            they cannot.
        also: other tensors that are written in the same way.
    """

    kind: MendKind
    target: str
    action: str
    from_source: bool
    type: str | None = None
    value: Any = None
    renames: str | None = None
    override_kv: str | None = None
    also: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """All keys and tensors that are written."""
        return (self.target, *self.also)


def set_key(key: str, kind: str, value: Any, actual: Any, *, from_source: bool) -> Mend | None:
    """Set a key, or add it; None where its type cannot hold the value.

    Args:
        key: whole.
        kind: of the value: ``u32``, ``f32``, ``bool``, ``str``, ``arr[u32]``, ….
        value: the right one.
        actual: the file's; None if it lacks the key.
        from_source: see :class:`Mend`.
    """
    if not _fits(kind, value):
        return None
    verb = "set" if actual is not None else "add"
    shown = f"{verb} {key} {'to' if verb == 'set' else 'with'} {_shown(value)}"
    option = override_kv(key, kind, value, actual)
    return Mend("key", key, shown, from_source, kind, value, None, option)


_LARGEST = {"u32": 2.0**32 - 1, "i32": 2.0**31 - 1, "f32": 3.4e38}


def _fits(kind: str, value: Any) -> bool:
    """Whether a number is in its type's range: a config may have any."""
    values = value if isinstance(value, (list, tuple)) else [value]
    inner = kind[4:-1] if kind.startswith("arr[") else kind
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return all(abs(n) <= _LARGEST.get(inner, n) and (inner != "u32" or n >= 0) for n in numbers)


def undo(kind: MendKind, tensor: str, action: str) -> Mend:
    """Write a tensor as the source and the conversion have it."""
    return Mend(kind, tensor, action, True)


_LONGEST = 127
"""Characters of a key and of a string (``string_parse_kv_override`` in common/common.cpp)."""

_TYPES = {"bool": "bool", "str": "str", "f32": "float", "f64": "float"}
_PLAIN = re.compile(r"[\w.\-]+")

# Keys that llama.cpp looks for in the file before it looks at overrides: a missing one cannot be
# added by an option (llama_model_loader::get_key_or_arr in src/llama-model-loader.cpp).
_IN_THE_FILE = (
    "attention.head_count", "attention.head_count_kv", "feed_forward_length",
    "expert_feed_forward_length", "expert_used_count", "rope.dimension_sections",
    "attention.recurrent_layers", "swiglu_clamp_exp", "swiglu_clamp_shexp",
)  # fmt: skip

# Read off the file itself, past the overrides.
_PAST_OVERRIDES = ("tokenizer.chat_template", "general.architecture", "general.file_type")


def override_kv(key: str, kind: str, value: Any, actual: Any) -> str | None:
    """llama.cpp's option that sets a key for one run; None where none would."""
    if isinstance(value, (list, tuple)) or isinstance(actual, (list, tuple)):
        return None
    late = actual is None and key.partition(".")[2] in _IN_THE_FILE
    if late or key in _PAST_OVERRIDES or len(key) > _LONGEST or not _PLAIN.fullmatch(key):
        return None
    shown = _plain(value)
    if isinstance(value, str) and (len(shown) > _LONGEST or not _PLAIN.fullmatch(shown)):
        return None
    return f"--override-kv {key}={_TYPES.get(kind, 'int')}:{shown}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(shortest_float32(value)).removesuffix(".0")
    return str(value)


_MOST = 60


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value[:6]))}{', …' if len(value) > 6 else ''}]"
    text = _plain(value)
    return text if len(text) <= _MOST else f"the source's, {len(text):,} characters"


def of_one_target(mends: Sequence[Mend]) -> Mend | None:
    """The mend of several for one target; None if they contradict each other.

    What the source says goes before what the file itself tells.
    """
    best = [m for m in mends if m.from_source] or list(mends)
    values = {repr((m.value, m.renames)) for m in best}
    return best[0] if len(values) == 1 else None
