"""Checkpoints in folders and on the Hub, well-formed and not."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

import ggufnorm
from ggufnorm.cli.main import main
from ggufnorm.errors import InputError
from ggufnorm.formats.hf import Source, open_source
from ggufnorm.formats.safetensors import SafetensorsFile
from tests.checkpoints import BY_NAME, Pair, pair, safetensors, with_header
from tests.servers import HubServer, RangeServer, Repo, running, status

CONFIG = b'{"model_type": "llama"}'
INDEX = "model.safetensors.index.json"
VALUES = np.array([[1.0, -2.5], [0.15625, 3e38], [0.0, -0.0]])


def checkpoint(folder: Path, **files: bytes | object) -> Path:
    """A folder with config.json and those files; ``__`` stands for a dot, objects are JSON."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(CONFIG)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def one(dtype: str = "F32", name: str = "x", values: np.ndarray = VALUES) -> bytes:
    return safetensors({name: (dtype, values)})


# What is read.


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_every_float_is_read_exactly(tmp_path: Path, dtype: str) -> None:
    values = np.array([[1.0, -2.5], [0.15625, 24576.0], [0.0, -0.0]])
    folder = checkpoint(tmp_path / "hf", model__safetensors=one(dtype, values=values))

    with open_source(folder) as source:
        assert source.tensors["x"].dtype == dtype
        found = source.read("x")
        assert found.dtype == (np.float64 if dtype == "F64" else np.float32)
        assert np.array_equal(found, values)
        assert np.signbit(found[2, 1])
        assert np.array_equal(source.read("x", rows=2), values[:2])
        assert np.array_equal(source.read("x", rows=9), values)
        assert np.array_equal(source.read_many(["x"])["x"], values)


def test_bfloat16_is_read_by_its_bits(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xBF80, 0x7F80, 0xFF80, 0x7FC0, 0x0001, 0x8000], "<u2")
    header = {"x": {"dtype": "BF16", "shape": [7], "data_offsets": [0, 14]}}
    folder = checkpoint(tmp_path / "hf", model__safetensors=with_header(header, bits.tobytes()))

    with open_source(folder) as source:
        values = source.read("x")

    assert values[:4].tolist() == [1.0, -1.0, np.inf, -np.inf]
    assert np.isnan(values[4])
    assert values[5] == np.float32(2.0**-133)
    assert np.signbit(values[6])


def test_a_folder_may_be_written_as_other_commands_take_it(tmp_path: Path) -> None:
    content = safetensors({"x": ("F32", np.ones(3))})
    folder = checkpoint(tmp_path / "hf", model__safetensors=content)
    with open_source(f"hf:{folder}") as source, open_source(folder) as same:
        assert source.path == same.path
        assert source.tensors == same.tensors
    for location in ("s3://bucket", "https://host/folder", "ollama:tiny"):
        refused(location, "a source is a folder or hf://org/repo")


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    content = safetensors(
        {"scalar": ("F32", np.array(2.5)), "empty": ("BF16", np.zeros((0, 4), np.float32))}
    )
    with open_source(checkpoint(tmp_path / "hf", model__safetensors=content)) as source:
        assert source.read("scalar").tolist() == 2.5
        assert source.read("empty").shape == (0, 4)


def test_the_reference_librarys_files_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = checkpoint(tmp_path / "hf")
    values = {"a": VALUES.astype(np.float32), "b": np.arange(5, dtype=np.float16)}
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})

    with open_source(folder) as source:
        assert set(source.tensors) == {"a", "b"}
        assert all(np.array_equal(source.read(name), v) for name, v in values.items())


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "hf",
        one__safetensors=one(name="x"),
        two__safetensors=one("F16", "y", np.ones(3)),
    )
    weight_map = {"x": "one.safetensors", "y": "two.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "stray.safetensors").write_bytes(b"not listed, not read")

    with open_source(folder) as source:
        assert set(source.tensors) == {"x", "y"}
        both = source.read_many(["y", "x"])

    assert np.array_equal(both["x"], VALUES.astype(np.float32))
    assert both["y"].tolist() == [1, 1, 1]


def test_files_without_an_index_are_read_together(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "hf", a__safetensors=one(name="x"), b__safetensors=one(name="y"))

    with open_source(folder) as source:
        assert set(source.tensors) == {"x", "y"}


def test_the_whole_file_stands_for_the_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "hf", model__safetensors=one(), adapter__safetensors=one(name="y")
    )

    with open_source(folder) as source:
        assert set(source.tensors) == {"x"}


