"""A checkpoint in Transformers."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedNorm, ObservedRun, Residual, by_token
from ggufnorm.core.tokens import halves
from ggufnorm.engines.hf.classes import class_for, has_decoder
from ggufnorm.engines.hf.norms import as_view, watch_norms
from ggufnorm.engines.hf.packages import require_torch
from ggufnorm.engines.pretrained import quiet
from ggufnorm.engines.row_file import RowFile, Rows
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.errors import GgufnormError, InputError
from ggufnorm.formats.hf import check_checkpoint, n_stored_bytes

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]


_LEAST_BYTES_EACH = 4
"""Weights that a byte may hold: four of two bits."""
_SMALL = 10_000_000
"""Weights that are made whatever the files hold: a head that a checkpoint lacks."""


class HFModel:
    """A checkpoint in Transformers, on the CPU in float32 with eager attention.

    Args:
        folder: with config.json and safetensors; nothing is fetched.
        n_threads: CPU threads; None leaves torch's choice.
        trust_remote_code: run the Python files in the folder; only for code that you trust.
        encoder_alone: of an encoder-decoder load the encoder alone.

    Attributes:
        folder: as given.
        engine: what runs it.
        skipped: what is not as the checkpoint says.
        predicts_times: factor of what goes into the head, which is left out here (T5's
            ``scale_decoder_outputs``); 1 without.

    Raises:
        EngineMissingError: torch or transformers is not installed.
        InputError: the folder is no checkpoint that Transformers loads.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        n_threads: int | None = None,
        trust_remote_code: bool = False,
        encoder_alone: bool = False,
    ) -> None:
        self._torch, self._transformers = require_torch()
        self.folder = os.fspath(folder)
        self._remote_code, self._encoder_alone = trust_remote_code, encoder_alone
        self._n_threads = n_threads
        self.predicts_times = 1.0
        self.engine = f"transformers {self._transformers.__version__}"
        self.model, self.skipped = self._load()

    def _load(self) -> tuple[Any, tuple[Skipped, ...]]:
        check_checkpoint(self.folder)
        options = {"local_files_only": True, "trust_remote_code": self._remote_code}
        t = self._transformers
        t.utils.logging.set_verbosity_error()
        t.utils.logging.disable_progress_bar()
        try:
            with quiet():
                config = t.AutoConfig.from_pretrained(self.folder, **options)
                self._require_size(config)
                model, info = self._class(config).from_pretrained(
                    self.folder,
                    config=config,
                    dtype=self._torch.float32,
                    attn_implementation="eager",
                    use_safetensors=True,
                    output_loading_info=True,
                    **options,
                )
        except InputError:
            raise
        except Exception as error:  # whatever a library or a model's own code raises
            raise InputError(
                f"{self.folder}: Transformers cannot load it: {_line(error)}"
            ) from None
        missing = sorted(info["missing_keys"])
        self._require_weights(model, missing)
        self.unread = tuple(sorted(info["unexpected_keys"]))
        skipped = tuple(
            Skipped(name, "the checkpoint lacks it: Transformers gave it random values")
            for name in missing
        )
        # llama.cpp has no such factor: comparing starts behind it (``predicts_times``).
        if getattr(model.config, "scale_decoder_outputs", False):
            self.predicts_times = float(model.config.d_model**-0.5)
            model.config.scale_decoder_outputs = False
        from ggufnorm.engines.hf.padding_rows import restore_padding

        return model.eval(), (*skipped, *restore_padding(model, self.folder))

    def _require_size(self, config: Any) -> None:
        """Refuse a config that makes another, larger network of keys that it does not name.

        Transformers takes its defaults for them, a network of seven billion weights for a
        Llama, and would fill the memory before it finds that nothing fits.
        """
        try:
            with self._torch.device("meta"):
                # Making an encoder alone changes the config that it is given.
                shell = self._class(config).from_config(
                    copy.deepcopy(config), trust_remote_code=self._remote_code
                )
        except Exception:  # a model that cannot be made without its weights
            return
        n = sum(p.numel() for p in shell.parameters())
        try:
            stored = n_stored_bytes(self.folder)
        except InputError:  # Transformers says what it makes of such a folder
            return
        if n > _LEAST_BYTES_EACH * stored + _SMALL:
            raise InputError(
                f"{self.folder}: config.json describes a network of {n:,} weights, and the"
                f" safetensors hold {stored:,} bytes: keys are missing, or tensors are"
            )

    def _require_weights(self, model: Any, missing: Sequence[str]) -> None:
        """Refuse a checkpoint of which Transformers' class finds less than half.

        Raises:
            InputError: what would be run is mostly random values.
        """
        names = dict(model.named_parameters())
        if 2 * sum(name in names for name in missing) <= len(names):
            return
        of = getattr(model.config, "auto_map", None)
        code = ": it is made for code of its own; run it with --trust-remote-code" if of else ""
        raise InputError(
            f"{self.folder}: Transformers' {type(model).__name__} finds no values for"
            f" {len(missing)} of its {len(names)} tensors there{code}"
        )

    def _class(self, config: Any) -> Any:
        return class_for(
            self._transformers,
            config,
            remote_code=self._remote_code,
            encoder_alone=self._encoder_alone,
        )

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads a text and a decoder writes another."""
        return has_decoder(self.model.config) and not self._encoder_alone

    @property
    def decoder_start(self) -> int | None:
        """The token that the decoder of an encoder-decoder begins with; None where none is told."""
        if not self.is_encoder_decoder:
            return None
        stated = (getattr(self.model, "generation_config", None), self.model.config)
        found = (getattr(c, "decoder_start_token_id", None) for c in stated)
        return next((int(token) for token in found if isinstance(token, int)), None)

    @property
    def padding_side(self) -> Literal["left", "right"]:
        """Where its tokenizer pads."""
        return "right" if self.tokenizer is None else self.tokenizer.padding_side

    @property
    def padding_id(self) -> int:
        """The token that is padded with; 0 where none is told."""
        stated = getattr(self.model.config, "pad_token_id", None)
        return stated if isinstance(stated, int) and 0 <= stated < self.n_vocab else 0

    def n_rows(self, tokens: Tokens) -> int:
        """Tokens of one pass through the network: of an encoder-decoder half of them."""
        return len(halves(tokens)[0]) if self.is_encoder_decoder else len(tokens)

    def inputs(self, tokens: Tokens) -> dict[str, Any]:
        """What the model is called with: an encoder reads a half, its decoder writes the other."""
        ids = self._torch.from_numpy(tokens.astype(np.int64))[None]
        if not self.is_encoder_decoder:
            return {"input_ids": ids}
        read, written = halves(ids[0])
        return {"input_ids": read[None], "decoder_input_ids": written[None]}

    @property
    def kind(self) -> str:
        """``model_type`` of the config."""
        return str(getattr(self.model.config, "model_type", "unknown"))

    @property
    def n_vocab(self) -> int:
        """Rows of the token embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def n_threads(self) -> int:
        """CPU threads that a run uses."""
        return self._n_threads or int(self._torch.get_num_threads())

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration, with what the class fills in."""
        found: dict[str, Any] = self.model.config.to_dict()
        return found

    def numbers(self) -> dict[str, float]:
        """Numbers of the config by their names, and the width of a head."""
        found = _numbers(self.config)
        heads, width = found.get("num_attention_heads"), found.get("hidden_size")
        if heads and width:
            found.setdefault("head_dim", width / heads)
        return found

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's own; None if it has none that loads."""
        return Tokenizer.of(self.folder, trust_remote_code=self._remote_code)

    def run(self, tokens: Tokens) -> ObservedRun:
        """Run token ids and observe every norm.

        Raises:
            InputError: an id is not in the vocabulary, or the model fails.
        """
        if tokens.size and int(tokens.max()) >= self.n_vocab:
            raise InputError(
                f"{self.folder}: token {int(tokens.max())} is not in its vocabulary of"
                f" {self.n_vocab}: it is another model"
            )
        given, n_rows, file = self.inputs(tokens), self.n_rows(tokens), RowFile()
        with self._threads(), self._watched_blocks(n_rows, file) as blocks:
            output, norms, skipped = self._watched(lambda: self.model(**given), n_rows, file)
        logits = getattr(output, "logits", None)
        return ObservedRun(
            engine=self.engine,
            location=self.folder,
            norms=norms,
            logits=None if logits is None else file.keep(as_view(logits[0])),
            skipped=(*self.skipped, *skipped),
            residuals=_residuals(blocks, norms),
            predicts_times=self.predicts_times,
        )

    def _watched(
        self, call: Callable[[], Any], n_tokens: int, file: RowFile
    ) -> tuple[Any, tuple[ObservedNorm, ...], tuple[Skipped, ...]]:
        try:
            return watch_norms(self.model, call, n_tokens, file)
        except GgufnormError:  # no room for its rows
            raise
        except Exception as error:  # whatever a model's code raises
            raise InputError(f"{self.folder}: the model fails: {_line(error)}") from None

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the picture that its image encoder takes.

        Raises:
            InputError: the config does not say.
        """
        config = getattr(self.model.config, "vision_config", self.model.config)
        size = getattr(config, "image_size", None)
        sides: Sequence[Any] = size if isinstance(size, (list, tuple)) else [size, size]
        if len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
            raise InputError(f"{self.folder}: its config tells no image_size: give --image")
        return sides[0], sides[1]

    def run_picture(self, pixels: Array) -> ObservedRun:
        """Run the image encoder, with the projector behind it if it has one.

        Args:
            pixels: ``(pictures, height, width, 3)``, normalized.

        Raises:
            InputError: there is no encoder that takes such pixels, or it fails.
        """
        encode = getattr(self.model, "get_image_features", self.model)
        if encode is self.model and self.model.main_input_name != "pixel_values":
            raise InputError(f"{self.folder}: {self.kind} has no image encoder")
        values = self._torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)))
        with self._threads():
            _, norms, skipped = self._watched(lambda: encode(pixel_values=values), 0, RowFile())
        return ObservedRun(
            engine=self.engine,
            location=self.folder,
            norms=norms,
            logits=None,
            skipped=(*self.skipped, *skipped),
        )

    def round_matrices(self) -> None:
        """Round all parameters of two dimensions or more to half precision, for good."""
        with self._torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(parameter.half().float())

    @contextmanager
    def _watched_blocks(self, n_tokens: int, file: RowFile) -> Iterator[dict[str, Rows]]:
        """What leaves each block, by the block's name: the largest list of modules holds them."""
        lists = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, self._torch.nn.ModuleList)
        ]
        name, blocks = max(
            lists, key=lambda found: sum(p.numel() for p in found[1].parameters()), default=("", ())
        )
        seen: dict[str, Rows] = {}

        def keeper(name: str) -> Any:
            def keep(_block: Any, _args: tuple[Any, ...], output: Any) -> None:
                value = output[0] if isinstance(output, tuple) and output else output
                if hasattr(value, "dim") and value.dim() == 3:
                    rows = by_token(as_view(value), n_tokens, value.shape[-1])
                    seen[name] = file.keep(rows)

            return keep

        handles = [
            block.register_forward_hook(keeper(f"{name}.{i}")) for i, block in enumerate(blocks)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _threads(self) -> Iterator[None]:
        before = self._torch.get_num_threads()
        if self._n_threads:
            self._torch.set_num_threads(self._n_threads)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)


def _residuals(blocks: Mapping[str, Rows], norms: Sequence[ObservedNorm]) -> tuple[Residual, ...]:
    found = []
    for name, rows in blocks.items():
        inside = [i for i, norm in enumerate(norms) if norm.name.startswith(f"{name}.")]
        found.append(Residual(name, max(inside, default=-1) + 1, rows))
    return tuple(found)


def _numbers(config: Mapping[str, Any], inside: str = "") -> dict[str, float]:
    """Numbers by their names; by name and section where sections state several of one name."""
    found: dict[str, float] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            for inner, number in _numbers(value, f"{name}.").items():
                key = inner if found.get(inner, number) == number else f"{name}.{inner}"
                found[key] = number
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            key = name if found.get(name, float(value)) == float(value) else f"{inside}{name}"
            found[key] = float(value)
    return found


def _line(error: Exception) -> str:
    """The first line of a message that may have many."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:300]
