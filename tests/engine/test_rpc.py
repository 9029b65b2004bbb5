"""Models on servers of llama.cpp's RPC backend: figures of a local run, and every trouble told."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.progress import Progress
from ggufnorm.core.trace import TraceFacts
from ggufnorm.engines.llama.rpc import SECONDS_VARIABLE
from ggufnorm.errors import EngineError, RefusedError
from ggufnorm.formats.llama_libraries import VARIABLE
from ggufnorm.runs.options import SideOptions
from tests.models import edited, noise
from tests.processes import ggufnorm as run
from tests.processes import interrupt, interruptible, one_line_error
from tests.rpc_plugin import build_with_rpc
from tests.rpc_servers import Server, Traffic, counted, fake, free_port, greets, stalls


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_with_rpc(tmp_path_factory.mktemp("rpc") / "build")


@pytest.fixture(scope="module")
def servers(build: Path) -> Iterator[tuple[str, str]]:
    with Server(build) as a, Server(build) as b:
        yield a.name, b.name


@pytest.fixture(autouse=True)
def _run_it(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(build))


@pytest.fixture(scope="module")
def other(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("other") / "llama.gguf"
    return edited(tiny["llama"], target, {"blk.1.ffn_up.weight": noise(0.05)})


def drift(a: Path, b: Path, text: str, **options: Any) -> DriftReport:
    return ggufnorm.drift(a, b, text=text, n_ctx=32, n_threads=1, **{"chunks": 2} | options)


def on(*servers: str) -> dict[str, SideOptions]:
    side = SideOptions(rpc=servers)
    return {"options": side, "options_ref": side}


SUMMED_THERE = 1e-6
"""How far a hook point's figures may be off: sums are made on the servers, in float32."""


def same(a: DriftReport, b: DriftReport) -> None:
    assert a.logits == b.logits
    assert [o.node for o in a.operations] == [o.node for o in b.operations]
    for x, y in zip(a.operations, b.operations, strict=True):
        for at in ("cumulative", "local"):
            pair = getattr(x, at).rel_l2, getattr(y, at).rel_l2
            assert pair[0] == pytest.approx(pair[1], abs=SUMMED_THERE), (x.node, at)
    assert a.culprit == b.culprit


def test_drift_on_two_servers_is_drift_here(
    tiny: dict[str, Path], other: Path, text: str, servers: tuple[str, str]
) -> None:
    far, here = (drift(tiny["llama"], other, text, **o) for o in (on(*servers), {}))
    same(far, here)
    assert any(o.local.rel_l2 for o in far.operations)
    engine = far.run.engine_quant
    assert engine is not None
    assert engine.rpc == servers
    for server in servers:
        assert any(server in device for device in engine.devices)


def test_a_chunk_takes_few_round_trips(
    tiny: dict[str, Path], text: str, servers: tuple[str, str]
) -> None:
    """Each replica's logits, what each server kept, and what each replica hands to the next one."""

    def answers(model: Path, n_servers: int, chunks: int) -> Counter[str]:
        traffic = Traffic()
        with contextlib.ExitStack() as stack:
            ports = [int(name.rpartition(":")[2]) for name in servers[:n_servers]]
            names = [stack.enter_context(counted(port, traffic)) for port in ports]
            drift(model, model, text, chunks=chunks, **on(*names))
        return traffic.answers

    for arch, n_servers, expected in (("llama", 1, 4), ("llama", 2, 8), ("qwen3moe", 1, 4)):
        one, three = (answers(tiny[arch], n_servers, chunks) for chunks in (1, 3))
        assert three - one == {"GET_TENSOR": 2 * expected}, (arch, n_servers)


