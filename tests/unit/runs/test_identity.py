"""What decides a result, and what a message says where it differs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ggufnorm.core.drift import SideFacts
from ggufnorm.core.engine import Build, Engine
from ggufnorm.engines.base import EngineInfo
from ggufnorm.runs.identity import identify

BUILD = Build("llama.cpp v0.5.0", "/a/libllama.so", "--llama-cpp", "ggml 0.25", "a" * 64, "x")
ENGINE = Engine(BUILD, 0, ("CPU",))
INFO = EngineInfo("llama.cpp", SideFacts("auto", "f16", "f16", False, False), 1, 0, ENGINE)


def on(engine: Engine) -> EngineInfo:
    return replace(INFO, n_gpu_layers=engine.n_gpu_layers, build=engine)


def test_the_same_job_is_the_same() -> None:
    one, two = (identify(INFO, text="x" * 9999, tokens=np.arange(9)) for _ in range(2))
    assert one.digest == two.digest
    assert one.differences(two.facts) == []
    assert len(str(one.facts)) < 2000, "a checkpoint's head is for people"


def test_where_a_build_lies_decides_nothing() -> None:
    moved = on(replace(ENGINE, build=replace(BUILD, library="/b/libllama.so", origin="fetched")))
    assert identify(moved).digest == identify(INFO).digest


def test_each_part_of_an_engine_decides_and_is_named() -> None:
    before = identify(INFO)
    for engine, says in (
        (replace(ENGINE, build=replace(BUILD, digest="b" * 64)),
         "engines.build.build.digest was aaaaaaaaaaaa… and is bbbbbbbbbbbb…"),
        (replace(ENGINE, build=replace(BUILD, layout="y")), "engines.build.build.layout was x and"),
        (replace(ENGINE, devices=("Vulkan0",)), "engines.build.devices was CPU and is Vulkan0"),
        (replace(ENGINE, hardware=("Vulkan0 (A)",)), "hardware was nothing and is Vulkan0 (A)"),
        (replace(ENGINE, rpc=("h:1",)), "engines.build.rpc was nothing and is h:1"),
        (replace(ENGINE, tensor_split=(3.0, 1.0)), "tensor_split was nothing and is 3.0, 1.0"),
        (replace(ENGINE, split_mode="none"), "split_mode was layer and is none"),
        (replace(ENGINE, n_gpu_layers=3), "engines.n_gpu_layers was 0 and is 3"),
    ):  # fmt: skip
        after = identify(on(engine))
        assert after.digest != before.digest
        assert says in "; ".join(after.differences(before.facts))


def test_only_some_differences_are_named() -> None:
    before = identify(a=1, b=2, c=3, d=4, e=5, f=6, text="long" * 999)
    after = identify(a=0, b=0, c=0, d=0, e=0, f=6, text="long" * 999)
    found = after.differences(before.facts)
    assert found[0] == "a was 1 and is 0"
    assert found[-1] == "and 1 more"


def test_two_engines_are_told_apart() -> None:
    other = on(replace(ENGINE, devices=("Vulkan0",)))
    found = identify(INFO, other).differences(identify(INFO, INFO).facts)
    assert found == ["engines[1].build.devices was CPU and is Vulkan0"]
