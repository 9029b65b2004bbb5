"""Models behind HTTP, read by range requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

import httpx2

from ggufnorm.errors import GGUFError, InputError
from ggufnorm.formats.connection import (
    CONNECTIONS,
    Connection,
    TransientError,
    current_connection,
    described,
    origin,
)
from ggufnorm.formats.safetensors_header import quoted
from ggufnorm.formats.split import shard_name
from ggufnorm.formats.storage import coalesce, heed_stop, in_parallel

FRONT = 1 << 17
"""Bytes that opening a model fetches: most headers without a vocabulary end in them."""

_SPARE = 1 << 16
"""Bytes between tensors that a read of many may fetch, beyond a fifth of what is asked for."""

_MOST_AT_ONCE = 1 << 30
"""Bytes that one call may ask for: they are held in memory."""

_SLOWEST = 1 << 14
"""Bytes a second; a server below it has stalled."""

_REFUSED = frozenset({401, 403, 404, 410})

HINTS: Mapping[int, str] = {
    401: "it wants a login; download the file first",
    403: "access is denied, or a signed address has expired",
    404: "check the address",
    410: "check the address",
}
"""What to try, by HTTP status."""


@dataclass(frozen=True)
class RemotePlace:
    """A file behind HTTP, not yet opened; see :class:`~ggufnorm.formats.split.Place`.

    Attributes:
        url: its address.
        name: as messages call it.
        headers: sent to the address's own host only.
        hints: what to try, by HTTP status.
        connection: made when the first file is opened through it.
    """

    url: str
    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    hints: Mapping[int, str] = field(default_factory=lambda: HINTS)
    connection: Connection = field(default_factory=current_connection)

    def open(self, front: int = FRONT) -> RemoteStorage:
        """Fetch the front part of the file: so many bytes of it."""
        return RemoteStorage(self, front)

    def shard(self, number: int, count: int) -> RemotePlace:
        """The address of a shard beside this one."""
        url = urlsplit(self.url)
        path = shard_name(url.path, number, count)
        return RemotePlace(
            urlunsplit(url._replace(path=path)),
            shard_name(self.name, number, count),
            self.headers,
            self.hints,
            self.connection,
        )

    def is_missing(self) -> bool:
        """False: only a request can tell."""
        return False


def remote_place(url: str) -> RemotePlace:
    """The place of a plain address."""
    return RemotePlace(url, public_address(url))


def public_address(url: str) -> str:
    """An address without what may be secret in it: user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # the only check of it that there is
    except ValueError:
        # Neither the error nor what stands before the last @ is shown: a password with a
        # slash in it is taken for a port.
        shown = re.sub("//.*@", "//…@", url, flags=re.DOTALL).partition("?")[0].partition("#")[0]
        raise InputError(
            f"the address {quoted(shown)} is malformed: check its host and port"
        ) from None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class RemoteStorage:
    """A file behind HTTP; see :class:`~ggufnorm.formats.storage.Storage`.

    Opening it fetches the first bytes (``front``), and the size with them. A redirect
    is followed once; further requests go straight to where it led, without the headers
    that were meant for the host of the address itself.

    Raises:
        InputError: the server cannot be reached, refuses, stalls, breaks off again and
            again, or does not answer range requests.
        GGUFError: the file is empty.
    """

    def __init__(self, place: RemotePlace, front: int = FRONT) -> None:
        self.name = place.name
        self.size = -1
        self._place = place
        self._connection = place.connection
        self._direct: httpx2.URL | None = None
        self._etag: str | None = None
        self._front = self._fetch(0, front)

    def read(self, offset: int, n: int, into: memoryview | None = None) -> bytes | memoryview:
        """One request for what the front part does not hold."""
        del into  # what comes over a network has memory already
        held = memoryview(self._front)[offset : offset + n]
        if len(held) == n:
            return held
        self._check_size(n)
        rest = self._fetch(offset + len(held), n - len(held))
        return b"".join((held, rest)) if held else rest

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview]:
        """Several requests at a time; what lies close together is one of them."""
        held = len(self._front)
        wanted = [(offset, n) for offset, n in ranges if offset + n > held]
        self._check_size(sum(n for _, n in wanted))
        spans = coalesce(wanted, _SPARE + sum(n for _, n in wanted) // 5)
        parts = in_parallel(lambda span: self._fetch(*span), spans, CONNECTIONS)
        fetched = [(0, memoryview(self._front))]
        fetched += [
            (start, memoryview(part)) for (start, _), part in zip(spans, parts, strict=True)
        ]
        return [_cut(fetched, offset, n) for offset, n in ranges]

    @property
    def identity(self) -> str | None:
        """What tells this content of the file from another; None where the server does not say."""
        return f"{self._etag} {self.size}" if self._etag else None

    def close(self) -> None:
        """Drop the connection; it is closed when no shard uses it any more."""
        del self._connection, self._place

    def _check_size(self, n: int) -> None:
        if n > _MOST_AT_ONCE:
            raise InputError(
                f"cannot read {self.name}: {n:,} bytes at once are more than the"
                f" {_MOST_AT_ONCE:,} that are fetched; download the file first"
            )

    def _fetch(self, offset: int, n: int) -> bytes:
        """``n`` bytes, or as many as the file has. A broken transfer goes on where it broke."""
        got = bytearray()
        self._connection.attempts(
            f"cannot read {self.name}",
            lambda: self._receive(offset, n, got),
            slow=f"less than {_SLOWEST >> 10} KiB/s",
        )
        return bytes(got)

    def _receive(self, offset: int, n: int, got: bytearray) -> None:
        """One attempt to append to ``got`` what it lacks of the range."""
        if self.size >= 0 and len(got) == min(n, self.size - offset):
            return  # all had come before the last attempt failed
        own, direct = httpx2.URL(self._place.url), self._direct
        first, last = offset + len(got), offset + n - 1

        def headers(url: httpx2.URL) -> Mapping[str, str]:
            secret = self._place.headers if origin(url) == origin(own) else {}
            return {**secret, "Range": f"bytes={first}-{last}"}

        seconds = self._connection.patience.timeout + n / _SLOWEST
        with self._connection.stream(direct or own, headers, seconds) as response:
            self._check_status(response, first, redirected=direct is not None)
            self._check_range(response, first)
            n = min(n, self.size - offset)
            for part in response.iter_raw():
                heed_stop()
                got += part
                if len(got) > n:
                    raise InputError(f"cannot read {self.name}: the server sends more than asked")
        if len(got) < n:
            raise TransientError(f"the server broke off at byte {offset + len(got)}")
        if response.url != own:
            self._direct = response.url

    def _check_status(self, response: httpx2.Response, first: int, *, redirected: bool) -> None:
        status = response.status_code
        if status == HTTPStatus.PARTIAL_CONTENT:
            return
        if status == HTTPStatus.OK:
            raise InputError(
                f"cannot read {self.name}: the server ignores range requests;"
                " download the file first"
            )
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and first == 0:
            raise GGUFError(self.name, 0, "magic", "the file is empty")
        self._connection.require_lasting(response)
        if status in _REFUSED and redirected:
            self._direct = None  # a signed address does not last: ask for a new one
            raise TransientError(described(status))
        hint = self._place.hints.get(status)
        raise InputError(
            f"cannot read {self.name}: {described(status)}" + (f": {hint}" if hint else "")
        )

    def _check_range(self, response: httpx2.Response, first: int) -> None:
        """Take the size from the first answer; refuse an answer from another file."""
        found = re.fullmatch(
            r"bytes (\d{1,19})-\d{1,19}/(\d{1,19})", response.headers.get("Content-Range", "")
        )
        if not found or response.headers.get("Content-Encoding", "identity") != "identity":
            raise InputError(
                f"cannot read {self.name}: the server's answer to a range request makes no sense;"
                " download the file first"
            )
        if int(found[1]) != first:
            raise InputError(f"cannot read {self.name}: the server sends another range than asked")
        size, etag = int(found[2]), response.headers.get("ETag")
        if self.size < 0:
            self.size, self._etag = size, etag
        elif size != self.size or (etag and self._etag and etag != self._etag):
            raise InputError(f"{self.name} was replaced while it was read: start again")


def _cut(fetched: Sequence[tuple[int, memoryview]], offset: int, n: int) -> memoryview:
    """A range out of the parts that cover it."""
    for start, part in fetched:
        if start <= offset and offset + n <= start + len(part):
            return part[offset - start : offset - start + n]
    raise AssertionError(f"bytes {offset} to {offset + n} were not fetched")
