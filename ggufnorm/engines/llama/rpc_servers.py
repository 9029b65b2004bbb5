"""Servers of llama.cpp's RPC backend, asked before ggml is: it ends the process if anything fails.

A server (``rpc-server``) serves one client at a time, and knows neither passwords nor encryption:
whoever reaches its port can use the machine's memory, and crash it. The first message of a client
is HELLO, whose number is 14 in every version of the protocol; its length is the version's.

Source: ``negotiate_hello`` and ``rpc_serve_client`` in ggml/src/ggml-rpc/ggml-rpc.cpp.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from ggufnorm.errors import ConfigError, EngineError

HELLO_SECONDS = 5.0
"""How long a server may take to answer HELLO; one that is free does at once."""

_HELLO = 14
_CAPABILITIES = (24, 0)
"""Bytes that HELLO carries: ``RPC_CONN_CAPS_SIZE``, and nothing before there were any."""
_ANSWERS = range(3, 65)
"""Bytes of an answer: three numbers of a version, and what later versions added."""

Version = tuple[int, int, int]


def hello(server: str, seconds: float = HELLO_SECONDS) -> Version:
    """The version of a server's protocol.

    Raises:
        EngineError: it does not tell.
    """
    for n_bytes in _CAPABILITIES:
        try:
            version = _ask(server, n_bytes, seconds)
        except TimeoutError:
            raise EngineError(_silence(server, seconds)) from None
        except (ConnectionResetError, BrokenPipeError):
            version = None
        except OSError as error:
            why = error.strerror or str(error)
            raise EngineError(
                f"nobody is at --rpc {server} ({why}): start llama.cpp's rpc-server there, or"
                " ggufnorm rpc-server"
            ) from None
        if version is not None and n_bytes == _CAPABILITIES[0]:
            return version
        if version is not None:
            said = ".".join(map(str, version))
            raise EngineError(
                f"the server at --rpc {server} speaks version {said} of llama.cpp's protocol, which"
                " is older than this build's: run the same release on both machines"
            )
    raise EngineError(
        f"what is at --rpc {server} closes the connection when it is greeted: it is no server of"
        " llama.cpp's RPC backend, or one of another version; run the same release on both machines"
    )


def _address(server: str) -> tuple[str, int]:
    host, _, port = server.partition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{server!r} is no server of --rpc, such as 192.168.1.7:50052")
    return host, int(port)


def _ask(server: str, n_bytes: int, seconds: float) -> Version | None:
    """Greet once; None where the greeting is not understood."""
    try:
        connection = socket.create_connection(_address(server), seconds)
    except TimeoutError:
        raise OSError(f"no connection within {seconds:g} s") from None
    with connection:
        connection.settimeout(seconds)
        connection.sendall(struct.pack("<BQ", _HELLO, n_bytes) + bytes(n_bytes))
        head = _receive(connection, 8)
        if head is None:
            return None
        (size,) = struct.unpack("<Q", head)
        body = _receive(connection, size) if size in _ANSWERS else None
        return None if body is None else (body[0], body[1], body[2])


def _receive(connection: socket.socket, n: int) -> bytes | None:
    """Exactly so many bytes; None where the connection ends before."""
    data = b""
    while len(data) < n:
        part = connection.recv(n - len(data))
        if not part:
            return None
        data += part
    return data


def _silence(server: str, seconds: float) -> str:
    """Why a server that takes connections does not answer."""
    serves = _serves_somebody(server)
    busy = "busy: it serves another client, and a server of llama.cpp has one at a time"
    start = f"the server at --rpc {server} did not answer within {seconds:g} s: it is"
    if serves is None:
        return f"{start} {busy}, or it hangs; end its other client, or start it again"
    if serves:
        return f"{start} {busy}; wait until it is free, or start another"
    return f"{start} frozen: it takes connections and serves nobody; start it again"


_ESTABLISHED = "01"


def _serves_somebody(server: str) -> bool | None:
    """Whether a server on this machine has taken a connection; None where that cannot be seen.

    The kernel takes connections for a process that does not; those have no inode in
    ``/proc/net/tcp`` until the process accepts them.
    """
    host, _, port = server.partition(":")
    if not _is_here(host):
        return None
    seen = False
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        seen = True
        for line in lines:
            fields = line.split()
            is_port = int(fields[1].rpartition(":")[2], 16) == int(port)
            if is_port and fields[3] == _ESTABLISHED and fields[9] != "0":
                return True
    return False if seen else None


def _is_here(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET)
    except OSError:
        return False
    return all(str(address[4][0]).startswith("127.") for address in found)


def lost(servers: Sequence[str], log: Sequence[str]) -> str | None:
    """What to say of a run that ended, if it ended by its servers.

    Args:
        servers: that it ran on.
        log: what ggml wrote last.
    """
    if not servers:
        return None
    for line in log:
        found = re.search(r"RPC server version mismatch: (\d+(?:\.\d+)*)", line)
        if found:
            return (
                f"a server of --rpc speaks version {found[1]} of llama.cpp's protocol, and this"
                " build another: run the same release on both machines"
            )
    if not any("Remote RPC server crashed" in line or "Failed to connect" in line for line in log):
        return None
    for server in servers:
        try:
            hello(server, 1.0)
        except EngineError as error:
            return f"a server of --rpc ended during the run: {error}"
    return (
        "a server of --rpc ended the connection during the run (its log may say why), and one is"
        f" there again: {', '.join(servers)}"
    )
