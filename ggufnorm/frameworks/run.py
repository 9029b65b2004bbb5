"""``compare`` with a source in another framework: run all, join the norms, judge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np

from ggufnorm.comparison.run import Progress
from ggufnorm.core.frameworks import (
    EngineComparison,
    FirstWrong,
    FrameworksReport,
    OperationMatch,
    RunSide,
    SiteComparison,
    TokenizerFinding,
)
from ggufnorm.core.logits import LogitStatistics, LogitSum
from ggufnorm.core.metrics import Difference, difference
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedRun, relative
from ggufnorm.errors import ConfigError, InputError, TextError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.frameworks.folds import Folds, find_folds, first_wrong_fold, folds_sentence
from ggufnorm.frameworks.join import Joined, join_gguf, join_names
from ggufnorm.frameworks.judge import LOGITS, Judge, first_wrong, verdict, with_operation
from ggufnorm.frameworks.operations import match_operations
from ggufnorm.frameworks.runs import MIN_TOKENS, Kind, NotFollowedError, Runs, Tokens, kind_of
from ggufnorm.samples import default_text

ORDER: tuple[Kind | None, ...] = (None, "hf", "onnx")
"""In which models are run: a GGUF file has a tokenizer for certain, ONNX has none."""

N_TOKENS = 127
"""Length of the text: a prime, so that no other axis of an array is as long."""
_LETTERS = 64
"""Letters of the text to a token, more than enough."""
_SHOWN = 8
"""Ids shown where two tokenizers part."""


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
    run = Runs(
        text[: _LETTERS * n_tokens],
        n_tokens,
        n_threads,
        trust_remote_code,
        check_memory,
        on_progress,
    )
    everything = sorted(dict.fromkeys([source, *engines]), key=lambda m: ORDER.index(kind_of(m)))
    for location in everything:
        run.add(location)
    reference = run.found[source]
    assert run.tokens is not None
    return FrameworksReport(
        source=_side(reference),
        comparisons=tuple(_compare(source, engine, run) for engine in engines),
        text="random token ids" if run.tokens_are_random else text_name,
        n_tokens=len(run.tokens),
    )


def _side(run: ObservedRun) -> RunSide:
    return RunSide(run.location, run.engine, len(run.norms), run.rounding)


def _compare(reference: str, location: str, runs: Runs) -> EngineComparison:
    source, engine = runs.found[reference], runs.found[location]
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
    told = {fold.norm for fold in folds.found}
    skipped = (*source.skipped, *engine.skipped, *joined.skipped, *folds.skipped)
    logits, why_not = _logits(source, engine, runs.tokens)
    off = _logits_off(source, engine, judge.explained(sites))
    wrong = _earlier(first_wrong(sites, _short(engine), off), sites, folds)
    operations: tuple[OperationMatch, ...] = ()
    if wrong is not None and wrong.where == "before":
        key = wrong.key
        tolerance = judge.explained(list(takewhile(lambda s: s.key != key, sites)))
        try:
            stretch = runs.between(reference, location, joined.pairs, wrong, tolerance)
            operations, operation = match_operations(stretch, _short(source))
            wrong = with_operation(wrong, operation, _short(engine))
        except NotFollowedError as error:
            why_not = (*why_not, Skipped("operations", str(error)))
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
        operations=operations,
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
    if wrong.key == LOGITS:
        return fold
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


def _logits_off(source: ObservedRun, engine: ObservedRun, explained: float) -> float | None:
    """Relative L2 distance of the logits, None where rounding explains it or there are none."""
    a, b = source.logits, engine.logits
    if a is None or b is None or len(a) != len(b):
        return None
    n = min(a.shape[1], b.shape[1])
    off = relative(a[:, :n], b[:, :n])
    return off if off > explained else None


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


def _tokenizer(runs: Runs) -> TokenizerFinding | None:
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
