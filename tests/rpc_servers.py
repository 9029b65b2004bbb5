"""Servers of llama.cpp's RPC backend, and what pretends to be one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
