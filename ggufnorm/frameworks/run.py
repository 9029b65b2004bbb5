"""``compare`` with a source in another framework: run all, join the norms, judge them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from ggufnorm.comparison.run import Progress
from ggufnorm.core.frameworks import (
    EngineComparison,
    FrameworksReport,
    RunSide,
    TokenizerFinding,
)
from ggufnorm.core.logits import LogitStatistics, LogitSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedRun
from ggufnorm.core.pixel_report import PixelFinding
from ggufnorm.errors import ConfigError, InputError, MemoryLimitError, TextError
from ggufnorm.formats.location import checkpoint_folder, local_path, open_model
from ggufnorm.frameworks.between import name_unmatched, wrong_pixels
from ggufnorm.frameworks.join import Joined, join_gguf, join_names
from ggufnorm.frameworks.judge import Judge, first_wrong, verdict
from ggufnorm.frameworks.rows import align_class_token
from ggufnorm.samples import default_text

if TYPE_CHECKING:
    from ggufnorm.engines.hf import HFModel

Tokens = NDArray[np.int32]
Kind = Literal["hf", "onnx"]

ORDER: tuple[Kind | None, ...] = (None, "hf", "onnx")
"""In which models are run: a GGUF file has a tokenizer for certain, ONNX has none."""
_NO_TOKENS = np.empty(0, np.int32)

N_TOKENS = 127
"""Length of the text: a prime, so that no other axis of an array is as long."""
MIN_TOKENS = 2
_LETTERS = 64
"""Letters of the text to a token, more than enough."""
HALF = 2.0**-11
"""Relative rounding of half precision."""
_SHOWN = 8
"""Ids shown where two tokenizers part."""


def kind_of(location: str) -> Kind | None:
    """What a location names: ``hf:FOLDER``, a path that ends with ``.onnx``, or neither."""
    if location.startswith("hf:") and not location.startswith("hf://"):
        return "hf"
    return "onnx" if location.lower().endswith(".onnx") else None


def compare_frameworks(
    source: str,
    engines: Sequence[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    n_tokens: int = N_TOKENS,
    image: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    trust_remote_code: bool = False,
    check_memory: bool = True,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> FrameworksReport:
    """Run a model in its source framework and in engines, and say where they first part.

    All get the same token ids: those of the first GGUF file's own tokenizer, or else of the
    checkpoint's. Where both have one and they disagree, the report says so.

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
        n_tokens: of the text, fewer where it or the model's context is shorter.
        image: the picture that image encoders get; None for a generated one.
        n_threads: CPU threads; None for all.
        trust_remote_code: run Python that a checkpoint brings.
        check_memory: refuse a model that does not fit into the memory that is free.
        on_progress: called before each run.

    Raises:
        ConfigError: the source is neither a checkpoint nor ONNX, or text or image are given
            to models that take none.
        InputError: a model cannot be opened or run, or is another network.
        TextError: the text is empty.
        EngineMissingError: what runs one of them is not installed.
        MissingPackageError: what reads one of them is not installed.
        EngineError: an engine fails or crashes, or a model does not fit into memory.
    """
    if kind_of(source) is None:
        raise ConfigError(f"{source}: the source must be hf:FOLDER or a file that ends with .onnx")
    if not engines:
        raise ConfigError(f"{source}: give a model to compare it with")
    from ggufnorm.frameworks.pictures import are_encoders, compare_encoders

    if image is not None or are_encoders(source, engines):
        if text is not None:
            raise ConfigError("image encoders take no text: give a picture with --image")
        return compare_encoders(
            source,
            engines,
            image=image,
            n_threads=n_threads,
            trust_remote_code=trust_remote_code,
            check_memory=check_memory,
            on_progress=on_progress,
        )
    if text is None:
        text, text_name = default_text(), "bundled: State of the Union addresses"
    if not text.strip():
        raise TextError(f"{text_name}: the text is empty")
    run = _Runs(text[: _LETTERS * n_tokens], n_tokens, n_threads, trust_remote_code, check_memory)
    for location in in_order([source, *engines]):
        on_progress(Progress(f"running {location}"))
        run.add(location)
    reference = run.found[source]
    assert run.tokens is not None
    return FrameworksReport(
        source=side(reference),
        comparisons=tuple(
            compare_runs(
                reference,
                run.found[engine],
                engine,
                tokens=run.tokens,
                tokenizer=_tokenizer(run) if kind_of(engine) is None else None,
            )
            for engine in engines
        ),
        text=text_name,
        n_tokens=len(run.tokens),
        picture=None,
    )


def in_order(locations: Iterable[str]) -> list[str]:
    """Each location once, in the order in which they are run."""
    return sorted(dict.fromkeys(locations), key=lambda m: ORDER.index(kind_of(m)))


class _Runs:
    """All models, run one after another on the same ids.

    Attributes:
        found: by location.
        tokens: that all get; None before the first run.
        checkpoint_ids: the text's ids by the checkpoint's tokenizer, None without one.
    """

    def __init__(
        self,
        text: str,
        n_tokens: int,
        n_threads: int | None,
        trust_remote_code: bool,
        check_memory: bool,
    ) -> None:
        self.text, self.n_tokens, self.n_threads = text, n_tokens, n_threads
        self.trust_remote_code, self.check_memory = trust_remote_code, check_memory
        self.found: dict[str, ObservedRun] = {}
        self.tokens: Tokens | None = None
        self.checkpoint_ids: Tokens | None = None
        self.tokens_are_the_file_s = False

    def add(self, location: str) -> None:
        kind = kind_of(location)
        if kind == "hf":
            self.found[location] = self._transformers(location)
        elif kind == "onnx":
            self.found[location] = self._onnx(location)
        else:
            self.found[location] = self._llama(location)

    def _llama(self, location: str) -> ObservedRun:
        from ggufnorm.frameworks.llama import run_llama

        run, tokens = run_llama(
            location,
            text=self.text,
            n_tokens=self.n_tokens,
            tokens=self.tokens,
            n_threads=self.n_threads,
            check_memory=self.check_memory,
        )
        if self.tokens is None:
            self.tokens, self.tokens_are_the_file_s = tokens, True
        return run

    def _transformers(self, location: str) -> ObservedRun:
        model = open_checkpoint(location, self.n_threads, self.trust_remote_code, self.check_memory)
        self.checkpoint_ids = model.tokenize(self.text)
        if self.tokens is None:
            self.tokens = self._ids(self.checkpoint_ids, model.n_vocab)
        return model.run(self.tokens)

    def _ids(self, ids: Tokens | None, n_vocab: int) -> Tokens:
        """The text's ids, or without a tokenizer any."""
        if ids is not None and len(ids) >= MIN_TOKENS:
            return ids[: self.n_tokens]
        rng = np.random.default_rng(0)
        return rng.integers(0, n_vocab, self.n_tokens).astype(np.int32)

    def _onnx(self, location: str) -> ObservedRun:
        from ggufnorm.engines.onnx.session import OnnxSession

        session = OnnxSession(location, n_threads=self.n_threads)
        if self.tokens is None:
            n_vocab = session.n_vocab if session.takes_tokens else 1
            self.tokens = self._ids(None, n_vocab) if session.takes_tokens else _NO_TOKENS
        return session.run(self.tokens)


