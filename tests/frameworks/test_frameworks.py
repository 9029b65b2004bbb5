"""Transformers beside llama.cpp: they agree at every norm, and a mistake is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ggufnorm.analysis.crosscheck.llama import rounding
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.cli.main import cli
from ggufnorm.core.frameworks import EngineComparison, SiteComparison
from ggufnorm.core.model import Skipped
from ggufnorm.engines.hf.model import HFModel
from ggufnorm.engines.hf.norms import watch_norms
from ggufnorm.errors import (
    ConfigError,
    EngineMissingError,
    InputError,
    MemoryLimitError,
    TextError,
)
from ggufnorm.formats.location import open_model
from tests import framework_models as made
from tests import in_process

NAMES = tuple(made.NETWORKS)
TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 3
N_TOKENS = 31

GELU = ("gemma2", "gemma3", "phi", "gpt2", "bert")
"""Networks whose activation llama.cpp reads from a table of half precision."""

Change = Callable[[made.Tensors, made.Network], None]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frameworks")


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


@lru_cache
def model(name: str) -> Any:
    return made.build(made.NETWORKS[name])


def checkpoint(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else made.save(model(name), path)


def tensors(name: str) -> made.Tensors:
    return {k: v.copy() for k, v in made.converted(model(name), made.NETWORKS[name]).items()}


def compared(
    folder: Path, name: str, changed: made.Tensors | None = None, **how: Any
) -> EngineComparison:
    network = how.pop("network", made.NETWORKS[name])
    file = made.write(folder / "model.gguf", network, changed or tensors(name), **how)
    report = compare_frameworks(
        f"hf:{checkpoint(folder, name)}", [str(file)], text=TEXT, n_tokens=N_TOKENS, n_threads=1
    )
    assert report.n_tokens == N_TOKENS
    return report.comparisons[0]


def site(comparison: EngineComparison, key: str) -> SiteComparison:
    return next(s for s in comparison.sites if s.key == key)


# -- all is well ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_right_conversion_agrees_at_every_norm(folder: Path, name: str) -> None:
    found = compared(folder, name)
    assert found.first_wrong is None
    assert not found.unmatched_source
    assert not found.unmatched_engine
    assert len(found.sites) == sum(
        "norm" in type(m).__name__.lower() for m in model(name).modules()
    )
    assert max(s.local for s in found.sites) < 1e-6
    everywhere = max(max(s.input.rel_l2, s.output.rel_l2) for s in found.sites)
    assert everywhere < (2e-3 if name in GELU else 5e-6)
    assert {s.status for s in found.sites} <= {"agrees", "precision"}
    assert not any(s.causes for s in found.sites)


@pytest.mark.parametrize("name", made.SPECIAL)
def test_norms_without_weights_and_of_each_head_are_joined(folder: Path, name: str) -> None:
    network = made.SPECIAL[name]
    source = made.build(network)
    file = made.write(folder / "special.gguf", network, made.converted(source, network))
    report = compare_frameworks(
        f"hf:{made.save(source, folder / name)}", [str(file)],
        text=TEXT, n_tokens=N_TOKENS, n_threads=1,
    )  # fmt: skip
    (found,) = report.comparisons
    assert found.first_wrong is None, found.verdict
    assert not found.unmatched_source
    assert not found.unmatched_engine
    assert max(s.output.rel_l2 for s in found.sites) < 5e-6
    keys = [s.key for s in found.sites]
    if name == "olmo":
        assert keys[:2] == ["attn_norm-0", "ffn_norm-0"]
    else:
        assert keys[1:3] == ["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"]


@pytest.mark.parametrize("name", NAMES)
def test_epsilon_kind_and_offset_are_those_that_the_modules_apply(folder: Path, name: str) -> None:
    network = made.NETWORKS[name]
    for s in compared(folder, name).sites:
        kind = "layer" if network.layer_norm else "rms"
        assert (s.source.kind, s.engine.kind) == (kind, kind)
        assert (s.source.epsilon, s.engine.epsilon) == (network.epsilon, network.epsilon)
        assert (s.source.offset, s.engine.offset) == (network.offset, 0.0)
        assert s.source.epsilon_stated == network.epsilon


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_rounded_matrices_are_precision_and_no_mistake(folder: Path, name: str, dtype: str) -> None:
    found = compared(folder, name, dtype=gguf.GGMLQuantizationType[dtype])
    assert found.first_wrong is None, found.verdict
    assert found.verdict.startswith("No mistake")
    assert max(s.output.rel_l2 for s in found.sites) > 1e-4
    assert max(s.local for s in found.sites) < 1e-6


def test_predictions_are_compared(folder: Path) -> None:
    found = compared(folder, "llama")
    assert found.logits is not None
    assert found.logits.n_tokens == N_TOKENS - 1
    assert found.logits.mean_kld < 1e-9
    assert found.logits.same_top1 == 1.0
    assert compared(folder, "bert").logits is None


# -- seeded mistakes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """What is done to the file, and the cause that is to be named."""

    name: str
    cause: str
    change: Change


def _target(network: made.Network) -> str:
    """A norm in the middle of the network."""
    return "blk.1.attn_output_norm.weight" if network.name == "bert" else "blk.1.attn_norm.weight"


def _edit(how: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(t: made.Tensors, network: made.Network) -> None:
        t[_target(network)] = how(t[_target(network)]).astype(np.float32)

    return change


def _swap(t: made.Tensors, network: made.Network) -> None:
    a, b = _target(network), _target(network).replace("blk.1", "blk.2")
    t[a], t[b] = t[b], t[a]


def _without_offset(t: made.Tensors, network: made.Network) -> None:
    """Gemma's weight as it is in the checkpoint; one less, where nothing is to be added."""
    raw = made.converted(model(network.name), replace(network, offset=0.0))[_target(network)]
    t[_target(network)] = raw if network.offset else raw - 1


