"""What an ONNX model takes as its picture. Its weights are not read."""

from __future__ import annotations

import os

from ggufnorm.core.pixel_report import ModelInput
from ggufnorm.errors import InputError, MissingPackageError


def picture_input(path: str | os.PathLike[str]) -> ModelInput:
    """The first input of four dimensions that is no initializer.

    Raises:
        MissingPackageError: onnx is not installed.
        InputError: the file is no ONNX model, or takes no picture.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            'this needs onnx, which is not installed: pip install "ggufnorm[onnx]"'
        ) from error
    name = os.fspath(path)
    try:
        graph = onnx.load(name, load_external_data=False).graph
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    except Exception as error:  # protobuf's DecodeError is of a library of its own
        raise InputError(f"{name} is no ONNX model: {' '.join(str(error).split())}") from None
    weights = {weight.name for weight in graph.initializer}
    for value in graph.input:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
        if value.name not in weights and len(shape) == 4:
            return ModelInput(name, value.name, _type_name(tensor.elem_type), shape)
    raise InputError(f"{name}: no input has the four dimensions of pictures")


def _type_name(number: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(number)).lower()
