"""What an ONNX model takes as its picture. Its weights are not read."""

from __future__ import annotations

import os
from typing import Any

from ggufnorm.core.pixel_report import ModelInput
from ggufnorm.errors import InputError, MissingPackageError
from ggufnorm.formats.files import require_regular

MOST_ONNX = 1 << 31
"""Bytes of an ONNX file: Protocol Buffers have no more."""


def picture_input(path: str | os.PathLike[str]) -> ModelInput:
    """The first input of four dimensions that is no initializer.

    Raises:
        MissingPackageError: onnx is not installed.
        InputError: the file is no ONNX model, or takes no picture.
    """
    name = os.fspath(path)
    for value in _inputs(name):
        if _is_picture(value):
            tensor = value.type.tensor_type
            shape = tuple(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
            return ModelInput(name, value.name, _type_name(tensor.elem_type), shape)
    raise InputError(f"{name}: no input has the four dimensions of pictures")


def _inputs(name: str) -> list[Any]:
    """Inputs of a graph that are no initializers."""
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            'this needs onnx, which is not installed: pip install "ggufnorm[onnx]"'
        ) from error
    try:
        require_regular(name, MOST_ONNX)
        graph = onnx.load(name, load_external_data=False).graph
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    except Exception as error:  # protobuf's DecodeError is of a library of its own
        raise InputError(f"{name} is no ONNX model: {' '.join(str(error).split())}") from None
    weights = {weight.name for weight in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _is_picture(value: Any) -> bool:
    return len(value.type.tensor_type.shape.dim) == 4


def takes_pictures(path: str | os.PathLike[str]) -> bool:
    """Whether the model takes a picture and neither ids nor anything else that is integer.

    Raises:
        MissingPackageError: onnx is not installed.
        InputError: the file is no ONNX model.
    """
    given = _inputs(os.fspath(path))
    kinds = {_type_name(value.type.tensor_type.elem_type) for value in given}
    return not any("int" in kind for kind in kinds) and any(_is_picture(value) for value in given)


def _type_name(number: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(number)).lower()
