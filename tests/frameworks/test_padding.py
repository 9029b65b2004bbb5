"""``compare``: padded batches, what runs behind a network, and the heads of rerankers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from ggufnorm.analysis.crosscheck.outputs import pool
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison
from ggufnorm.engines.hf.sentence import sentence_modules
from ggufnorm.report.views.frameworks import frameworks_view
from tests import framework_models as made
from tests import in_process
from tests.models import add_wordpiece

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 3


def _one_type(w: gguf.GGUFWriter, n_vocab: int) -> None:
    add_wordpiece(w, n_vocab, types=1)


ROBERTA = replace(
    made.NETWORKS["bert"], name="bert", config=transformers.RobertaConfig,
    model=transformers.RobertaForSequenceClassification,
    vocabulary=_one_type,
    options={**made.NETWORKS["bert"].options, "type_vocab_size": 1, "pad_token_id": 1,
             "max_position_embeddings": made.CONTEXT + 2, "num_labels": 1},
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


def compared(source: Path, file: Path) -> tuple[EngineComparison, str]:
    report = compare_frameworks(f"hf:{source}", [str(file)], text=TEXT, n_tokens=31, n_threads=1)
    (view,) = frameworks_view(report)
    return report.comparisons[0], view.headline or ""


def keys(
    pooling: gguf.PoolingType | None, *, causal: bool = False, labels: tuple[str, ...] = ()
) -> Callable[[gguf.GGUFWriter], None]:
    def add(w: gguf.GGUFWriter) -> None:
        if not causal:
            w.add_causal_attention(False)
        if pooling is not None:
            w.add_pooling_type(pooling)
        if labels:
            w.add_classifier_output_labels(labels)

    return add


def describe(folder: Path, pooling: dict[str, Any], *dense: tuple[np.ndarray, str]) -> None:
    """What Sentence Transformers saves: Pooling, linear layers, Normalize."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    kinds += [(f"{i}_Dense", "Dense") for i, _ in enumerate(dense, 2)]
    kinds += [(f"{len(kinds)}_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for i, (weight, activation) in enumerate(dense, 2):
        place = folder / f"{i}_Dense"
        place.mkdir()
        save_file({"linear.weight": weight}, str(place / "model.safetensors"))
        stated = {"in_features": weight.shape[1], "activation_function": f"torch.{activation}"}
        (place / "config.json").write_text(json.dumps(stated))


def bert(folder: Path, stated: dict[str, Any], pooling: gguf.PoolingType,
         *dense: tuple[np.ndarray, str]) -> tuple[EngineComparison, str]:  # fmt: skip
    network = replace(made.NETWORKS["bert"], extra=keys(pooling))
    model = made.build(network)
    source = made.save(model, folder / "hf")
    describe(source, stated, *dense)
    file = made.write(folder / "m.gguf", network, made.converted(model, network))
    return compared(source, file)


# -- padded batches ---------------------------------------------------------------------------


def test_a_model_that_hides_padding_gives_the_same_in_a_batch(tmp_path: Path) -> None:
    found, headline = bert(tmp_path, {"pooling_mode_mean_tokens": True}, gguf.PoolingType.MEAN)
    assert found.first_wrong is None, found.verdict
    assert found.padding is not None
    assert not found.padding.in_source
    assert not found.padding.in_engine
    assert "the same beside another text, padded on the right" in found.compared
    assert "padding" not in headline


def with_padding_side(folder: Path, side: str) -> None:
    made.with_tokenizer(TEXT, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": side}))


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_that_count_the_padding_are_named(tmp_path: Path, side: str) -> None:
    network = replace(made.NETWORKS["gpt2"], extra=keys(gguf.PoolingType.LAST, causal=True))
    model = made.build(network)
    source = made.save(model.transformer, tmp_path / "hf")
    describe(source, {"pooling_mode": "lasttoken"})
    with_padding_side(source, side)
    tensors = made.converted(model, network)
    found, _ = compared(source, made.write(tmp_path / "m.gguf", network, tensors))
    assert found.first_wrong is None, found.verdict
    assert found.padding is not None
    assert found.padding.side == side
    assert found.padding.in_source == (side == "left")
    assert not found.padding.in_engine
    if side == "left":
        assert "the pooled embedding of the source depends on padding" in found.verdict.lower()
        assert "the positions of its tokens count the padding" in found.verdict
        assert "agrees with it alone, not in such a batch" in found.verdict


def qwen3(extra: Callable[[gguf.GGUFWriter], None]) -> made.Network:
    def both(w: gguf.GGUFWriter) -> None:
        made.NETWORKS["qwen3"].extra(w)
        extra(w)

    return replace(made.NETWORKS["qwen3"], extra=both)


def classifier(folder: Path, **options: Any) -> tuple[EngineComparison, str]:
    """A decoder with a head that scores by its last token."""
    network = qwen3(keys(gguf.PoolingType.RANK, causal=True, labels=("good", "bad")))
    config = network.config(**{**network.options, "num_labels": 2, **options})
    plain = made.build(network)
    model = transformers.Qwen3ForSequenceClassification(config).eval()
    model.model.load_state_dict(plain.model.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        model.score.weight.normal_(0, 0.1)
    source = made.save(model, folder / "hf")
    tensors = made.converted(plain, network)
    tensors.pop("output.weight")
    tensors["cls.output.weight"] = model.score.weight.detach().numpy()
    return compared(source, made.write(folder / "m.gguf", network, tensors))


def test_a_head_that_takes_no_batch_is_said_first(tmp_path: Path) -> None:
    found, headline = classifier(tmp_path, pad_token_id=None)
    assert found.first_wrong is None, found.verdict
    assert "padded batches (the source takes none: Cannot handle batch sizes > 1" in headline


# -- what runs behind the network -------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "mode"),
    [
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "weightedmean"}, "weighted mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean by the root of the length"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls + mean"),
    ],
)
def test_every_way_of_pooling_is_read_and_computed(
    tmp_path: Path, stated: dict[str, Any], mode: str
) -> None:
    describe(tmp_path, stated)
    found = sentence_modules(tmp_path)
    assert (found.pooling, found.normalizes) == (mode, True)
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = {
        "cls": rows[0], "last": rows[3], "max": rows[3],
        "weighted mean": (rows * [[1], [2], [3], [4]]).sum(0) / 10,
        "mean by the root of the length": rows.sum(0) / 2,
        "cls + mean": np.concatenate([rows[0], rows.mean(0)]),
    }  # fmt: skip
    made_of = pool(rows, mode)
    assert made_of is not None
    np.testing.assert_allclose(made_of, expected[mode], rtol=1e-6)


def test_a_mean_by_the_root_of_the_length_is_the_mean_once_normalized(tmp_path: Path) -> None:
    stated = {"pooling_mode": "mean_sqrt_len_tokens"}
    found, _ = bert(tmp_path, stated, gguf.PoolingType.MEAN)
    assert found.first_wrong is None, found.verdict


def test_a_pooling_that_llama_cpp_has_not_is_named(tmp_path: Path) -> None:
    found, _ = bert(tmp_path, {"pooling_mode_max_tokens": True}, gguf.PoolingType.MEAN)
    assert found.first_wrong is not None
    assert "the source by max (1_Pooling/config.json), which llama.cpp cannot" in found.verdict


def matrix(n_out: int, n_in: int) -> np.ndarray:
    rng = np.random.default_rng(n_out)
    return np.asarray(rng.standard_normal((n_out, n_in)) / np.sqrt(n_in), np.float32)


def test_a_dense_layer_that_llama_cpp_has_no_place_for_is_said_first(tmp_path: Path) -> None:
    stated, dense = {"pooling_mode_mean_tokens": True}, (matrix(32, made.WIDTH), "Tanh")
    found, headline = bert(tmp_path, stated, gguf.PoolingType.MEAN, dense)
    assert found.first_wrong is None, found.verdict
    assert "2_Dense (64 to 32, Tanh) (the source runs it behind the pooling" in headline


@pytest.mark.parametrize("fault", ["none", "lost", "transposed", "activation"])
def test_dense_layers_of_a_file_are_compared(tmp_path: Path, fault: str) -> None:
    network = EMBEDDING_GEMMA
    model = made.build(network)
    source = made.save(model, tmp_path / "hf")
    first, second = matrix(96, made.WIDTH), matrix(made.WIDTH, 96)
    other = "Tanh" if fault == "activation" else "Identity"
    describe(source, {"pooling_mode_mean_tokens": True}, (first, other), (second, "Identity"))
    tensors = made.converted(model, network)
    if fault != "lost":
        tensors["dense_2.weight"] = first
        tensors["dense_3.weight"] = second[::-1].copy() if fault == "transposed" else second
    found, _ = compared(source, made.write(tmp_path / "m.gguf", network, tensors))
    wrong = found.first_wrong
    assert (wrong is None) == (fault == "none"), found.verdict
    if wrong is not None:
        assert wrong.key == "pooled embedding"
    if fault == "lost":
        assert "--sentence-transformers-dense-modules" in found.verdict


def _embedding_gemma(w: gguf.GGUFWriter) -> None:
    made.NETWORKS["gemma3"].extra(w)
    # llama.cpp aborts without a layer of each kind.
    w.add_uint32("gemma-embedding.attention.sliding_window_pattern", 3)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    for i, (n_in, n_out) in enumerate([(made.WIDTH, 96), (96, made.WIDTH)], 2):
        w.add_uint32(f"gemma-embedding.dense_{i}_feat_in", n_in)
        w.add_uint32(f"gemma-embedding.dense_{i}_feat_out", n_out)


_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EMBEDDING_GEMMA = replace(
    made.NETWORKS["gemma3"], extra=_embedding_gemma,
    architecture=gguf.MODEL_ARCH.GEMMA_EMBEDDING, model=transformers.Gemma3TextModel,
    options={
        **made.NETWORKS["gemma3"].options, "use_bidirectional_attention": True,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": _PLAIN_ROPE, "sliding_attention": _PLAIN_ROPE},
    },
)  # fmt: skip


# -- rerankers --------------------------------------------------------------------------------


def roberta(folder: Path, change: Callable[[made.Tensors, Any], None]) -> EngineComparison:
    model = made.build(ROBERTA)
    source = made.save(model, folder / "hf")
    tensors = made.converted(model.roberta, ROBERTA)
    tensors["position_embd.weight"] = tensors["position_embd.weight"][2:].copy()
    head = model.classifier
    for name, module in (("cls", head.dense), ("cls.output", head.out_proj)):
        tensors[f"{name}.weight"] = module.weight.detach().numpy()
        tensors[f"{name}.bias"] = module.bias.detach().numpy()
    change(tensors, model)
    network = replace(ROBERTA, extra=keys(gguf.PoolingType.RANK))
    return compared(source, made.write(folder / "m.gguf", network, tensors))[0]


def _whole_positions(tensors: made.Tensors, model: Any) -> None:
    positions = model.roberta.embeddings.position_embeddings.weight.detach().numpy()
    tensors["position_embd.weight"] = positions[: made.CONTEXT].copy()


def _reversed_head(tensors: made.Tensors, _model: Any) -> None:
    tensors["cls.weight"] = tensors["cls.weight"][::-1].copy()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _t, _m: None, None),
        (_whole_positions, "token_embd_norm.weight"),
        (_reversed_head, "score"),
    ],
)
def test_roberta_s_positions_and_head(
    tmp_path: Path, change: Callable[[made.Tensors, Any], None], named: str | None
) -> None:
    found = roberta(tmp_path, change)
    wrong = found.first_wrong
    assert (None if wrong is None else wrong.key) == named, found.verdict
    if named is None:
        assert found.padding is not None
        assert not found.padding.in_source
        assert not found.padding.in_engine
        assert found.known == ()


