"""Models from anywhere: paths, split sets, HTTP, the Hub, Ollama."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from ggufnorm.analysis.drift.run import drift
from ggufnorm.analysis.inspection import inspect
from ggufnorm.cli.diff import command as diff_command
from ggufnorm.cli.inspect import command as inspect_command
from ggufnorm.errors import GGUFError, InputError
from ggufnorm.formats.connection import Connection, Patience
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.hub import choose_file, find_file
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.remote import FRONT, RemotePlace, public_address
from ggufnorm.formats.split import SplitFile, all_shards
from ggufnorm.formats.storage import coalesce, in_parallel
from tests import servers
from tests.servers import HubServer, RangeServer, Repo, running

HASTY = Patience(timeout=0.3, attempts=3, pause=0.01)
QUANTS = ("Q2_K", "Q4_K_M", "Q8_0")


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No host but 127.0.0.1, no proxy, no token and no cache of the person who runs the tests."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: object) -> None:
        assert isinstance(address, tuple)
        assert address[0] == "127.0.0.1", f"a request to {address}"
        connect(self, address)

    def guarded_lookup(host: object, *args: object, **more: object) -> object:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"a look-up of {host!r}"
        return lookup(host, *args, **more)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with running(RangeServer()) as server:
        yield server


def write_model(path: Path, n_layers: int = 2, width: int = 64, seed: int = 0, **more: int) -> Path:
    """A Llama-like file whose norms lie scattered between larger tensors."""
    split = more.pop("split", 0)
    writer = GGUFWriter(path, "llama", split_max_tensors=split)
    _fill(writer, n_layers, width, np.random.default_rng(seed), **more)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _fill(
    writer: GGUFWriter,
    n_layers: int,
    width: int,
    rng: np.random.Generator,
    vocabulary: int = 0,
    between: int = 4096,
    embedding: int = 4096,
) -> None:
    writer.add_name("scattered")
    writer.add_block_count(n_layers)
    writer.add_layer_norm_rms_eps(1e-5)
    if vocabulary:
        writer.add_token_list([f"token {i}".encode() for i in range(vocabulary)])
        writer.add_token_scores([float(i) for i in range(vocabulary)])
        writer.add_token_types([1] * vocabulary)
        writer.add_token_merges([f"to ken{i}" for i in range(vocabulary)])

    def add_block(name: str, n_bytes: int = between) -> None:
        writer.add_tensor(name, np.zeros(n_bytes, np.int8))

    def add_norm(name: str) -> None:
        writer.add_tensor(name, rng.normal(1, 0.1, width).astype(np.float32))

    add_block("token_embd.weight", embedding)
    for i in range(n_layers):
        for norm, block in (
            ("attn_norm", "attn_q"),
            ("attn_q_norm", "attn_k"),
            ("attn_k_norm", "attn_v"),
            ("ffn_norm", "ffn_up"),
        ):
            add_norm(f"blk.{i}.{norm}.weight")
            add_block(f"blk.{i}.{block}.weight")
    add_norm("output_norm.weight")


def split_model(folder: Path, seed: int = 0, n_layers: int = 2) -> list[Path]:
    """The same model in shards, written by gguf-py."""
    folder.mkdir(exist_ok=True)
    write_model(folder / "m.gguf", n_layers, seed=seed, split=4)
    return sorted(folder.glob("m-*.gguf"))


def place(server: RangeServer, path: str = "/m.gguf", patience: Patience = HASTY) -> RemotePlace:
    return RemotePlace(server.url + path, server.url + path, connection=Connection(patience))


def serve(server: RangeServer, path: Path) -> str:
    server.files[f"/{path.name}"] = path.read_bytes()
    return f"{server.url}/{path.name}"


def norms_of(location: str | Path) -> list[object]:
    return list(inspect(location).norms)


# Reading by ranges


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 tokens; 48 layers, so 193 norms, 48 KiB apart."""
    path = tmp_path_factory.mktemp("big") / "big.gguf"
    return write_model(path, 48, width=512, vocabulary=40_000, between=48 << 10)


def norm_bytes(path: Path) -> tuple[int, int]:
    """(bytes of header and norms, number of norms)."""
    with GGUFFile(path) as file:
        norms = [t.n_bytes for name, t in file.tensors.items() if "norm" in name]
        return file.header_size + sum(norms), len(norms)


