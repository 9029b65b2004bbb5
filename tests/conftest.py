from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import hypothesis
import pytest

from ggufnorm.core import kernels
from ggufnorm.samples import sample_model
from tests import models

ENGINES = ("llama_cpp", "torch", "transformers", "onnx", "onnxruntime")


# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "ggufnorm", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ggufnorm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-engines", action="store_true", help=f"fail if one of {', '.join(ENGINES)} is here"
    )


def pytest_configure(config: pytest.Config) -> None:
    present = [name for name in ENGINES if importlib.util.find_spec(name)]
    if config.getoption("--no-engines") and present:
        raise pytest.UsageError(f"--no-engines, but {', '.join(present)} can be imported")


@pytest.fixture(params=["loops", "NumPy"])
def computed_by(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute sums in compiled loops, then in NumPy, as where no compiler made them."""
    if request.param == "loops":
        if kernels.library() is None:
            pytest.skip("the package was built without a C compiler")
        yield
    else:
        with mock.patch.object(kernels, "library", return_value=None):
            yield


@pytest.fixture(scope="session")
def sample() -> Path:
    return sample_model()


@pytest.fixture(scope="session")
def sample_q4(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ggufnorm.engines.llama.quantize import quantize

    path = tmp_path_factory.mktemp("sample") / "sotu-Q4_K_M.gguf"
    quantize(sample, path, "Q4_K_M")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """F16 models of three architectures: RMSNorm, LayerNorm with bias, MoE with Q/K norms."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "llama": models.llama(folder / "llama.gguf"),
        "gpt2": models.gpt2(folder / "gpt2.gguf"),
        "qwen3moe": models.qwen3moe(folder / "qwen3moe.gguf"),
    }


@pytest.fixture(scope="session")
def text() -> str:
    """Enough text for some chunks of 32 tokens in the test models' vocabulary."""
    return "the rain in spain stays mainly in the plain and so it is said to be in the end " * 8