def test_the_types_of_a_pair_s_tokens_are_a_known_difference(tmp_path: Path) -> None:
    network = replace(made.NETWORKS["bert"], extra=keys(gguf.PoolingType.RANK))
    config = network.config(**{**network.options, "num_labels": 1})
    plain = made.build(network)
    model = transformers.BertForSequenceClassification(config).eval()
    model.bert.load_state_dict(plain.state_dict())
    source = made.save(model, tmp_path / "hf")
    tensors = made.converted(model.bert, network)
    for name, module in (("cls", model.bert.pooler.dense), ("cls.output", model.classifier)):
        tensors[f"{name}.weight"] = module.weight.detach().numpy()
        tensors[f"{name}.bias"] = module.bias.detach().numpy()
    found, headline = compared(source, made.write(tmp_path / "m.gguf", network, tensors))
    assert found.first_wrong is None, found.verdict
    assert [k.name for k in found.known] == ["token types of a pair"]
    assert "the engines differ in token types of a pair" in headline


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_reranker_that_answers_yes_or_no(tmp_path: Path, exchanged: bool) -> None:
    extra = keys(gguf.PoolingType.RANK, causal=True, labels=("yes", "no"))
    network = qwen3(extra)
    model = made.build(network)
    source = made.save(model, tmp_path / "hf")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "no": 5, "yes": 9}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    tensors = made.converted(model, network)
    rows = tensors.pop("output.weight")[[5, 9] if exchanged else [9, 5]]
    tensors["cls.output.weight"] = rows.copy()
    found, _ = compared(source, made.write(tmp_path / "m.gguf", network, tensors))
    assert "score" in found.compared
    assert (found.first_wrong is not None) == exchanged, found.verdict
    if exchanged:
        assert "the rows of cls.output.weight stand in another order" in found.verdict
