"""``pixels``: run the pipelines on one picture and compare what they feed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.preprocessing.arrays import read_pictures
from ggufnorm.analysis.preprocessing.image.compare import compare
from ggufnorm.analysis.preprocessing.image.explain import diagnose_all
from ggufnorm.analysis.preprocessing.image.verdict import Evidence, judge
from ggufnorm.analysis.preprocessing.pipelines import PipelineOutput, compare_with_first
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.pixel_report import ExpectedPixels, PixelReport
from ggufnorm.core.pixels import Normalization, Three
from ggufnorm.engines.images import Levels, read_picture
from ggufnorm.engines.llama.vision import capture_pixels
from ggufnorm.engines.onnx_input import picture_input
from ggufnorm.engines.processors import Processor
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.formats.gguf_constants import Keys
from ggufnorm.formats.location import local_path, open_model

if TYPE_CHECKING:
    from ggufnorm.analysis.preprocessing.image.inside import Inside

Location = str | os.PathLike[str]


def pixels(
    image: Location | None = None,
    *,
    processor: Location | None = None,
    mmproj: Location | None = None,
    array: Location | None = None,
    constants: Normalization | None = None,
    onnx: Location | None = None,
) -> PixelReport:
    """Compare what an image processor, NumPy, llama.cpp and a user's own pipeline feed.

    What is expected is ``constants``, else what the processor's configuration says, else
    what ``mmproj`` says.

    Args:
        image: a picture that Pillow can read; needed for all but an array.
        processor: folder of a Hugging Face image processor (``preprocessor_config.json``).
        mmproj: an encoder's GGUF file; llama.cpp's pixels are captured inside mtmd.
        array: a ``.npy`` file with what a pipeline feeds, of the same picture if one is given.
        constants: how pixels should be normalized.
        onnx: a model that takes the pixels; its input's shape and type are compared, and what
            it does to them itself counts as done.

    Raises:
        ConfigError: there is nothing to compare, or nothing to compare it with.
        InputError: something cannot be read.
        MissingPackageError: Pillow, Transformers or onnx is not installed.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp does not load the encoder, or crashes with it.
    """
    alone = None if onnx is None or array is None else _look_inside(onnx, None)
    _require(image, processor, mmproj, array, constants or (alone.expected if alone else None))
    picture = None if image is None else read_picture(image)
    loaded = None if processor is None else Processor(processor)
    of_file = None if mmproj is None else _file_constants(local_path(mmproj))
    if alone is not None and constants is None and loaded is None and mmproj is None:
        expected = ExpectedPixels(alone.path, alone.expected.owner, alone.expected)
    else:
        expected = _expected(constants, loaded, mmproj, of_file)
    model_input = None if onnx is None else picture_input(onnx)
    levels = None if picture is None else picture.levels
    outputs = list(_outputs(levels, loaded, mmproj, array, expected.normalization))
    takes = () if picture is None else picture.takes
    diagnoses = diagnose_all(outputs, levels, expected.normalization, takes)
    inside = None if onnx is None else _look_inside(onnx, expected.normalization)
    if inside is not None:
        of_fed = diagnose_all(outputs, levels, inside.fed, takes)
        diagnoses = inside.judged(diagnoses, of_fed)
        expected = inside.sources(expected)
    comparisons = compare_with_first(diagnoses, compare)
    pipelines = tuple(d.pipeline for d in diagnoses)
    evidence = Evidence(
        expected=expected,
        inside=() if inside is None else inside.findings,
        pipelines=pipelines,
        comparisons=comparisons,
        model_input=model_input,
        of_file=of_file,
        turned=picture is not None and picture.turned and mmproj is not None,
    )
    findings, verdict = judge(evidence)
    return PixelReport(
        image=None if picture is None else picture.path,
        expected=expected,
        pipelines=pipelines,
        comparisons=comparisons,
        model_input=model_input,
        findings=findings,
        verdict=verdict,
    )


def pixel_findings(
    levels: Levels, processor: Processor, mmproj: Location, pictures: Sequence[NDArray[np.float32]]
) -> tuple[FeedFinding, ...]:
    """What llama.cpp does to a picture otherwise than a checkpoint's image processor.

    Args:
        levels: the picture, ``(height, width, 3)``.
        processor: what is right.
        mmproj: the encoder's file.
        pictures: that llama.cpp fed it, ``(height, width, 3)`` each.

    Returns:
        The most severe first.

    Raises:
        InputError: the processor fails, or the file cannot be read.
    """
    expected = _expected(None, processor, None, None)
    outputs = [
        _processed(processor, levels),
        PipelineOutput("llama.cpp", os.fspath(mmproj), pictures),
    ]
    diagnoses = diagnose_all(outputs, levels, expected.normalization)
    evidence = Evidence(
        expected=expected,
        pipelines=tuple(d.pipeline for d in diagnoses),
        comparisons=compare_with_first(diagnoses, compare),
        model_input=None,
        of_file=_file_constants(mmproj),
        turned=False,
    )
    return judge(evidence)[0]


def _look_inside(onnx: Location, expected: Normalization | None) -> Inside | None:
    from ggufnorm.analysis.preprocessing.image.inside import look_inside

    return look_inside(onnx, expected)


def _require(
    image: Location | None,
    processor: Location | None,
    mmproj: Location | None,
    array: Location | None,
    constants: Normalization | None,
) -> None:
    if image is None and array is None:
        raise ConfigError("give a picture, or with --array the pixels that a pipeline feeds")
    if image is None and mmproj is not None:
        raise ConfigError("llama.cpp needs a picture to make pixels of: give one with --mmproj")
    if processor is None and mmproj is None and constants is None:
        raise ConfigError(
            "what the model expects is not known: give --processor, --mmproj or --constants"
        )
    if processor is None and mmproj is None and array is None:
        raise ConfigError("there is no pipeline: give --processor, --mmproj or --array")


def _file_constants(path: Location) -> Normalization | None:
    """What an encoder's file says, None unless it says it in two times three numbers."""
    with open_model(path) as file:
        found = [
            file.metadata.get(key)
            for key in (Keys.ClipVision.IMAGE_MEAN, Keys.ClipVision.IMAGE_STD)
        ]
    mean, std = (_three(value) for value in found)
    return None if mean is None or std is None else Normalization(mean, std)


