"""HTTP requests of which nothing is without a limit: time, size, redirects, encodings."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from ggufnorm.errors import InputError

CONNECTIONS = 16
"""Requests under way at a time."""

_MOST_REDIRECTS = 10
_DEADLINE = threading.local()


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        timeout: seconds to wait for a connection or for the next bytes.
        attempts: requests made for one range before giving up.
        pause: seconds before the second attempt; doubled before each further one.
    """

    timeout: float = 15.0
    attempts: int = 4
    pause: float = 0.25


PATIENCE = Patience()
"""A minute, at worst, for a server that says nothing."""


class DeadlineError(Exception):
    """The time for a request was up before it was answered."""


class Connection:
    """An HTTP client, shared by the shards of a set and closed with the last of them."""

    def __init__(self, patience: Patience = PATIENCE) -> None:
        self.patience = patience
        try:
            self.client = httpx2.Client(
                timeout=httpx2.Timeout(patience.timeout, pool=None),
                limits=httpx2.Limits(max_connections=CONNECTIONS),
                # What runs on this machine is not reached through a proxy elsewhere.
                mounts={f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")},
            )
        except (ValueError, httpx2.InvalidURL) as error:
            raise InputError(f"the proxy settings cannot be used: {error}") from None
        _watch_the_clock(self.client)
        weakref.finalize(self, self.client.close)

    @contextmanager
    def stream(
        self,
        url: httpx2.URL,
        headers: Callable[[httpx2.URL], Mapping[str, str]],
        seconds: float,
        method: str = "GET",
    ) -> Iterator[httpx2.Response]:
        """The answer behind all redirects, its body not yet read.

        Bodies of redirects are not read at all.

        Args:
            url: the address.
            headers: what to send to an address.
            seconds: for the request, its redirects, and the answer with its body, however
                slowly they come.
            method: of the request.

        Raises:
            DeadlineError: the time is up.
            httpx2.HTTPError, httpx2.InvalidURL: there is none.
        """
        _DEADLINE.at = time.monotonic() + seconds
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                sent = {**headers(url), "Accept-Encoding": "identity"}
                with self.client.stream(method, url, headers=sent) as response:
                    target = response.headers.get("Location")
                    if not response.has_redirect_location or target is None:
                        yield response
                        return
                url = url.join(target)
                if url.scheme not in ("http", "https"):
                    raise httpx2.UnsupportedProtocol(f"it redirects to {url.scheme}://…")
            raise httpx2.TooManyRedirects(f"more than {_MOST_REDIRECTS} redirects")
        except httpx2.TimeoutException:
            if time.monotonic() >= _DEADLINE.at:
                raise DeadlineError("the time for the request is up") from None
            raise
        finally:
            del _DEADLINE.at

    def get(
        self, url: str, headers: Mapping[str, str], most: int, method: str = "GET"
    ) -> httpx2.Response:
        """A whole answer of at most ``most`` bytes; headers go to the address's own host only.

        Raises:
            InputError: it has more, or an encoding that was not asked for.
            DeadlineError, httpx2.HTTPError, httpx2.InvalidURL: see :meth:`stream`.
        """
        own = httpx2.URL(url)
        body = bytearray()
        with self.stream(
            own,
            lambda to: headers if origin(to) == origin(own) else {},
            2 * self.patience.timeout,
            method,
        ) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise InputError("the server answers in an encoding that was not asked for")
            for part in response.iter_raw():
                body += part
                if len(body) > most:
                    raise InputError(f"the server's answer has more than {most:,} bytes")
            return httpx2.Response(
                response.status_code,
                headers=response.headers,
                content=bytes(body),
                request=response.request,
            )


def origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port: what credentials are meant for."""
    return url.scheme, url.host, url.port


def _watch_the_clock(client: httpx2.Client) -> None:
    """Have every read and write of a client end at the deadline of its thread's request.

    The timeouts of the library are for one call of the socket each: a byte a second never
    runs into them. It takes a network backend of one's own, but only for a bare pool.
    """
    for transport in (client._transport, *client._mounts.values()):
        pool: Any = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _Backend(pool._network_backend)


def _left(timeout: float | None) -> float | None:
    """What is left of a timeout before the deadline, if there is one."""
    at = getattr(_DEADLINE, "at", None)
    if at is None:
        return timeout
    left = float(at) - time.monotonic()
    if left <= 0:
        raise DeadlineError("the time for the request is up")
    return left if timeout is None else min(timeout, left)


class _Stream:
    """A network stream of httpcore's that keeps the deadline."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = self._stream.read(max_bytes, _left(timeout))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout))

    def start_tls(self, context: Any, server_hostname: str | None, timeout: float | None) -> Any:
        return _Stream(self._stream.start_tls(context, server_hostname, _left(timeout)))


class _Backend:
    """A network backend of httpcore's whose streams keep the deadline."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def connect_tcp(self, *args: Any, timeout: float | None = None, **more: Any) -> Any:
        return _Stream(self._backend.connect_tcp(*args, timeout=_left(timeout), **more))
