"""What is read may be a pipe, shrink meanwhile, claim any size: one line, never a hang or a death.

Rows of ``docs/faults.md``: see :mod:`tests.fault_table`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import click
import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.analysis.audit.fleet.run import audit_all
from ggufnorm.analysis.audit.ignores import find_policy, read_ignores
from ggufnorm.analysis.audit.run import AuditOptions
from ggufnorm.analysis.trace.ids import read_ids
from ggufnorm.cli.options import read_text
from ggufnorm.core.audit import AuditReport
from ggufnorm.core.logits import LogitSum
from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.engines.images import read_picture
from ggufnorm.engines.pretrained import load_pretrained
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import GgufnormError, InputError
from ggufnorm.formats import storage as storage_module
from ggufnorm.formats.dequantize import read_rows, read_tensor
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.hf import LocalFolder, check_checkpoint
from ggufnorm.formats.imatrix import read_imatrix
from ggufnorm.formats.location import open_model
from ggufnorm.formats.npy import read_numbers
from ggufnorm.formats.safetensors import SafetensorsReader
from ggufnorm.formats.storage import LocalStorage
from ggufnorm.formats.wav import read_sound
from ggufnorm.report.document import from_json, to_json
from ggufnorm.report.formats import load
from ggufnorm.runs.loop import Loop, Policy
from ggufnorm.samples import sample_model
from tests import results
from tests.checkpoints import safetensors
from tests.fault_table import fault
from tests.fuzz.fuzz_gguf import ARRAY, STRING, U8, Draft, draft
from tests.sounds import sound, write_wav

F32 = 0


def text_of_a_command(path: Path) -> str:
    """The text of ``-f``, read as a command does."""
    with click.Context(click.Command("drift")):
        return read_text(path)


READERS: dict[str, Callable[[Path], object]] = {
    "a model": GGUFFile,
    "a trace": Trace,
    "a trace or a model": lambda path: ggufnorm.compare(path, path),
    "token ids": read_ids,
    "a report": load,
    "a sound": read_sound,
    "an array": read_numbers,
    "a picture": read_picture,
    "an importance matrix": read_imatrix,
    "an ignore file": read_ignores,
    "a text": text_of_a_command,
    "an ONNX file": lambda path: ggufnorm.inspect(path.rename(path.with_suffix(".onnx"))),
    "a file to resume from": lambda path: Loop(Channel(), Policy(str(path)), "", {}, 1),
    "a checkpoint's config": lambda path: LocalFolder(path.parent).storage(path.name),
}


def n_descriptors() -> int:
    """Files that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def in_a_line(call: Callable[[], object], match: str | None = None) -> str:
    """The message of a call that must fail as ggufnorm does."""
    with pytest.raises(GgufnormError, match=match) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1000
    return message


@fault("Special files", "a named pipe without a writer for each kind of input",
       then="refused in one line, at once")  # fmt: skip
@pytest.mark.parametrize("name", READERS)
def test_a_named_pipe_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    in_a_line(lambda: READERS[name](tmp_path / "pipe"), "named pipe|not a file")
    assert time.monotonic() - started < 5


@fault("Special files", "`/dev/zero`, by a link, for each kind of input",
       then="refused in one line, nothing of it is read")  # fmt: skip
@pytest.mark.parametrize("name", READERS)
def test_a_device_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    in_a_line(lambda: READERS[name](tmp_path / "zero"), "device|not a file")


@fault("Special files", "a socket, a folder", then="refused in one line")
@pytest.mark.parametrize("kind", ["socket", "folder"])
def test_sockets_and_folders_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "socket":
            bound.bind("thing")
        else:
            Path("thing").mkdir()
        in_a_line(lambda: GGUFFile("thing"), "it is a socket|Is a directory")


@fault("Special files", "a file that is larger than its kind may be (sparse, 1 TB)",
       then="refused in one line, nothing of it is read")  # fmt: skip
