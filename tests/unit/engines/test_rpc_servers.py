"""Servers of llama.cpp's RPC backend are asked before ggml is: each trouble has its message."""

from __future__ import annotations

import socket
import time

import pytest

from ggufnorm.engines.llama.rpc_servers import hello, lost
from ggufnorm.errors import ConfigError, EngineError
from tests.rpc_servers import fake, free_port, greets


def test_a_server_says_its_version() -> None:
    with fake(greets(24, bytes([7, 0, 1, 0]) + bytes(24))) as server:
        assert hello(server) == (7, 0, 1)


def test_nobody_is_there() -> None:
    with pytest.raises(EngineError, match=r"nobody is at --rpc 127\.0\.0\.1:\d+ \(.*refused\)"):
        hello(f"127.0.0.1:{free_port()}")


def test_an_unknown_host() -> None:
    with pytest.raises(EngineError, match=r"nobody is at --rpc no-such-host\.invalid:50052"):
        hello("no-such-host.invalid:50052")


@pytest.mark.parametrize("server", ["", "host", "host:", ":50052", "host:abc"])
def test_what_names_no_server(server: str) -> None:
    with pytest.raises(ConfigError, match="no server of --rpc, such as"):
        hello(server)


def test_an_older_protocol_is_told_by_its_version() -> None:
    with (
        fake(greets(0, bytes([3, 6, 0]))) as server,
        pytest.raises(EngineError, match=r"speaks version 3\.6\.0 .* older than this build's"),
    ):
        hello(server)


def test_a_server_of_something_else() -> None:
    def http(connection: socket.socket) -> None:
        connection.recv(64)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for handle in (http, lambda connection: None):
        with fake(handle) as server, pytest.raises(EngineError, match="closes the connection"):
            hello(server)


def test_a_busy_server_is_told_from_a_frozen_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            socket.create_connection(listener.getsockname()),
            listener.accept()[0],
            pytest.raises(EngineError, match="busy: it serves another client"),
        ):
            hello(server, 0.2)
        with pytest.raises(EngineError, match="frozen: it takes connections and serves nobody"):
            hello(server, 0.2)


def test_a_slow_server_takes_no_longer_than_it_may() -> None:
    with fake(lambda connection: time.sleep(5)) as server:
        begun = time.monotonic()
        with pytest.raises(EngineError, match="frozen"):
            hello(server, 0.2)
        assert time.monotonic() - begun < 2


def test_why_a_run_ended() -> None:
    gone = f"127.0.0.1:{free_port()}"
    crashed = "ggml-rpc.cpp:601: Remote RPC server crashed or returned malformed response"
    assert lost([], [crashed]) is None
    assert lost([gone], ["an assertion failed"]) is None
    said = lost([gone], [crashed])
    assert said is not None
    assert said.startswith(f"a server of --rpc ended during the run: nobody is at --rpc {gone}")
    said = lost([gone], ["RPC server version mismatch: 5.0.0"])
    assert said is not None
    assert "speaks version 5.0.0" in said
    with fake(greets(24, bytes(28))) as server:
        said = lost([server], [crashed])
    assert said is not None
    assert "one is there again" in said
