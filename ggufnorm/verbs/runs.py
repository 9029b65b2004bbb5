"""``trace`` and ``compare``: every kind of model in the engine that runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ggufnorm.errors import ConfigError
from ggufnorm.formats.forms import AnyLocation, Engine, parse
from ggufnorm.verbs.kinds import require_kinds

if TYPE_CHECKING:
    from ggufnorm.analysis.trace.ids import Tokens
    from ggufnorm.core.drift import DriftReport
    from ggufnorm.core.engine import GpuLayers
    from ggufnorm.core.frameworks import FrameworksReport
    from ggufnorm.core.progress import Progress
    from ggufnorm.core.trace import TraceFacts, TraceType
    from ggufnorm.runs.options import SideOptions


def trace(
    model: AnyLocation,
    out: str | os.PathLike[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    ids: Tokens | str | os.PathLike[str] | None = None,
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions | None = None,
    logits: bool = True,
    dtype: TraceType = "f32",
    budget: int | None = None,
    ask_above: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    layers: tuple[int, int] | None = None,
    after: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    check_memory: bool = True,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> TraceFacts:
    """Run a model on a text and save the activations at its hook points.

    Args:
        model: on this machine: a GGUF model, of which every observed operation is saved; a
            checkpoint ``hf:FOLDER`` (norms, residual stream, logits); or a ``.onnx`` model
            that takes token ids (norms, logits).
        out: the trace to write, a safetensors file; it appears only when it is complete.
        text: to run; None for the bundled text, or for an ONNX model without a tokenizer
            beside it random token ids, the same each time.
        text_name: the name of the text in reports.
        ids: token ids to run in place of a text, or a file with them: a trace or a list of
            numbers. Not for GGUF.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: the most chunks to run; None for the whole text.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers to offload to a GPU that llama.cpp was built for. GGUF only.
        options: llama.cpp's options of the run. GGUF only.
        logits: whether to store the logits of the scored positions.
        dtype: how to store all other values.
        budget: bytes that the file may take; evenly spaced tokens are chosen to keep to it.
        ask_above: refuse a file of more bytes, if there is no budget; None for any size.
        resume: file to save progress to, and to resume from if it exists.
        layers: the first and the last layer to run; None for all. GGUF only.
        after: the trace of the layers before, from which the first one starts and which goes into
            ``out``. GGUF only.
        trust_remote_code: run Python files of the checkpoint. ``hf:`` only.
        check_memory: refuse a GGUF model that does not fit into the free memory.
        on_progress: called as the run goes on; before it, with the size of the file.

    Returns:
        What the trace says of itself.

    Raises:
        ConfigError: an argument does not go with this kind of model.
        InputError: the model cannot be opened, has no norm or cannot be run, the trace
            cannot be written, does not fit on the disk or into the budget.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: the package that runs the model is not installed.
        EngineError: the engine fails or crashes, or the model does not fit into memory.
        KeyboardInterrupt: after a Ctrl-C; no trace is left.
        ValueError: ``n_ctx`` or ``chunks`` is out of range.
    """
    require_kinds("trace", model)
    place = parse(model)
    special = {
        "n_gpu_layers": n_gpu_layers or None,
        "options": options,
        "ids": ids,
        "layers": layers,
        "after": after,
        "trust_remote_code": trust_remote_code or None,
    }
    _refuse(special, _TRACE_ARGUMENTS[place.engine], place.text)
    common: dict[str, Any] = {
        "text": text,
        "text_name": text_name,
        "n_ctx": n_ctx,
        "chunks": chunks,
        "n_threads": n_threads,
        "logits": logits,
        "dtype": dtype,
        "budget": budget,
        "ask_above": ask_above,
        "resume": resume,
        "on_progress": on_progress,
    }
    if place.engine == "llama.cpp":
        from ggufnorm.analysis.trace import run as traces

        options = options or _side_options()
        common.update(n_gpu_layers=n_gpu_layers, options=options, check_memory=check_memory)
        return traces.trace(model, out, **common, layers=layers, after=after)
    if isinstance(ids, (str, os.PathLike)):
        from ggufnorm.analysis.trace.ids import read_ids

        common.update(ids=read_ids(ids), text_name=os.fspath(ids))
    else:
        common.update(ids=ids)
    if place.engine == "transformers":
        from ggufnorm.analysis.trace.hf import trace_checkpoint

        return trace_checkpoint(place.name, out, **common, trust_remote_code=trust_remote_code)
    from ggufnorm.analysis.trace.onnx import trace_onnx

    return trace_onnx(place.name, out, **common)


_TRACE_ARGUMENTS: Mapping[Engine, frozenset[str]] = {
    "llama.cpp": frozenset({"n_gpu_layers", "options", "layers", "after"}),
    "transformers": frozenset({"ids", "trust_remote_code"}),
    "onnxruntime": frozenset({"ids"}),
}
"""Arguments of :func:`trace` that not every engine knows."""

_COMPARE_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "traces": frozenset({"n_gpu_layers", "options", "resume", "budget"}),
    "frameworks": frozenset(
        {"text", "n_tokens", "image", "trust_remote_code", "n_gpu_layers", "options"}
    ),
}


def _refuse(given: Mapping[str, object], known: frozenset[str], what: str) -> None:
    for name, value in given.items():
        if value is not None and name not in known:
            raise ConfigError(f"{name} does not go with {what}")


def _side_options() -> SideOptions:
    from ggufnorm.runs.options import SideOptions

    return SideOptions()


def compared_by(*locations: AnyLocation) -> Literal["traces", "frameworks"]:
    """How :func:`compare` compares: a trace with a trace or a model, or several frameworks."""
    places = [parse(location) for location in locations]
    if all(place.engine == "llama.cpp" for place in places):
        return "traces"
    others = [place for place in places if place.engine != "onnxruntime"]
    if len(places) == 2 and len(others) == 1 and others[0].kind in ("trace", "unknown"):
        return "traces"
    return "frameworks"


def compare(
    ref: AnyLocation,
    quant: AnyLocation,
    *more: AnyLocation,
    text: str | None = None,
    text_name: str = "given text",
    n_tokens: int | None = None,
    image: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions | None = None,
    resume: str | os.PathLike[str] | None = None,
    budget: float | None = None,
    trust_remote_code: bool = False,
    check_memory: bool = True,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> DriftReport | FrameworksReport:
    """Compare two traces, a trace with a model, or a source with its conversions.

    With a trace: the model, GGUF or ``.onnx``, runs the tokens of the trace. The report is
    that of ``drift`` without local errors, since a trace has the output of an operation, not
    what the operation does to another input.

    Without one: ``ref`` is the source in another framework, and everything runs the same
    tokens, or the same pixels; see :func:`~ggufnorm.analysis.crosscheck.run.compare_frameworks`.

    Args:
        ref: the reference: a trace or a model, or the source (``hf:FOLDER``, ``.onnx``).
        quant: the side under test: a trace or a model.
        more: further models under test, in other frameworks than the source.
        text: to run across frameworks; None for the bundled text.
        text_name: the name of the text in the report.
        n_tokens: tokens of the text to run across frameworks; None for 127.
        image: the picture for image encoders; None for a generated one.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers of the GGUF models to offload.
        options: llama.cpp's options for the model compared with a trace; across frameworks where
            it puts GGUF models, and nothing else.
        resume: with a trace: file to save progress to, and to resume from if it exists.
        budget: with a trace: seconds after which no further chunk begins.
        trust_remote_code: run Python files of the checkpoint.
        check_memory: refuse a model that does not fit into the free memory.
        on_progress: called as the run goes on.

    Returns:
        A :class:`~ggufnorm.core.drift.DriftReport` with a trace, else a
        :class:`~ggufnorm.core.frameworks.FrameworksReport`.

    Raises:
        ConfigError: an argument does not go with this kind of comparison.
        InputError: a file cannot be opened, or two GGUF models were given: use ``drift``.
        MismatchError: they are not runs of one network on the same tokens.
        EngineMissingError: the package that runs a model is not installed.
        EngineError: an engine fails or crashes, or a model does not fit into memory.

    A Ctrl-C ends a GGUF model's run beside a trace after the current chunk and returns what
    was compared so far.
    """
    locations = (ref, quant, *more)
    require_kinds("compare", *locations)
    how = compared_by(*locations)
    special = {
        "text": text,
        "n_tokens": n_tokens,
        "image": image,
        "n_gpu_layers": n_gpu_layers or None,
        "options": options,
        "resume": resume,
        "budget": budget,
        "trust_remote_code": trust_remote_code or None,
    }
    _refuse(special, _COMPARE_ARGUMENTS[how], how)
    if how == "frameworks":
        from ggufnorm.analysis.crosscheck.run import compare_frameworks

        return compare_frameworks(
            os.fspath(ref),
            [os.fspath(location) for location in locations[1:]],
            text=text,
            text_name=text_name,
            n_tokens=n_tokens,
            image=image,
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
            options=options or _side_options(),
            trust_remote_code=trust_remote_code,
            check_memory=check_memory,
            on_progress=on_progress,
        )
    if more:
        raise ConfigError(f"unexpected {more[0]}: a trace is compared with one other")
    common: dict[str, Any] = {
        "n_threads": n_threads,
        "resume": resume,
        "budget": budget,
        "on_progress": on_progress,
    }
    if "onnxruntime" in (parse(ref).engine, parse(quant).engine):
        from ggufnorm.analysis.trace.onnx import compare_with_onnx

        return compare_with_onnx(os.fspath(ref), os.fspath(quant), **common)
    from ggufnorm.analysis.trace import run as traces

    options = options or _side_options()
    common.update(n_gpu_layers=n_gpu_layers, options=options, check_memory=check_memory)
    return traces.compare(ref, quant, **common)