@pytest.mark.parametrize(
    "name", sorted(set(READERS) - {"a model", "a trace", "a trace or a model", "an ignore file",
                           "a checkpoint's config"})
)  # fmt: skip
def test_a_file_too_large_is_refused(name: str, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    in_a_line(lambda: READERS[name](tmp_path / "large"), "are more than the")


# A file that becomes shorter


def model_file(path: Path, n_tensors: int = 40, width: int = 1 << 16) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for i in range(n_tensors):
        writer.add_tensor(f"blk.{i}.ffn_up.weight", np.ones((4, width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@fault("Truncation", "a model cut at one of 40 places between the header and a tensor's reading",
       tried=40, then="one line: so many bytes came; no SIGBUS")  # fmt: skip
def test_a_model_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf")
    with GGUFFile(path) as file:
        names = list(file.tensors)
        for name in reversed(names):
            os.truncate(path, file.tensors[name].offset + 5)
            in_a_line(lambda name=name: read_tensor(file, name), "may have changed")
            in_a_line(lambda name=name: read_rows(file, name, 1, 2), "may have changed")


@fault("Truncation", "a model cut by another process while audit, inspect and diff read it",
       tried=30, then="a result or one line; the process lives")  # fmt: skip
def test_a_model_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf", 4)
    whole = path.read_bytes()
    calls = (
        lambda: list(audit_all([path, path], AuditOptions(full=True))),
        lambda: ggufnorm.inspect(path),
        lambda: ggufnorm.diff(path, path),
    )
    for i in range(30):
        path.write_bytes(whole)
        n = len(whole) * (i + 1) // 31
        cut = threading.Timer(0.004 * (i % 7), os.truncate, (path, n))
        cut.start()
        with contextlib.suppress(InputError):
            calls[i % 3]()
        cut.join()


def test_nothing_is_memory_mapped(tmp_path: Path) -> None:
    """Else a test that shrinks a file would end this process."""
    path = model_file(tmp_path / "m.gguf", 2)
    with GGUFFile(path) as file:
        read_tensor(file, "blk.0.ffn_up.weight")
        assert str(path) not in Path("/proc/self/maps").read_text()


@fault("Truncation", "a file replaced by another while more than 64 are open",
       then="one line: it was replaced")  # fmt: skip
def test_a_file_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "_KEPT_OPEN", 1)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 9)
    a, b = (LocalStorage(tmp_path / name) for name in "ab")
    assert bytes(a.read(0, 3)) == b"aaa"
    assert bytes(b.read(0, 3)) == b"bbb"
    (tmp_path / "c").replace(tmp_path / "a")
    in_a_line(lambda: a.read(0, 3), "was replaced")


# Sizes that a file claims


def sparse_model(path: Path, tensors: list[tuple[str, tuple[int, ...]]]) -> Path:
    """F32 tensors of zeros that take no room on the disk."""
    placed, end = [], 0
    for name, shape in tensors:
        placed.append((name, shape, F32, end))
        end += 4 * int(np.prod(shape)) + -4 * int(np.prod(shape)) % 32
    made = draft([("general.architecture", STRING, "llama")], placed)
    path.write_bytes(made.data)
    os.truncate(path, len(made.data) + end)
    return path


def array_of(path: Path, n: int) -> Path:
    made = Draft()
    made.data += b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    made.metadata("general.architecture", STRING, "llama")
    made.string("tokenizer.ggml.scores")
    made.data += struct.pack("<IIQ", ARRAY, U8, n)
    path.write_bytes(made.data)
    os.truncate(path, len(made.data) + n)
    return path


def bad_models(folder: Path) -> dict[str, Path]:
    digits = "9" * 4301
    many = sparse_model(folder / "digits.gguf", [(f"blk.{digits}.attn_norm.weight", (8,))])
    short = sparse_model(folder / "short.gguf", [(f"blk.{digits[:4000]}.attn_norm.weight", (8,))])
    return {
        "a block number of 4,301 digits": many,
        "a block number of 4,000 digits": short,
        "a norm of 12 GB in a sparse file": sparse_model(
            folder / "norm.gguf", [("blk.0.attn_norm.weight", (3 << 30,))]
        ),
        "a row of 12 GB in a sparse file": sparse_model(
            folder / "row.gguf", [("blk.0.ffn_up.weight", (3 << 30, 1))]
        ),
        "an array of 2·10⁹ elements": array_of(folder / "array.gguf", 2_000_000_000),
        "noise": (folder / "noise.gguf", (folder / "noise.gguf").write_bytes(b"noise" * 99))[0],
    }  # fmt: skip


@fault("One bad file of a set", "a block number of 4,301 digits; a norm and a row of 12 GB; an"
       " array of 2·10⁹ elements; noise", tried=6,
       then="its own entry in the report; the others are checked")  # fmt: skip
def test_one_bad_file_does_not_end_an_audit(tmp_path: Path) -> None:
    bad = bad_models(tmp_path)
    tracemalloc.start()
    try:
        found = list(
            audit_all([sample_model(), *bad.values(), sample_model()], AuditOptions(full=True))
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(found[0], AuditReport)
    assert isinstance(found[-1], AuditReport)
    for name, entry in zip(bad, found[1:-1], strict=True):
        if isinstance(entry, InputError):
            assert len(str(entry).splitlines()) == 1, name
    assert peak < 700e6


@fault(
    "One bad file of a set", "an error that nobody expected", then="its own entry, which says so"
)
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("bang"), MemoryError(), RecursionError("deep\nx")]
)
def test_an_unexpected_error_is_one_entry(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_file(tmp_path / "bad.gguf", 1)

    def opened(location: object) -> object:
        if location == path:
            raise error
        return open_model(sample_model())

    monkeypatch.setattr("ggufnorm.analysis.audit.run.open_model", opened)
    found = list(audit_all([sample_model(), path, sample_model()], AuditOptions()))
    assert [type(f) for f in found] == [AuditReport, InputError, AuditReport]
    assert len(str(found[1]).splitlines()) == 1
    assert "bad.gguf" in str(found[1])
    with pytest.raises(type(error)):  # of one model alone, exit code 70 tells of it
        list(audit_all([path], AuditOptions()))


def test_a_long_array_is_not_decoded(tmp_path: Path) -> None:
    with GGUFFile(array_of(tmp_path / "m.gguf", 5_000_000)) as file:
        in_a_line(
            lambda: file.metadata["tokenizer.ggml.scores"], "more than the 4,194,304 elements"
        )


@fault(
    "Names", "`general.name` and `general.architecture` of 20 MB", then="cut to 1,024 characters"
)
def test_names_of_20_mb_are_cut(tmp_path: Path) -> None:
    made = draft([("general.architecture", STRING, "x" * 20_000_000),
                  ("general.name", STRING, "y" * 20_000_000)])  # fmt: skip
    (tmp_path / "m.gguf").write_bytes(made.data)
    found = ggufnorm.inspect(tmp_path / "m.gguf")
    assert len(to_json(found)) < 10_000
    (report,) = audit_all([tmp_path / "m.gguf"], AuditOptions())
    assert len(to_json(report)) < 30_000


@fault("Names", "tensor names of 4,097 bytes and more in GGUF, safetensors and ONNX", tried=3,
       then="refused in one line that shows 64 characters")  # fmt: skip
def test_long_names_are_refused(tmp_path: Path) -> None:
    sparse_model(tmp_path / "m.gguf", [("n" * 4097, (8,))])
    in_a_line(lambda: GGUFFile(tmp_path / "m.gguf"), "4097 is more than 4096")
    header = json.dumps(
        {"n" * 20_000_000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    ).encode()
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    in_a_line(lambda: SafetensorsReader(tmp_path / "t.safetensors"), "more than 4096 characters")
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Identity", ["x"], ["n" * 5000])
    graph = onnx.helper.make_graph([node], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "m.onnx"))
    in_a_line(lambda: ggufnorm.inspect(tmp_path / "m.onnx"), "more than 4096 characters")


@fault("Addresses", "a malformed address with a password", then="refused without the password")
@pytest.mark.parametrize(
    "address",
    [
        "https://user:hunter2@host:port/m.gguf",
        "https://user:hunt/hunter2@host/m.gguf",
        "https://user:hunter2#x@[::1/m.gguf",
        "https://user:a@hunter2@host:99999/m.gguf",
    ],
)
def test_a_password_in_a_malformed_address_is_not_shown(address: str) -> None:
    pytest.importorskip("httpx2")
    assert "hunter2" not in in_a_line(lambda: open_model(address), "malformed")


@fault("Damaged files", "an empty safetensors array whose other dimension is 2⁶³ - 1",
       then="refused in one line")  # fmt: skip
def test_an_empty_array_of_no_possible_shape(tmp_path: Path) -> None:
    places = {"a": {"dtype": "F32", "shape": [0, 2**63 - 1], "data_offsets": [0, 0]}}
    header = json.dumps(places).encode()
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    in_a_line(lambda: SafetensorsReader(tmp_path / "t.safetensors"), "too large")


# Small files, huge work


def wav_at_1_hz(folder: Path) -> object:
    return read_sound(write_wav(folder / "s.wav", sound(1.0), 1))


def hours_of_sound(folder: Path) -> object:
    return read_sound(write_wav(folder / "s.wav", np.zeros(4_000_000), 1000))


def wide_picture(folder: Path) -> object:
    from PIL import Image

    Image.new("1", (13_000, 13_000)).save(folder / "p.png")
    assert (folder / "p.png").stat().st_size < 100_000
    return read_picture(folder / "p.png")


def postscript(folder: Path) -> object:
    (folder / "p.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    return read_picture(folder / "p.eps")


def numpy_header(shape: str) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (7,)}
        )
        (folder / "a.npy").write_bytes(file.getvalue().replace(b"(7,)", shape.encode()) + bytes(28))
        return read_numbers(folder / "a.npy")

    return call


def onnx_with(*nodes: object, **constants: np.ndarray) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        onnx = pytest.importorskip("onnx")
        from ggufnorm.engines.onnx.model import OnnxModel

        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(*n) for n in nodes], "g", [], [],
            [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
        )  # fmt: skip
        onnx.save(onnx.helper.make_model(graph), str(folder / "m.onnx"))
        assert OnnxModel(folder / "m.onnx").constant("y") is None
        raise InputError("it is left as it is")

    return call


