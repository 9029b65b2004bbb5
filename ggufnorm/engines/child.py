"""Run a function in a child process, so that a crash in llama.cpp is only an error here.

A malformed file can abort the process inside llama.cpp (``GGML_ASSERT``), and a wrong
kernel can kill it with a signal. The child is a fresh Python that imports the function by
name; the job goes in as one line of JSON on its standard input, messages come out as
lines of JSON on its standard output, and what llama.cpp logs goes to its standard error,
whose last lines are kept for the error message.

The child stops by itself when its standard input ends (the parent died) and between two
messages when it reads a line there (the parent wants to stop).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from ggufnorm import errors
from ggufnorm.errors import EngineError, GgufnormError, MemoryLimitError

Emit = Callable[[dict[str, Any]], None]
"""Sends a progress message to the parent."""
Task = Callable[[dict[str, Any], Emit, threading.Event], dict[str, Any]]
"""``(job, emit, stop) -> result``; ends early with what it has when ``stop`` is set."""

_LOG_LINES = 12
_PATIENCE = 5.0
"""Seconds for a child that has failed to end."""

_ENVIRONMENT = {
    # The lanes' thread teams take turns: a team that spins while it waits for its turn
    # takes the processors from the one whose turn it is.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc must keep what is freed, for all lanes: the next value needs it, and to have pages
    # of the system costs more than the arithmetic on them.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    # ggml_print_backtrace in ggml/src/ggml.c would start a debugger and drown the log.
    "GGML_NO_BACKTRACE": "1",
}


def run_in_child(
    task: Task,
    job: Mapping[str, Any],
    on_message: Callable[[dict[str, Any]], None],
    *,
    heeds_stop: bool = False,
) -> dict[str, Any]:
    """Run ``task(job, emit, stop)`` in a child process and return its result.

    Args:
        task: a function at the top of a module.
        job: its argument, JSON-like.
        on_message: gets what the task emits.
        heeds_stop: whether the task ends early with what it has when it is asked to. The
            first Ctrl-C asks, and the second ends it; another task is ended by the first.

    Raises:
        GgufnormError: whatever the task raised of that tree.
        EngineError: the child died, or raised anything else.
        KeyboardInterrupt: the task was ended.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "ggufnorm.engines.child", f"{task.__module__}:{task.__qualname__}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # the terminal's Ctrl-C must reach the parent alone
        env={**_ENVIRONMENT, **os.environ},
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    log: deque[str] = deque(maxlen=_LOG_LINES)
    reader = threading.Thread(target=_keep_last, args=(process.stderr, log), daemon=True)
    reader.start()
    try:
        process.stdin.write(json.dumps(dict(job)).encode())
        process.stdin.write(b"\n")
        process.stdin.flush()
        return _listen(_messages(process, heeds_stop), process, on_message, log, reader)
    except BrokenPipeError:
        raise _death(process, log, reader) from None
    finally:
        process.kill()
        process.wait()
        reader.join()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                stream.close()


def _listen(
    messages: Iterator[dict[str, Any]],
    process: subprocess.Popen[bytes],
    on_message: Callable[[dict[str, Any]], None],
    log: deque[str],
    reader: threading.Thread,
) -> dict[str, Any]:
    for message in messages:
        if message["type"] == "result":
            result: dict[str, Any] = message["result"]
            return result
        if message["type"] == "error":
            reader.join(_PATIENCE)  # what was logged may still be on its way
            raise _rebuild(message, log)
        on_message(message)
    raise _death(process, log, reader)


def _messages(process: subprocess.Popen[bytes], heeds_stop: bool) -> Iterator[dict[str, Any]]:
    assert process.stdin
    assert process.stdout
    # A thread reads: an interrupted readline would lose what it had read of its line.
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stdout = process.stdout

    def read() -> None:
        for line in stdout:
            lines.put(line)
        lines.put(b"")

    threading.Thread(target=read, daemon=True).start()
    asked = not heeds_stop
    while True:
        try:
            line = lines.get()
        except KeyboardInterrupt:
            if asked:
                raise
            asked = True
            with contextlib.suppress(OSError):
                process.stdin.write(b"stop\n")
                process.stdin.flush()
            continue
        if not line:
            return
        yield json.loads(line)


def _rebuild(message: dict[str, Any], log: deque[str]) -> GgufnormError:
    kind = getattr(errors, message["kind"], None)
    if isinstance(kind, type) and issubclass(kind, EngineError):
        return kind(message["message"], tuple(log))
    if kind is errors.GGUFError:  # its offset and field stand in the message
        return errors.InputError(message["message"])
    if isinstance(kind, type) and issubclass(kind, GgufnormError):
        return kind(message["message"])
    return EngineError(f"{message['kind']} in the engine: {message['message']}", tuple(log))


def _death(
    process: subprocess.Popen[bytes], log: deque[str], reader: threading.Thread
) -> EngineError:
    code = process.wait()
    reader.join()
    if code < 0:
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            how = "the engine was killed (SIGKILL): most likely the system ran out of memory"
            return MemoryLimitError(how, tuple(log))
        how = f"llama.cpp crashed ({name})"
    else:
        how = f"the engine ended without a result (exit code {code})"
    return EngineError(how, tuple(log))


# What llama.cpp logs on every load, and says nothing about a failure.
_NOISE = re.compile(r"^(llama_|load|print_info|init_|\.+$|create_|sched_|graph_|resolve_|set_|~)")


def _keep_last(stream: IO[bytes], log: deque[str]) -> None:
    for raw in stream:
        line = raw.decode(errors="replace").rstrip()
        important = re.search(
            r"error|fail|assert|abort|invalid|support|does not|cannot", line, re.I
        )
        if line and (important or not _NOISE.match(line)):
            log.append(line)


def peak_memory() -> int | None:
    """Most resident memory that this process ever had, in bytes; None if not to be told."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _main() -> None:
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints must not disturb the messages
    stop = threading.Event()
    job = json.loads(sys.stdin.buffer.readline())
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            messages.write(json.dumps(message, allow_nan=False) + "\n")
            messages.flush()

    def obey() -> None:
        for _line in sys.stdin:
            stop.set()
        os._exit(1)  # the parent is gone

    threading.Thread(target=obey, daemon=True).start()
    module, _, name = sys.argv[1].partition(":")
    task: Task = getattr(importlib.import_module(module), name)
    try:
        send({"type": "result", "result": task(job, send, stop)})
    except Exception as error:
        if not isinstance(error, GgufnormError):
            import traceback

            traceback.print_exc()
        send({"type": "error", "kind": type(error).__name__, "message": str(error)})
    messages.close()
    os._exit(0)  # without the interpreter's teardown, which backends do not always survive


if __name__ == "__main__":
    _main()
