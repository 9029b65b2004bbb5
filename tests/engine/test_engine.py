"""The engine's child process and the ctypes mirror: what happens when things break."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import ggufnorm
from ggufnorm.analysis.drift import run
from ggufnorm.engines.child import Emit, run_in_child
from ggufnorm.engines.llama import binding
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.session import Batch
from ggufnorm.engines.llama.walk import Lane
from ggufnorm.errors import EngineError, EngineMissingError, InputError
from tests import in_process, models


def echo(job: dict[str, Any], emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    emit({"type": "progress", "done": 1})
    print("a library prints to standard output")
    os.write(1, b"so does C code\n")
    return {"got": job["value"]}


def abort(_job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    os.write(2, b"GGML_ASSERT(false) failed\n")
    os.abort()


def be_killed(_job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def crash(_job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def raise_ours(_job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    raise InputError("the file is no good")


def raise_other(_job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    raise ZeroDivisionError("oops")


def wait(job: dict[str, Any], emit: Emit, stop: threading.Event) -> dict[str, Any]:
    emit({"type": "phase", "text": "waiting"})
    return {"asked": stop.wait(job["seconds"])}


def leave(_job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    os._exit(7)


def ignore(_message: dict[str, Any]) -> None:
    pass


def test_child_returns_its_result_and_its_messages() -> None:
    messages: list[dict[str, Any]] = []
    assert run_in_child(echo, {"value": "ä\n"}, messages.append) == {"got": "ä\n"}
    assert messages == [{"type": "progress", "done": 1}]


def test_an_abort_is_an_error_that_quotes_the_log() -> None:
    with pytest.raises(EngineError, match="SIGABRT") as caught:
        run_in_child(abort, {}, ignore)
    assert "GGML_ASSERT(false) failed" in caught.value.log


def test_a_kill_is_told_as_lack_of_memory() -> None:
    with pytest.raises(EngineError, match="ran out of memory"):
        run_in_child(be_killed, {}, ignore)


def test_a_crash_is_told_by_its_signal() -> None:
    with pytest.raises(EngineError, match="SIGSEGV"):
        run_in_child(crash, {}, ignore)


def test_an_exit_without_a_result_is_an_error() -> None:
    with pytest.raises(EngineError, match="exit code 7"):
        run_in_child(leave, {}, ignore)


def test_our_errors_keep_their_kind() -> None:
    with pytest.raises(InputError, match="the file is no good"):
        run_in_child(raise_ours, {}, ignore)


def test_other_errors_become_engine_errors() -> None:
    with pytest.raises(EngineError, match="ZeroDivisionError in the engine: oops"):
        run_in_child(raise_other, {}, ignore)


@pytest.fixture
def interrupting() -> Iterator[Emit]:
    """Sends this process a Ctrl-C soon after the child's message."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda _message: threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_asks_a_task_that_heeds_it_to_finish(interrupting: Emit) -> None:
    found = run_in_child(wait, {"seconds": 60.0}, interrupting, heeds_stop=True)
    assert found == {"asked": True}


def test_an_interrupt_ends_a_task_that_does_not(interrupting: Emit) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt):
        run_in_child(wait, {"seconds": 60.0}, interrupting)
    assert set(psutil.Process().children()) == before


def test_llama_cpp_aborting_on_a_model_is_one_error(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    """A negative epsilon loads, and aborts llama.cpp at the first decode."""
    key = "llama.attention.layer_norm_rms_epsilon"
    bad = models.edited(tiny["llama"], tmp_path / "bad.gguf", floats={key: -1.0})
    with pytest.raises(EngineError, match="SIGABRT") as caught:
        ggufnorm.drift(tiny["llama"], bad, text=text, n_ctx=32)
    assert any("GGML_ASSERT(eps >= 0.0f) failed" in line for line in caught.value.log)


def test_quantizing_writes_nothing_when_it_fails(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError):
        quantize(source, tmp_path / "target.gguf", "Q4_K_M")
    assert sorted(tmp_path.iterdir()) == [source]


def test_an_unknown_quantization_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Q4_Z"):
        quantize(tiny["llama"], tmp_path / "x.gguf", "Q4_Z")


def test_the_mirror_agrees_with_this_ggml() -> None:
    binding.check_layout()


@pytest.mark.parametrize("moved", ["ne", "nb", "op", "op_params", "src", "view_src", "name"])
def test_a_mirror_that_is_off_is_refused(moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put four bytes before one field: the layout check must notice."""
    fields: list[tuple[str, Any]] = []
    for name, kind in binding.TensorStruct._fields_:
        fields += [("gap", ctypes.c_uint64)] if name == moved else []
        fields.append((name, kind))
    wrong = type("Wrong", (ctypes.Structure,), {"_fields_": fields})
    monkeypatch.setattr(binding, "TensorStruct", wrong)
    with pytest.raises(EngineMissingError, match="does not know"):
        binding.check_layout()


def test_a_model_too_large_for_memory_is_refused_before_it_is_loaded(
    tiny: dict[str, Path], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(available=1_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(run, "run_in_child", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(EngineError, match=r"takes about .* GB of memory, and 0\.0 GB are free"):
        ggufnorm.drift(tiny["llama"], tiny["llama"], text=text, n_ctx=32)


def test_a_graph_that_changes_between_runs_is_refused(
    tiny: dict[str, Path], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Lane.plan

    def plan_another(lane: Lane, chunk: list[Batch]) -> None:
        plan(lane, chunk)
        lane.graphs = [replace(g, nodes=(*g.nodes, g.nodes[-1])) for g in lane.graphs]

    monkeypatch.setattr(Lane, "plan", plan_another)
    with (
        in_process.engine(),
        pytest.raises(EngineError, match="graph changed between two runs: it had"),
    ):
        ggufnorm.drift(tiny["llama"], tiny["llama"], text=text, n_ctx=32, n_threads=1)