def _damage(w: np.ndarray) -> np.ndarray:
    w[5] *= 3
    return w


MISTAKES = (
    Mistake("offset missing", "offset", _without_offset),
    Mistake("offset doubled", "offset", _edit(lambda w: w + 1)),
    Mistake("scaled", "scale", _edit(lambda w: w * 1.5)),
    Mistake("interleaved", "permutation", _edit(lambda w: w.reshape(2, -1).T.reshape(-1))),
    Mistake("reversed", "permutation", _edit(lambda w: w[::-1])),
    Mistake("swapped", "elsewhere", _swap),
    Mistake("one element", "partial", _edit(_damage)),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
@pytest.mark.parametrize("name", NAMES)
def test_the_first_wrong_norm_and_its_reason_are_named(
    folder: Path, name: str, mistake: Mistake
) -> None:
    changed = tensors(name)
    mistake.change(changed, made.NETWORKS[name])
    found = compared(folder, name, changed)
    assert found.first_wrong is not None
    assert found.first_wrong.key == _target(made.NETWORKS[name])
    assert (found.first_wrong.layer, found.first_wrong.where) == (1, "norm")
    assert found.first_wrong.causes == (mistake.cause,)
    before = found.sites[: [s.key for s in found.sites].index(found.first_wrong.key)]
    assert {s.status for s in before} <= {"agrees", "precision"}
    assert found.first_wrong.after == before[-1].key


@pytest.mark.parametrize("name", NAMES)
def test_another_epsilon_is_named(folder: Path, name: str) -> None:
    found = compared(folder, name, epsilon=1e-2)
    assert found.first_wrong is not None
    assert found.first_wrong.key == found.sites[0].key
    assert found.first_wrong.causes == ("epsilon",)
    assert f"its epsilon is 0.01, in Transformers {made.NETWORKS[name].epsilon:g}" in found.verdict


def test_an_epsilon_that_does_not_show_is_told_and_is_no_first_mistake(folder: Path) -> None:
    found = compared(folder, "llama", epsilon=1.01e-5)
    assert found.first_wrong is None
    assert {s.status for s in found.sites} == {"harmless"}
    assert "its epsilon is 1.01e-05" in found.verdict


def test_swapped_norms_name_each_other(folder: Path) -> None:
    changed = tensors("qwen3")
    _swap(changed, made.NETWORKS["qwen3"])
    found = compared(folder, "qwen3", changed)
    (cause,) = site(found, "blk.1.attn_norm.weight").causes
    assert (cause.kind, cause.of) == ("elsewhere", "blk.2.attn_norm.weight")


@pytest.mark.parametrize("name", ["stablelm", "phi", "gpt2", "bert"])
def test_a_wrong_bias_is_named(folder: Path, name: str) -> None:
    changed = tensors(name)
    target = _target(made.NETWORKS[name])
    changed[target.replace("weight", "bias")] += 0.5
    found = compared(folder, name, changed)
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.causes) == (target, ("bias",))