def open_checkpoint(
    location: str, n_threads: int | None, trust_remote_code: bool, check_memory: bool
) -> HFModel:
    """The model ``hf:FOLDER`` in Transformers; see :func:`compare_frameworks`."""
    from ggufnorm.engines.hf import HFModel

    folder = checkpoint_folder(location.partition(":")[2])
    if check_memory:
        _require_room(folder)
    return HFModel(folder, n_threads=n_threads, trust_remote_code=trust_remote_code)


def _require_room(folder: Path) -> None:
    """Refuse a checkpoint that does not fit: most are stored in half of what float32 takes.

    Raises:
        MemoryLimitError: it needs more than is free.
    """
    needed = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryLimitError(
            f"{folder} needs about {needed / 1e9:,.1f} GB as float32, and {free / 1e9:,.1f} GB are"
            " free: close other programs, or try --no-memory-check"
        )


def side(run: ObservedRun) -> RunSide:
    """One side of a comparison."""
    return RunSide(run.location, run.engine, len(run.norms), run.rounding)


def compare_runs(
    source: ObservedRun,
    engine: ObservedRun,
    location: str,
    *,
    tokens: Tokens | None = None,
    tokenizer: TokenizerFinding | None = None,
    pixels: tuple[PixelFinding, ...] = (),
    skipped: tuple[Skipped, ...] = (),
    halved: Mapping[str, float] | None = None,
) -> EngineComparison:
    """One engine against the source.

    Args:
        source: what is right by definition.
        engine: another run on the same tokens or pixels.
        location: of the engine's model.
        tokens: that both ran; None for a picture.
        tokenizer: how the tokenizers disagree.
        pixels: what the engine does to a picture otherwise than the source.
        skipped: what was not compared, and why.
        halved: how far half precision moves the input of each of the source's norms, relative
            L2 by its name; None if that was not measured.

    Raises:
        InputError: they have no norm in common.
    """
    joined = _join(source, engine, location)
    if tokens is None:
        joined = align_class_token(joined)
    if not joined.pairs:
        raise InputError(
            f"{location}: none of its {len(engine.norms)} norms is one of the"
            f" {len(source.norms)} of {source.location}: they are not one network"
        )
    weights = {p.key: w for p in joined.pairs if (w := p.source.effective_weight) is not None}
    moved = {
        p.key: (halved or {}).get(p.source.name, 0.0) * engine.rounding / HALF for p in joined.pairs
    }
    judge = Judge(_short(source), _short(engine), engine.rounding, weights, moved)
    sites = judge.sites(joined.pairs)
    wrong = first_wrong(sites, _short(engine))
    wrong = wrong_pixels(pixels, sites) or name_unmatched(wrong, joined, source.norms, engine.norms)
    logits, why_not = _logits(source, engine, tokens)
    return EngineComparison(
        engine=side(engine),
        sites=sites,
        unmatched_source=joined.unmatched_source,
        unmatched_engine=joined.unmatched_engine,
        logits=logits,
        tokenizer=tokenizer,
        first_wrong=wrong,
        verdict=verdict(sites, wrong, engine.rounding),
        skipped=(*source.skipped, *engine.skipped, *joined.skipped, *why_not, *skipped),
        pixels=pixels,
    )