def test_an_audit_fetches_the_header_and_the_norms_and_little_else(
    server: RangeServer, big: Path
) -> None:
    needed, n_norms = norm_bytes(big)
    result = inspect(serve(server, big))
    assert list(result.norms) == norms_of(big)
    assert n_norms == 193
    assert 0 < needed < server.sent <= 1.2 * needed + (256 << 10)
    assert server.sent < big.stat().st_size / 3
    assert len(server.requests) <= n_norms + 8
    assert {request.method for request in server.requests} == {"GET"}


@pytest.mark.slow
def test_requests_are_made_several_at_a_time(server: RangeServer, big: Path) -> None:
    server.trouble = servers.slow(0.03)
    inspect(serve(server, big))
    assert 8 <= server.most_at_once <= 16


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [0, 1_000, 13_000, 50_000, 150_000])
def test_a_header_of_any_size_is_read_in_few_parts(
    server: RangeServer, tmp_path: Path, vocabulary: int
) -> None:
    path = write_model(tmp_path / "m.gguf", 2, vocabulary=vocabulary, embedding=8 << 20)
    with GGUFFile(path) as local, open_model(serve(server, path)) as remote:
        assert isinstance(remote, GGUFFile)
        assert remote.header_size == local.header_size
        assert dict(remote.metadata) == dict(local.metadata)
        assert remote.tensors == local.tensors
    assert server.sent <= 1.2 * local.header_size + (128 << 10)
    assert len(server.requests) <= 12


def test_near_norms_are_fetched_with_one_request(server: RangeServer, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", 2, between=256, embedding=1 << 20)
    with open_model(serve(server, path)) as file:
        assert len(server.requests) == 1
        wanted = [name for name in file.tensors if "norm" in name]
        raw = file.read_many(wanted)
        assert list(raw) == wanted
        with GGUFFile(path) as local:
            assert all(np.array_equal(raw[name], local.read_bytes(name)) for name in wanted)
    assert len(server.requests) == 2


@given(
    ranges=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), max_size=40),
    spare=st.integers(0, 4000),
)
def test_coalesced_ranges_cover_all_and_waste_no_more_than_allowed(
    ranges: list[tuple[int, int]], spare: int
) -> None:
    spans = coalesce(ranges, spare)
    covered = [set(range(a, a + n)) for a, n in spans]
    wanted: set[int] = set().union(*(range(a, a + n) for a, n in ranges))
    union = set().union(*covered)
    assert wanted <= union
    assert len(union - wanted) <= spare
    assert sum(map(len, covered)) == len(union)
    assert spans == sorted(spans)
    assert all(any(a <= x and x + n <= a + m for a, m in spans) for x, n in ranges)


def test_the_narrowest_gaps_are_closed_first() -> None:
    assert coalesce([(0, 10), (50, 10), (61, 10), (75, 10)], 5) == [(0, 10), (50, 35)]
    assert coalesce([(0, 10), (50, 10)], 39) == [(0, 10), (50, 10)]
    assert coalesce([(0, 10), (50, 10)], 40) == [(0, 60)]


def test_the_first_failure_stops_what_has_not_begun() -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 0:
            raise InputError("no")
        time.sleep(0.01)
        return i

    with pytest.raises(InputError):
        in_parallel(work, range(1000), 2)
    assert len(begun) < 100


# Servers that misbehave


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (servers.status(401), "401 Unauthorized: it wants a login"),
        (servers.status(403), "403 Forbidden: access is denied"),
        (servers.status(404), "404 Not Found: check the address"),
        (servers.status(418), "418 I'm a Teapot"),
        (servers.status(500), r"500 Internal Server Error \(3 attempts\); try again later"),
        (servers.status(503), r"503 Service Unavailable \(3 attempts\); try again later"),
        (servers.status(304), "304 Not Modified"),
        (servers.status(206), "makes no sense"),
        (servers.status(206, {"Content-Range": "bytes 5-9/100"}), "another range than asked"),
        (servers.status(206, {"Content-Range": "bytes 0-9/*"}), "makes no sense"),
        (servers.status(302, {"Location": "file:///etc/passwd"}), "file://"),
        (servers.status(302, {"Location": "/m.gguf"}), "redirect"),
        (servers.ignore_ranges, "ignores range requests; download the file first"),
        (servers.truncate(10, honest=True), r"the server broke off at byte 30 \(3 attempts\)"),
        (servers.truncate(10, honest=False), r"\(3 attempts\)"),
        (servers.stall, r"no answer for 0.3 s \(3 attempts\)"),
    ],
)  # fmt: skip
def test_a_bad_server_gives_one_clear_line(
    server: RangeServer, tmp_path: Path, trouble: servers.Trouble, says: str
) -> None:
    serve(server, write_model(tmp_path / "m.gguf"))
    server.trouble = trouble
    with pytest.raises(InputError, match=says) as caught:
        GGUFFile(place(server).open())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"cannot read {server.url}/m.gguf: ")


