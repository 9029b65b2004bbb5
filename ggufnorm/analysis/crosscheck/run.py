"""``compare`` with a source in another framework: run all, and compare each engine with it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from ggufnorm.analysis.crosscheck.compared import compare_runs, side
from ggufnorm.analysis.crosscheck.runs import Runs, in_order
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.frameworks import FrameworksReport
from ggufnorm.core.progress import Progress
from ggufnorm.core.tolerances import SAME_DOWNSTREAM
from ggufnorm.errors import ConfigError, TextError
from ggufnorm.formats.forms import parse
from ggufnorm.runs.options import ON_CPU, PLAIN, RunSettings, SideOptions, is_plain, placed
from ggufnorm.samples import default_text

N_TOKENS = 127
"""Length of the text: a prime, so that no other axis of an array is as long."""
_LETTERS = 64
"""Letters of the text to a token, more than enough."""


def compare_frameworks(
    source: str,
    engines: Sequence[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    n_tokens: int | None = None,
    image: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions = PLAIN,
    trust_remote_code: bool = False,
    check_memory: bool = True,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> FrameworksReport:
    """Run a model in its source framework and in engines, and say where they first part.

    All get the same token ids: those of the first GGUF file's own tokenizer, or else of the
    checkpoint's, or of one beside an ONNX file. Without any, ids are random, the same each
    time. The checkpoint's tokenizer is compared with each GGUF file's besides, and the result
    that people use: predictions, an embedding or a score.

    Of an mmproj file, and of ONNX that takes a picture, the image encoders are compared. All
    get the same pixels: mtmd's of the first mmproj file, else those of the checkpoint's image
    processor, else normal noise.

    Args:
        source: right by definition: ``hf:FOLDER`` or ``hf:org/repo`` (run by Transformers),
            or a path that ends with ``.onnx``.
        engines: under test: GGUF models on this machine, an mmproj among them, ``.onnx``
            files or ``hf:``.
        text: what to run; None for the bundled text.
        text_name: how the report calls it.
        n_tokens: of the text, fewer where it or the model's context is shorter; None for 127.
        image: the picture that image encoders get; None for a generated one.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers of GGUF models to offload.
        options: where llama.cpp puts GGUF models (:class:`~ggufnorm.core.engine.Placement`), and
            its build. The cache is F32 without flash attention and all tokens are one batch,
            whatever is asked for elsewhere.
        trust_remote_code: run Python that a checkpoint brings.
        check_memory: refuse a model that does not fit into the memory that is free.
        on_progress: called before each run.

    Raises:
        ConfigError: the source is neither a checkpoint nor ONNX, text or image are given
            to models that take none, or devices to models that llama.cpp does not run, or to
            image encoders.
        RefusedError: a device that a model is to be put on is not there.
        InputError: a model cannot be opened or run, or is another network.
        TextError: the text is empty.
        EngineMissingError: what runs one of them is not installed.
        MissingPackageError: what reads one of them is not installed.
        EngineError: an engine fails or crashes, or a model does not fit into memory.
    """
    if parse(source).engine == "llama.cpp":
        raise ConfigError(f"{source}: the source must be hf:FOLDER or a file that ends with .onnx")
    how = _settings(options, n_threads, n_gpu_layers, check_memory=check_memory)
    if not engines:
        raise ConfigError(f"{source}: give a model to compare it with")
    from ggufnorm.analysis.crosscheck.pictures import are_encoders, compare_encoders

    if image is not None or are_encoders(source, engines):
        if text is not None or n_tokens is not None:
            raise ConfigError("image encoders take no text: give a picture with --image")
        if not is_plain(how.side):
            raise ConfigError(f"{source}: {ON_CPU}")
        report = compare_encoders(
            source,
            engines,
            image=image,
            n_threads=n_threads,
            trust_remote_code=trust_remote_code,
            check_memory=check_memory,
            on_progress=on_progress,
        )
        return _send_to_drift(report)
    if not is_plain(how.side) and all(parse(m).engine != "llama.cpp" for m in engines):
        raise ConfigError(
            "devices (-ngl, -dev, --rpc …) are llama.cpp's, and no GGUF model is among"
            f" {', '.join(engines)}"
        )
    if text is None:
        text, text_name = default_text(), "bundled: State of the Union addresses"
    if not text.strip():
        raise TextError(f"{text_name}: the text is empty")
    n_tokens = n_tokens or N_TOKENS
    run = Runs(
        text[: _LETTERS * n_tokens],
        n_tokens,
        how,
        trust_remote_code,
        on_progress,
    )
    for location in in_order([source, *engines]):
        run.add(location)
    reference = run.found[source]
    assert run.tokens is not None
    report = FrameworksReport(
        source=side(reference),
        comparisons=tuple(
            compare_runs(
                reference,
                run.found[engine],
                engine,
                tokens=run.tokens,
                token_ids=run.token_ids(source, engine),
                output=run.output(source, engine),
                follow=run.follow(source, engine),
                cost=run.cost(source, engine),
                own=run.own(source, engine),
            )
            for engine in engines
        ),
        text="random token ids" if run.tokens_are_random else text_name,
        n_tokens=len(run.tokens),
        picture=None,
    )
    return _send_to_drift(report)


def _settings(
    options: SideOptions,
    n_threads: int | None,
    n_gpu_layers: GpuLayers | None,
    *,
    check_memory: bool,
) -> RunSettings:
    """What is asked of llama.cpp.

    Raises:
        ConfigError: more than where to run.
    """
    if placed(PLAIN, options) != options or options.n_ubatch != PLAIN.n_ubatch:
        raise ConfigError(
            "across frameworks llama.cpp runs exactly (F32 cache, no flash attention, one batch):"
            " options say where models are put, and nothing else"
        )
    layers = options.n_gpu_layers if n_gpu_layers is None else n_gpu_layers
    return RunSettings(replace(options, n_gpu_layers=layers), n_threads, check_memory)


def _send_to_drift(report: FrameworksReport) -> FrameworksReport:
    """Of two ONNX files that drift apart, say which command tells what each operation adds."""
    source = report.source.location
    if parse(source).engine != "onnxruntime":
        return report
    told = []
    for c in report.comparisons:
        both = parse(c.engine.location).engine == "onnxruntime"
        ends = [s.output for s in c.sites] + ([c.result] if c.result else [])
        apart = any((d.rel_l2 or 0.0) > SAME_DOWNSTREAM for d in ends)
        if both and apart and c.first_wrong is None:
            command = shlex.join(["ggufnorm", "drift", source, c.engine.location])
            told.append(replace(c, verdict=f"{c.verdict} What each operation adds: {command}"))
        else:
            told.append(c)
    return replace(report, comparisons=tuple(told))