_NAMES = {
    "llama-cpp-python": "llama.cpp",
    "onnxruntime": "ONNX Runtime",
    "transformers": "Transformers",
}


def _short(run: ObservedRun) -> str:
    package = run.engine.partition(" ")[0]
    return _NAMES.get(package, package)


def _join(source: ObservedRun, engine: ObservedRun, location: str) -> Joined:
    if kind_of(location) is not None:
        return join_names(source.norms, engine.norms)
    with open_model(local_path(location)) as file:
        return join_gguf(source.norms, engine.norms, file)


def _logits(
    source: ObservedRun, engine: ObservedRun, tokens: Tokens | None
) -> tuple[LogitStatistics | None, tuple[Skipped, ...]]:
    a, b = source.logits, engine.logits
    if tokens is None:
        return None, ()
    if a is None or b is None or len(tokens) < MIN_TOKENS:
        return None, (Skipped("logits", "one side makes no next-token predictions"),)
    n = min(a.shape[1], b.shape[1])
    # Checkpoints pad their vocabulary, and converters take the padding off.
    note = (
        (Skipped("logits", f"{a.shape[1]} and {b.shape[1]} to a position: the first {n} count"),)
        if a.shape[1] != b.shape[1]
        else ()
    )
    total = LogitSum()
    total.add(a[:-1, :n], b[:-1, :n], np.minimum(tokens[1:], n - 1))
    return total.result(), note


def _tokenizer(runs: _Runs) -> TokenizerFinding | None:
    theirs, ours = runs.checkpoint_ids, runs.tokens
    if theirs is None or ours is None or not runs.tokens_are_the_file_s:
        return None
    # The end of a text that was cut may differ: a last word, or a token that closes it.
    n = min(len(theirs), len(ours))
    if np.array_equal(theirs[:n], ours[:n]) and n == len(ours):
        return None
    first = int(np.argmax(theirs[:n] != ours[:n])) if (theirs[:n] != ours[:n]).any() else n
    a, b = (tuple(v[first : first + _SHOWN].tolist()) for v in (theirs, ours))
    message = (
        f"the checkpoint's tokenizer and the file's part at token {first}: {list(a)} and {list(b)};"
        " both ran the file's"
    )
    if np.array_equal(theirs[: len(ours) - 1], ours[1:]):
        message = (
            f"the file's tokenizer puts the token {ours[0]} in front, the checkpoint's does not;"
            " both ran the file's"
        )
    return TokenizerFinding(first, a, b, message)
