"""The replicas of a drift run: both models in one llama.cpp, or each in a build of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.engines.base import Runner, Tokens
from ggufnorm.engines.llama.library import choose_build
from ggufnorm.engines.llama.remote import RemoteRunner
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.corpus import Corpus
from ggufnorm.runs.placement import held_as

Pair = tuple[EngineOptions, EngineOptions]
Files = tuple[ModelFile, ModelFile]
Loaded = LlamaRunner | RemoteRunner
"""A model in this process, or in another build's."""


@dataclass(frozen=True)
class Replicas:
    """What is run side by side.

    Attributes:
        runners: the reference, the model under test, the same to be pinned if that is wanted,
            and the reference once more if a floor is.
        tokens: of the text.
    """

    runners: Sequence[Loaded]
    tokens: Tokens


@dataclass(frozen=True)
class Wanted:
    """Which replicas are wanted beside the two sides.

    Attributes:
        pinned: the model under test, to be pinned.
        floor: the reference once more.
    """

    pinned: bool
    floor: bool


def load_together(
    stack: ExitStack, files: Files, options: Pair, corpus: Corpus, wanted: Wanted, say: OnProgress
) -> Replicas:
    """Both in this process's llama.cpp.

    Args:
        stack: ends them.
        files: the reference and the model under test.
        options: how each is run.
        corpus: the text.
        wanted: which replicas.
        say: gets progress.
    """
    choose_build(options[0].llama_cpp)
    say(Progress("loading the reference"))
    reference = stack.enter_context(LlamaModel(files[0].path, options[0]))
    if _held_alike(*options) and files[0].path == files[1].path:
        quant = reference
    else:
        say(Progress("loading the model under test"))
        quant = stack.enter_context(LlamaModel(files[1].path, options[1]))
    models = (reference, quant)
    runners: list[Loaded] = [
        stack.enter_context(LlamaRunner(models[side], options[side], files[side]))
        for side in (0, 1, *([1] if wanted.pinned else []), *([0] if wanted.floor else []))
    ]
    return Replicas(runners, corpus.encode(reference, quant))


def _held_alike(a: EngineOptions, b: EngineOptions) -> bool:
    """Whether both sides can share one copy of the weights."""
    return held_as(a) == held_as(b)


def load_apart(
    stack: ExitStack, files: Files, options: Pair, corpus: Corpus, wanted: Wanted, say: OnProgress
) -> Replicas:
    """The reference in this process, the model under test in another build in others.

    The arguments are those of :func:`load_together`.

    Raises:
        InputError: the builds cut the text into different tokens.
        ConfigError: the other build is to run on servers that take one client.
    """
    if options[1].rpc:
        raise ConfigError(
            "--rpc does not go with another build beside the reference's: it runs in two processes,"
            " and a server takes one client (--ref-rpc puts the reference on servers)"
        )
    choose_build(options[0].llama_cpp)
    say(Progress("loading the reference"))
    reference = stack.enter_context(LlamaModel(files[0].path, options[0]))
    say(Progress("loading the model under test in the other build"))
    remote = [
        stack.enter_context(RemoteRunner(options[1], files[1]))
        for _ in range(2 if wanted.pinned else 1)
    ]
    tokens = corpus.encode(reference)
    if corpus.text is not None and not np.array_equal(tokens, remote[0].tokenize(corpus.text)):
        raise InputError("the two builds of llama.cpp cut the text into different tokens")
    own = [
        stack.enter_context(LlamaRunner(reference, options[0], files[0]))
        for _ in range(2 if wanted.floor else 1)
    ]
    return Replicas([own[0], *remote, *own[1:]], tokens)


def share_graphs(planned: Runner, other: Runner) -> None:
    """Let a runner of the same model and options take over what another has learned."""
    if isinstance(planned, RemoteRunner) and isinstance(other, RemoteRunner):
        other.share_graphs(planned)
    else:
        other.graphs = planned.graphs
