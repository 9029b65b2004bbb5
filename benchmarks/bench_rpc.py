"""What a run on servers of llama.cpp's RPC backend sends: bytes and round trips for each chunk.

Two servers on this machine, each behind a proxy that counts messages. The first chunk (loading,
learning the graph) is taken off: a run of three chunks less a run of one, halved.

    python -m tests.rpc_plugin            # the backend, once
    python -m benchmarks.bench_rpc
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import ggufnorm
from ggufnorm.formats.llama_libraries import VARIABLE
from ggufnorm.runs.options import SideOptions
from ggufnorm.samples import sample_model
from tests.rpc_plugin import build_with_rpc
from tests.rpc_servers import Server, fake

_COMMANDS = (
    "ALLOC_BUFFER", "GET_ALIGNMENT", "GET_MAX_SIZE", "BUFFER_GET_BASE", "FREE_BUFFER",
    "BUFFER_CLEAR", "SET_TENSOR", "SET_TENSOR_HASH", "GET_TENSOR", "COPY_TENSOR", "GRAPH_COMPUTE",
    "GET_DEVICE_MEMORY", "INIT_TENSOR", "GET_ALLOC_SIZE", "HELLO", "DEVICE_COUNT",
    "GRAPH_RECOMPUTE", "MEMSET_TENSOR",
)  # fmt: skip
"""``enum rpc_cmd`` in ggml/src/ggml-rpc/ggml-rpc.cpp."""

_ANSWERED = frozenset(_COMMANDS) - {"SET_TENSOR", "GRAPH_COMPUTE", "GRAPH_RECOMPUTE"}


@dataclass
class Traffic:
    """What has passed.

    Attributes:
        messages: of each command.
        sent: bytes to the servers.
        received: bytes from them.
    """

    messages: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0

    @property
    def round_trips(self) -> int:
        """Messages that wait for an answer."""
        return sum(n for name, n in self.messages.items() if name in _ANSWERED)


def _exactly(stream: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = stream.recv(min(n - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _up(client: socket.socket, server: socket.socket, traffic: Traffic) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            head = _exactly(client, 9)
            command, left = struct.unpack("<BQ", head)
            server.sendall(head)
            traffic.messages[_COMMANDS[command]] += 1
            traffic.sent += 9 + left
            while left:
                part = client.recv(min(left, 1 << 20))
                if not part:
                    raise EOFError
                server.sendall(part)
                left -= len(part)
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)


def _down(client: socket.socket, server: socket.socket, traffic: Traffic) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(1 << 20):
            traffic.received += len(data)
            client.sendall(data)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def counted(port: int, traffic: Traffic) -> contextlib.AbstractContextManager[str]:
    """A proxy of a server that counts; see :func:`tests.rpc_servers.fake`."""

    def pump(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            for stream in (client, server):
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            down = threading.Thread(target=_down, args=(client, server, traffic), daemon=True)
            down.start()
            _up(client, server, traffic)
            down.join()

    return fake(pump)


def measure(build: Path, n_servers: int, chunks: int) -> Traffic:
    """A drift run of the sample against itself, pinned pass included."""
    traffic = Traffic()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(build)) for _ in range(n_servers)]
        names = tuple(stack.enter_context(counted(s.port, traffic)) for s in servers)
        side = SideOptions(rpc=names)
        ggufnorm.drift(
            sample_model(), sample_model(), n_ctx=128, chunks=chunks, n_threads=1, options=side,
            options_ref=side,
        )  # fmt: skip
    return traffic


def main() -> None:
    """Print the table."""
    print("| servers | bytes to them | bytes from them | round trips | messages |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        build = build_with_rpc(Path(folder) / "build")
        os.environ[VARIABLE] = str(build)
        for n in (1, 2):
            one, three = measure(build, n, 1), measure(build, n, 3)
            sent, received = (three.sent - one.sent) / 2, (three.received - one.received) / 2
            trips = (three.round_trips - one.round_trips) // 2
            messages = (three.messages.total() - one.messages.total()) // 2
            print(f"| {n} | {sent / 1e6:.2f} MB | {received / 1e6:.2f} MB | {trips} | {messages} |")


if __name__ == "__main__":
    main()
