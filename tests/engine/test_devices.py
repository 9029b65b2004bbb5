"""Where a model is put: what is refused, what is done, and what a report says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.engines.llama.binding import llama
from ggufnorm.errors import ConfigError, RefusedError
from ggufnorm.report.formats import render
from ggufnorm.runs.options import SideOptions
from tests import in_process

GIVEN: dict[str, Any] = {"n_ctx": 32, "chunks": 1, "n_threads": 1}


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu_alone() -> None:
    if llama().llama_supports_gpu_offload():
        pytest.skip("this llama.cpp has other devices than the CPU")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"offload_devices": ("Vulkan7",)}, r"no device Vulkan7 \(-dev\): this llama.cpp has CPU"),
        ({"offload_devices": ("CPU",)}, "no device CPU"),
        ({"n_gpu_layers": "all"}, "all layers cannot be put on a GPU"),
        ({"n_gpu_layers": "auto"}, "cannot be put on a GPU"),
        ({"tensor_split": (1.0, 2.0), "n_gpu_layers": 3}, "-ts names 2 proportions, of 0 devices"),
        ({"tensor_overrides": (("no_such", "CPU"),)}, "-ot no_such=CPU matches no tensor of"),
        ({"tensor_overrides": (("ffn", "GPU9"),)}, r"no buffer type GPU9 .*this llama.cpp has CPU"),
        ({"tensor_overrides": (("ffn", "CPU"), ("ffn_up", "CPU"))}, "that an earlier -ot does not"),
        ({"n_cpu_moe": -1}, "has no experts"),
        ({"n_cpu_moe": 2}, "has no experts"),
    ],
)
def test_what_cannot_be_done_is_refused(
    tiny: dict[str, Path], text: str, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    side = SideOptions(**options)
    calls = [
        lambda: ggufnorm.drift(tiny["llama"], tiny["llama"], options=side, text=text, **GIVEN),
        lambda: ggufnorm.trace(tiny["llama"], tmp_path / "t", options=side, text=text, **GIVEN),
        lambda: ggufnorm.attribute(
            tiny["llama"], tiny["llama"], options=side, text=text, budget=9.0, **GIVEN
        ),
    ]
    with in_process.engine():
        for call in calls:
            with pytest.raises(RefusedError, match=says):
                call()
    assert not (tmp_path / "t").exists()


def test_a_pattern_that_is_none_is_a_mistake_in_the_command(
    tiny: dict[str, Path], text: str
) -> None:
    side = SideOptions(tensor_overrides=(("ffn(", "CPU"),))
    with pytest.raises(ConfigError, match=r"-ot ffn\(=CPU: no regular expression"):
        ggufnorm.drift(tiny["llama"], tiny["llama"], options=side, text=text, **GIVEN)


def test_the_report_says_what_was_asked_for_and_what_is(tiny: dict[str, Path], text: str) -> None:
    model = tiny["qwen3moe"]
    side = SideOptions(
        n_cpu_moe=-1, tensor_overrides=(("attn", "CPU"),), kv_offload=False, n_ubatch=16
    )
    with in_process.engine():
        plain = ggufnorm.drift(model, model, text=text, **GIVEN)
        told = ggufnorm.drift(model, model, options=side, options_ref=side, text=text, **GIVEN)
    assert all(o.local.rel_l2 == 0 for o in told.operations)
    engine = told.run.engine_quant
    assert engine
    assert plain.run.engine_quant
    assert (engine.tensor_overrides, engine.n_cpu_moe) == ((("attn", "CPU"),), -1)
    assert engine.devices == plain.run.engine_quant.devices == ("CPU",)
    assert sum(n for _, n in engine.weights) == sum(n for _, n in plain.run.engine_quant.weights)
    assert told.run.quant.n_ubatch == 16
    assert engine == replace(told.run.engine_ref, weights=engine.weights)  # type: ignore[type-var]
    shown = " ".join(render(told, "text").split())
    assert "asked for by -ot attn=CPU -cmoe -nkvo" in shown
    assert "16 tokens a decode" in shown
    assert "asked for by" not in render(plain, "text")


def test_none_is_the_cpu_whatever_else_is_asked_for(tiny: dict[str, Path], text: str) -> None:
    side = SideOptions(offload_devices=())
    model = tiny["llama"]
    with in_process.engine():
        report = ggufnorm.drift(
            model, model, n_gpu_layers=99, options=side, options_ref=side, text=text, **GIVEN
        )
    assert report.run.engine_ref
    assert report.run.engine_ref.n_gpu_layers == 0
    assert "-dev none" in render(report, "text")


def test_the_command_line_and_llama_cpps_variables(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tiny["llama"])
    given = [model, model, "-c", "32", "--chunks", "1", "-t", "1"]

    def run(*options: str) -> str:
        with in_process.engine():
            found = CliRunner().invoke(cli, ["drift", *given, *options])
        return " ".join(f"{found.output} {found.exception}".split())

    assert "16 tokens a decode" in run("-ub", "16", "-dev", "none", "-ngl", "all")
    assert "no device Vulkan9" in run("-dev", "none", "--ref-dev", "Vulkan9")
    assert "no device Vulkan9" in run("--dev", "Vulkan9", "--ref-dev", "none")
    assert "-mg goes with -sm none" in run("-mg", "1")
    assert "-ts does not go with -sm none" in run("-ts", "1", "-sm", "none")
    assert "is not a number of layers, auto or all" in run("-ngl", "many")
    monkeypatch.setenv("LLAMA_ARG_DEVICE", "Vulkan8")
    assert "no device Vulkan8" in run()
    assert "No drift" in run("-dev", "none")
    monkeypatch.setenv("LLAMA_ARG_DEVICE", "none")
    monkeypatch.setenv("LLAMA_ARG_OVERRIDE_TENSOR", "ffn_up=CPU,ffn_gate=CPU")
    monkeypatch.setenv("LLAMA_ARG_KV_OFFLOAD", "false")
    assert "-dev none -ot ffn_up=CPU -ot ffn_gate=CPU -nkvo" in run()
    assert "-ot attn=CPU -nkvo" in run("-ot", "attn=CPU")
    monkeypatch.setenv("LLAMA_ARG_N_GPU_LAYERS", "7")
    monkeypatch.delenv("LLAMA_ARG_DEVICE")
    assert "7 layers cannot be put on a GPU" in run()


def test_devices_are_listed() -> None:
    for command in ("drift", "trace", "attribute", "recipe", "compare", "check"):
        with in_process.engine():
            found = CliRunner().invoke(cli, [command, "--list-devices"])
        assert found.exit_code == 0
        assert found.output == "Available devices:\n  (none)\n"
