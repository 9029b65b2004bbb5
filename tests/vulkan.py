"""A build of llama.cpp with Vulkan, on any device that it finds, Mesa's llvmpipe included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ggufnorm.engines.llama.library import find_library
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.errors import GgufnormError
from ggufnorm.runs.devices import known_engine

_SEE_CPU_DEVICES = "GGML_VK_VISIBLE_DEVICES"
"""ggml-vulkan passes over devices on the CPU unless they are named (ggml-vulkan.cpp)."""


@contextmanager
def vulkan_build() -> Iterator[str]:
    """Its libllama; skips the tests where there is none."""
    before = os.environ.get(_SEE_CPU_DEVICES)
    os.environ.setdefault(_SEE_CPU_DEVICES, "0")
    try:
        library = str(find_library("vulkan"))
        known = known_engine(EngineOptions(1, 1, llama_cpp=library))
    except GgufnormError as error:
        pytest.skip(f"no Vulkan build here: {error}")
    if "Vulkan0" not in [device.name for device in known.devices]:
        pytest.skip("Vulkan finds no device here: apt-get install mesa-vulkan-drivers")
    yield library
    os.environ.pop(_SEE_CPU_DEVICES)
    os.environ.update({} if before is None else {_SEE_CPU_DEVICES: before})
