"""``compare`` with a source in another framework: run all, join the norms, judge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from ggufnorm.comparison.run import Progress
from ggufnorm.core.frameworks import (
    EngineComparison,
    FirstWrong,
    FrameworksReport,
    RunSide,
    SiteComparison,
    TokenizerFinding,
)
from ggufnorm.core.logits import LogitStatistics, LogitSum
from ggufnorm.core.metrics import Difference, difference
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedRun
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.errors import ConfigError, EngineMissingError, InputError, MemoryLimitError, TextError
from ggufnorm.formats.location import checkpoint_folder, local_path, open_model
from ggufnorm.frameworks.folds import Folds, find_folds, first_wrong_fold, folds_sentence
from ggufnorm.frameworks.join import Joined, join_gguf, join_names
from ggufnorm.frameworks.judge import Judge, first_wrong, verdict
from ggufnorm.samples import default_text

if TYPE_CHECKING:
    from ggufnorm.engines.onnx.session import OnnxSession

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
    n_threads: int | None = None,
    trust_remote_code: bool = False,
    check_memory: bool = True,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> FrameworksReport:
    """Run a model in its source framework and in engines, and say where they first part.

    All get the same token ids: those of the first GGUF file's own tokenizer, or else of the
    checkpoint's, or of one beside an ONNX file. Without any, ids are random, the same each
    time. Where file and checkpoint have one and they disagree, the report says so.

    Args:
        source: right by definition: ``hf:FOLDER`` or ``hf:org/repo`` (run by Transformers),
            or a path that ends with ``.onnx``.
        engines: under test: GGUF models on this machine, ``.onnx`` files or ``hf:``.
        text: what to run; None for the bundled text.
        text_name: how the report calls it.
        n_tokens: of the text, fewer where it or the model's context is shorter.
        n_threads: CPU threads; None for all.
        trust_remote_code: run Python that a checkpoint brings.
        check_memory: refuse a model that does not fit into the memory that is free.
        on_progress: called before each run.

    Raises:
        ConfigError: the source is neither a checkpoint nor ONNX.
        InputError: a model cannot be opened or run, or is another network.
        TextError: the text is empty.
        EngineMissingError: what runs one of them is not installed.
        EngineError: an engine fails or crashes, or a model does not fit into memory.
    """
    if kind_of(source) is None:
        raise ConfigError(f"{source}: the source must be hf:FOLDER or a file that ends with .onnx")
    if not engines:
        raise ConfigError(f"{source}: give a model to compare it with")
    if text is None:
        text, text_name = default_text(), "bundled: State of the Union addresses"
    if not text.strip():
        raise TextError(f"{text_name}: the text is empty")
    run = _Runs(text[: _LETTERS * n_tokens], n_tokens, n_threads, trust_remote_code, check_memory)
    everything = sorted(dict.fromkeys([source, *engines]), key=lambda m: ORDER.index(kind_of(m)))
    for location in everything:
        on_progress(Progress(f"running {location}"))
        run.add(location)
    reference = run.found[source]
    assert run.tokens is not None
    return FrameworksReport(
        source=_side(reference),
        comparisons=tuple(_compare(reference, engine, run) for engine in engines),
        text="random token ids" if run.tokens_are_random else text_name,
        n_tokens=len(run.tokens),
    )


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
        self.tokens_are_random = False

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
        from ggufnorm.engines.hf import HFModel

        folder = checkpoint_folder(location.partition(":")[2])
        if self.check_memory:
            _require_room(folder)
        model = HFModel(folder, n_threads=self.n_threads, trust_remote_code=self.trust_remote_code)
        tokenizer = model.tokenizer
        self.checkpoint_ids = None if tokenizer is None else tokenizer.ids(self.text)
        if self.tokens is None:
            self.tokens = self._ids(self.checkpoint_ids, lambda: model.n_vocab)
        return model.run(self.tokens)

    def _ids(self, ids: Tokens | None, n_vocab: Callable[[], int]) -> Tokens:
        """The text's ids, or without a tokenizer any."""
        if ids is not None and len(ids) >= MIN_TOKENS:
            return ids[: self.n_tokens]
        self.tokens_are_random = True
        rng = np.random.default_rng(0)
        return rng.integers(0, n_vocab(), self.n_tokens).astype(np.int32)

    def _onnx(self, location: str) -> ObservedRun:
        from ggufnorm.engines.onnx.session import OnnxSession

        session = OnnxSession(location, n_threads=self.n_threads)
        if self.tokens is None:
            self.tokens = self._onnx_ids(location, session) if session.takes_tokens else _NO_TOKENS
        return session.run(self.tokens)

    def _onnx_ids(self, location: str, session: OnnxSession) -> Tokens:
        """The text's ids where a tokenizer lies beside the model and can be run."""
        tokenizer = None
        with suppress(EngineMissingError):
            tokenizer = Tokenizer.beside(location)
        ids = None if tokenizer is None else tokenizer.ids(self.text)
        return self._ids(ids, lambda: session.n_vocab)


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


def _side(run: ObservedRun) -> RunSide:
    return RunSide(run.location, run.engine, len(run.norms), run.rounding)


def _compare(source: ObservedRun, location: str, runs: _Runs) -> EngineComparison:
    engine = runs.found[location]
    joined = _join(source, engine, location)
    both = (kind_of(source.location), kind_of(location))
    folds = find_folds(source.location, location) if both == ("onnx", "onnx") else Folds()
    if not source.norms and not folds.found:
        raise InputError(f"{source.location}: it has no norm that can be compared")
    if not joined.pairs and not folds.found:
        raise InputError(
            f"{location}: none of its {len(engine.norms)} norms is one of the"
            f" {len(source.norms)} of {source.location}: they are not one network"
        )
    weights = {p.key: w for p in joined.pairs if (w := p.source.effective_weight) is not None}
    judge = Judge(_short(source), _short(engine), engine.rounding, weights)
    sites = judge.sites(joined.pairs)
    wrong = _earlier(first_wrong(sites, _short(engine)), sites, folds)
    told = {fold.norm for fold in folds.found}
    skipped = (*source.skipped, *engine.skipped, *joined.skipped, *folds.skipped)
    logits, why_not = _logits(source, engine, runs.tokens)
    return EngineComparison(
        engine=_side(engine),
        sites=sites,
        unmatched_source=joined.unmatched_source,
        unmatched_engine=joined.unmatched_engine,
        logits=logits,
        tokenizer=_tokenizer(runs) if kind_of(location) is None else None,
        first_wrong=wrong,
        verdict=f"{verdict(sites, wrong, engine.rounding)} {folds_sentence(folds, wrong)}".strip(),
        skipped=(*(s for s in skipped if s.what not in told), *why_not),
        folds=folds.found,
        result=_result(source, engine),
    )


def _earlier(
    wrong: FirstWrong | None, sites: Sequence[SiteComparison], folds: Folds
) -> FirstWrong | None:
    """Of a wrong site and a wrong fold the one that the source's graph has first."""
    fold = first_wrong_fold(folds)
    if wrong is None or fold is None:
        return wrong or fold
    name = next(s.source.name for s in sites if s.key == wrong.key)
    return wrong if folds.places[name] < folds.places[fold.key] else fold


def _result(source: ObservedRun, engine: ObservedRun) -> Difference | None:
    a, b = source.result, engine.result
    return difference(a, b) if a is not None and b is not None and a.shape == b.shape else None


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
    if a is None or b is None or tokens is None or len(tokens) < MIN_TOKENS:
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