def key_of_many_parts(folder: Path) -> object:
    (folder / "i.toml").write_text(".".join(["a"] * 50_000) + " = 1\n")
    return read_ignores(folder / "i.toml")


def config(entries: dict[str, object]) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        (folder / "config.json").write_text(json.dumps(entries))
        return check_checkpoint(folder)

    return call


def extractor(entries: dict[str, object]) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        (folder / "preprocessor_config.json").write_text(json.dumps(entries))
        return load_pretrained("AutoFeatureExtractor", folder, "an extractor", "")

    return call


SMALL: dict[str, Callable[[Path], object]] = {
    "a WAV at 1 Hz": wav_at_1_hz,
    "more than an hour of sound": hours_of_sound,
    "a PNG of 13,000² pixels": wide_picture,
    "a PostScript picture": postscript,
    "a .npy header of 10¹² values": numpy_header("(1000000000000,)"),
    "a .npy header of -1 values": numpy_header("(-1,)"),
    "ONNX Expand to 2²⁸": onnx_with(
        ("Expand", ["x", "shape"], ["y"]),
        x=np.ones(1, np.float32), shape=np.array([1 << 14, 1 << 14]),
    ),
    "ONNX Add of a column and a row": onnx_with(
        ("Add", ["x", "z"], ["y"]),
        x=np.ones((1 << 14, 1), np.float32), z=np.ones((1, 1 << 14), np.float32),
    ),
    "an ONNX weight of strings": onnx_with(
        ("Identity", ["x"], ["y"]), x=np.array(["a", "b"], object)
    ),
    "a TOML key of 50,000 parts": key_of_many_parts,
    "`n_fft: 1000000000`": extractor({"n_fft": 10**9}),
    "`chunk_length: 1000000`": extractor({"chunk_length": 10**6}),
    "`num_hidden_layers: 1000000`": config({"text_config": {"num_hidden_layers": 1_000_000}}),
}  # fmt: skip


