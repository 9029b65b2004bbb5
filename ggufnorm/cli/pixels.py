"""``ggufnorm pixels``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggufnorm.cli.models import require_kinds
from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    emit,
    output_options,
    require_outputs,
)

if TYPE_CHECKING:
    from ggufnorm.core.pixels import Normalization, Three


class _Constants(click.ParamType["Normalization"]):
    """A name, or ``M,M,M:S,S,S``."""

    name = "constants"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Normalization:
        from ggufnorm.core.pixels import KNOWN, Normalization

        text = str(value).strip()
        by_name = {name.lower(): constants for name, constants in KNOWN.items()}
        if text.lower() in by_name:
            return Normalization(*by_name[text.lower()])
        mean, separator, std = text.partition(":")
        if not separator:
            names = ", ".join(by_name)
            self.fail(f"{text!r} is neither {names} nor of the form M,M,M:S,S,S", param, ctx)
        found = Normalization(self._three(mean, param, ctx), self._three(std, param, ctx))
        if not all(s > 0 for s in found.std):
            self.fail(f"{std!r}: every std must be above 0", param, ctx)
        return found

    def _three(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Three:
        from math import isfinite

        try:
            a, b, c = (float(part) for part in text.split(","))
        except ValueError:
            self.fail(f"{text!r} is not three comma-separated numbers", param, ctx)
        if not all(map(isfinite, (a, b, c))):
            self.fail(f"{text!r}: every number must be finite", param, ctx)
        return a, b, c


@click.command("pixels")
@click.argument("image", required=False, type=click.Path(path_type=Path))
@click.option(
    "--processor", metavar="FOLDER", type=click.Path(path_type=Path),
    help="Folder with the Hugging Face image processor (preprocessor_config.json).",
)  # fmt: skip
@click.option(
    "--mmproj",
    metavar="MODEL",
    help="GGUF file of the image encoder, to include llama.cpp's own preprocessing.",
)
@click.option(
    "--array", metavar="FILE.npy", type=click.Path(path_type=Path),
    help="Model input of your own pipeline: NCHW, NHWC, CHW or HWC, saved with numpy.save.",
)  # fmt: skip
@click.option(
    "--constants", type=_Constants(), metavar="NAME|M,M,M:S,S,S",
    help="Expected mean and std: imagenet, clip, siglip, mobilenet, or numbers."
    "  [default: those of the processor, else of the encoder]",
)  # fmt: skip
@click.option(
    "--onnx", metavar="MODEL", type=click.Path(path_type=Path),
    help="ONNX model that takes the pixels, to check its input, and what it does to pixels itself.",
)  # fmt: skip
@output_options(*FORMATS)
def command(
    image: Path | None,
    processor: Path | None,
    mmproj: str | None,
    array: Path | None,
    constants: Normalization | None,
    onnx: Path | None,
    fmt: str | None,
    output: Path | None,
) -> int:
    """Compare how image preprocessing pipelines turn IMAGE into model input.

    The pipelines are the Hugging Face image processor, its formula in NumPy, llama.cpp's
    own preprocessing, and your own (--array, with which IMAGE is optional).

    Exit codes: 0 all are normalized as expected, 1 one is not or cannot be told, 2 usage
    error, 3 an input cannot be read, 4 llama.cpp failed.
    """
    if image is not None:
        require_kinds([str(image)])
    fmt = choose_format(fmt, output)
    require_outputs(output, reading=[image, processor, mmproj, array, onnx])
    from ggufnorm import api
    from ggufnorm.core.feed import is_refuted

    report = api.pixels(
        image,
        processor=processor,
        mmproj=mmproj,
        array=array,
        constants=constants,
        onnx=onnx,
    )
    emit(report, fmt, output)
    return int(is_refuted(report.findings))