def test_a_server_that_ignores_ranges_is_not_read_to_its_end(
    server: RangeServer, tmp_path: Path
) -> None:
    server.files["/m.gguf"] = bytes(64 << 20)
    server.trouble = servers.ignore_ranges
    started = time.monotonic()
    with pytest.raises(InputError, match="ignores range requests"):
        place(server).open()
    assert len(server.requests) == 1
    assert time.monotonic() - started < 2


@pytest.mark.slow
def test_a_server_that_drips_is_given_up(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggufnorm.formats.remote._SLOWEST", 1 << 20)
    serve(server, write_model(tmp_path / "m.gguf"))
    server.trouble = servers.drip
    with pytest.raises(InputError, match="less than 1024 KiB/s"):
        place(server).open()


def test_more_bytes_than_asked_for_are_refused(server: RangeServer, tmp_path: Path) -> None:
    def generous(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-99/{1 << 30}")
        handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        while not handler.owner.stopping.is_set():
            handler.wfile.write(bytes(1 << 20))
        return True

    serve(server, write_model(tmp_path / "m.gguf"))
    server.trouble = generous
    with pytest.raises(InputError, match="more than asked"):
        place(server).open()


def test_a_transfer_that_fails_after_its_last_byte(server: RangeServer, tmp_path: Path) -> None:
    def boast(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) + 5))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True
        return True

    serve(server, write_model(tmp_path / "m.gguf"))
    server.trouble = boast
    with GGUFFile(place(server).open()) as file:
        assert file.architecture == "llama"
    assert len(server.requests) == 1