def _three(value: object) -> Three | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(isinstance(n, float) for n in value):
        return None
    a, b, c = value
    return a, b, c


def _expected(
    constants: Normalization | None,
    processor: Processor | None,
    mmproj: Location | None,
    of_file: Normalization | None,
) -> ExpectedPixels:
    if constants is not None:
        source, normalization = "--constants", constants
    elif processor is not None:
        source, normalization = processor.path, processor.normalization
    elif of_file is not None and all(s > 0 for s in of_file.std):
        source, normalization = os.fspath(mmproj or ""), of_file
    else:
        raise InputError(
            f"{os.fspath(mmproj or '')}: clip.vision.image_mean and image_std are not two times"
            " three numbers to normalize with: try ggufnorm audit, or give --processor"
        )
    return ExpectedPixels(source, normalization.owner, normalization)


def _outputs(
    levels: Levels | None,
    processor: Processor | None,
    mmproj: Location | None,
    array: Location | None,
    expected: Normalization,
) -> Iterator[PipelineOutput]:
    if levels is not None and processor is not None:
        processed = _processed(processor, levels)
        yield processed
        before = processed.levels or ()
        again = [expected.apply(b).astype(np.float32) for b in before]
        yield PipelineOutput("numpy", "(level · scale - mean) / std", again, before)
    if levels is not None and mmproj is not None:
        path = local_path(mmproj)
        runs = capture_pixels(path, levels)
        yield PipelineOutput("llama.cpp", os.fspath(path), [p for run in runs for p in run])
    if array is not None:
        yield PipelineOutput("array", os.fspath(array), list(read_pictures(array)))


def _processed(processor: Processor, levels: Levels) -> PipelineOutput:
    before = list(processor.resized(levels))
    return PipelineOutput("transformers", processor.path, list(processor.feed(levels)), before)