def test_a_model_here_beside_itself_on_a_server(
    tiny: dict[str, Path], text: str, servers: tuple[str, str]
) -> None:
    report = drift(tiny["qwen3moe"], tiny["qwen3moe"], text, options=SideOptions(rpc=servers[:1]))
    assert report.run.engine_ref is not None
    assert report.run.engine_ref.devices == ("CPU",)
    assert report.run.engine_quant is not None
    assert report.run.engine_quant.devices != ("CPU",)
    assert "only engines differ" in report.verdict
    assert report.culprit is None


def test_a_trace_and_what_is_compared_with_it(
    tiny: dict[str, Path], other: Path, text: str, servers: tuple[str, str], tmp_path: Path
) -> None:
    far, here = tmp_path / "far.safetensors", tmp_path / "here.safetensors"
    for path, rpc in ((far, servers), (here, ())):
        ggufnorm.trace(
            tiny["llama"], path, text=text, n_ctx=32, chunks=2, n_threads=1,
            options=SideOptions(rpc=rpc),
        )  # fmt: skip
    a, b = load_file(far), load_file(here)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    reports = [
        ggufnorm.compare(here, other, n_threads=1, options=SideOptions(rpc=rpc))
        for rpc in (servers, ())
    ]
    assert all(isinstance(report, DriftReport) for report in reports)
    same(*reports)  # type: ignore[arg-type]


def test_each_range_of_layers_on_another_machine(
    tiny: dict[str, Path], text: str, servers: tuple[str, str], tmp_path: Path
) -> None:
    whole, part, joined = (tmp_path / f"{name}.safetensors" for name in ("whole", "part", "joined"))

    def trace(out: Path, server: str | None, **more: Any) -> TraceFacts:
        options = SideOptions(rpc=(server,) if server else ())
        return ggufnorm.trace(
            tiny["llama"], out, text=text, n_ctx=32, chunks=2, n_threads=1, options=options, **more
        )

    trace(whole, None)
    first = trace(part, servers[0], layers=(0, 0))
    second = trace(joined, servers[1], layers=(1, 2), after=part)
    for facts, server, others in ((first, servers[0], "1|2"), (second, servers[1], "0")):
        assert facts.build is not None
        assert any(server in name for name in facts.build.devices)
        assert facts.build.tensor_overrides == ((rf"^blk\.({others})\.", "CPU"),)
    a, b = load_file(whole), load_file(joined)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_attribute(tiny: dict[str, Path], other: Path, text: str, servers: tuple[str, str]) -> None:
    far, here = (
        ggufnorm.attribute(
            tiny["llama"], other, text=text, n_ctx=32, chunks=1, n_threads=1, by="layer",
            options=SideOptions(rpc=rpc),
        )
        for rpc in (servers, ())
    )  # fmt: skip
    assert far.shares == here.shares


def test_runs_whose_caller_does_not_choose_how(
    tiny: dict[str, Path], servers: tuple[str, str]
) -> None:
    model = tiny["llama"]
    here = run("audit", model, "--run", "--format", "json")
    far = run("audit", model, "--run", "--format", "json", "--rpc", servers[0])
    assert far.returncode == here.returncode
    a, b = json.loads(here.stdout), json.loads(far.stdout)
    assert a.pop("engine")["rpc"] == []
    assert b.pop("engine")["rpc"] == [servers[0]]
    assert a == b
    absent = f"127.0.0.1:{free_port()}"
    failed = run("audit", model, "--run", "--rpc", absent)
    assert f"nobody is at --rpc {absent}" in failed.stdout + failed.stderr
    listed = run("trace", model, "-o", "x", "--list-devices", "--rpc", servers[0])
    assert f"RPC0: {servers[0]}" in listed.stdout


# -- trouble -------------------------------------------------------------------------------------


