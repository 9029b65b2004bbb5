"""Which device has how much, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ggufnorm.core.engine import AUTO, Build
from ggufnorm.engines.llama.devices import CPU, Device, require_devices, used_devices
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.errors import MemoryLimitError, RefusedError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.location import open_model
from ggufnorm.runs import placement
from ggufnorm.runs.checks import costs_of
from ggufnorm.runs.devices import Known
from ggufnorm.runs.options import SideOptions
from ggufnorm.runs.placement import Side, needs, settle, taken_by

MB = 1_000_000


def device(name: str, free: int = 900 * MB, kind: Any = "GPU") -> Device:
    return Device(name, f"a {name}", kind, 1000 * MB, free, name)


HOST = device(CPU, kind="CPU")
TWO = (device("A0"), device("A1"), HOST)


@pytest.fixture
def file(sample: Path) -> Any:
    with open_model(sample) as opened:
        yield opened


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let every build have some devices."""
    build = Build("llama.cpp", "", "", "", "", "")

    def let(devices: Sequence[Device]) -> None:
        monkeypatch.setattr(placement, "known_engine", lambda _: Known(build, tuple(devices)))

    return let


def side(file: GGUFFile, n_replicas: int = 1, **options: Any) -> Side:
    return Side(file, EngineOptions(128, 1, **options), n_replicas)


def test_all_is_counted_once_wherever_it_is(file: GGUFFile) -> None:
    weights = sum(t.n_bytes for t in file.tensors.values())
    alone = needs(side(file), (HOST,))
    assert set(alone) == {CPU}
    spread = needs(side(file, n_gpu_layers=-1), TWO)
    assert set(spread) == {CPU, "A0", "A1"}
    tied = file.tensors["token_embd.weight"].n_bytes
    more = 0 if "output.weight" in file.tensors else tied
    activations = needs(side(file, n_gpu_layers=-1), TWO, weights=False)
    assert spread.total() - activations.total() == weights + more
    assert spread[CPU] - activations[CPU] == tied


def test_layers_go_where_llama_cpp_puts_them(file: GGUFFile) -> None:
    none = needs(side(file, n_gpu_layers=0), TWO)
    assert set(none) == {CPU}
    one = needs(side(file, n_gpu_layers=1, tensor_split=(1.0,)), TWO)  # the output alone
    assert set(one) == {CPU, "A0"}
    uneven = needs(side(file, n_gpu_layers=-1, tensor_split=(5.0, 1.0)), TWO)
    assert uneven["A0"] > uneven["A1"]
    single = needs(side(file, n_gpu_layers=-1, split_mode="none", main_gpu=1), TWO)
    assert set(single) == {CPU, "A1"}
    named = needs(side(file, n_gpu_layers=-1, offload_devices=("A1",)), TWO)
    assert named == single


def test_overrides_and_the_cache_are_where_they_were_asked_for(file: GGUFFile) -> None:
    ffn = sum(t.n_bytes for name, t in file.tensors.items() if "ffn" in name)
    plain = needs(side(file, n_gpu_layers=-1, offload_devices=("A0",)), TWO)
    kept = needs(
        side(file, n_gpu_layers=-1, offload_devices=("A0",), tensor_overrides=(("ffn", CPU),)), TWO
    )
    assert plain["A0"] - kept["A0"] == kept[CPU] - plain[CPU] == ffn
    moved = needs(side(file, tensor_overrides=(("ffn", "A1"),)), TWO)
    assert moved["A1"] == ffn
    nkvo = needs(side(file, n_gpu_layers=-1, offload_devices=("A0",), kv_offload=False), TWO)
    assert plain["A0"] - nkvo["A0"] == nkvo[CPU] - plain[CPU] > 0