def test_a_cached_snapshot_may_link_to_its_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, content in {"config.json": CONFIG, "model.safetensors": one()}.items():
        (blobs / f"digest-of-{name}").write_bytes(content)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", f"digest-of-{name}"))

    with open_source(snapshot) as source:
        assert set(source.tensors) == {"x"}


def test_processor_config_wins_over_preprocessor_config(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "hf",
        model__safetensors=one(),
        preprocessor_config__json={"image_mean": [1, 2, 3], "size": 8},
        processor_config__json={"image_processor": {"image_mean": [4, 5, 6]}},
    )
    with open_source(folder) as source:
        assert source.preprocessor is not None
        assert source.preprocessor["image_mean"] == [4, 5, 6]
        assert source.preprocessor["size"] == 8


# What is refused.


def refused(folder: Path | str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        open_source(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file", "not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")
    refused(checkpoint(tmp_path / "hf"), "no safetensors")
    refused("ftp://host/repo", "a source is a folder or hf://org/repo")
    refused("https://host/repo", "a source is a folder or hf://org/repo")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{nothing", "not JSON"),
        (b"", "config.json is empty"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b" " * ((1 << 24) + 1), "are too many"),
    ],
    ids=["text", "empty", "list", "utf-16", "twice", "deep list", "deep object", "huge"],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    folder = checkpoint(tmp_path / "hf", model__safetensors=one(), config__json=content)

    refused(folder, words)


def entry(**changed: Any) -> bytes:
    """A header with one tensor of 24 bytes that says something else."""
    fine = {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}
    return with_header({"x": {**fine, **changed}}, bytes(24))


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"\0\0\0", "it has 3 bytes"),
    "header longer than the file": (struct.pack("<Q", 1 << 40) + b"{}", "announce a header"),
    "header of 2⁶⁴-1 bytes": (b"\xff" * 8 + b"{}", "announce a header"),
    "html": (b"<!DOCTYPE html><html></html>", "announce a header"),
    "no JSON": (struct.pack("<Q", 4) + b"{nop", "not JSON"),
    "deep": (struct.pack("<Q", 200_000) + b"[" * 200_000, "nested too deeply"),
    "list": (with_header([1]), "not a JSON object"),
    "metadata of numbers": (with_header({"__metadata__": {"a": 1}}), "does not map text"),
    "same name twice": (
        with_header({}).replace(b"{}", b"") and struct.pack("<Q", 16) + b'{"x":{},"x":{} }',
        "'x' is there twice",
    ),
    "entry is a list": (with_header({"x": [1]}), "not described by an object"),
    "no type": (entry(dtype=None), "has no type"),
    "no shape": (entry(shape=None), "has no shape"),
    "negative": (entry(shape=[-3, -2]), "has no shape"),
    "fraction": (entry(shape=[1.5, 4]), "has no shape"),
    "truth": (entry(shape=[True, 6]), "has no shape"),
    "beyond 64 bits": (entry(shape=[2**64]), "has no shape"),
    "many dimensions": (entry(shape=[1] * 33), "has no shape"),
    "product too large": (entry(shape=[2**40, 2**40]), "lies at 0:24"),
    "product too small": (entry(shape=[3]), "lies at 0:24"),
    "wrong type": (entry(dtype="F64"), "lies at 0:24"),
    "no place": (entry(data_offsets=[0]), "has no place"),
    "backwards": (entry(data_offsets=[24, 0]), "lies at 24:0"),
    "beyond the file": (entry(data_offsets=[24, 48]), "truncated or damaged"),
    "far beyond the file": (entry(data_offsets=[2**62, 2**62 + 24]), "truncated or damaged"),
    "unknown type, beyond the file": (
        entry(dtype="F3", data_offsets=[0, 99]), "truncated or damaged",
    ),
    "overlap": (
        with_header(
            {
                "x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                "y": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
            },
            bytes(24),
        ),
        "'x' and 'y' overlap",
    ),
    "a name of a mebibyte": (
        with_header({"a" * (1 << 20): [1]}), r"a\.\.\.' is not described by an object",
    ),
    "a name with line breaks": (with_header({"a\nb\x1b[31m": [1]}), r"'a\\nb\\x1b\[31m'"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    content, words = LIES[lie]

    refused(checkpoint(tmp_path / "hf", model__safetensors=content), words)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    folder = checkpoint(tmp_path / "hf", model__safetensors=with_header(header, bytes(4)))

    with open_source(folder) as source:
        assert "only F64, F32, F16, BF16 are read" in (source.why_unreadable("x") or "")
        with pytest.raises(InputError, match="'x' is 'F8_E4M3'"):
            source.read("x")


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (None, "no usable weight_map"),
        ({"x": 1}, "no usable weight_map"),
        ({"x": "gone.safetensors"}, "'gone.safetensors' is missing"),
        ({"x": "../secret.safetensors"}, "leads out of the folder"),
        ({"x": "..\\secret.safetensors"}, "leads out of the folder"),
        ({"x": "/etc/passwd"}, "leads out of the folder"),
        ({"x": ".."}, "leads out of the folder"),
        ({"x": ""}, "leads out of the folder"),
        ({"x": "a\0b"}, "cannot open|is missing"),
        ({"x": "n" * 5000}, "cannot open|is missing"),
        ({"x": "link.safetensors"}, "a link that leads out of the folder"),
        ({"x": "loop.safetensors"}, "cannot open"),
        ({"x": "folder.safetensors"}, "not a file"),
        ({"x": "pipe.safetensors"}, "not a file"),
        ({"y": "one.safetensors"}, "'y' is not in it"),
        ({str(i): f"{i}.safetensors" for i in range(10_001)}, "10,001 shards are too many"),
    ],
    ids=lambda v: str(v)[:40] if isinstance(v, dict) else "",
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: object, words: str) -> None:
    (tmp_path / "secret.safetensors").write_bytes(one())
    folder = checkpoint(tmp_path / "hf", one__safetensors=one())
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    refused(folder, words)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "hf", a__safetensors=one(), b__safetensors=one())

    refused(folder, "'x' is in .*a.safetensors too")


