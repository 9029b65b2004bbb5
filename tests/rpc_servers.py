"""Servers of llama.cpp's RPC backend, and what pretends to be one."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ggufnorm.engines.llama.rpc_servers import hello
from ggufnorm.errors import EngineError
from ggufnorm.formats.llama_libraries import VARIABLE


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Server:
    """``ggufnorm rpc-server`` in a process. A context manager.

    Attributes:
        name: for ``--rpc``.
    """

    def __init__(self, build: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.name = f"127.0.0.1:{self.port}"
        code = "from ggufnorm.cli.main import main; main()"
        command = [sys.executable, "-c", code, "rpc-server", "-p", str(self.port), "-t", "1"]
        self.process = subprocess.Popen(
            command,
            env=os.environ | {VARIABLE: str(build)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Server:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(EngineError):
                hello(self.name, 2)
                return self
            assert self.process.poll() is None
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """With a client that has been greeted, and stays."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(struct.pack("<BQ", 14, 24) + bytes(24))
            assert client.recv(8)
            yield


Handle = Callable[[socket.socket], None]


@contextlib.contextmanager
def fake(handle: Handle) -> Iterator[str]:
    """A server that does with each connection what it is told.

    Yields:
        its name, for ``--rpc``.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_handle, args=(handle, connection), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def _handle(handle: Handle, connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        handle(connection)


def greets(size: int, answer: bytes) -> Handle:
    """What answers HELLO of so many bytes, and closes the connection on any other."""

    def handle(connection: socket.socket) -> None:
        head = connection.recv(9, socket.MSG_WAITALL)
        if len(head) == 9 and struct.unpack("<BQ", head) == (14, size):
            if size:
                connection.recv(size, socket.MSG_WAITALL)
            connection.sendall(struct.pack("<Q", len(answer)) + answer)
            connection.recv(1)

    return handle


def stalls(port: int, after: int) -> Handle:
    """What passes everything on to a server, and answers no more after so many bytes."""

    def handle(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:

            def up() -> None:
                with contextlib.suppress(OSError):
                    while data := connection.recv(1 << 20):
                        server.sendall(data)
                    server.shutdown(socket.SHUT_RDWR)

            threading.Thread(target=up, daemon=True).start()
            passed = 0
            while data := server.recv(1 << 16):
                passed += len(data)
                if passed <= after:
                    connection.sendall(data)

    return handle


_COMMANDS = (
    "ALLOC_BUFFER", "GET_ALIGNMENT", "GET_MAX_SIZE", "BUFFER_GET_BASE", "FREE_BUFFER",
    "BUFFER_CLEAR", "SET_TENSOR", "SET_TENSOR_HASH", "GET_TENSOR", "COPY_TENSOR", "GRAPH_COMPUTE",
    "GET_DEVICE_MEMORY", "INIT_TENSOR", "GET_ALLOC_SIZE", "HELLO", "DEVICE_COUNT",
    "GRAPH_RECOMPUTE", "MEMSET_TENSOR",
)  # fmt: skip
"""``enum rpc_cmd`` in ggml/src/ggml-rpc/ggml-rpc.cpp."""

_SILENT = frozenset(
    ("FREE_BUFFER", "BUFFER_CLEAR", "SET_TENSOR", "GRAPH_COMPUTE", "INIT_TENSOR",
     "GRAPH_RECOMPUTE", "MEMSET_TENSOR")
)  # fmt: skip
"""Those to which ``rpc_serve_client`` there sends no answer."""


@dataclass
class Traffic:
    """What has passed.

    Attributes:
        messages: of each command.
        answers: to each of them; each is a round trip.
        sent: bytes to the servers.
        received: bytes from them.
    """

    messages: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0


def counted(port: int, traffic: Traffic) -> contextlib.AbstractContextManager[str]:
    """A proxy of a server that counts; see :func:`fake`."""

    def pump(client: socket.socket) -> None:
        asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        with socket.create_connection(("127.0.0.1", port)) as server:
            for stream in (client, server):
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def down() -> None:
                for _head, n in _pass_on(server, client, "<Q"):
                    traffic.answers[asked.get(timeout=5)] += 1
                    traffic.received += 8 + n

            back = threading.Thread(target=down, daemon=True)
            back.start()
            for (command, _n), n in _pass_on(client, server, "<BQ"):
                name = _COMMANDS[command]
                if name not in _SILENT:
                    asked.put(name)
                traffic.messages[name] += 1
                traffic.sent += 9 + n
            back.join()

    return fake(pump)


def _pass_on(
    source: socket.socket, target: socket.socket, head: str
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Pass messages on; tell the head of each, and the bytes behind it, before it is sent."""
    size = struct.calcsize(head)
    with contextlib.suppress(OSError):
        while len(start := source.recv(size, socket.MSG_WAITALL)) == size:
            fields = struct.unpack(head, start)
            left: int = fields[-1]
            yield fields, left
            target.sendall(start)
            while left and (part := source.recv(min(left, 1 << 20))):
                target.sendall(part)
                left -= len(part)
        target.shutdown(socket.SHUT_RDWR)
