"""The runs of a comparison, one model after another, all on the same token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from ggufnorm.analysis.crosscheck.compared import MIN_TOKENS, Follow, Tokens
from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.analysis.crosscheck.stretches import NotFollowedError
from ggufnorm.core.frameworks import FirstWrong
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedRun, SourceOutput, TypeCost
from ggufnorm.core.progress import Progress
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.engines.tokenizer import needs as tokenizer_needs
from ggufnorm.errors import EngineMissingError, InputError, MemoryLimitError
from ggufnorm.formats.forms import parse
from ggufnorm.formats.location import checkpoint_folder, local_path, open_model
from ggufnorm.runs.options import RunSettings
from ggufnorm.runs.placement import misplaced

if TYPE_CHECKING:
    from ggufnorm.analysis.crosscheck.output import OutputComparison
    from ggufnorm.analysis.crosscheck.pinned import OwnErrors
    from ggufnorm.analysis.crosscheck.token_ids import TokenIds
    from ggufnorm.core.operations import Segment
    from ggufnorm.engines.hf.model import HFModel
    from ggufnorm.engines.onnx.front import Front
    from ggufnorm.engines.onnx.session import OnnxSession


_NO_TOKENS = np.empty(0, np.int32)
_ORDER = ("llama.cpp", "transformers", "onnxruntime")
"""In which models are run: a GGUF file has a tokenizer for certain, ONNX has none."""


class Runs:
    """All models, run one after another on the same ids.

    Attributes:
        found: by location.
        tokens: that all get; None before the first run.
        outputs: what each checkpoint gives besides predictions, by location.
        tokenizers: of the checkpoints, by location; None for one without.
        decoder_starts: the token that a checkpoint's decoder begins with; None without one.
    """

    def __init__(
        self,
        text: str,
        n_tokens: int,
        how: RunSettings,
        trust_remote_code: bool,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.text, self.n_tokens, self.n_threads = text, n_tokens, how.n_threads
        self.trust_remote_code, self.check_memory = trust_remote_code, how.check_memory
        self.on_progress = on_progress
        self._asked, self._how = how, dict[str, RunSettings]()
        self.found: dict[str, ObservedRun] = {}
        self.tokens: Tokens | None = None
        self.outputs: dict[str, SourceOutput] = {}
        self.tokenizers: dict[str, Tokenizer | None] = {}
        self.decoder_starts: dict[str, int | None] = {}
        self._architectures: set[str] = set()
        self._has_decoder = False
        self.tokens_are_random = False
        self._first: tuple[ObservedRun, Front | None] | None = None

    def add(self, location: str) -> None:
        """Run a model."""
        self.on_progress(Progress(f"running {location}"))
        engine = parse(location).engine
        if engine == "transformers":
            self.found[location] = self._transformers(location)
        elif engine == "onnxruntime":
            self.found[location] = self._onnx(location)
        else:
            self.found[location] = self._llama(location)

    def _llama(self, location: str) -> ObservedRun:
        from ggufnorm.analysis.crosscheck.llama import exactly, run_llama

        found = run_llama(
            location,
            text=self.text,
            n_tokens=self.n_tokens,
            tokens=self.tokens,
            how=exactly(self._asked),
        )
        self._how[location] = found.how
        if (text := misplaced(found.run.build)) is not None:
            self.on_progress(Progress(text, warning=True))
        if self.tokens is None:
            self.tokens = found.tokens
        with open_model(local_path(location)) as file:
            self._architectures.add(file.architecture)
            self._has_decoder |= file.architecture == "t5"
        return found.run

    def _checkpoint(self, location: str) -> HFModel:
        return open_checkpoint(
            location,
            self.n_threads,
            self.trust_remote_code,
            self.check_memory,
            encoder_alone=self._architectures == {"t5encoder"},
        )

    def _require_halves(self, location: str, model: HFModel) -> None:
        """Refuse models of which one is an encoder alone and another has a decoder besides.

        Raises:
            InputError: so it is.
        """
        if "t5" in self._architectures and not model.is_encoder_decoder:
            raise InputError(
                f"{location}: it is an encoder alone, and the GGUF file has a decoder: give the"
                " checkpoint of both"
            )
        if model.is_encoder_decoder and self._architectures - {"t5"}:
            raise InputError(
                f"{location}: it is an encoder-decoder; compare files with and without a decoder"
                " one at a time"
            )
        self._has_decoder |= model.is_encoder_decoder

    def _transformers(self, location: str) -> ObservedRun:
        model = self._checkpoint(location)
        self._require_halves(location, model)
        self.tokenizers[location] = tokenizer = model.tokenizer
        self.decoder_starts[location] = model.decoder_start
        if self.tokens is None:
            ids = None if tokenizer is None else tokenizer.ids(self.text)
            self.tokens = self._ids(ids, lambda: model.n_vocab)
        run = model.run(self.tokens)
        from ggufnorm.engines.hf.outputs import source_output

        predicted = None if (logits := run.logits) is None else logits[-1].copy()
        del logits
        self.outputs[location] = source_output(model, self.tokens, predicted)
        return run

    def cost(self, source: str, engine: str) -> Callable[[], TypeCost] | None:
        """How to measure what the types of the engine's file do to the source itself.

        None where that is not possible, only a checkpoint being rounded as a GGUF file is, and
        where the file holds nothing but float32.
        """
        from ggufnorm.analysis.crosscheck.llama import rounding

        if (parse(source).engine, parse(engine).engine) != ("transformers", "llama.cpp"):
            return None
        with open_model(local_path(engine)) as file:
            if not rounding(file):
                return None

        def measure() -> TypeCost:
            from ggufnorm.analysis.crosscheck.llama import type_rounding
            from ggufnorm.engines.hf.stored import cost_of_types

            assert self.tokens is not None
            self.on_progress(Progress(f"measuring what the types of {engine} cost"))
            model = self._checkpoint(source)
            with open_model(local_path(engine)) as file:
                return cost_of_types(model, file, self.tokens, self.found[source], type_rounding)

        return measure

    def own(self, source: str, engine: str) -> Callable[[Sequence[Pair]], OwnErrors] | None:
        """How to measure what the engine makes of the source's values; None where it cannot be."""
        if (parse(source).engine, parse(engine).engine) != ("transformers", "llama.cpp"):
            return None

        def measure(pairs: Sequence[Pair]) -> OwnErrors:
            from ggufnorm.analysis.crosscheck.pinned import own_errors

            assert self.tokens is not None
            self.on_progress(Progress(f"running {engine} on the values of {source}"))
            return own_errors(engine, self.tokens, pairs, self.found[source], self._how[engine])

        return measure

    def token_ids(self, source: str, engine: str) -> TokenIds | None:
        """The source's tokenizer beside the engine's; None where no GGUF file is the engine."""
        if parse(engine).engine != "llama.cpp":
            return None
        from ggufnorm.analysis.crosscheck.token_ids import (
            TOKEN_IDS,
            TokenIds,
            compare_token_ids,
            with_decoder_start,
        )

        if source not in self.tokenizers:
            return TokenIds(None, 0, Skipped(TOKEN_IDS, "the source has no tokenizer"))
        self.on_progress(Progress(f"comparing token ids of {engine}"))
        folder = checkpoint_folder(source)
        found = compare_token_ids(
            self.tokenizers[source], engine, self.text, tokenizer_needs(folder), folder=folder
        )
        return with_decoder_start(found, self.decoder_starts[source], engine)

    def output(self, source: str, engine: str) -> OutputComparison | None:
        """The engine's embedding or score beside the source's; None where neither is given."""
        if source not in self.outputs:
            return None
        if parse(engine).engine == "onnxruntime":
            from ggufnorm.analysis.crosscheck.embedding import compare_embedding

            assert self.tokens is not None
            found = self.found[engine].result
            return compare_embedding(self.outputs[source], engine, found, self.tokens)
        if parse(engine).engine != "llama.cpp":
            return None
        from ggufnorm.analysis.crosscheck.outputs import compare_output, with_unread

        assert self.tokens is not None
        compared = compare_output(
            self.outputs[source],
            engine,
            self.tokens,
            self._how[engine],
            predicts=all(self.found[side].predicts for side in (source, engine)),
        )
        return with_unread(compared, self.outputs[source])

    def follow(self, source: str, engine: str) -> Follow:
        """How to record what both compute; see :data:`.compared.Follow`."""

        def follow(pairs: Sequence[Pair], wrong: FirstWrong, tolerance: float) -> Segment:
            engines = parse(source).engine, parse(engine).engine
            if engines != ("transformers", "llama.cpp"):
                raise NotFollowedError("only Transformers and llama.cpp are followed between norms")
            from ggufnorm.analysis.crosscheck.segment import record_segment

            assert self.tokens is not None
            self.on_progress(Progress(f"following what leads to {wrong.key} in {engine}"))
            model = self._checkpoint(source)
            return record_segment(
                model, engine, pairs, wrong, self.tokens, tolerance, self._how[engine]
            )

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

        if self._has_decoder:
            raise InputError(
                f"{location}: encoder-decoders are compared in Transformers and llama.cpp alone"
            )
        session = OnnxSession(location, n_threads=self.n_threads)
        if self.tokens is None:
            self.tokens = self._onnx_ids(location, session) if session.takes_tokens else _NO_TOKENS
        if session.takes_tokens or len(self.tokens):
            return session.run(self.tokens)
        if self._first is None:
            found = session.run(self.tokens)
            self._first = found, session.front
            return found
        return session.run_beside(*self._first)

    def _onnx_ids(self, location: str, session: OnnxSession) -> Tokens:
        """The text's ids where a tokenizer lies beside the model and can be run."""
        tokenizer = None
        with suppress(EngineMissingError):
            tokenizer = Tokenizer.beside(location)
        ids = None if tokenizer is None else tokenizer.ids(self.text)
        return self._ids(ids, lambda: session.n_vocab)


def in_order(locations: Iterable[str]) -> list[str]:
    """Each location once, in the order in which they are run."""
    return sorted(dict.fromkeys(locations), key=lambda m: _ORDER.index(parse(m).engine))


def open_checkpoint(
    location: str,
    n_threads: int | None,
    trust_remote_code: bool,
    check_memory: bool,
    *,
    encoder_alone: bool = False,
) -> HFModel:
    """The model of ``hf:FOLDER`` or ``hf:org/repo`` in Transformers, in float32.

    ``encoder_alone`` loads of an encoder-decoder the encoder.

    Raises:
        MemoryLimitError: it does not fit into the memory that is free.
        InputError: Transformers cannot load it.
    """
    from ggufnorm.engines.hf.model import HFModel

    folder = checkpoint_folder(location)
    if check_memory:
        _require_room(folder)
    return HFModel(
        folder,
        n_threads=n_threads,
        trust_remote_code=trust_remote_code,
        encoder_alone=encoder_alone,
    )


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
