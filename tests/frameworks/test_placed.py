"""``compare`` across frameworks with the GGUF model on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from ggufnorm import compare
from ggufnorm.core.frameworks import FrameworksReport
from ggufnorm.errors import ConfigError, RefusedError
from ggufnorm.runs.options import SideOptions
from tests import framework_models as made
from tests.processes import ggufnorm as run
from tests.vulkan import vulkan_build

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 3


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The name of a network, its checkpoint and its tensors."""
    network = {**made.NETWORKS, "mixtral": made.MIXTRAL}[request.param]
    model = made.build(network)
    folder = made.save(model, tmp_path_factory.mktemp("placed") / "hf")
    return network, folder, made.converted(model, network)


def compared(folder: Path, file: Path, **how: Any) -> FrameworksReport:
    report = compare(f"hf:{folder}", file, text=TEXT, n_tokens=31, n_threads=1, **how)
    assert isinstance(report, FrameworksReport)
    return report


def test_what_a_build_cannot_do_is_refused_and_the_rest_is_reported(
    models: Any, tmp_path: Path
) -> None:
    network, folder, tensors = models
    file = made.write(tmp_path / "model.gguf", network, tensors)
    side = SideOptions(tensor_overrides=(("ffn_down", "CPU"),))
    plain, placed = (compared(folder, file, options=o).comparisons[0] for o in (None, side))
    assert placed.first_wrong is None
    assert placed.verdict == plain.verdict
    assert placed.engine.build is not None
    assert placed.engine.build.tensor_overrides == side.tensor_overrides
    with pytest.raises(RefusedError, match=r"there is no device Vulkan9"):
        compared(folder, file, options=SideOptions(offload_devices=("Vulkan9",)))
    with pytest.raises(RefusedError, match="matches no tensor"):
        compared(folder, file, options=SideOptions(tensor_overrides=(("nothing", "CPU"),)))
    with pytest.raises(ConfigError, match="runs exactly"):
        compared(folder, file, options=SideOptions(flash_attention="on"))
    with pytest.raises(ConfigError, match=r"no GGUF model is among"):
        compare(f"hf:{folder}", f"hf:{folder}", n_gpu_layers=1)
    refused = run("compare", f"hf:{folder}", file, "-ub", "8")
    assert refused.returncode == 2
    assert "--ubatch-size does not go with hf: and .onnx: llama.cpp runs exactly" in refused.stderr


def test_a_right_file_is_right_on_a_device_and_a_wrong_one_is_found(
    models: Any, tmp_path: Path
) -> None:
    network, folder, tensors = models
    weight = "blk.1.ffn_norm.weight"
    with vulkan_build() as library:
        how: dict[str, Any] = {
            "options": SideOptions(llama_cpp=library), "n_gpu_layers": "auto",
        }  # fmt: skip
        for dtype in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            file = made.write(tmp_path / f"{dtype.name}.gguf", network, tensors, dtype=dtype)
            (found,) = compared(folder, file, **how).comparisons
            assert found.first_wrong is None
            assert found.engine.build is not None
            assert "Vulkan0" in found.engine.build.devices
        wrong = {**tensors, weight: 1.5 * tensors[weight]}
        (found,) = compared(
            folder, made.write(tmp_path / "x.gguf", network, wrong), **how
        ).comparisons
        assert found.first_wrong is not None
        assert found.first_wrong.key == weight