class _Bytes:
    """A storage that holds it all."""

    name = "bytes"

    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def read(self, offset: int, n: int, into: memoryview | None = None) -> bytes:
        assert 0 <= offset <= offset + n <= self.size
        return self.content[offset : offset + n]

    def read_many(self, ranges: Any) -> list[bytes]:
        return [self.read(*r) for r in ranges]

    def close(self) -> None:
        self.content = b""


SOUND = safetensors({"x": ("F32", VALUES), "y": ("BF16", np.ones(4)), "z": ("F16", np.ones(3))})


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(SOUND)),
)
def test_a_damaged_file_is_read_or_refused(changes: list[tuple[int, int]], end: int) -> None:
    content = bytearray(SOUND)
    for at, byte in changes:
        content[at] = byte
    try:
        file = SafetensorsFile(_Bytes(bytes(content[:end] if not changes else content)))
    except InputError:
        return
    for name in file.places:
        if file.why_unreadable(name) is None:
            assert file.read(name).shape == file.places[name].shape


# The Hub.


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        assert isinstance(address, tuple)
        assert address[0] == "127.0.0.1", f"a request to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, loopback_only: None) -> Iterator[HubServer]:
    with running(RangeServer()) as storage, running(HubServer(storage=storage)) as hub:
        assert isinstance(hub, HubServer)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def sharded(made: Pair, padding: int) -> dict[str, bytes]:
    """The files of a checkpoint in two shards, each with a large matrix between the norms."""
    names = sorted(made.source)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    weight_map: dict[str, str] = {}
    files = {"config.json": json.dumps(made.config).encode()}
    for shard, inside in shards.items():
        tensors: dict[str, tuple[str, np.ndarray]] = {}
        for name in inside:
            matrix = f"{name.removesuffix('.weight')}_proj.weight"
            tensors[matrix] = ("F32", np.zeros(padding, np.float32))
            tensors[name] = (made.dtype, made.source[name])
        files[shard] = safetensors(tensors)
        weight_map |= dict.fromkeys(tensors, shard)
    files[INDEX] = json.dumps({"weight_map": weight_map}).encode()
    return files


