"""Servers that drip, pour, compress and send in circles. Rows of ``docs/faults.md``."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx2")

from ggufnorm.analysis.audit.fleet.run import audit_all
from ggufnorm.analysis.audit.run import AuditOptions
from ggufnorm.core.audit import AuditReport
from ggufnorm.errors import InputError
from ggufnorm.formats import remote
from ggufnorm.formats.connection import Connection, Patience
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.location import open_model
from ggufnorm.formats.remote import RemotePlace
from tests import servers
from tests.fault_table import fault
from tests.fuzz.fuzz_gguf import STRING, draft
from tests.servers import HubServer, RangeServer, Repo, running

HASTY = Patience(timeout=0.3, attempts=2, pause=0.01)
MODEL = bytes(
    draft([("general.architecture", STRING, "llama")], [("w", (8,), 0, 0)], data=bytes(32)).data
)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with running(RangeServer({"/m.gguf": MODEL})) as found:
        yield found


def refused(server: RangeServer, says: str, seconds: float = 5.0) -> None:
    """A server must be given up in one line, in time, and with little memory."""
    address = server.url + "/m.gguf"
    place = RemotePlace(address, address, connection=Connection(HASTY))
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(InputError, match=says) as caught:
            GGUFFile(place.open())
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < seconds
    assert len(str(caught.value).splitlines()) == 1


def dripping_headers(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
    handler.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Long: ")
    while not handler.owner.stopping.wait(0.05):
        handler.wfile.write(b"x")
        handler.wfile.flush()
    return True


def dripping_redirect(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
    time.sleep(0.2)
    handler.refuse(302, {"Location": f"/m.gguf?{time.monotonic()}"})
    return True


@fault("Network", "headers at a few bytes a second", then="given up at the deadline of the request")
def test_headers_that_drip(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SLOWEST", 1 << 20)
    server.trouble = dripping_headers
    refused(server, "less than 1024 KiB/s")


@fault("Network", "redirects that each come just in time", then="one deadline for all of them")
def test_redirects_share_the_deadline(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SLOWEST", 1 << 20)
    server.trouble = dripping_redirect
    refused(server, "less than 1024 KiB/s")


@fault("Network", "a redirect whose body has no end, or is a gzip bomb of 256 MB",
       then="its body is not read; the redirect is followed")  # fmt: skip
@pytest.mark.parametrize("kind", ["endless", "bomb"])
def test_bodies_of_redirects_are_not_read(server: RangeServer, kind: str) -> None:
    bomb = gzip.compress(gzip.compress(bytes(1 << 28)))

    def trouble(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
        if "?there" in request.path:
            handler.send_range(request, body)
            return True
        handler.send_response(302)
        handler.send_header("Location", "/m.gguf?there")
        if kind == "bomb":
            handler.send_header("Content-Encoding", "gzip, gzip")
            handler.send_header("Content-Length", str(len(bomb)))
        handler.end_headers()
        handler.close_connection = True
        if kind == "bomb":
            handler.wfile.write(bomb)
        while kind == "endless" and not handler.owner.stopping.is_set():
            handler.wfile.write(bytes(1 << 16))
        return True

    server.trouble = trouble
    address = server.url + "/m.gguf"
    tracemalloc.start()
    try:
        place = RemotePlace(address, address, connection=Connection(HASTY))
        with GGUFFile(place.open()) as file:
            assert file.architecture == "llama"
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@fault("Network", "a range in gzip, though identity was asked for", then="refused in one line")
def test_another_encoding_is_refused(server: RangeServer) -> None:
    def trouble(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
        handler.send_range(request, body, {"Content-Encoding": "gzip"})
        return True

    server.trouble = trouble
    refused(server, "makes no sense")


@fault("Network", "redirects in a circle, to a file, to nowhere", then="refused in one line")
@pytest.mark.parametrize("target", ["/m.gguf", "file:///etc/passwd", "http://[::1", "gopher://x/"])
def test_redirects_that_lead_nowhere(server: RangeServer, target: str) -> None:
    server.trouble = servers.status(302, {"Location": target})
    refused(server, "redirect|cannot read")
    assert len(server.requests) <= 2 * 11


@fault("Network", "a norm that claims 1 TB, on a server that would send it",
       then="its own note; nothing of it is fetched")  # fmt: skip
def test_a_norm_of_a_terabyte_is_not_fetched(server: RangeServer) -> None:
    n = 1 << 38
    made = draft([("general.architecture", STRING, "llama")],
                 [("output_norm.weight", (n,), 0, 0)]).data  # fmt: skip

    def trouble(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
        assert request.span is not None
        start, end = request.span
        part = bytes(made[start:end]).ljust(end - start, b"\0")
        size = len(made) + 4 * n
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        handler.send_header("Content-Length", str(end - start))
        handler.end_headers()
        request.sent = len(part)
        handler.wfile.write(part)
        return True

    server.trouble = trouble
    (report,) = audit_all([server.url + "/m.gguf"], AuditOptions())
    assert isinstance(report, AuditReport)
    assert server.sent < 1 << 20
    with open_model(server.url + "/m.gguf") as file:
        with pytest.raises(InputError, match="download the file first"):
            file.read_bytes("output_norm.weight")
        with pytest.raises(InputError, match="download the file first"):
            file.read_part("output_norm.weight", 1 << 20, 2 << 30)
    assert server.sent < 1 << 21


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running(HubServer(repos={"org/repo": Repo({"m.gguf": MODEL})})) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


@fault("Network", "a Hub whose list of files has no end, drips, or is compressed",
       then="refused in one line")  # fmt: skip
@pytest.mark.parametrize("kind", ["endless", "drip", "gzip"])
def test_what_the_hub_says_is_bounded(
    hub: HubServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggufnorm.formats import hub as module

    monkeypatch.setattr(module, "current_connection", lambda: Connection(HASTY))

    def respond(handler: servers.Handler, request: servers.Request) -> None:
        handler.send_response(200)
        if kind == "gzip":
            handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.close_connection = True
        part = b"[" if kind == "drip" else bytes(1 << 20)
        while not handler.owner.stopping.wait(0.05 if kind == "drip" else 0):
            handler.wfile.write(part)
            handler.wfile.flush()

    monkeypatch.setattr(hub, "respond", respond)
    says = {"endless": "has more than", "drip": "time for the request", "gzip": "encoding"}[kind]
    started = time.monotonic()
    with pytest.raises(InputError, match=says) as caught:
        open_model("hf://org/repo/m.gguf")
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - started < 5
