"""The runs of a comparison, one model after another, all on the same token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ggufnorm.analysis.crosscheck.compared import MIN_TOKENS, Follow, NotFollowedError, Tokens
from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.analysis.crosscheck.locations import kind_of, open_checkpoint
from ggufnorm.core.frameworks import FirstWrong
from ggufnorm.core.observed import ObservedRun
from ggufnorm.core.progress import Progress
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.errors import EngineMissingError

if TYPE_CHECKING:
    from ggufnorm.core.operations import Stretch
    from ggufnorm.engines.hf.model import HFModel
    from ggufnorm.engines.onnx.session import OnnxSession


_NO_TOKENS = np.empty(0, np.int32)


class Runs:
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
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.text, self.n_tokens, self.n_threads = text, n_tokens, n_threads
        self.trust_remote_code, self.check_memory = trust_remote_code, check_memory
        self.on_progress = on_progress
        self.found: dict[str, ObservedRun] = {}
        self.tokens: Tokens | None = None
        self.checkpoint_ids: Tokens | None = None
        self.tokens_are_the_file_s = False
        self.tokens_are_random = False

    def add(self, location: str) -> None:
        """Run a model."""
        self.on_progress(Progress(f"running {location}"))
        kind = kind_of(location)
        if kind == "hf":
            self.found[location] = self._transformers(location)
        elif kind == "onnx":
            self.found[location] = self._onnx(location)
        else:
            self.found[location] = self._llama(location)

    def _llama(self, location: str) -> ObservedRun:
        from ggufnorm.analysis.crosscheck.llama import run_llama

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

    def _checkpoint(self, location: str) -> HFModel:
        return open_checkpoint(location, self.n_threads, self.trust_remote_code, self.check_memory)

    def _transformers(self, location: str) -> ObservedRun:
        model = self._checkpoint(location)
        tokenizer = model.tokenizer
        self.checkpoint_ids = None if tokenizer is None else tokenizer.ids(self.text)
        if self.tokens is None:
            self.tokens = self._ids(self.checkpoint_ids, lambda: model.n_vocab)
        return model.run(self.tokens)

    def follow(self, source: str, engine: str) -> Follow:
        """How to take down what both compute; see :data:`.compared.Follow`."""

        def follow(pairs: Sequence[Pair], wrong: FirstWrong, tolerance: float) -> Stretch:
            if kind_of(source) != "hf" or kind_of(engine) is not None:
                raise NotFollowedError("only Transformers and llama.cpp are followed between norms")
            from ggufnorm.analysis.crosscheck.stretch import take_down

            assert self.tokens is not None
            self.on_progress(Progress(f"following what leads to {wrong.key} in {engine}"))
            model = self._checkpoint(source)
            return take_down(model, engine, pairs, wrong, self.tokens, tolerance, self.n_threads)

        return follow

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
