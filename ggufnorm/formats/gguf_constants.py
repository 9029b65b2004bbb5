"""gguf-py's tables of types, keys and names, without the rest of gguf-py.

``import gguf`` loads its writer and its vocabularies, with them yaml and sentencepiece, and takes
longer than everything else that ``inspect`` needs. Its ``constants.py`` imports nothing, so that
alone is executed, from the package that is installed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any


def _constants() -> Any:
    """The module ``gguf.constants``; a copy of it where gguf has not been imported.

    A copy's enumerations are equal to gguf's own, for they are integers, but not the same.
    """
    if "gguf" not in sys.modules:
        package = find_spec("gguf")  # which is not executed
        places = None if package is None else package.submodule_search_locations
        spec = places and PathFinder.find_spec("gguf.constants", places)
        if spec and spec.loader:
            found = module_from_spec(spec)
            spec.loader.exec_module(found)
            return found
    return import_module("gguf.constants")


if TYPE_CHECKING:
    from gguf.constants import (
        GGML_QUANT_SIZES,
        MODEL_ARCH,
        MODEL_ARCH_NAMES,
        MODEL_TENSOR,
        MODEL_TENSORS,
        TENSOR_NAMES,
        ExpertGatingFuncType,
        GGMLQuantizationType,
        GGUFValueType,
        Keys,
        LlamaFileType,
        PoolingType,
        VisionProjectorType,
    )
else:
    _found = _constants()
    GGML_QUANT_SIZES = _found.GGML_QUANT_SIZES
    MODEL_ARCH = _found.MODEL_ARCH
    MODEL_ARCH_NAMES = _found.MODEL_ARCH_NAMES
    MODEL_TENSOR = _found.MODEL_TENSOR
    MODEL_TENSORS = _found.MODEL_TENSORS
    TENSOR_NAMES = _found.TENSOR_NAMES
    ExpertGatingFuncType = _found.ExpertGatingFuncType
    GGMLQuantizationType = _found.GGMLQuantizationType
    GGUFValueType = _found.GGUFValueType
    Keys = _found.Keys
    LlamaFileType = _found.LlamaFileType
    PoolingType = _found.PoolingType
    VisionProjectorType = _found.VisionProjectorType

__all__ = [
    "GGML_QUANT_SIZES",
    "MODEL_ARCH",
    "MODEL_ARCH_NAMES",
    "MODEL_TENSOR",
    "MODEL_TENSORS",
    "TENSOR_NAMES",
    "ExpertGatingFuncType",
    "GGMLQuantizationType",
    "GGUFValueType",
    "Keys",
    "LlamaFileType",
    "PoolingType",
    "VisionProjectorType",
]