def test_a_killed_server_ends_a_run_that_goes_on_and_ends_equal(
    tiny: dict[str, Path], other: Path, text: str, build: Path, tmp_path: Path
) -> None:
    resume = tmp_path / "progress"
    with Server(build) as server:

        def kill(progress: Progress) -> None:
            if progress.done == 1:
                server.process.kill()

        options = on(server.name) | {"chunks": 4, "resume": resume, "save_every": 0}
        with pytest.raises(EngineError) as raised:
            drift(tiny["llama"], other, text, on_progress=kill, **options)
    said = str(raised.value)
    assert raised.value.exit_code == 4
    assert f"a server of --rpc ended during the run: nobody is at --rpc {server.name}" in said
    assert f"the same command goes on from {resume}" in said
    with Server(build, server.port):
        resumed = drift(tiny["llama"], other, text, **options)
    same(resumed, drift(tiny["llama"], other, text, chunks=4))
    assert resumed.run.n_chunks == 4


def test_ctrl_c_finishes_the_chunk_and_leaves_the_server_to_the_next(
    tiny: dict[str, Path], other: Path, text: str, build: Path, tmp_path: Path
) -> None:
    out, progress, file = (tmp_path / name for name in ("report.json", "progress", "text.txt"))
    file.write_text(text * 4000)
    with Server(build) as server:
        on_server = ["--rpc", server.name, "--ref-rpc", server.name]
        command = ["drift", tiny["llama"], other, "-f", file, "-c", "32", "-t", "1", *on_server]
        command += ["-o", out, "--resume", progress]
        with interruptible(*command) as process:
            said = interrupt(process, progress.exists)
        assert "interrupted: finishing this chunk; once more ends it" in said
        run = json.loads(out.read_text())["run"]
        assert 0 < run["n_chunks"] < run["n_chunks_planned"]
        same(*(drift(tiny["llama"], other, text, **o) for o in (on(server.name), {})))


def test_a_server_that_stops_answering_does_not_hang_a_run(
    tiny: dict[str, Path], text: str, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, "1.5")
    with (
        Server(build) as server,
        fake(stalls(server.port, 40_000)) as proxy,
        pytest.raises(EngineError, match=r"nothing has come from the servers of --rpc for 1\.5 s"),
    ):
        drift(tiny["llama"], tiny["llama"], text, **on(proxy))


def test_busy_frozen_and_absent_servers_are_told_apart(
    tiny: dict[str, Path], build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, "1")
    command = ["trace", tiny["llama"], "-o", tmp_path / "t.safetensors", "-c", "32", "--rpc"]
    with Server(build) as server:
        with server.busy():
            one_line_error(run(*command, server.name), 4, "busy: it serves another client")
        with server.frozen():
            one_line_error(run(*command, server.name), 4, "frozen: it takes connections")
    one_line_error(run(*command, server.name), 4, "nobody is at --rpc", "rpc-server there")
    assert run(*command, "no server").returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "answer", "said"),
    [
        (0, bytes([2, 0, 0]), r"version 2\.0\.0 .*older"),
        (24, bytes([99, 1, 2, 0]) + bytes(24), r"version 99\.1\.2"),
    ],
    ids=["older", "newer"],
)
def test_a_server_of_another_protocol(
    tiny: dict[str, Path], text: str, size: int, answer: bytes, said: str
) -> None:
    with fake(greets(size, answer)) as server, pytest.raises(EngineError) as raised:
        drift(tiny["llama"], tiny["llama"], text, **on(server))
    assert re.search(said, str(raised.value))
    assert "run the same release on both machines" in str(raised.value)


def test_no_layer_for_the_servers(
    tiny: dict[str, Path], text: str, servers: tuple[str, str]
) -> None:
    with pytest.raises(RefusedError, match="-ngl 0"):
        drift(tiny["llama"], tiny["llama"], text, n_gpu_layers=0, **on(*servers))


def test_a_build_without_rpc_says_which_has_it(
    tiny: dict[str, Path], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(RefusedError, match=r"no RPC \(--rpc\): .* CMAKE_ARGS=-DGGML_RPC=on"):
        drift(tiny["llama"], tiny["llama"], text, **on("127.0.0.1:1"))