def test_sums_take_memory_of_the_devices_that_all_sides_are_on(file: GGUFFile) -> None:
    here, there = side(file), side(file, 2, n_gpu_layers=-1, offload_devices=("A0",))
    for sides, on in (([there, there], {"A0"}), ([here, there], set()), ([here, here], set())):
        pairs = [(s, TWO) for s in sides]
        more = taken_by(pairs, sums=True) - taken_by(pairs)
        assert set(more) == on
        assert all(n == costs_of(file, there.options).sums for n in more.values())


def test_what_does_not_fit_on_a_device_is_refused_before_it_is_loaded(
    file: GGUFFile, has: Any
) -> None:
    has((device("A0", free=3 * MB), HOST))
    with pytest.raises(MemoryLimitError, match=r"the memory of A0, and 0\.0 GB are free: .*-ngl"):
        settle([side(file, n_gpu_layers=-1)])
    (told,) = settle([side(file, n_gpu_layers=-1)], check_memory=False)
    assert told.n_gpu_layers == -1


def test_auto_is_as_many_layers_as_fit_on_both_sides(file: GGUFFile, has: Any) -> None:
    has(TWO)
    (all_,) = settle([side(file, n_gpu_layers=AUTO)])
    assert all_.n_gpu_layers == -1
    room = needs(side(file, n_gpu_layers=3, offload_devices=("A0",)), TWO)["A0"]
    has((device("A0", free=room), HOST))
    (some,) = settle([side(file, n_gpu_layers=AUTO)])
    assert some.n_gpu_layers == 3
    sides = [side(file, n_gpu_layers=AUTO), side(file, 2, n_gpu_layers=AUTO)]
    first, second = settle(sides, check_memory=False)
    assert first.n_gpu_layers == second.n_gpu_layers < 3
    has((device("A0", free=1), HOST))
    with pytest.raises(MemoryLimitError, match="A0"):
        settle([side(file, n_gpu_layers=AUTO)])


def test_a_device_that_does_not_tell_its_memory_is_not_judged(file: GGUFFile, has: Any) -> None:
    silent = Device("A0", "", "GPU", 0, 0, "A0")
    has((silent, HOST))
    (told,) = settle([side(file, n_gpu_layers=AUTO)])
    assert told.n_gpu_layers == -1


def test_the_cpu_alone_asks_no_build(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: EngineOptions) -> Known:
        raise AssertionError

    monkeypatch.setattr(placement, "known_engine", fail)
    (told,) = settle([side(file, tensor_overrides=(("ffn", CPU),))])
    assert told.n_gpu_layers == 0


def test_llama_cpps_choice_of_devices() -> None:
    integrated, fast = device("I0", kind="IGPU"), device("BLAS", kind="ACCEL")
    plain = SideOptions()
    assert [d.name for d in used_devices((HOST, fast, integrated), plain)] == ["I0"]
    assert [d.name for d in used_devices((*TWO, integrated), plain)] == ["A0", "A1"]
    assert used_devices(TWO, SideOptions(offload_devices=())) == []
    require_devices((HOST, fast), 0, SideOptions(offload_devices=("BLAS",)))
    with pytest.raises(RefusedError, match=r"no device number 2 \(-mg\)"):
        require_devices(TWO, 1, SideOptions(split_mode="none", main_gpu=2))


@pytest.mark.parametrize(
    ("options", "given", "layers"),
    [
        ({}, None, 0), ({}, 7, 7), ({}, "all", -1), ({}, "auto", AUTO), ({}, 0, 0),
        ({"offload_devices": ("A0",)}, None, AUTO), ({"offload_devices": ("A0",)}, 0, 0),
        ({"offload_devices": ()}, "all", 0), ({"rpc": ("h:1",)}, None, AUTO),
        ({"n_gpu_layers": 2}, 9, 2), ({"n_gpu_layers": 0}, "all", 0),
    ],
)  # fmt: skip
def test_how_many_layers_are_meant(options: dict[str, Any], given: Any, layers: int) -> None:
    assert SideOptions(**options).engine(32, 1, given).n_gpu_layers == layers
