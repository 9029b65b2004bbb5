"""Messages between processes: JSON with the arrays behind it as they lie in memory.

No pickle: a child that read a hostile file must not be able to run code in its parent.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

from ggufnorm.core.plain import to_plain

_SIZES = struct.Struct("<II")


def write_frame(stream: IO[bytes], value: Any) -> None:
    """Write a value: its plain form as JSON, and the bytes of its arrays behind it.

    Args:
        stream: of bytes.
        value: a dataclass, or a dict that holds some. As in a saved report, NaN and infinity
            become None; in arrays they stay.

    The frame is the length of the JSON and the number of buffers (``<II``), the length of
    each buffer (``<Q``), the JSON, and the buffers.
    """
    buffers: list[Any] = []

    def out_of_line(value: Any) -> dict[str, Any]:
        import numpy as np

        if isinstance(value, bytes):
            buffers.append(value)
            return {"$bytes": len(buffers) - 1}
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} does not cross to another process")
        # Not ascontiguousarray: it makes a row of a number.
        values = np.asarray(value, order="C")
        buffers.append(values.reshape(-1).view(np.uint8).data if values.size else b"")
        return {"$array": len(buffers) - 1, "dtype": values.dtype.str, "shape": values.shape}

    text = json.dumps(to_plain(value), default=out_of_line, allow_nan=False).encode()
    sizes = [len(b) for b in buffers]
    stream.write(_SIZES.pack(len(text), len(buffers)))
    stream.write(struct.pack(f"<{len(sizes)}Q", *sizes))
    stream.write(text)
    for buffer in buffers:
        stream.write(buffer)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[Any, list[bytearray]] | None:
    """The plain form of what :func:`write_frame` wrote, and its buffers; None at the end.

    Half a frame, as a killed child leaves it, is the end too.
    """
    start = stream.read(_SIZES.size)
    if len(start) < _SIZES.size:
        return None
    n_text, n_buffers = _SIZES.unpack(start)
    raw = stream.read(8 * n_buffers)
    if len(raw) < 8 * n_buffers:
        return None
    sizes = (n_text, *struct.unpack(f"<{n_buffers}Q", raw))
    parts = []
    for n in sizes:
        part = bytearray(n)
        if not _fill(stream, part):
            return None
        parts.append(part)
    text, *buffers = parts
    return json.loads(text), buffers


def _fill(stream: IO[bytes], part: bytearray) -> bool:
    """Read what a buffer holds; whether there was so much."""
    left = memoryview(part)
    while left:
        got = stream.readinto(left)  # type: ignore[attr-defined]  # which IO does not declare
        if not got:
            return False
        left = left[got:]
    return True


def with_arrays(plain: Any, buffers: list[bytearray]) -> Any:
    """The plain form of :func:`read_frame` with its buffers where they belong, as arrays."""
    if isinstance(plain, list):
        return [with_arrays(v, buffers) for v in plain]
    if not isinstance(plain, dict):
        return plain
    if "$bytes" in plain:
        return bytes(buffers[plain["$bytes"]])
    if "$array" in plain:
        import numpy as np

        # Of the buffer's own memory: what crossed may be written to.
        return np.frombuffer(buffers[plain["$array"]], np.dtype(plain["dtype"])).reshape(
            plain["shape"]
        )
    return {k: with_arrays(v, buffers) for k, v in plain.items()}