def test_a_layer_norm_in_the_place_of_an_rms_norm_is_named(folder: Path) -> None:
    changed = tensors("llama")
    for norm in [n for n in changed if "norm" in n]:
        changed[norm.replace("weight", "bias")] = np.zeros(made.WIDTH, np.float32)
    wrong = replace(made.NETWORKS["stablelm"], options=made.NETWORKS["llama"].options)
    found = compared(folder, "llama", changed, network=wrong)
    assert found.first_wrong is not None
    assert found.first_wrong.key == "blk.0.attn_norm.weight"
    assert "kind" in found.first_wrong.causes
    assert "llama.cpp runs LayerNorm, Transformers RMSNorm" in found.first_wrong.reason


def test_an_rms_norm_in_the_place_of_a_layer_norm_is_named(folder: Path) -> None:
    changed = {k: v for k, v in tensors("stablelm").items() if "norm.bias" not in k}
    wrong = replace(made.NETWORKS["llama"], name="qwen2", architecture=gguf.MODEL_ARCH.QWEN2)
    found = compared(folder, "stablelm", changed, network=wrong)
    assert found.first_wrong is not None
    assert found.first_wrong.key == "blk.0.attn_norm.weight"
    assert set(found.first_wrong.causes) == {"kind", "bias"}


@pytest.mark.parametrize(
    ("name", "tensor", "key", "after"),
    [
        ("llama", "blk.1.attn_q", "blk.1.ffn_norm", "blk.1.attn_norm"),
        ("qwen3", "blk.1.ffn_down", "blk.2.attn_norm", "blk.1.ffn_norm"),
        ("gemma3", "blk.1.attn_v", "blk.1.post_attention_norm", "blk.1.attn_k_norm"),
        ("gpt2", "blk.0.attn_output", "blk.0.ffn_norm", "blk.0.attn_norm"),
        ("bert", "blk.1.ffn_up", "blk.1.layer_output_norm", "blk.1.attn_output_norm"),
        ("stablelm", "token_embd", "blk.0.attn_norm", None),
    ],
)
def test_a_mistake_between_norms_is_told_from_one_in_them(
    folder: Path, name: str, tensor: str, key: str, after: str | None
) -> None:
    changed = tensors(name)
    changed[f"{tensor}.weight"] = changed[f"{tensor}.weight"][:, ::-1].copy()
    found = compared(folder, name, changed)
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.where) == (f"{key}.weight", "before")
    assert found.first_wrong.after == (after and f"{after}.weight")
    assert not any(s.status == "mistake" for s in found.sites)


def test_heads_that_were_not_permuted_show_behind_the_attention(folder: Path) -> None:
    network = replace(made.NETWORKS["llama"], permuted=False)
    found = compared(folder, "llama", made.converted(model("llama"), network))
    assert found.first_wrong is not None
    assert found.first_wrong.key == "blk.0.ffn_norm.weight"
    assert found.first_wrong.where == "before"


