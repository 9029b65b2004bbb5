"""``compare`` of image encoders: all are fed the same pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.compared import compare_runs, side
from ggufnorm.analysis.crosscheck.runs import in_order, open_checkpoint
from ggufnorm.analysis.preprocessing.image.run import pixel_findings
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.frameworks import EngineComparison, FedPicture, FrameworksReport
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedRun
from ggufnorm.core.progress import Progress
from ggufnorm.engines.images import Levels, read_picture
from ggufnorm.engines.llama.vision import capture_pixels
from ggufnorm.engines.onnx_input import takes_pictures
from ggufnorm.engines.processors import Processor
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.formats.forms import parse
from ggufnorm.formats.location import checkpoint_folder, is_encoder, local_path
from ggufnorm.samples import default_picture

if TYPE_CHECKING:
    from ggufnorm.engines.hf.model import HFModel

Pixels = NDArray[np.float32]

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_GENERATED = "generated"


def are_encoders(source: str, engines: Sequence[str]) -> bool:
    """Whether models take a picture and no text: an mmproj, or ONNX beside a checkpoint.

    Raises:
        InputError: a model cannot be opened.
        MissingPackageError: onnx is not installed.
    """
    engine = {location: parse(location).engine for location in (source, *engines)}
    if any(e == "llama.cpp" and is_encoder(location) for location, e in engine.items()):
        return True
    onnx = [location for location, e in engine.items() if e == "onnxruntime"]
    return engine[source] == "transformers" and any(map(takes_pictures, onnx))


def compare_encoders(
    source: str,
    engines: Sequence[str],
    *,
    image: str | os.PathLike[str] | None,
    n_threads: int | None,
    trust_remote_code: bool,
    check_memory: bool,
    on_progress: Callable[[Progress], None],
) -> FrameworksReport:
    """The part of :func:`~ggufnorm.analysis.crosscheck.run.compare_frameworks` for image encoders.

    All get the pixels that mtmd makes for the first mmproj file; without one, those of the
    checkpoint's image processor, or else normal noise. What mtmd makes of the picture is
    compared with what the processor makes of it.
    """
    levels = default_picture() if image is None else read_picture(image).levels
    run = _Runs(source, levels, image is not None, n_threads, trust_remote_code, check_memory)
    for location in in_order([source, *engines]):
        on_progress(Progress(f"running {location}"))
        run.add(location)
    assert run.pixels is not None
    n, height, width, channels = run.pixels.shape
    return FrameworksReport(
        source=side(run.found[source]),
        comparisons=tuple(run.compared(source, engine) for engine in engines),
        text="",
        n_tokens=0,
        picture=FedPicture(
            _GENERATED if image is None else os.fspath(image),
            run.made_by,
            (n, height, width, channels),
        ),
    )


class _Runs:
    """All encoders, run one after another on the same pixels.

    Attributes:
        found: by location.
        pixels: that all get, ``(pictures, height, width, 3)``; None before the first run.
        made_by: what made them.
    """

    def __init__(
        self,
        source: str,
        levels: Levels,
        must_be_used: bool,
        n_threads: int | None,
        trust_remote_code: bool,
        check_memory: bool,
    ) -> None:
        self.levels, self.must_be_used = levels, must_be_used
        self.n_threads, self.check_memory = n_threads, check_memory
        self.trust_remote_code = trust_remote_code
        self.found: dict[str, ObservedRun] = {}
        self.pixels: Pixels | None = None
        self.made_by = ""
        self._processor, self._why_not = _processor(source)
        self._findings: dict[str, tuple[FeedFinding, ...]] = {}
        self._halved: dict[str, dict[str, float]] = {}

    def add(self, location: str) -> None:
        engine = parse(location).engine
        if engine == "transformers":
            self.found[location] = self._transformers(location)
        elif engine == "onnxruntime":
            self.found[location] = self._onnx(location)
        else:
            self.found[location] = self._mtmd(location)

    def compared(self, source: str, engine: str) -> EngineComparison:
        is_mmproj = parse(engine).engine == "llama.cpp"
        return compare_runs(
            self.found[source],
            self.found[engine],
            engine,
            pixels=self._findings.get(engine, ()),
            skipped=self._why_not if is_mmproj else (),
            halved=self._halved.get(source),
        )

    def _mtmd(self, location: str) -> ObservedRun:
        from ggufnorm.analysis.crosscheck.encoder import run_encoder

        if not is_encoder(location):
            raise InputError(f"{location}: no image encoder: give the mmproj file of the model")
        run, made = run_encoder(
            location,
            self.levels,
            pixels=self.pixels,
            n_threads=self.n_threads,
            check_memory=self.check_memory,
        )
        if self.pixels is None:
            self.pixels, self.made_by = made, "llama.cpp's mtmd"
        if self._processor is not None:
            path = local_path(location)
            self._findings[location] = self._beside_processor(path, self._processor)
        return run

    def _beside_processor(self, path: Path, processor: Processor) -> tuple[FeedFinding, ...]:
        """What is wrong with mtmd's pixels, of all parts that it cuts the picture into."""
        parts = capture_pixels(path, self.levels)
        return pixel_findings(self.levels, processor, path, [p for part in parts for p in part])

    def _transformers(self, location: str) -> ObservedRun:
        model = open_checkpoint(location, self.n_threads, self.trust_remote_code, self.check_memory)
        if self.pixels is None:
            self.pixels, self.made_by = self._without_mtmd(model)
        run = model.run_picture(self.pixels)
        model.round_matrices()
        rounded = model.run_picture(self.pixels.astype(np.float16).astype(np.float32))
        halved = {norm.name: norm for norm in rounded.norms}
        self._halved[location] = {
            norm.name: relative_l2(norm.x, halved[norm.name].x)
            for norm in run.norms
            if norm.name in halved
        }
        return run

    def _without_mtmd(self, model: HFModel) -> tuple[Pixels, str]:
        if self._processor is not None:
            return self._processor.feed(self.levels), self._processor.name
        if self.must_be_used:
            raise ConfigError(
                "--image needs what makes pixels of it: an mmproj file, or a checkpoint with"
                " preprocessor_config.json"
            )
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((1, *model.picture_size, 3)).astype(np.float32)
        return noise, "normal noise"

    def _onnx(self, location: str) -> ObservedRun:
        from ggufnorm.engines.onnx.session import OnnxSession

        session = OnnxSession(location, n_threads=self.n_threads)
        if self.pixels is None:
            raise ConfigError(f"{location}: --image needs an mmproj file or hf:FOLDER beside it")
        return session.run(np.empty(0, np.int32), self.pixels)


def _processor(source: str) -> tuple[Processor | None, tuple[Skipped, ...]]:
    """The image processor of a checkpoint, or why there is none."""
    if parse(source).engine != "transformers":
        return None, (Skipped("image constants", f"{source} has no image processor"),)
    folder = checkpoint_folder(source)
    if not any((Path(folder) / name).exists() for name in _PROCESSORS):
        return None, (Skipped("image constants", f"{folder} has no {_PROCESSORS[0]}"),)
    try:
        return Processor(folder), ()
    except InputError as error:
        return None, (Skipped("image constants", str(error)),)
