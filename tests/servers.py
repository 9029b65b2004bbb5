"""Loopback servers for tests: files by ranges, and a small Hugging Face Hub."""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit


@dataclass
class Request:
    """What a server was asked, and how much of a body it sent."""

    method: str
    path: str
    headers: dict[str, str]
    span: tuple[int, int] | None
    sent: int = 0


Trouble = Callable[["Handler", Request, bytes], bool]
"""Takes the handler, the request and the file; True if it has answered by itself."""


@dataclass
class RangeServer:
    """Serves ``files`` by path; ``trouble`` may answer first. Counts requests and bytes."""

    files: dict[str, bytes] = field(default_factory=dict)
    trouble: Trouble | None = None
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    most_at_once: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.requests)

    @property
    def gets(self) -> list[Request]:
        return [r for r in self.requests if r.method == "GET"]

    def respond(self, handler: Handler, request: Request) -> None:
        body = self.files.get(unquote(urlsplit(request.path).path))
        if body is None:
            handler.refuse(404)
        elif self.trouble is None or not self.trouble(handler, request, body):
            handler.send_range(request, body)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: RangeServer
    lock: threading.Lock
    busy = 0

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        span = (int(found[1]), int(found[2]) + 1) if found else None
        request = Request(
            self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, span
        )
        kind = type(self)
        with self.lock:
            self.owner.requests.append(request)
            kind.busy += 1
            self.owner.most_at_once = max(self.owner.most_at_once, kind.busy)
        try:
            self.owner.respond(self, request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.lock:
                kind.busy -= 1

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_range(
        self, request: Request, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        start, end = request.span or (0, len(body))
        if start >= len(body):
            self.refuse(416, {"Content-Range": f"bytes */{len(body)}"})
            return
        part = body[start : min(end, len(body))]
        self.send_response(206 if request.span else 200)
        if request.span:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(part)))
        for name, value in (headers or {"ETag": '"v1"'}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            request.sent = len(part)
            self.wfile.write(part)

    def refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, document: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def running(server: RangeServer) -> Iterator[RangeServer]:
    """Run a server in a thread; its ``port`` is set."""
    handler = type("Bound", (Handler,), {"owner": server, "lock": threading.Lock()})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.handle_error = lambda request, client_address: None  # a client that was killed
    http.daemon_threads = True
    http.block_on_close = False
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        http.shutdown()
        http.server_close()
        thread.join()


def status(code: int, headers: dict[str, str] | None = None, times: int | None = None) -> Trouble:
    """Refuse with a status, always or the first so many times."""
    left = [times]

    def trouble(handler: Handler, request: Request, body: bytes) -> bool:
        if left[0] == 0:
            return False
        if left[0] is not None:
            left[0] -= 1
        handler.refuse(code, headers)
        return True

    return trouble


def ignore_ranges(handler: Handler, request: Request, body: bytes) -> bool:
    """Send the whole file, whatever range is asked for."""
    request.span = None
    handler.send_range(request, body)
    return True


def truncate(at_most: int, *, honest: bool) -> Trouble:
    """Send at most so many bytes of each range and close the connection.

    Honest servers say so in Content-Length, the others promise the whole range.
    """

    def trouble(handler: Handler, request: Request, body: bytes) -> bool:
        assert request.span is not None
        start, end = request.span
        end = min(end, len(body))
        part = body[start : min(end, start + at_most)]
        handler.send_response(206)
        last = (start + len(part) if honest else end) - 1
        handler.send_header("Content-Range", f"bytes {start}-{last}/{len(body)}")
        handler.send_header("Content-Length", str(last + 1 - start))
        handler.end_headers()
        request.sent = len(part)
        handler.wfile.write(part)
        handler.close_connection = True
        return True

    return trouble


def stall(handler: Handler, request: Request, body: bytes) -> bool:
    """Say nothing until the server stops."""
    handler.owner.stopping.wait(30)
    handler.close_connection = True
    return True


def drip(handler: Handler, request: Request, body: bytes) -> bool:
    """Send a byte now and then."""
    assert request.span is not None
    start, end = request.span
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
    handler.send_header("Content-Length", str(end - start))
    handler.end_headers()
    for i in range(start, end):
        handler.wfile.write(body[i : i + 1])
        handler.wfile.flush()
        if handler.owner.stopping.wait(0.02):
            break
    handler.close_connection = True
    return True


def slow(seconds: float) -> Trouble:
    """Wait before each answer."""

    def trouble(handler: Handler, request: Request, body: bytes) -> bool:
        time.sleep(seconds)
        return False

    return trouble


def redirect(base: Callable[[], str]) -> Trouble:
    """Send everything on to the same path elsewhere."""

    def trouble(handler: Handler, request: Request, body: bytes) -> bool:
        handler.refuse(302, {"Location": base() + request.path})
        return True

    return trouble


@dataclass
class Repo:
    """A repository of a :class:`HubServer`."""

    files: dict[str, bytes]
    sha: str = "0123456789abcdef0123456789abcdef01234567"
    gated: bool = False
    private: bool = False


@dataclass
class HubServer(RangeServer):
    """A stand-in for the Hub; files come from ``storage``, another host, by redirect."""

    repos: dict[str, Repo] = field(default_factory=dict)
    storage: RangeServer | None = None
    token: str = "hf_right"
    page: int = 100

    def respond(self, handler: Handler, request: Request) -> None:
        path = unquote(urlsplit(request.path).path)
        knows = request.headers.get("authorization") == f"Bearer {self.token}"
        if path == "/api/models":
            self._list(handler, request)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(handler, self._repo(found[1], knows), found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(handler, request, self._repo(found[1], knows), found, knows)
        else:
            handler.refuse(404)

    def _list(self, handler: Handler, request: Request) -> None:
        """Pages of an organisation's repositories, each with the address of the next."""
        query = dict(parse_qsl(urlsplit(request.path).query))
        names = [name for name in self.repos if name.startswith(query["author"] + "/")]
        start, n = int(query.get("cursor", 0)), min(int(query["limit"]), self.page)
        query["cursor"] = str(start + n)
        headers = {}
        if start + n < len(names):
            headers["Link"] = f'<{self.url}/api/models?{urlencode(query)}>; rel="next"'
        handler.send_json(
            [
                {
                    "id": name,
                    "sha": self.repos[name].sha,
                    "siblings": [{"rfilename": file} for file in self.repos[name].files],
                }
                for name in names[start : start + n]
            ],
            headers,
        )

    def _repo(self, name: str, knows: bool) -> Repo | None:
        repo = self.repos.get(name)
        return None if repo is None or (repo.private and not knows) else repo

    def _info(self, handler: Handler, repo: Repo | None, name: str, revision: str | None) -> None:
        if repo is None:
            handler.refuse(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", "refs/pr/1", repo.sha):
            handler.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            handler.send_json(
                {
                    "id": name,
                    "sha": repo.sha,
                    "siblings": [{"rfilename": path} for path in repo.files],
                }
            )

    def _resolve(
        self,
        handler: Handler,
        request: Request,
        repo: Repo | None,
        found: re.Match[str],
        knows: bool,
    ) -> None:
        if repo is None:
            handler.refuse(401, {"X-Error-Code": "RepoNotFound"})
        elif repo.gated and not knows:
            handler.refuse(
                403 if "authorization" in request.headers else 401, {"X-Error-Code": "GatedRepo"}
            )
        elif found[2] != repo.sha or found[3] not in repo.files:
            handler.refuse(404, {"X-Error-Code": "EntryNotFound"})
        elif self.storage is None:
            body = repo.files[found[3]]
            if self.trouble is None or not self.trouble(handler, request, body):
                handler.send_range(request, body, {"ETag": f'"{zlib.crc32(body):08x}"'})
        else:
            self.storage.files[f"/blob/{found[3]}"] = repo.files[found[3]]
            handler.refuse(
                302,
                {
                    "Location": f"{self.storage.url}/blob/{found[3]}?signature=abc",
                    "X-Linked-Size": str(len(repo.files[found[3]])),
                    "X-Linked-ETag": '"abc"',
                    "X-Repo-Commit": repo.sha,
                },
            )