@pytest.mark.parametrize("dtype", ["F16", "Q8_0", "Q4_0"])
def test_a_mistake_is_found_in_a_quantized_file_too(folder: Path, dtype: str) -> None:
    changed = tensors("gemma2")
    _without_offset(changed, made.NETWORKS["gemma2"])
    found = compared(folder, "gemma2", changed, dtype=gguf.GGMLQuantizationType[dtype])
    assert found.first_wrong is not None
    assert found.first_wrong.key == "blk.1.attn_norm.weight"
    assert "where it should be plus 1" in found.first_wrong.reason


def test_a_result_that_is_not_finite_is_named(folder: Path) -> None:
    changed = tensors("llama")
    changed["blk.1.ffn_norm.weight"][3] = np.inf
    found = compared(folder, "llama", changed)
    assert found.first_wrong is not None
    assert found.first_wrong.key == "blk.1.ffn_norm.weight"
    assert "non-finite" in found.first_wrong.causes


# -- what the files have in common ------------------------------------------------------------


def test_what_does_not_join_is_listed(folder: Path) -> None:
    wrong = replace(made.NETWORKS["llama"], name="qwen2", architecture=gguf.MODEL_ARCH.QWEN2)
    changed = {k: v for k, v in tensors("qwen3").items() if "attn_q_norm" not in k}
    changed = {k: v for k, v in changed.items() if "attn_k_norm" not in k}
    for i in range(made.LAYERS):
        for part, rows in (("q", made.WIDTH), ("k", made.WIDTH // 2), ("v", made.WIDTH // 2)):
            changed[f"blk.{i}.attn_{part}.bias"] = np.zeros(rows, np.float32)
    found = compared(folder, "qwen3", changed, network=wrong, epsilon=1e-6)
    assert found.unmatched_source == tuple(
        f"model.layers.{i}.self_attn.{part}_norm" for i in range(made.LAYERS) for part in "qk"
    )
    assert found.first_wrong is not None
    assert found.first_wrong.key == "blk.0.ffn_norm.weight"


def test_a_tokenizer_that_disagrees_is_a_finding(folder: Path, tmp_path: Path) -> None:
    source = made.with_tokenizer(TEXT, made.save(model("llama"), tmp_path / "with"))
    file = made.write(tmp_path / "m.gguf", made.NETWORKS["llama"], tensors("llama"))
    report = compare_frameworks(
        f"hf:{source}", [str(file)], text=TEXT, n_tokens=N_TOKENS, n_threads=1
    )
    (found,) = report.comparisons
    assert found.tokenizer is not None
    assert found.tokenizer.first == 1  # "the" has the id of the file's first token
    assert found.tokenizer.source == (2, 3, 4, 5, 6, 3, 1, 7)
    assert found.first_wrong is None  # all ran the file's ids
    assert compared(folder, "llama").tokenizer is None


def test_rounding_is_that_of_the_coarsest_matrix(tmp_path: Path) -> None:
    sizes = {}
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0"):
        dtype = gguf.GGMLQuantizationType[name]
        path = made.write(
            tmp_path / f"{name}.gguf", made.NETWORKS["llama"], tensors("llama"), dtype=dtype
        )
        with open_model(path) as file:
            sizes[name] = rounding(file)
    assert sizes["F32"] == 0
    assert list(sizes.values()) == sorted(sizes.values())
    # Of a matrix of normal values the real error is less than twice that.
    w = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    for name in ("Q8_0", "Q4_0"):
        kind = gguf.GGMLQuantizationType[name]
        again = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
        error = np.linalg.norm(again - w) / np.linalg.norm(w)
        assert sizes[name] / 2 < error < 2 * sizes[name]


# -- what a module really computes --------------------------------------------------------------


class Plain(torch.nn.Module):
    """An RMSNorm by no name, with another epsilon than it states."""

    def __init__(self, epsilon: float, stated: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 32))
        self.eps, self._epsilon, self._offset = stated, epsilon, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._epsilon)
        return y * (self.weight + self._offset)


