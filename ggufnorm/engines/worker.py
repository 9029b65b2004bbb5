"""Run a function in a child process, so that a crash in llama.cpp is only an error here.

A malformed file can abort the process inside llama.cpp (``GGML_ASSERT``), and a wrong
kernel can kill it with a signal. :func:`call` starts a fresh Python that imports the
function by name. A job goes in and a result comes out as frames (``frames.py``). What
llama.cpp logs goes to the child's standard error, whose last lines are kept for the error
message.

The child ends when its standard input ends (the parent died). It is asked to finish early by
a byte there.

Tests replace :func:`call` to run everything in one process; nothing else starts a child.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import typing
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from ggufnorm import errors
from ggufnorm.core.plain import from_plain
from ggufnorm.core.progress import OnProgress, Progress, no_progress
from ggufnorm.engines.frames import read_frame, with_arrays, write_frame
from ggufnorm.errors import EngineError, GgufnormError, MemoryLimitError

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Channel:
    """What a task is given beside its job.

    Attributes:
        emit: sends progress to the parent.
        cancel: set when the parent wants the task to end early with what it has.
    """

    emit: OnProgress = no_progress
    cancel: threading.Event = field(default_factory=threading.Event)


Task = Callable[[Job, Channel], Result]
"""A function at the top of a module whose job and result are dataclasses: their annotations
say how both are rebuilt on the other side. Fields may be arrays."""

FINISHING = "interrupted: finishing this chunk; once more ends it"
"""What the first Ctrl-C is answered, at once."""

_LOG_LINES = 12
SERVERS = "ggufnorm: server of llama.cpp's RPC backend: "
"""How a line of a child's log begins that names a server that it depends on."""
_PATIENCE = 5.0
"""Seconds for a child that has failed to end."""

_ENVIRONMENT = {
    # The replicas' thread teams take turns: a team that spins while it waits for its turn
    # takes the processors from the one whose turn it is.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc must keep what is freed, for all replicas: the next value needs it, and to have
    # pages of the system costs more than the arithmetic on them.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    # Backends that reorder a graph would show its nodes in another order than the CPU.
    "GGML_VK_DISABLE_GRAPH_OPTIMIZE": "1",
    "GGML_METAL_GRAPH_OPTIMIZE_DISABLE": "1",
    # ggml_print_backtrace in ggml/src/ggml.c would start a debugger and drown the log.
    "GGML_NO_BACKTRACE": "1",
}


def call(
    task: Task[Job, Result],
    job: Job,
    on_progress: OnProgress = no_progress,
    *,
    cancellable: bool = False,
    descriptors: tuple[int, ...] = (),
) -> Result:
    """Run ``task(job, channel)`` in a child process and return its result.

    Args:
        task: a function at the top of a module.
        job: its argument, a dataclass.
        on_progress: gets what the task emits.
        cancellable: whether the task ends early with what it has when it is asked to. The
            first Ctrl-C asks, and the second ends it; another task is ended by the first.
        descriptors: of open files that the child inherits.

    Raises:
        GgufnormError: whatever the task raised of that tree, whole.
        EngineError: the child died, or raised anything else.
        KeyboardInterrupt: the task was ended.
    """
    name = f"{task.__module__}:{task.__qualname__}"
    child = Child(start_process("worker", name, descriptors=descriptors))
    try:
        return child.run(task, job, on_progress, cancellable)
    finally:
        child.end()


