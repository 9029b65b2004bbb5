"""HTTP requests of which nothing is without a limit: time, size, redirects, encodings."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import httpx2

from ggufnorm.errors import InputError

CONNECTIONS = 16
"""Requests under way at a time."""

_MOST_REDIRECTS = 10
_DEADLINE = threading.local()
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")
Origin = tuple[str, str, "int | None"]


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        timeout: seconds to wait for a connection or for the next bytes.
        attempts: requests made for one range before giving up.
        pause: seconds before the second attempt; doubled before each further one.
        longest: seconds that a server may ask us to wait (``Retry-After``).
    """

    timeout: float = 15.0
    attempts: int = 4
    pause: float = 0.25
    longest: float = 10.0


PATIENCE = Patience()
"""A minute, at worst, for a server that says nothing."""

LONG_PATIENCE = Patience(attempts=8, longest=300.0)
"""For thousands of files, on whose rate the Hub has a limit for each five minutes."""


class DeadlineError(Exception):
    """The time for a request was up before it was answered."""


class TransientError(Exception):
    """Worth another attempt, ``pause`` seconds later."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Connection:
    """An HTTP client, shared by the shards of a set and closed with the last of them.

    A server that wants less of us (429, 503 with ``Retry-After``) is asked nothing by any thread
    until the time that it names.

    Args:
        patience: how long to wait.
        most: requests under way at a time.
    """

    def __init__(self, patience: Patience = PATIENCE, most: int = CONNECTIONS) -> None:
        self.patience = patience
        self._resting: dict[Origin, float] = {}
        try:
            self.client = httpx2.Client(
                timeout=httpx2.Timeout(patience.timeout, pool=None),
                limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
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
        self._rest(origin(url))
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

    def attempts(self, failing: str, attempt: Callable[[], T], slow: str = "") -> T:
        """What one attempt gives, tried again where that may help.

        Args:
            failing: what fails, for messages: ``cannot read FILE``.
            attempt: makes requests; raises :class:`TransientError` to be called again.
            slow: the reason where the time for a request was up.

        Raises:
            InputError: it failed again and again, or cannot succeed.
        """
        reason, pause = "", 0.0
        for n in range(self.patience.attempts):
            if n:
                time.sleep(max(pause, self.patience.pause * 2 ** (n - 1)))
            try:
                return attempt()
            except TransientError as error:
                reason, pause = str(error), error.pause
            except (
                httpx2.UnsupportedProtocol,
                httpx2.TooManyRedirects,
                httpx2.InvalidURL,
            ) as error:
                raise InputError(f"{failing}: {one_line(error)}") from None
            except DeadlineError as error:
                reason = slow or one_line(error)
            except httpx2.TimeoutException:
                reason = f"no answer for {self.patience.timeout:g} s"
            except httpx2.HTTPError as error:
                reason = one_line(error)
        raise InputError(
            f"{failing}: {reason} ({self.patience.attempts} attempts); try again later"
        )

    def require_lasting(self, response: httpx2.Response) -> None:
        """Make sure that asking again would give the same answer.

        Raises:
            TransientError: it may not.
        """
        if response.status_code not in _TRANSIENT:
            return
        pause = self._asked_pause(response)
        if pause:
            key = origin(response.url)
            self._resting[key] = max(self._resting.get(key, 0.0), time.monotonic() + pause)
        raise TransientError(described(response.status_code), pause)

    def _asked_pause(self, response: httpx2.Response) -> float:
        """Seconds that a server asks for, within reason; 0 where it asks for none."""
        text = response.headers.get("Retry-After", "")
        return min(float(text), self.patience.longest) if re.fullmatch(r"\d{1,9}", text) else 0.0

    def _rest(self, server: Origin) -> None:
        while (left := self._resting.get(server, 0.0) - time.monotonic()) > 0:
            time.sleep(left)


_IN_USE: list[Connection] = []


@contextmanager
def one_connection(connection: Connection) -> Iterator[None]:
    """Have everything that is opened meanwhile, in any thread, share a connection."""
    _IN_USE.append(connection)
    try:
        yield
    finally:
        _IN_USE.remove(connection)


def current_connection() -> Connection:
    """The one that is shared just now, or else a new one."""
    return _IN_USE[-1] if _IN_USE else Connection()


def described(status: int) -> str:
    """A status with its name."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP status {status}"


def one_line(error: Exception) -> str:
    """What an error says, or its type."""
    return " ".join(str(error).split()) or type(error).__name__


def origin(url: httpx2.URL) -> Origin:
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