class Twice(torch.nn.Module):
    """No norm at all, though it looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x * self.weight


class TwiceNorm(Twice):
    """No norm, though it is called one."""


def watched(*modules: torch.nn.Module, channels: int = 32) -> tuple[Any, tuple[Skipped, ...]]:
    net = torch.nn.Sequential(*modules)
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (1, 7, channels)).astype(np.float32))
    _output, norms, skipped = watch_norms(net, lambda: net(x), 7)
    return norms, skipped


@pytest.mark.parametrize("offset", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-8, 1e-6, 1e-5, 3.7e-4])
def test_epsilon_and_offset_are_measured_and_not_believed(epsilon: float, offset: float) -> None:
    ((norm,), _) = watched(Plain(epsilon, stated=0.125, offset=offset))
    assert norm.formula.kind == "rms"
    assert norm.formula.epsilon == pytest.approx(epsilon, rel=1e-3)
    assert norm.formula.offset == offset
    assert norm.epsilon_stated == 0.125


def test_a_norm_is_known_by_what_it_computes() -> None:
    norms, skipped = watched(Plain(1e-6, 1e-6), Twice(), TwiceNorm(), torch.nn.SiLU())
    assert [n.name for n in norms] == ["0"]
    assert skipped == (Skipped("2", "TwiceNorm computes no norm that is known here"),)


def test_torch_s_own_norms_are_known() -> None:
    norms, _ = watched(torch.nn.LayerNorm(32), torch.nn.RMSNorm(32, eps=1e-6))
    assert [n.formula.kind for n in norms] == ["layer", "rms"]
    net = torch.nn.GroupNorm(4, 8)
    x = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(0))
    _, (norm,), _ = watch_norms(net, lambda: net(x), 8)
    assert (norm.formula.kind, norm.formula.groups) == ("group", 4)
    assert norm.residual() < 1e-6


# -- refusals -----------------------------------------------------------------------------------


def test_bad_input_is_an_error_in_a_line(folder: Path, tmp_path: Path) -> None:
    good = f"hf:{checkpoint(folder, 'llama')}"
    file = str(made.write(tmp_path / "m.gguf", made.NETWORKS["llama"], tensors("llama")))
    (tmp_path / "empty").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text('{"model_type": "llama"}')
    cases: tuple[tuple[str, list[str], type[Exception], str], ...] = (
        (f"hf:{tmp_path / 'none'}", [file], InputError, "no such folder"),
        ("hf:org/name", [file], InputError, "hf download org/name"),
        (f"hf:{tmp_path / 'empty'}", [file], InputError, "Transformers cannot load it"),
        (f"hf:{tmp_path / 'config'}", [file], InputError, "Transformers cannot load it"),
        (file, [good], ConfigError, "the source must be hf:FOLDER"),
        (good, [], ConfigError, "give a model to compare it with"),
        (good, [str(tmp_path / "none.gguf")], InputError, "none.gguf"),
    )
    for source, engines, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            compare_frameworks(source, engines, text=TEXT, n_threads=1)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(TextError, match="empty"):
        compare_frameworks(good, [file], text=" ")


def test_a_checkpoint_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    source = f"hf:{checkpoint(folder, 'llama')}"
    file = str(made.write(tmp_path / "m.gguf", made.NETWORKS["llama"], tensors("llama")))
    with mock.patch("psutil.virtual_memory") as memory:
        memory.return_value.available = 1000
        with pytest.raises(MemoryLimitError, match="--no-memory-check"):
            compare_frameworks(source, [file], text=TEXT, n_threads=1)


REQUIRE_TORCH = "from ggufnorm.engines.hf.packages import require_torch; require_torch()"


@pytest.mark.parametrize(
    ("package", "extra", "code"),
    [
        ("torch", "hf", REQUIRE_TORCH),
        ("transformers", "hf", REQUIRE_TORCH),
        ("onnx", "onnx", "import ggufnorm; ggufnorm.inspect('m.onnx')"),
        (
            "onnxruntime",
            "onnx",
            "from ggufnorm.engines.onnx.session import OnnxSession; OnnxSession('m.onnx')",
        ),
    ],
)
def test_what_is_not_installed_is_named(package: str, extra: str, code: str) -> None:
    with (
        mock.patch.dict(sys.modules, {package: None}),
        pytest.raises(EngineMissingError, match=rf'pip install "ggufnorm\[{extra}\]"'),
    ):
        exec(code, {})


def test_tokens_beyond_the_vocabulary_are_refused(folder: Path) -> None:
    small = HFModel(checkpoint(folder, "llama"), n_threads=1)
    with pytest.raises(InputError, match="token 320 is not in its vocabulary of 320"):
        small.run(np.array([1, 320], np.int32))


def test_remote_code_is_not_run_unless_asked(folder: Path, tmp_path: Path) -> None:
    source = made.save(model("llama"), tmp_path / "remote")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="Transformers cannot load it"):
        HFModel(source)
    assert not (tmp_path / "ran").exists()


# -- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(folder: Path) -> tuple[str, str, str]:
    """A checkpoint, its right conversion, and one with a wrong norm."""
    network = made.NETWORKS["llama"]
    changed = tensors("llama")
    changed["blk.1.ffn_norm.weight"] += 1
    right = made.write(folder / "right.gguf", network, tensors("llama"))
    wrong = made.write(folder / "wrong.gguf", network, changed)
    return f"hf:{checkpoint(folder, 'llama')}", str(right), str(wrong)


def run(*words: str) -> Any:
    arguments = ["compare", *words, "--tokens", "31", "-t", "1"]
    return CliRunner().invoke(cli, arguments, standalone_mode=False)


def test_the_command_tells_the_verdict_in_every_format(files: tuple[str, str, str]) -> None:
    source, right, wrong = files
    text = run(source, right, wrong).stdout
    assert "All 7 norms agree within float32 rounding" in text
    assert "First wrong at blk.1.ffn_norm.weight (layer 1): its weight is the source's plus 1" in (
        " ".join(text.split())
    )
    markdown = run(source, wrong, "--format", "markdown").stdout
    assert "| **1** | **blk.1.ffn\\_norm.weight** | **rms** | **1e-05** |" in markdown
    document = json.loads(run(source, right, wrong, "--format", "json").stdout)
    assert document["schema"] == "ggufnorm/frameworks"
    assert [c["first_wrong"] is None for c in document["comparisons"]] == [True, False]
    assert document["comparisons"][1]["first_wrong"]["causes"] == ["offset"]


def test_thresholds_decide_the_exit_code(files: tuple[str, str, str]) -> None:
    source, right, wrong = files
    limits = ("--max-rel", "1e-4", "--max-kld", "1e-6", "--min-top1", "100%")
    assert run(source, right, *limits).return_value == 0
    done = run(source, wrong, *limits)
    assert done.return_value == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines() if "crossed" in line] == [
        "--max-rel 0.0001", "--max-kld 1e-06", "--min-top1 1",
    ]  # fmt: skip
    assert run(source, wrong).return_value == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hf:x"], "missing QUANT"),
        (["hf:x", "y.gguf", "--budget", "3"], "--budget does not go with hf: and .onnx"),
        (["hf:x", "y.gguf", "-ctk", "q8_0"], "-k does not go with hf: and .onnx: llama.cpp runs"),
        (["a.trace", "b.trace", "--max-rel", "1"], "--max-rel does not go with traces"),
    ],
)
def test_options_that_do_not_apply_are_refused(words: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["compare", *words], standalone_mode=False)
    assert message in str(done.exception)
