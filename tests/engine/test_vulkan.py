"""A GPU backend: Vulkan, on any device that it finds, Mesa's llvmpipe included.

Where it can be run: ``ggufnorm engine get vulkan`` and, without a GPU,
``apt-get install mesa-vulkan-drivers``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ggufnorm
from ggufnorm.core.engine import Engine
from ggufnorm.errors import InputError
from ggufnorm.report.formats import render
from ggufnorm.runs.options import SideOptions
from tests.processes import ggufnorm as run
from tests.processes import one_line_error
from tests.vulkan import vulkan_build

GIVEN: dict[str, Any] = {"n_ctx": 64, "chunks": 1, "n_threads": 1}
CPU = SideOptions(offload_devices=())


@pytest.fixture(scope="module", autouse=True)
def build() -> Iterator[str]:
    """The libllama of the Vulkan build."""
    with vulkan_build() as library:
        yield library


@pytest.fixture(autouse=True)
def chosen(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGUFNORM_LLAMA_CPP", build)


def engine_of(found: Engine | None) -> Engine:
    assert found is not None
    return found


def test_one_file_on_the_cpu_and_on_vulkan(tiny: dict[str, Path], text: str) -> None:
    report = ggufnorm.drift(
        tiny["llama"], tiny["llama"], text=text, n_gpu_layers="all", options_ref=CPU, **GIVEN
    )
    reference, quant = (engine_of(e) for e in (report.run.engine_ref, report.run.engine_quant))
    assert reference.devices == ("CPU",)
    assert "Vulkan0" in quant.devices
    assert "CPU" not in quant.devices
    assert (reference.n_gpu_layers, quant.n_gpu_layers) == (0, -1)
    assert reference.hardware == ()
    assert quant.hardware[0].startswith("Vulkan0 (")
    assert "Vulkan0" in dict(quant.weights)
    products = [k for k in report.kernels if k.op == "MUL_MAT"]
    assert products
    assert all(k.nmse is not None and k.nmse < k.limit for k in products)
    assert any(o.local.rel_l2 for o in report.operations), "other kernels round otherwise"
    assert report.norms
    assert all((n.recompute_residual or 0.0) < 1e-5 for n in report.norms)
    assert "CPU and " in report.verdict
    shown = " ".join(render(report, "text").split())
    assert "asked for by -ngl all" in shown
    assert "asked for by -dev none" in shown


@pytest.mark.parametrize("arch", ["llama", "qwen3moe"])
def test_the_same_device_twice_is_the_same(tiny: dict[str, Path], text: str, arch: str) -> None:
    report = ggufnorm.drift(tiny[arch], tiny[arch], text=text, n_gpu_layers="all", **GIVEN)
    assert max(o.cumulative.rel_l2 or 0.0 for o in report.operations) < 1e-6
    assert report.run.engine_ref == report.run.engine_quant


def test_no_layers_are_the_cpu_alone_in_large_batches_too(tiny: dict[str, Path], text: str) -> None:
    report = ggufnorm.drift(tiny["llama"], tiny["llama"], text=text, **GIVEN)
    engine = engine_of(report.run.engine_quant)
    assert engine.devices == ("CPU",)
    assert [name for name, _ in engine.weights] in (["CPU_Mapped"], ["CPU"])


def test_tensors_go_where_an_override_puts_them(tiny: dict[str, Path], text: str) -> None:
    side = SideOptions(tensor_overrides=(("ffn_down", "Vulkan0"),))
    report = ggufnorm.drift(
        tiny["llama"], tiny["llama"], text=text, options=side, options_ref=CPU, **GIVEN
    )
    engine = engine_of(report.run.engine_quant)
    products = [o for o in report.operations if o.role == "matmul"]
    moved = [o for o in products if o.tensor and "ffn_down" in o.tensor]
    assert moved
    assert all(o.local.rel_l2 for o in moved)
    # What lies between, such as the activation, follows its neighbours; other products do not.
    assert all(o.local.rel_l2 == 0 for o in products if o not in moved)
    assert dict(engine.weights)["Vulkan0"] > 0


def test_a_trace_says_where_it_was_made_and_is_compared(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    there = tmp_path / "there.safetensors"
    facts = ggufnorm.trace(tiny["llama"], there, text=text, n_gpu_layers="auto", **GIVEN)
    assert "Vulkan0" in engine_of(facts.build).devices
    report = ggufnorm.compare(there, tiny["llama"], n_threads=1)
    assert isinstance(report, ggufnorm.DriftReport)
    assert "Vulkan0" in engine_of(report.run.engine_ref).devices
    assert engine_of(report.run.engine_quant).devices == ("CPU",)
    assert report.logits
    assert report.logits.mean_kld is not None
    assert report.logits.mean_kld < 1e-3


def test_a_run_does_not_go_on_on_another_device(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    given = {"text": text, "resume": tmp_path / "run", **GIVEN}
    ggufnorm.drift(tiny["llama"], tiny["llama"], **given)
    with pytest.raises(InputError, match=r"devices was CPU and is .*Vulkan0"):
        ggufnorm.drift(tiny["llama"], tiny["llama"], n_gpu_layers="all", **given)


def test_shares_are_attributed_on_a_device(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    from ggufnorm.engines.llama.quantize import quantize

    quant = tmp_path / "q4.gguf"
    quantize(tiny["llama"], quant, "Q4_0", n_threads=1)
    here = ggufnorm.attribute(tiny["llama"], quant, text=text, budget=60.0, **GIVEN)
    there = ggufnorm.attribute(
        tiny["llama"], quant, text=text, budget=60.0, n_gpu_layers="all", **GIVEN
    )
    assert "Vulkan0" in engine_of(there.run.engine_quant).devices
    assert there.total_kld == pytest.approx(here.total_kld, rel=0.05)


def test_devices_are_listed_as_llama_cpp_lists_them() -> None:
    command = [sys.executable, "-m", "ggufnorm", "drift", "--list-devices"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    first, second, *_ = done.stdout.splitlines()
    assert first == "Available devices:"
    assert second.startswith("  Vulkan0: ")
    assert second.endswith(" MiB free)")


def test_an_audit_runs_a_model_on_a_device(tiny: dict[str, Path]) -> None:
    asked = ("audit", tiny["llama"], "--run", "--select", "C", "--format", "json")
    here, there = (json.loads(run(*asked, "-ngl", n).stdout) for n in ("0", "all"))
    assert here.pop("engine")["devices"] == ["CPU"]
    engine = there.pop("engine")
    assert "Vulkan0" in engine["devices"]
    assert engine["n_gpu_layers"] == -1
    assert here == there
    assert not there["not_run"]
    one_line_error(run(*asked, "-dev", "Vulkan7"), 4, "there is no device Vulkan7 (-dev)")
