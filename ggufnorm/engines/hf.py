"""Transformers as an engine: the only room that knows torch and transformers.

Norms are found as modules: by their class, by its name, and those whose class is unknown by
what they compute. Epsilon and offset are not believed but measured: each norm is given rows
from large to tiny, and the formula that explains its answers is the one that it applies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.formula import Formula
from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.core.observed import ObservedNorm, ObservedRun, Residual, applied_formula, by_token
from ggufnorm.engines.tokenizer import Tokenizer, quiet
from ggufnorm.errors import EngineMissingError, InputError

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]

_EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps", "layer_norm_epsilon")
_PROBE_SIZES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0)
"""RMS of the rows that a norm is given: whatever its epsilon is, some row feels it."""
_HUGE_EPSILON = 0.1
"""From which on rows of a mean square of 1 show no normalization: it may be a scale."""
KNOWN = 1e-4
"""Relative L2 up to which a module computes a known norm: float32 and its rounding."""


def require_torch() -> tuple[Any, Any]:
    """The modules torch and transformers.

    Raises:
        EngineMissingError: one of them is not installed.
    """
    try:
        with quiet():
            import torch
            import transformers
    except ImportError as error:
        raise EngineMissingError(
            f"running a Hugging Face model needs torch and transformers ({error}):"
            ' pip install "ggufnorm[hf]"'
        ) from None
    return torch, transformers


@dataclass(frozen=True)
class _Seen:
    """A module's first call."""

    name: str
    module: Any
    x: Any
    y: Any


