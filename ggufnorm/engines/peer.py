"""A child process that answers one question after the other, for as long as its parent asks.

:func:`ggufnorm.engines.worker.call` runs one task; a peer holds something (a loaded model) and is
asked about it. Questions and answers are frames; the child dies with its parent.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ggufnorm.engines.frames import read_frame, with_arrays, write_frame
from ggufnorm.engines.worker import (
    Child,
    error_frame,
    import_task,
    open_frames,
    send,
    start_process,
)

Read = Callable[[], Any]
"""The next question, None when the parent has gone."""

Write = Callable[[Any], None]
"""Sends an answer."""

Serve = Callable[[Read, Write, str], None]
"""A function at the top of a module: reads and writes until there is no question left."""


class Peer:
    """A running child.

    Args:
        serve: what it runs.
        argument: for it.
        environment: variables of the child that differ from this process's; None removes one.
        descriptors: that it inherits.
    """

    def __init__(
        self,
        serve: Serve,
        argument: str,
        environment: Mapping[str, str | None],
        descriptors: tuple[int, ...] = (),
    ) -> None:
        name = f"{serve.__module__}:{serve.__qualname__}"
        self._child = Child(
            start_process("peer", name, argument, changes=environment, descriptors=descriptors)
        )
        self._turn = threading.Lock()

    def ask(self, question: Any) -> Any:
        """What the child answers, in plain form with its arrays.

        Raises:
            GgufnormError: the child raised it, or died.
        """
        with self._turn:
            try:
                write_frame(self._child.stdin, question)
            except OSError:
                raise self._child.death() from None
            assert self._child.process.stdout
            frame = read_frame(self._child.process.stdout)
        if frame is None:
            raise self._child.death()
        message = with_arrays(*frame)
        if "error" in message:
            raise self._child.error(message["error"])
        return message["answer"]

    def end(self) -> None:
        """Kill the child, and close its pipes."""
        self._child.end()


def main() -> None:
    """The child: run what the command line names."""
    out, stdin = open_frames(), os.fdopen(os.dup(0), "rb")

    def read() -> Any:
        frame = read_frame(stdin)
        return None if frame is None else with_arrays(*frame)

    def write(answer: Any) -> None:
        send(out, {"answer": answer})

    try:
        import_task(sys.argv[1])(read, write, sys.argv[2])
    except BrokenPipeError:
        pass
    except Exception as error:
        send(out, error_frame(error))
    out.flush()
    os._exit(0)  # without the interpreter's teardown, which backends do not always survive