def test_of_a_repository_only_headers_and_norms_are_fetched(hub: HubServer, tmp_path: Path) -> None:
    made = pair(BY_NAME["gemma2"])
    files = {**sharded(made, 1 << 18), "extra/other.safetensors": b"not at the top"}
    hub.repos["org/repo"] = Repo(files)
    model = made.write_model(tmp_path / "model.gguf")

    report = ggufnorm.audit(model, source="hf://org/repo", select=["S", "V"])

    assert [f for f in report.findings if f.severity != "info"] == []
    assert {"S101", "S201", "S208", "S401"} <= set(report.summary.rules_run)
    assert hub.storage is not None
    fetched, size = hub.sent + hub.storage.sent, sum(map(len, files.values()))
    assert size > 10 << 20
    assert fetched < size / 20


def test_a_fault_is_found_beside_a_repository(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = pair(BY_NAME["gemma2"])
    hub.repos["org/repo"] = Repo(made.files())
    made.tensors["blk.1.ffn_norm.weight"] -= np.float32(1)
    model = made.write_model(tmp_path / "model.gguf")

    arguments = ["audit", str(model), "--source", "hf://org/repo@main", "--format", "json"]
    monkeypatch.setattr(sys, "argv", ["ggufnorm", *arguments, "--select", "S"])
    with pytest.raises(SystemExit) as end:
        main()

    assert end.value.code == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["rule"], finding["tensor"], finding["layer"]) == (
        "S201", "blk.1.ffn_norm.weight", 1,
    )  # fmt: skip


def test_a_revision_is_asked_for(hub: HubServer) -> None:
    hub.repos["org/repo"] = Repo(pair(BY_NAME["llama"]).files())

    with open_source("hf://org/repo@refs/pr/1") as source:
        assert isinstance(source, Source)
        assert "model.norm.weight" in source.tensors
    refused("hf://org/repo@nowhere", "org/repo has no revision nowhere")


Break = Callable[[Repo], None]


def gated(repo: Repo) -> None:
    repo.gated = True


def private(repo: Repo) -> None:
    repo.private = True


def without(name: str) -> Break:
    return lambda repo: repo.files.pop(name) and None


def containing(name: str, content: bytes) -> Break:
    return lambda repo: repo.files.update({name: content})


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (gated, "org/repo is gated or private: ask for access"),
        (private, "there is no repository org/repo, or it is private"),
        (without("config.json"), "hf://org/repo: no config.json"),
        (without("model.safetensors"), "hf://org/repo: no safetensors"),
        (containing("config.json", b"{nothing"), "hf://org/repo/config.json is not JSON"),
        (containing("config.json", b""), "hf://org/repo: config.json is empty"),
        (containing("model.safetensors", b"<html>" * 9), "announce a header"),
        (containing("model.safetensors", one()[:-8]), "truncated or damaged"),
        (containing(INDEX, b'{"weight_map": {"x": "../../x"}}'), "leads out of the folder"),
        (containing(INDEX, b'{"weight_map": {"x": "gone"}}'), "'gone' is missing"),
    ],
    ids=["gated", "private", "no config", "no tensors", "config", "empty", "html", "short",
         "path", "gone"],
)  # fmt: skip
def test_a_repository_that_cannot_be_used_is_refused(
    hub: HubServer, broken: Break, words: str
) -> None:
    repo = hub.repos["org/repo"] = Repo({"config.json": CONFIG, "model.safetensors": one()})
    broken(repo)

    refused("hf://org/repo", words)


@pytest.mark.parametrize(
    "location", ["hf://repo", "hf://", "hf://org/repo/file", "hf://org/repo:Q8_0", "hf:///x"]
)
def test_a_location_that_is_no_repository_is_refused(hub: HubServer, location: str) -> None:
    refused(location, "write hf://org/repo or hf://org/repo@revision")


def test_a_repository_that_does_not_exist_is_refused(hub: HubServer) -> None:
    refused("hf://org/other", "there is no repository org/other")


def test_a_server_that_refuses_is_named(hub: HubServer) -> None:
    hub.repos["org/repo"] = Repo({"config.json": CONFIG, "model.safetensors": one()})
    assert hub.storage is not None
    hub.storage.trouble = status(404)

    refused("hf://org/repo", "cannot read hf://org/repo/config.json: 404")