class HFModel:
    """A checkpoint in Transformers, on the CPU in float32 with eager attention.

    Args:
        folder: with config.json and safetensors; nothing is fetched.
        n_threads: CPU threads; None leaves torch's choice.
        trust_remote_code: run the Python files in the folder; only for code that you trust.

    Attributes:
        folder: as given.
        engine: what runs it.
        skipped: what is not as the checkpoint says.

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
    ) -> None:
        self._torch, self._transformers = require_torch()
        self.folder = os.fspath(folder)
        self._remote_code = trust_remote_code
        self._n_threads = n_threads
        self.engine = f"transformers {self._transformers.__version__}"
        self.model, self.skipped = self._load()

    def _load(self) -> tuple[Any, tuple[Skipped, ...]]:
        options = {"local_files_only": True, "trust_remote_code": self._remote_code}
        t = self._transformers
        t.utils.logging.set_verbosity_error()
        t.utils.logging.disable_progress_bar()
        try:
            with quiet():
                config = t.AutoConfig.from_pretrained(self.folder, **options)
                if getattr(config, "is_encoder_decoder", False):
                    raise InputError(f"{self.folder}: encoder-decoder models are not run yet")
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
        skipped = tuple(
            Skipped(name, "the checkpoint lacks it: Transformers gave it random values")
            for name in missing
        )
        return model.eval(), skipped

    def _class(self, config: Any) -> Any:
        """With predictions where the checkpoint was made for them."""
        t = self._transformers
        made_for = " ".join(getattr(config, "architectures", None) or ())
        predicts = "ForCausalLM" in made_for or "LMHead" in made_for
        auto, kind = t.models.auto.modeling_auto, getattr(config, "model_type", "")
        if predicts and (kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or self._remote_code):
            return t.AutoModelForCausalLM
        of_images = kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        if of_images and "ForConditionalGeneration" in made_for:
            return t.AutoModelForImageTextToText
        of_classes = kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        if of_classes and "ForImageClassification" in made_for:
            return t.AutoModelForImageClassification
        return t.AutoModel

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

    def numbers(self) -> dict[str, float]:
        """Numbers of the config by their names, and the width of a head."""
        found = dict(_numbers(self.model.config.to_dict()))
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
        ids = self._torch.from_numpy(tokens.astype(np.int64))[None]
        with self._threads(), self._watched_blocks() as blocks:
            output, norms, skipped = self._watched(lambda: self.model(input_ids=ids), len(tokens))
        logits = getattr(output, "logits", None)
        return ObservedRun(
            engine=self.engine,
            location=self.folder,
            norms=norms,
            logits=None if logits is None else _array(logits[0]),
            skipped=(*self.skipped, *skipped),
            residuals=_residuals(blocks, norms, len(tokens)),
        )

    def _watched(
        self, call: Callable[[], Any], n_tokens: int
    ) -> tuple[Any, tuple[ObservedNorm, ...], tuple[Skipped, ...]]:
        try:
            return watch_norms(self.model, call, n_tokens)
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
            _, norms, skipped = self._watched(lambda: encode(pixel_values=values), 0)
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
    def _watched_blocks(self) -> Iterator[dict[str, Any]]:
        """What leaves each block, by the block's name: the largest list of modules holds them."""
        lists = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, self._torch.nn.ModuleList)
        ]
        name, blocks = max(
            lists, key=lambda found: sum(p.numel() for p in found[1].parameters()), default=("", ())
        )
        seen: dict[str, Any] = {}
        handles = [
            block.register_forward_hook(_block_keeper(seen, f"{name}.{i}"))
            for i, block in enumerate(blocks)
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


def watch_norms(
    model: Any, call: Callable[[], Any], n_tokens: int
) -> tuple[Any, tuple[ObservedNorm, ...], tuple[Skipped, ...]]:
    """Call a model and see what every norm in it does, at its first call.

    Args:
        model: a ``torch.nn.Module`` in float32.
        call: runs it.
        n_tokens: length of the axis that holds the tokens; 0 for an image encoder.

    Returns:
        What the call returned; the norms in the order of their calls; modules that are
        called norms and compute none that is known.
    """
    torch, _ = require_torch()
    seen: dict[str, _Seen] = {}
    handles = [
        module.register_forward_hook(_keeper(seen, name), with_kwargs=True)
        for name, module in model.named_modules()
        if _may_be_norm(module)
    ]
    try:
        with quiet(), torch.inference_mode():
            output = call()
            found = _norms(list(seen.values()), n_tokens)
    finally:
        for handle in handles:
            handle.remove()
    return output, *found


def _may_be_norm(module: Any) -> bool:
    if _is_named_norm(module):
        return not any(_is_named_norm(child) for child in module.children())
    # What torch brings itself is no norm but those that are named so.
    own = not type(module).__module__.startswith("torch.nn")
    leaf = next(module.children(), None) is None
    shapes = [p.dim() for p in module.parameters(recurse=False)]
    return own and leaf and len(shapes) <= 2 and all(d == 1 for d in shapes)


def _is_named_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower()


def _norms(
    seen: list[_Seen], n_tokens: int
) -> tuple[tuple[ObservedNorm, ...], tuple[Skipped, ...]]:
    found, skipped = [], []
    # What one module of a class was found to do, the next one likely does too.
    usual: dict[type, Formula] = {}
    others: set[type] = set()
    for s in seen:
        if type(s.module) in others:
            continue
        try:
            found.append(_norm(s, n_tokens, usual))
        except ValueError as error:
            if _is_named_norm(s.module):
                skipped.append(Skipped(s.name, str(error)))
            else:
                others.add(type(s.module))
    return tuple(found), tuple(skipped)


def _norm(s: _Seen, n_tokens: int, usual: dict[type, Formula]) -> ObservedNorm:
    """What is to be said of a module's first call.

    Raises:
        ValueError: it computes no norm that is known.
    """
    weight, bias = (_parameter(s.module, name) for name in _own_names(s.module))
    channels = s.x.shape[-1]
    formula = _expected(s.module, has_bias=bias is not None)
    if type(s.module) in usual:
        formula = _like(formula, usual[type(s.module)])
    x, y = _array(s.x), _array(s.y)
    if formula.kind == "group":
        return _group_norm(s, formula, weight, bias)
    x, y = (by_token(v, n_tokens, channels) for v in (x, y))
    w, b = (None if v is None else _per_head(v, channels) for v in (weight, bias))
    probe = _probe(s, channels)
    fitted, _ = applied_formula(*(probe or (x, y)), w, b, formula)
    applied, residual = applied_formula(x, y, w, b, fitted)
    scales = not _is_named_norm(s.module) and applied.epsilon > _HUGE_EPSILON
    if residual > KNOWN or scales:
        raise ValueError(f"{type(s.module).__name__} computes no norm that is known here")
    usual[type(s.module)] = applied
    weight_name, bias_name = _full_names(s)
    return ObservedNorm(
        name=s.name,
        formula=applied,
        epsilon_stated=_stated_epsilon(s.module),
        weight=w,
        bias=b,
        x=x,
        y=y,
        weight_name=weight_name,
        bias_name=bias_name,
    )


def _group_norm(
    s: _Seen, formula: Formula, weight: Array | None, bias: Array | None
) -> ObservedNorm:
    # One row is one sample, and a channel of torch's is a run of the row.
    x, y = (_array(v).reshape(s.x.shape[0], 1, -1) for v in (s.x, s.y))
    run = x.shape[-1] // s.x.shape[1]
    w, b = (None if v is None else np.repeat(v, run) for v in (weight, bias))
    applied, _residual = applied_formula(x, y, w, b, formula)
    weight_name, bias_name = _full_names(s)
    return ObservedNorm(
        s.name, applied, _stated_epsilon(s.module), w, b, x, y, weight_name, bias_name
    )


def _expected(module: Any, *, has_bias: bool) -> Formula:
    kind, groups = _kind(module, has_bias)
    epsilon = _stated_epsilon(module)
    return Formula(kind, 1e-6 if epsilon is None else epsilon, groups)


def _kind(module: Any, has_bias: bool) -> tuple[NormKind, int | None]:
    torch, _ = require_torch()
    if isinstance(module, torch.nn.GroupNorm):
        return "group", int(module.num_groups)
    name = type(module).__name__.lower()
    if isinstance(module, torch.nn.LayerNorm) or "layernorm" in name:
        return "layer", None
    if "l2" in name:
        return "l2", None
    return ("layer" if has_bias and "rms" not in name else "rms"), None


def _probe(s: _Seen, channels: int) -> tuple[Array, Array] | None:
    """Rows from tiny to large and what the norm makes of them; None if it takes none."""
    torch, _ = require_torch()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((len(_PROBE_SIZES), channels)).astype(np.float32)
    x = rows * np.array(_PROBE_SIZES, np.float32)[:, None]
    try:
        # A row for every place at which the model calls it with one.
        y = s.module(torch.from_numpy(x).reshape(1, -1, channels))
        return x[:, None], _array(y).reshape(len(x), 1, channels)
    except Exception:  # a norm that takes more than one argument, or another shape
        return None


def _keeper(seen: dict[str, _Seen], name: str) -> Any:
    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x: Any = args[0] if args else next(iter(kwargs.values()), None)
        y = output[0] if isinstance(output, tuple) and output else output
        alike = all(hasattr(v, "is_floating_point") and v.is_floating_point() for v in (x, y))
        if name not in seen and alike and x.shape == y.shape and x.dim() >= 2:
            seen[name] = _Seen(name, module, x.detach().clone(), y.detach().clone())

    return keep


def _block_keeper(seen: dict[str, Any], name: str) -> Any:
    def keep(_block: Any, _args: tuple[Any, ...], output: Any) -> None:
        value = output[0] if isinstance(output, tuple) and output else output
        if hasattr(value, "dim") and value.dim() == 3:
            seen[name] = value.detach().clone()

    return keep


def _residuals(
    blocks: Mapping[str, Any], norms: Sequence[ObservedNorm], n_tokens: int
) -> tuple[Residual, ...]:
    found = []
    for name, value in blocks.items():
        inside = [i for i, norm in enumerate(norms) if norm.name.startswith(f"{name}.")]
        array = by_token(_array(value), n_tokens, value.shape[-1])
        found.append(Residual(name, max(inside, default=-1) + 1, array))
    return tuple(found)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def _own_names(module: Any) -> tuple[str, str]:
    """Names of a norm's weight and bias."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    weight = next((n for n in names if n not in ("bias", "beta")), "weight")
    return weight, next((n for n in names if n in ("bias", "beta")), "bias")


def _parameter(module: Any, name: str) -> Array | None:
    value = getattr(module, name, None)
    return None if value is None else _array(value)


def _full_names(s: _Seen) -> tuple[str | None, str | None]:
    weight, bias = (
        None if getattr(s.module, name, None) is None else f"{s.name}.{name}"
        for name in _own_names(s.module)
    )
    return weight, bias


def _stated_epsilon(module: Any) -> float | None:
    values = (getattr(module, name, None) for name in _EPSILON_NAMES)
    return next((float(v) for v in values if isinstance(v, (int, float))), None)


def _like(formula: Formula, usual: Formula) -> Formula:
    """The formula with what modules of its class were found to do besides."""
    return Formula(
        kind=usual.kind,
        epsilon=formula.epsilon,
        groups=formula.groups,
        divisor=usual.divisor,
        offset=usual.offset,
        weight=usual.weight,
        bias=usual.bias,
    )


def _per_head(v: Array, channels: int) -> Array:
    flat = v.reshape(-1)
    if flat.size % channels:
        raise ValueError(f"{flat.size} weights do not fit {channels} channels")
    return flat if flat.size == channels else flat.reshape(-1, channels)


def _array(value: Any) -> Array:
    return np.array(value.detach().float().numpy(), np.float32)


def _line(error: Exception) -> str:
    """The first line of a message that may have many."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:300]