def start_process(
    module: str,
    *arguments: str,
    changes: Mapping[str, str | None] | None = None,
    descriptors: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start a child with pipes to its standard streams.

    Args:
        module: of this package, whose ``main`` it runs.
        arguments: for its command line.
        changes: variables that differ from this process's; None removes one.
        descriptors: that it inherits.
    """
    environment: dict[str, str | None] = {**_ENVIRONMENT, **os.environ, **(changes or {})}
    return subprocess.Popen(
        [sys.executable, "-c", _boot(module), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # the terminal's Ctrl-C must reach the parent alone
        env={name: value for name, value in environment.items() if value is not None},
        pass_fds=descriptors,
    )


def _boot(module: str) -> str:
    """The child's first line: it imports from where this process does, and nowhere else.

    Python puts the current folder on a child's path (``-P`` forbids it from 3.11 on only):
    a ``numpy.py`` in a downloaded repository would run.
    """
    path = [entry for entry in sys.path if Path(entry).is_absolute()]
    start = f"from ggufnorm.engines import {module}; {module}.main()"
    return f"import sys; sys.path[:] = {path!r}; {start}"


class Child:
    """A running child: its pipes, and the last lines that it logged."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self.process, self.stdin = process, process.stdin
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self.servers: list[str] = []
        self.logger = threading.Thread(
            target=_keep_last, args=(process.stderr, self.log, self.servers), daemon=True
        )
        self.logger.start()

    def run(
        self, task: Task[Job, Result], job: Job, on_progress: OnProgress, cancellable: bool
    ) -> Result:
        """Send the job and listen until there is a result.

        Raises:
            GgufnormError: the task raised it, or the child died.
        """
        try:
            write_frame(self.stdin, job)
        except OSError:
            raise self.death() from None
        for message, buffers in self._messages(cancellable, on_progress):
            if "result" in message:
                result: Result = rebuild(task, "return", message["result"], buffers)
                return result
            if "error" in message:
                self.logger.join(_PATIENCE)  # what was logged may still be on its way
                raise self.error(message["error"])
            on_progress(from_plain(Progress, message["progress"]))
        raise self.death()

    def _messages(
        self, cancellable: bool, on_progress: OnProgress
    ) -> Iterator[tuple[dict[str, Any], list[bytearray]]]:
        stdout = self.process.stdout
        assert stdout
        # A thread reads: an interrupted read would lose what it had of its frame.
        frames: queue.SimpleQueue[tuple[Any, list[bytearray]] | None] = queue.SimpleQueue()

        def read() -> None:
            with contextlib.suppress(OSError, ValueError):
                while (frame := read_frame(stdout)) is not None:
                    frames.put(frame)
            frames.put(None)

        threading.Thread(target=read, daemon=True).start()
        asked = not cancellable
        while True:
            try:
                frame = frames.get()
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                with contextlib.suppress(OSError):
                    self.stdin.write(b"c")
                    self.stdin.flush()
                on_progress(Progress(FINISHING, note=True))
                continue
            if frame is None:
                return
            yield frame

    def error(self, error: dict[str, Any]) -> GgufnormError:
        """What the child raised."""
        kind = getattr(errors, error["kind"], None)
        if not (isinstance(kind, type) and issubclass(kind, GgufnormError)):
            return EngineError(f"{error['kind']} in the engine: {error['text']}", tuple(self.log))
        found = kind(*error["args"])
        if isinstance(found, EngineError):
            found.log = tuple(self.log)
        return found

    def death(self) -> EngineError:
        """Why there is no child any more."""
        code = self.process.wait()
        self.logger.join()
        if code == -signal.SIGKILL:
            how = "the engine was killed (SIGKILL): most likely the system ran out of memory"
            return MemoryLimitError(how, tuple(self.log))
        lost = _lost(self.servers, tuple(self.log))
        if lost is not None:
            return EngineError(lost, tuple(self.log))
        if code < 0:
            how = f"llama.cpp crashed ({signal.Signals(-code).name})"
        else:
            how = f"the engine ended without a result (exit code {code})"
        return EngineError(how, tuple(self.log))

    def end(self) -> None:
        """Kill the child if it still runs, and close its pipes."""
        self.process.kill()
        self.process.wait()
        self.logger.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                assert stream
                stream.close()


# What llama.cpp logs on every load, and says nothing about a failure.
_NOISE = re.compile(r"^(llama_|load|print_info|init_|\.+$|create_|sched_|graph_|resolve_|set_|~)")


def _lost(servers: list[str], log: tuple[str, ...]) -> str | None:
    """Whether a child ended by a server that it depended on."""
    if not servers:
        return None
    from ggufnorm.engines.llama.rpc_servers import lost

    return lost(servers, log)


def _keep_last(stream: IO[bytes], log: deque[str], servers: list[str]) -> None:
    for raw in stream:
        line = raw.decode(errors="replace").rstrip()
        if line.startswith(SERVERS):
            servers.append(line.removeprefix(SERVERS))
            continue
        important = re.search(
            r"error|fail|assert|abort|invalid|support|does not|cannot", line, re.I
        )
        if line and (important or not _NOISE.match(line)):
            log.append(line)


def rebuild(task: Task[Any, Any], which: str, plain: Any, buffers: list[bytearray]) -> Any:
    """A task's job or result from the plain form that crossed.

    Args:
        task: whose annotations say what it is.
        which: the argument's name, or ``return``.
        plain: of :func:`read_frame`.
        buffers: the same.
    """
    hints = typing.get_type_hints(task)
    kind = hints["return"] if which == "return" else next(iter(hints.values()))
    return from_plain(kind, with_arrays(plain, buffers))


# -- the child's side ----------------------------------------------------------------------------


def peak_memory() -> int | None:
    """Most resident memory that this program ever had, in bytes; None if not to be told."""
    try:
        # getrusage on Linux counts what the process was before it became this program, too: all
        # that its parent held (setmax_mm_hiwater_rss in fs/exec.c).
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(v.split()[1]) for v in status.splitlines() if v.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Run the task that the command line names on the job that standard input brings."""
    frames = open_frames()
    stdin = os.fdopen(os.dup(0), "rb")
    read = read_frame(stdin)
    channel = Channel(_sender(frames))
    if read is None:
        os._exit(1)

    def obey() -> None:
        while stdin.read(1):
            channel.cancel.set()
        os._exit(1)  # the parent is gone

    threading.Thread(target=obey, daemon=True).start()
    try:
        task = import_task(sys.argv[1])
        result = task(rebuild(task, "job", *read), channel)
        send(frames, {"result": result})
    except Exception as error:
        send(frames, error_frame(error))
    frames.close()
    os._exit(0)  # without the interpreter's teardown, which backends do not always survive


def import_task(name: str) -> Any:
    """The function that ``module:name`` names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def error_frame(error: Exception) -> dict[str, Any]:
    """How an error crosses; one that nobody foresaw leaves its traceback in the log."""
    if not isinstance(error, GgufnormError):
        import traceback

        traceback.print_exc()
    args = list(error.args) if isinstance(error, GgufnormError) else []
    return {"error": {"kind": type(error).__name__, "args": args, "text": str(error)}}


_FRAMES: list[IO[bytes]] = []
"""Where this process's frames go, if it is a child."""
_SENDING = threading.Lock()


def open_frames() -> IO[bytes]:
    """The stream of a child's frames, in the place of its standard output."""
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints must not disturb the frames
    _FRAMES.append(frames)
    return frames


def send(frames: IO[bytes], message: Any) -> None:
    """Write a frame; from any thread."""
    with _SENDING:
        write_frame(frames, message)


def abandon(error: GgufnormError) -> None:
    """End this child at once with an error: what runs waits for something that never comes.

    Raises:
        GgufnormError: the error, where this process is no child.
    """
    if not _FRAMES:
        raise error
    send(_FRAMES[0], error_frame(error))
    os._exit(0)


def _sender(frames: IO[bytes]) -> OnProgress:
    return lambda progress: send(frames, {"progress": progress})