@fault("Small files, huge work", ", ".join(SMALL), then="refused in one line, within 300 MB")
@pytest.mark.parametrize("name", SMALL)
def test_small_files_do_no_huge_work(name: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    tracemalloc.start()
    try:
        in_a_line(lambda: SMALL[name](tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()


@fault("Small files, huge work", "`weight_map` that leads out of the folder, before Transformers"
       " opens it", then="refused in one line")  # fmt: skip
@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_shards_do_not_lead_out_of_the_folder(shard: str, tmp_path: Path) -> None:
    index = {"weight_map": {"a": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    in_a_line(lambda: check_checkpoint(tmp_path), "leads out of the folder")


def test_transformers_is_given_checked_folders_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from ggufnorm.engines.hf.model import HFModel

    (tmp_path / "config.json").write_text('{"num_hidden_layers": 1000000, "model_type": "llama"}')
    in_a_line(lambda: HFModel(tmp_path), "num_hidden_layers is more than 1,024")


@fault("Small files, huge work", "a `config.json` without its sizes, for which Transformers takes"
       " those of seven billion weights",
       then="refused in one line, before weights are made")  # fmt: skip
def test_a_config_without_sizes_is_not_made_a_large_network(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from ggufnorm.engines.hf.model import HFModel

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    values = {"model.norm.weight": ("F32", np.ones(64, np.float32))}
    (tmp_path / "model.safetensors").write_bytes(safetensors(values))
    in_a_line(lambda: HFModel(tmp_path), "a network of 6,.* weights, and the safetensors hold 256")


# Files that someone changed


@fault("Tampered files", "a report with numbers of 1e308, 10⁴⁰⁰, -1e200",
       then="refused in one line: damaged document")  # fmt: skip
@pytest.mark.parametrize("number", ["1e308", "1" + "0" * 400, "-1e200", "1" * 5000])
def test_report_numbers_beyond_all_measure_are_refused(number: str) -> None:
    text = to_json(results.drift_report()).replace('"n_ctx": ', f'"n_ctx": {number}, "was": ', 1)
    in_a_line(lambda: from_json(text, "r.json"), "damaged document|not a ggufnorm")


SUMS = DifferenceSum().state()


@fault("Tampered files", "a file to resume from with negative, infinite or fractional sums and"
       " counts", then="refused: it is damaged")  # fmt: skip
@pytest.mark.parametrize(
    ("place", "value"),
    [(0, -1.0), (0, float("inf")), (1, float("nan")), (2, -1.0), (3, float("inf")), (5, -1),
     (6, -1), (5, 0.5), (0, "x"), (4, [0.5, 1])],
)  # fmt: skip
def test_sums_out_of_range_are_refused(place: int, value: object) -> None:
    state = [*SUMS]
    state[place] = value
    with pytest.raises((ValueError, TypeError)):
        DifferenceSum.from_state(state)


@fault("Tampered files", "a file to resume from whose predictions are out of range",
       then="refused: it is damaged")  # fmt: skip
@pytest.mark.parametrize(("key", "value"), [("same", -1), ("same", 10**9), ("bad", -1)])
def test_logit_sums_out_of_range_are_refused(key: str, value: int) -> None:
    state = {**LogitSum().state(), key: value}
    with pytest.raises(ValueError, match="out of range"):
        LogitSum.from_state(state)


@fault("Tampered files", "an importance matrix with negative or infinite sums, or counts of NaN",
       then="refused in one line")  # fmt: skip
@pytest.mark.parametrize(("sums", "counts"), [(-1.0, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_importance_out_of_range_is_refused(sums: float, counts: float, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "")
    writer.add_tensor("a.in_sum2", np.full((1, 8), sums, np.float32))
    writer.add_tensor("a.counts", np.full((1, 1), counts, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if np.isnan(counts):
        assert read_imatrix(tmp_path / "i.gguf")["a"].tolist() == [1.0] * 8  # as llama.cpp
        return
    in_a_line(lambda: read_imatrix(tmp_path / "i.gguf"), "compute the matrix again")


@fault("Tampered files", "somebody else's broken `pyproject.toml` in the current folder",
       then="it accepts nothing, and the audit goes on")  # fmt: skip
@pytest.mark.parametrize("text", [b"[tool\n", b"\xff\xfe", b"a = 1\na = 2\n", b"[" * 9999])
def test_a_broken_pyproject_of_somebody_else_is_no_error(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(text)
    assert find_policy(tmp_path).accepted == ()
    (tmp_path / "pyproject.toml").write_bytes(text + b"\n[[tool.ggufnorm.ignore]]")
    in_a_line(lambda: find_policy(tmp_path), "not a TOML file")


# Load


@fault("Load", "a header of a million tensors", tried=1, then="at most 100 MB, of which 59 are the"
       " header itself")  # fmt: skip
def test_a_header_of_a_million_tensors(tmp_path: Path) -> None:
    n, path = 1_000_000, tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, n, 0))
        for i in range(n):
            name = b"blk.%d.attn_norm.weight" % i
            file.write(struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 8, 0, i * 32))
        end = -(-file.tell() // 32) * 32 + n * 32
    os.truncate(path, end)
    code = f"""
import resource, sys, time
from ggufnorm.formats.gguf import GGUFFile
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
file = GGUFFile({str(path)!r})
assert len(file.tensors) == {n}
assert file.tensors["blk.777777.attn_norm.weight"].offset == {end} - 32 * ({n} - 777777)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 100 * 1024
    assert seconds < 60
    in_a_line(lambda: ggufnorm.inspect(path), "1,000,000 tensors are more than")


@fault("Load", "20,000 norms", then="refused in one line: no model has so many")
def test_more_norms_than_any_model_has(tmp_path: Path) -> None:
    tensors = [(f"blk.{i}.attn_norm.weight", (8,)) for i in range(20_000)]
    in_a_line(lambda: ggufnorm.inspect(sparse_model(tmp_path / "m.gguf", tensors)), "16,384 norms")


@fault("Load", "1,500 shards where a process may have 256 files", tried=1, then="read as one model")
def test_a_model_of_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    n = 1500
    for i in range(n):
        meta = [("split.no", 2, i), ("split.count", 2, n), ("split.tensors.count", 5, n)]
        made = draft([("general.architecture", STRING, "llama"), *meta],
                     [(f"t{i}", (8,), F32, 0)], data=bytes([i % 200] * 32))  # fmt: skip
        (tmp_path / f"m-{i + 1:05d}-of-{n:05d}.gguf").write_bytes(made.data)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with open_model(tmp_path / f"m-00001-of-{n:05d}.gguf") as file:
            assert len(file.tensors) == n
            for i in (0, 1499, 3, 700):
                assert set(file.read_bytes(f"t{i}").tolist()) == {i % 200}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@fault(
    "Load", "3,000 files, one of them bad", tried=3000, then="one entry each, one of them a refusal"
)
def test_three_thousand_files_with_one_bad(tmp_path: Path) -> None:
    made = bytes(draft([("general.architecture", STRING, "llama")]).data)
    paths = [tmp_path / f"{i}.gguf" for i in range(3000)]
    for path in paths:
        path.write_bytes(made)
    paths[1234].write_bytes(made[:20])
    found = list(audit_all(paths, AuditOptions(select=("N6",))))
    assert [i for i, f in enumerate(found) if isinstance(f, InputError)] == [1234]
    assert n_descriptors() < 200


def test_threads_share_a_storage_and_close_it(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf", 8, 1 << 10)
    before = n_descriptors()
    with GGUFFile(path) as file:
        names = list(file.tensors) * 50
        read: list[bytes] = []
        threads = [
            threading.Thread(
                target=lambda: read.extend(file.read_bytes(n).tobytes() for n in names)
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(read) == {np.ones(4 << 10, np.float32).tobytes()}
    assert n_descriptors() <= before