def test_a_header_without_end_is_not_fetched(server: RangeServer) -> None:
    def huge(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{1 << 50}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    u8_array = struct.pack("<Q1sIIQ", 1, b"a", 9, 0, 1 << 40)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + u8_array
    server.files["/m.gguf"] = head.ljust(FRONT, b"\0")
    server.trouble = huge
    with pytest.raises(GGUFError, match="more than is fetched"):
        GGUFFile(place(server).open())
    assert len(server.requests) == 1


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/m.gguf"
    with pytest.raises(InputError, match=r"refused \(3 attempts\)"):
        RemotePlace(address, address, connection=Connection(HASTY)).open()


@pytest.mark.parametrize(
    "address", ["http://", "http://[::1", "http://127.0.0.1:99999/m.gguf", "http://127.0.0.1/\0"]
)
def test_a_malformed_address_is_named(address: str) -> None:
    with pytest.raises(InputError, match=r"the address .* is malformed|cannot read http://"):
        open_model(address)


def test_an_empty_file(server: RangeServer) -> None:
    server.files["/m.gguf"] = b""
    with pytest.raises(GGUFError, match="the file is empty"):
        place(server).open()


def test_what_is_not_gguf_is_told_after_one_request(server: RangeServer) -> None:
    server.files["/m.gguf"] = b"<html>" * 100_000
    with pytest.raises(GGUFError, match="not a GGUF file"):
        open_model(f"{server.url}/m.gguf")
    assert len(server.requests) == 1


def test_failures_that_pass_are_not_seen(server: RangeServer, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    serve(server, path)
    server.trouble = servers.status(503, times=2)
    with GGUFFile(place(server).open()) as file:
        assert file.architecture == "llama"
    assert len(server.requests) == 3


def test_a_broken_transfer_goes_on_where_it_broke(server: RangeServer, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    serve(server, path)
    server.trouble = servers.truncate(path.stat().st_size // 2 + 1, honest=True)
    with GGUFFile(place(server).open()) as file, GGUFFile(path) as local:
        assert file.tensors == local.tensors
    assert server.sent == path.stat().st_size


@pytest.mark.slow
def test_a_server_may_ask_for_a_pause(server: RangeServer, tmp_path: Path) -> None:
    serve(server, write_model(tmp_path / "m.gguf"))
    server.trouble = servers.status(429, {"Retry-After": "1"}, times=1)
    started = time.monotonic()
    GGUFFile(place(server).open()).close()
    assert time.monotonic() - started >= 1


def test_a_file_replaced_between_requests_is_noticed(server: RangeServer, big: Path) -> None:
    serve(server, big)
    with GGUFFile(place(server, "/big.gguf").open()) as file:
        server.files["/big.gguf"] += b"more"
        with pytest.raises(InputError, match="was replaced while it was read"):
            file.read_bytes("output_norm.weight")


def test_a_new_version_of_the_same_size_is_noticed(server: RangeServer, big: Path) -> None:
    def newer(handler: servers.Handler, request: servers.Request, body: bytes) -> bool:
        handler.send_range(request, body, {"ETag": '"v2"'})
        return True

    serve(server, big)
    with GGUFFile(place(server, "/big.gguf").open()) as file:
        server.trouble = newer
        with pytest.raises(InputError, match="was replaced while it was read"):
            file.read_bytes("output_norm.weight")


def test_a_hostile_count_is_refused_without_fetching_the_file(server: RangeServer) -> None:
    head = b"GGUF" + (3).to_bytes(4, "little") + (1 << 60).to_bytes(8, "little") + bytes(8)
    server.files["/m.gguf"] = head + bytes(4 << 20)
    with pytest.raises(GGUFError, match="tensor count"):
        open_model(f"{server.url}/m.gguf")
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_broken_proxy_does_not_keep_us_from_this_machine(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert norms_of(serve(server, write_model(tmp_path / "m.gguf")))


def test_proxy_settings_that_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:9")
    with pytest.raises(InputError, match="proxy settings"):
        open_model("http://127.0.0.1:9/m.gguf")


def test_a_password_is_used_but_not_told(server: RangeServer, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    address = serve(server, path).replace("http://", "http://me:secret@") + "?key=hidden#part"
    result = inspect(address)
    assert result.path == f"{server.url}/m.gguf"
    assert server.gets[0].headers["authorization"].startswith("Basic ")
    assert server.gets[0].path == "/m.gguf?key=hidden"
    server.trouble = servers.status(403)
    with pytest.raises(InputError) as caught:
        inspect(address)
    assert not any(word in str(caught.value) for word in ("secret", "hidden"))


def test_public_address_keeps_port_and_path() -> None:
    assert public_address("https://u:p@h.example:8443/a/b.gguf?x=1#y") == (
        "https://h.example:8443/a/b.gguf"
    )


@pytest.mark.slow
def test_credentials_stay_with_their_host(server: RangeServer, big: Path) -> None:
    with running(RangeServer()) as other:
        serve(other, big)
        address = serve(server, big).replace("http://", "http://me:secret@")
        server.trouble = servers.redirect(lambda: other.url)
        assert norms_of(address) == norms_of(big)
        assert len(server.requests) == 1, "the redirect was followed more than once"
        assert "authorization" in server.gets[0].headers
        assert not any("authorization" in request.headers for request in other.requests)


def test_a_signed_address_that_expires_is_asked_for_again(server: RangeServer, big: Path) -> None:
    with running(RangeServer()) as other:
        serve(other, big)
        serve(server, big)
        server.trouble = servers.redirect(lambda: other.url)
        with GGUFFile(place(server, "/big.gguf").open()) as file, GGUFFile(big) as local:
            other.trouble = servers.status(403, times=1)
            name = "output_norm.weight"
            assert np.array_equal(file.read_bytes(name), local.read_bytes(name))
        assert len(server.requests) == 2


def test_without_the_extra_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("ggufnorm.formats.remote", "ggufnorm.formats.hub"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    for location in ("http://127.0.0.1:9/m.gguf", "hf://org/repo/m.gguf"):
        with pytest.raises(InputError, match=r"pip install 'ggufnorm\[remote\]'"):
            open_model(location)


def test_closing_closes_the_connection(server: RangeServer, tmp_path: Path) -> None:
    before = threading.active_count()
    remote = place(server)
    client = remote.connection.client
    serve(server, write_model(tmp_path / "m.gguf"))
    file = GGUFFile(remote.open())
    del remote
    file.close()
    assert client.is_closed
    assert threading.active_count() <= before + 1  # the server's own, until it notices


# Split sets


def test_any_shard_opens_the_whole_set(tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    whole = write_model(tmp_path / "m.gguf")
    assert len(shards) == 5
    for shard in shards:
        with open_model(shard) as file, GGUFFile(whole) as one:
            assert isinstance(file, SplitFile)
            assert list(file.tensors) == list(one.tensors)
            assert file.architecture == "llama"
            assert file.metadata["general.name"] == "scattered"
            assert file.size == sum(s.stat().st_size for s in shards)
            assert file.path == str(shard)
            raw = file.read_many(one.tensors)
            for name in one.tensors:
                assert np.array_equal(raw[name], one.read_bytes(name))
                assert np.array_equal(file.read_bytes(name), one.read_bytes(name))
        assert norms_of(shard) == norms_of(whole)
        assert local_path(shard) == shards[0]


def test_a_split_set_over_http(server: RangeServer, tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    addresses = [serve(server, shard) for shard in shards]
    assert norms_of(addresses[2] + "?download=true") == norms_of(shards[0])
    assert len(server.requests) == len(shards), "each shard fits into its front part"
    assert all(request.path.endswith("?download=true") for request in server.requests)


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    for i in (1, 3):
        shards[i].unlink()
    with pytest.raises(InputError, match="2 of 5 shards are missing") as caught:
        open_model(shards[2])
    assert str(shards[1]) in str(caught.value)
    assert str(shards[3]) in str(caught.value)


def test_a_missing_shard_over_http_is_named(server: RangeServer, tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    addresses = [serve(server, shard) for shard in shards]
    del server.files["/m-00004-of-00005.gguf"]
    with pytest.raises(InputError, match=r"m-00004-of-00005.gguf: 404 Not Found"):
        open_model(addresses[0])


def test_a_doubled_shard_is_named(tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    shutil.copy(shards[1], shards[2])
    says = "00003-of-00005.gguf: this is shard 2 of 5"
    for shard in (shards[0], shards[2]):
        with pytest.raises(InputError, match=says):
            open_model(shard)


def test_a_shard_of_another_split_is_named(tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    other = split_model(tmp_path / "other", n_layers=3)
    shutil.copy(other[1], shards[1])
    with pytest.raises(InputError, match=r"00002-of-00005.gguf: shard 2 of another set"):
        open_model(shards[0])


def test_a_shard_of_another_model_is_named(tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    foreign = GGUFWriter(shards[3], "llama")
    foreign.kv_data[0] = {}
    foreign.add_uint16("split.no", 3)
    foreign.add_uint16("split.count", 5)
    foreign.add_int32("split.tensors.count", 18)
    foreign.add_tensor("blk.0.attn_norm.weight", np.ones(64, np.float32))
    finish(foreign)
    with pytest.raises(
        InputError, match=r"00004-of-00005.gguf: tensor 'blk.0.attn_norm.weight' is in .*00001-of"
    ):
        open_model(shards[0])


def test_a_shard_with_too_few_tensors(tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    poor = GGUFWriter(shards[3], "llama")
    poor.kv_data[0] = {}
    poor.add_uint16("split.no", 3)
    poor.add_uint16("split.count", 5)
    poor.add_tensor("only.weight", np.ones(64, np.float32))
    finish(poor)
    with pytest.raises(InputError, match=r"hold 15 tensors, but their split.tensors.count is 18"):
        open_model(shards[0])


def test_a_file_among_the_shards_that_is_none(tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    write_model(shards[3])
    with pytest.raises(InputError, match=r"00004-of-00005.gguf: there is no split.no"):
        open_model(shards[0])
    shards[3].write_bytes(b"GGUF")
    with pytest.raises(GGUFError, match=r"00004-of-00005.gguf"):
        open_model(shards[0])


def test_a_renamed_shard_is_told_its_name(tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    renamed = shards[0].rename(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"does not end in -00001-of-00005\.gguf"):
        open_model(renamed)


@pytest.mark.slow
def test_a_hostile_shard_count_asks_for_few_shards(server: RangeServer, tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-65535.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 65535)
    writer.add_tensor("a.weight", np.ones(64, np.float32))
    finish(writer)
    with pytest.raises(InputError, match=r"65534 of 65535 shards are missing: .* and 65529 more"):
        open_model(path)
    with pytest.raises(InputError, match="404"):
        open_model(serve(server, path))
    assert len(server.requests) < 140


def test_a_file_of_one_shard_is_a_plain_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m-00001-of-00001.gguf")
    with open_model(path) as file:
        assert isinstance(file, GGUFFile)
    assert local_path(path) == path


def test_names_of_shards() -> None:
    assert all_shards("a/b.gguf") == ["a/b.gguf"]
    assert all_shards("a/b-00002-of-00002.gguf") == [
        "a/b-00001-of-00002.gguf",
        "a/b-00002-of-00002.gguf",
    ]


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running(RangeServer()) as storage, running(HubServer(storage=storage)) as hub:
        assert isinstance(hub, HubServer)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return write_model(tmp_path / "model.gguf").read_bytes()


def quants(model: bytes) -> dict[str, bytes]:
    return {
        "README.md": b"",
        "imatrix.gguf": b"",
        **{f"m-{quant}.gguf": model for quant in QUANTS},
        "mmproj-m-F16.gguf": b"",
    }


def test_a_file_of_the_hub(hub: HubServer, model: bytes, tmp_path: Path) -> None:
    hub.repos["org/repo"] = Repo({"sub/m.gguf": model})
    result = inspect("hf://org/repo/sub/m.gguf")
    assert list(result.norms) == norms_of(tmp_path / "model.gguf")
    assert result.path == "hf://org/repo/sub/m.gguf"
    assert [request.method for request in hub.requests] == ["GET", "GET"]
    assert hub.repos["org/repo"].sha in hub.requests[1].path, "not pinned to a commit"
    assert hub.storage is not None
    assert len(hub.storage.requests) == 1


def test_a_big_file_of_the_hub_is_resolved_once(
    hub: HubServer, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.repos["org/repo"] = Repo({"big.gguf": big.read_bytes()})
    needed, n_norms = norm_bytes(big)
    assert len(norms_of("hf://org/repo/big.gguf")) == n_norms
    assert len(hub.requests) == 2
    assert hub.storage is not None
    assert hub.storage.sent <= 1.2 * needed + (256 << 10)
    assert not any("authorization" in r.headers for r in hub.storage.requests)


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "refs%2Fpr%2F1"])
def test_a_revision_of_the_hub(hub: HubServer, model: bytes, revision: str) -> None:
    hub.repos["org/repo"] = Repo({"m.gguf": model})
    location = f"hf://org/repo@{revision}/m.gguf"
    assert inspect(location).path == location


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: HubServer, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.repos["org/repo"] = Repo({"m.gguf": model}, gated=True, private=True)
    assert norms_of("hf://org/repo/m.gguf")
    assert hub.storage is not None
    assert {r.headers.get("authorization") for r in hub.requests} == {"Bearer hf_right"}
    assert hub.storage.requests
    assert not any("authorization" in r.headers for r in hub.storage.requests)


def test_a_saved_token_is_used(hub: HubServer, model: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(hub.token)
    hub.repos["org/repo"] = Repo({"m.gguf": model}, private=True)
    assert norms_of("hf://org/repo/m.gguf")


def test_the_token_does_not_go_to_other_addresses(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    inspect(serve(server, write_model(tmp_path / "m.gguf")))
    assert not any("authorization" in request.headers for request in server.requests)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("hf://org/gated/m.gguf", r"gated or private: ask for access at .*/org/gated, then set HF"),
        ("hf://org/private/m.gguf", "no repository org/private, or it is private.*HF_TOKEN"),
        ("hf://org/absent/m.gguf", "there is no repository org/absent"),
        ("hf://org/repo@absent/m.gguf", "org/repo has no revision absent"),
        ("hf://org/repo/absent.gguf", "no such file; its GGUF files: imatrix.gguf, m-Q2_K.gguf"),
        ("hf://org/repo/../../etc/passwd", "no such file"),
        ("hf://org/repo:Q3_K", "has no Q3_K file; its GGUF files: .*m-Q4_K_M.gguf"),
        ("hf://org/bare", "no GGUF model; it has no GGUF file at all"),
        ("hf://org", "write hf://org/repo/file.gguf"),
        ("hf://org/repo:", "write hf://org/repo/file.gguf"),
        ("hf://../repo/m.gguf", "hf://../repo/m.gguf"),
    ],
)
def test_what_the_hub_lacks_is_told(hub: HubServer, model: bytes, location: str, says: str) -> None:
    hub.repos["org/repo"] = Repo(quants(model))
    hub.repos["org/gated"] = Repo({"m.gguf": model}, gated=True)
    hub.repos["org/private"] = Repo({"m.gguf": model}, private=True)
    hub.repos["org/bare"] = Repo({"README.md": b""})
    with pytest.raises(InputError, match=says) as caught:
        open_model(location)
    assert "\n" not in str(caught.value)


def test_a_wrong_token_for_a_gated_repository(
    hub: HubServer, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.repos["org/gated"] = Repo({"m.gguf": model}, gated=True)
    with pytest.raises(InputError, match="403 Forbidden: org/gated is gated") as caught:
        open_model("hf://org/gated/m.gguf")
    assert "hf_wrong" not in str(caught.value)


def test_a_hub_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(InputError, match=f"cannot ask http://127.0.0.1:{port}"):
        open_model("hf://org/repo/m.gguf")


@pytest.mark.parametrize(
    ("files", "quant", "chosen"),
    [
        (["a-Q2_K.gguf", "a-Q4_K_M.gguf", "a-Q8_0.gguf"], None, "a-Q4_K_M.gguf"),
        (["a-Q2_K.gguf", "a-Q8_0.gguf"], None, "a-Q8_0.gguf"),
        (["a-Q2_K.gguf", "a-Q6_K.gguf"], None, "a-Q2_K.gguf"),
        (["a-Q2_K.gguf", "a-Q8_0.gguf"], "q8_0", "a-Q8_0.gguf"),
        (["a-q8_0.gguf"], "Q8_0", "a-q8_0.gguf"),
        (["a-Q4_K_M.gguf"], "Q4_K", None),
        (["a-Q2_K.gguf"], "Q8_0", None),
        (["a-Q2_K.gguf"], ".*", None),
        (["mmproj-a-Q8_0.gguf", "a-Q8_0.gguf"], "Q8_0", "a-Q8_0.gguf"),
        (["mmproj-a-Q8_0.gguf", "a-imatrix.gguf", "mtp-a-Q8_0.gguf"], None, None),
        (["Q8_0/a-00002-of-00002.gguf", "Q8_0/a-Q8_0-00001-of-00002.gguf"], "Q8_0",
         "Q8_0/a-Q8_0-00001-of-00002.gguf"),
        (["b-00002-of-00002.gguf", "b-00001-of-00002.gguf"], None, "b-00001-of-00002.gguf"),
        (["a-Q4_K_M.txt", "README.md"], None, None),
    ],
)  # fmt: skip
def test_the_file_that_a_quant_stands_for(
    files: Sequence[str], quant: str | None, chosen: str | None
) -> None:
    assert choose_file(files, quant) == chosen


@pytest.mark.parametrize(
    ("asked", "file"), [("org/repo", "m-Q4_K_M.gguf"), ("org/repo:q8_0", "m-Q8_0.gguf")]
)
def test_hf_on_the_command_line(hub: HubServer, model: bytes, asked: str, file: str) -> None:
    hub.repos["org/repo"] = Repo(quants(model))
    done = CliRunner().invoke(inspect_command, ["-hf", asked, "--format", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["path"] == f"hf://org/repo/{file}"
    assert len(document["norms"]) == 9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "missing A and B"),
        (["a.gguf"], "missing B"),
        (["a.gguf", "b.gguf", "-hf", "org/repo"], "unexpected hf://org/repo"),
        (["a.gguf", "b.gguf", "c.gguf"], "unexpected c.gguf"),
    ],
)
def test_as_many_models_as_the_command_takes(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(diff_command, arguments)
    assert done.exit_code == 2
    assert says in done.output


def test_a_split_model_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    shards = split_model(tmp_path / "set")
    files = {f"Q4_K_M/{s.name}": s.read_bytes() for s in shards}
    hub.repos["org/repo"] = Repo({f.replace("/m-", "/m-Q4_K_M-"): b for f, b in files.items()})
    result = inspect("hf://org/repo:Q4_K_M")
    assert result.path == "hf://org/repo/Q4_K_M/m-Q4_K_M-00001-of-00005.gguf"
    assert list(result.norms) == norms_of(shards[0])
    with pytest.raises(InputError, match=r"`hf download org/repo Q4_K_M/m-Q4_K_M-00001-of.* Q4"):
        local_path("hf://org/repo:Q4_K_M")


def test_a_downloaded_file_of_the_hub_is_found(hub: HubServer, model: bytes) -> None:
    hub.repos["org/repo"] = Repo(quants(model))
    location = "hf://org/repo:Q8_0"
    with pytest.raises(InputError, match="download it first with `hf download org/repo m-Q8_0"):
        local_path(location)
    found = find_file(location)
    cached = Path(huggingface_hub.constants.HF_HUB_CACHE, "models--org--repo", "snapshots")
    cached = cached / found.revision / found.path
    cached.parent.mkdir(parents=True)
    cached.write_bytes(model)
    assert local_path(location) == cached
    refs = Path(huggingface_hub.constants.HF_HUB_CACHE, "models--org--repo", "refs")
    refs.mkdir()
    (refs / "main").write_text(found.revision)
    hub.requests.clear()
    assert local_path("hf://org/repo/m-Q8_0.gguf") == cached
    assert hub.requests == [], "the Hub was asked for a file that is here"


# Ollama


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ollama"
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    return folder


DIGEST = "0123456789abcdef" * 4


def pull(folder: Path, where: str, model: bytes, layers: object = None) -> Path:
    """Store a model as Ollama does."""
    manifest = folder / "manifests" / where
    manifest.parent.mkdir(parents=True, exist_ok=True)
    other = {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'f' * 64}"}
    one = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{DIGEST}"}
    document = {"schemaVersion": 2, "layers": [other, one] if layers is None else layers}
    manifest.write_text(json.dumps(document))
    blob = folder / "blobs" / f"sha256-{DIGEST}"
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(model)
    return blob


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("tiny", "registry.ollama.ai/library/tiny/latest"),
        ("tiny:1b-q8_0", "registry.ollama.ai/library/tiny/1b-q8_0"),
        ("me/tiny:2", "registry.ollama.ai/me/tiny/2"),
        ("hf.co/org/tiny:Q4_K_M", "hf.co/org/tiny/Q4_K_M"),
        ("localhost:5000/org/tiny", "localhost:5000/org/tiny/latest"),
    ],
)
def test_models_of_ollama(ollama: Path, model: bytes, name: str, where: str) -> None:
    blob = pull(ollama, where, model)
    assert len(norms_of(f"ollama:{name}")) == 9
    assert local_path(f"ollama:{name}") == blob


def test_ollama_keeps_its_models_at_home(
    model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    blob = pull(tmp_path / ".ollama/models", "registry.ollama.ai/library/tiny/latest", model)
    assert local_path("ollama:tiny") == blob


def test_a_missing_model_of_ollama_lists_what_is_there(ollama: Path, model: bytes) -> None:
    with pytest.raises(InputError, match="no models at all"):
        open_model("ollama:absent")
    for where in ("registry.ollama.ai/library/tiny/latest", "registry.ollama.ai/me/a/1",
                  "hf.co/org/b/Q8_0"):  # fmt: skip
        pull(ollama, where, model)
    with pytest.raises(InputError, match=r"there are hf.co/org/b:Q8_0, tiny:latest, me/a:1$"):
        open_model("ollama:absent")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        ":latest",
        "..",
        "../x",
        "../../x:y",
        "a/../b",
        "a/b/../c",
        "x:..",
        "x:../../y",
        "/etc/passwd",
        "./x",
        "a/b/c/d",
        "a//b",
        "a\\..\\b",
        ".hidden",
        "x\0y",
        "x\n",
    ],
)
def test_names_of_ollama_do_not_leave_its_folder(
    ollama: Path, model: bytes, tmp_path: Path, name: str
) -> None:
    blob = pull(ollama, "registry.ollama.ai/library/tiny/latest", model)
    for target in (tmp_path / "x", tmp_path / "y"):
        shutil.copy(ollama / "manifests/registry.ollama.ai/library/tiny/latest", target)
    assert blob.exists()
    with pytest.raises(InputError, match="the name is not"):
        local_path(f"ollama:{name}")


@pytest.mark.parametrize(
    "digest", ["sha256:../../../secret", "../secret", "sha256:", DIGEST, f"sha256:{DIGEST}/..", 7]
)
def test_digests_of_ollama_do_not_leave_its_folder(
    ollama: Path, model: bytes, digest: object
) -> None:
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest}
    pull(ollama, "registry.ollama.ai/library/tiny/latest", model, [layer])
    with pytest.raises(InputError, match="names no GGUF file"):
        local_path("ollama:tiny")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"layers": 7}', '{"layers": [7]}', "\xff", "[" * 100_000]
)
def test_a_damaged_manifest_of_ollama(ollama: Path, model: bytes, text: str) -> None:
    pull(ollama, "registry.ollama.ai/library/tiny/latest", model)
    manifest = ollama / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="is not a manifest of Ollama's"):
        local_path("ollama:tiny")


def test_a_missing_blob_of_ollama(ollama: Path, model: bytes) -> None:
    pull(ollama, "registry.ollama.ai/library/tiny/latest", model).unlink()
    with pytest.raises(InputError, match="is missing: pull the model again"):
        open_model("ollama:tiny")


# Paths, and what is none of these


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open"):
        open_model(tmp_path / "absent.gguf")


def test_a_kind_of_location_that_is_not_known() -> None:
    with pytest.raises(InputError, match="models are opened from a path, https://"):
        open_model("s3://bucket/m.gguf")


def test_a_path_object_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "plain.gguf").rename(tmp_path / "ollama:tiny")
    with open_model(Path("ollama:tiny")) as file:
        assert file.architecture == "llama"


# drift


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://127.0.0.1:9/m.gguf", r"download it first \(`curl -LO http://127.0.0.1:9/m.gguf`"),
        ("hf://org/repo/m-Q8_0.gguf", "`hf download org/repo m-Q8_0.gguf`"),
    ],
)
def test_drift_needs_models_on_this_machine(
    hub: HubServer, model: bytes, tmp_path: Path, location: str, says: str
) -> None:
    hub.repos["org/repo"] = Repo(quants(model))
    with pytest.raises(InputError, match=says):
        drift(tmp_path / "model.gguf", location)
