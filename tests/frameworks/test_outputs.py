"""``compare``: token ids, embeddings, scores, what types cost, and what was not compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import ggufnorm
from ggufnorm.analysis.crosscheck.outputs import BEHIND
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.analysis.crosscheck.token_ids import TOKEN_IDS
from ggufnorm.core.frameworks import EngineComparison
from ggufnorm.errors import InputError
from ggufnorm.report.views.frameworks import frameworks_view
from tests import framework_models as made
from tests import in_process

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 3


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


def compared(source: Path, file: Path) -> EngineComparison:
    report = compare_frameworks(f"hf:{source}", [str(file)], text=TEXT, n_tokens=31, n_threads=1)
    (found,) = report.comparisons
    (view,) = frameworks_view(report)
    assert view.headline is not None
    if found.not_compared and found.first_wrong is None and found.tokenizer is None:
        assert all(s.what in view.headline for s in found.not_compared)
    return found


# -- token ids ------------------------------------------------------------------------------


def byte_level(folder: Path) -> Tokenizer:
    """A tokenizer that splits as GPT-2's, saved beside a checkpoint."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=made.WORDS,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["in 1984 1985 1986 we're the 3141 314 " * 8 + TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def with_vocabulary(
    file: Path, tensors: made.Tensors, tokenizer: Tokenizer, pre: str, *, bos: bool = False
) -> Path:
    def vocabulary(w: gguf.GGUFWriter, n: int) -> None:
        stated = json.loads(tokenizer.to_str())["model"]
        tokens = sorted(stated["vocab"], key=stated["vocab"].get)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre(pre)
        w.add_token_list(tokens + [f"[PAD{i}]" for i in range(n - len(tokens))])
        w.add_token_types([3, 3] + [1] * (len(tokens) - 2) + [5] * (n - len(tokens)))
        w.add_token_merges([" ".join(m) for m in stated["merges"]])
        w.add_bos_token_id(0)
        w.add_eos_token_id(1)
        if bos:
            w.add_add_bos_token(True)

    network = made.NETWORKS["llama"]
    changed = made.Network(**{**vars(network), "vocabulary": vocabulary})
    return made.write(file, changed, tensors)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, made.Tensors, Tokenizer]:
    model = made.build(made.NETWORKS["llama"])
    folder = made.save(model, tmp_path_factory.mktemp("llama") / "hf")
    return folder, made.converted(model, made.NETWORKS["llama"]), byte_level(folder)


def test_the_same_tokenizer_is_quiet(
    llama: tuple[Path, made.Tensors, Tokenizer], tmp_path: Path
) -> None:
    source, tensors, tokenizer = llama
    found = compared(source, with_vocabulary(tmp_path / "m.gguf", tensors, tokenizer, "gpt-2"))
    assert found.tokenizer is None
    assert found.not_compared == ()
    assert "token ids of" in found.verdict


def test_another_pre_tokenizer_is_named_with_its_mend(
    llama: tuple[Path, made.Tensors, Tokenizer], tmp_path: Path
) -> None:
    source, tensors, tokenizer = llama
    found = compared(source, with_vocabulary(tmp_path / "m.gguf", tensors, tokenizer, "qwen2"))
    assert found.tokenizer is not None
    assert (found.tokenizer.keys, found.tokenizer.remaining) == (
        ("tokenizer.ggml.pre=str:gpt-2",),
        0,
    )
    assert found.verdict.startswith("Token ids are not the source's")


def test_a_bos_too_many_is_named(
    llama: tuple[Path, made.Tensors, Tokenizer], tmp_path: Path
) -> None:
    source, tensors, tokenizer = llama
    file = with_vocabulary(tmp_path / "m.gguf", tensors, tokenizer, "gpt-2", bos=True)
    found = compared(source, file).tokenizer
    assert found is not None
    assert found.first == 0
    assert found.keys == ("tokenizer.ggml.add_bos_token=bool:false",)


def test_without_a_tokenizer_it_is_said_beside_the_verdict(tmp_path: Path) -> None:
    model = made.build(made.NETWORKS["llama"])
    tensors = made.converted(model, made.NETWORKS["llama"])
    file = made.write(tmp_path / "m.gguf", made.NETWORKS["llama"], tensors)
    found = compared(made.save(model, tmp_path / "hf"), file)
    assert [s.what for s in found.not_compared] == [TOKEN_IDS]
    assert "Not compared: token ids (no tokenizer" in found.verdict


# -- embeddings and scores --------------------------------------------------------------------


def bert(tmp_path: Path, pooling: gguf.PoolingType, stated: str | None) -> EngineComparison:
    network = made.NETWORKS["bert"]
    model = made.build(network)
    source = made.save(model, tmp_path / "hf")
    if stated is not None:
        (source / "1_Pooling").mkdir()
        (source / "1_Pooling" / "config.json").write_text(json.dumps({stated: True}))

    def keys(w: gguf.GGUFWriter) -> None:
        w.add_causal_attention(False)
        w.add_pooling_type(pooling)

    changed = made.Network(**{**vars(network), "extra": keys})
    return compared(
        source, made.write(tmp_path / "m.gguf", changed, made.converted(model, network))
    )


@pytest.mark.parametrize(
    ("pooling", "stated"),
    [
        (gguf.PoolingType.MEAN, "pooling_mode_mean_tokens"),
        (gguf.PoolingType.CLS, "pooling_mode_cls_token"),
        (gguf.PoolingType.MEAN, None),
    ],
)
def test_the_pooled_embedding_is_compared(
    tmp_path: Path, pooling: gguf.PoolingType, stated: str | None
) -> None:
    found = bert(tmp_path, pooling, stated)
    assert found.first_wrong is None
    assert "pooled embedding" in found.compared


def test_another_pooling_is_named(tmp_path: Path) -> None:
    wrong = bert(tmp_path, gguf.PoolingType.CLS, "pooling_mode_mean_tokens").first_wrong
    assert wrong is not None
    assert wrong.key == "pooled embedding"
    assert "bert.pooling_type 2" in wrong.reason
    assert "it should be 1" in wrong.reason


def reranker(tmp_path: Path, *, pooler: bool) -> EngineComparison:
    network = made.NETWORKS["bert"]
    torch.manual_seed(0)
    config = network.config(**{**network.options, "num_labels": 1})
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "pooler" in name or "classifier" in name:
                p.copy_(torch.randn_like(p) * 0.3)
    source = tmp_path / "hf"
    model.save_pretrained(source)
    tensors = made.converted(model.bert, network)
    tensors["cls.output.weight"] = model.classifier.weight.detach().numpy()
    tensors["cls.output.bias"] = model.classifier.bias.detach().numpy()
    if pooler:
        tensors["cls.weight"] = model.bert.pooler.dense.weight.detach().numpy()
        tensors["cls.bias"] = model.bert.pooler.dense.bias.detach().numpy()
    return compared(source, made.write(tmp_path / "m.gguf", network, tensors))


def test_a_reranker_s_score_is_compared(tmp_path: Path) -> None:
    found = reranker(tmp_path, pooler=True)
    assert found.first_wrong is None, found.verdict
    assert "score" in found.compared


def test_a_pooler_that_became_nothing_is_named(tmp_path: Path) -> None:
    wrong = reranker(tmp_path, pooler=False).first_wrong
    assert wrong is not None
    assert wrong.key == "score"
    assert "bert.pooler.dense.weight, bert.pooler.dense.bias of the source became" in wrong.reason


# -- quantized files ------------------------------------------------------------------------


def test_a_quantized_file_is_judged_by_what_its_types_cost(tmp_path: Path) -> None:
    network = made.NETWORKS["llama"]
    model = made.build(network)
    source = made.save(model, tmp_path / "hf")
    q4 = gguf.GGMLQuantizationType.Q4_0
    tensors = made.converted(model, network)
    right = compared(source, made.write(tmp_path / "right.gguf", network, tensors, dtype=q4))
    assert right.first_wrong is None, right.verdict
    assert "not distinguishable" in right.verdict
    rng = np.random.default_rng(0)
    for name, values in tensors.items():  # an adapter that was not merged
        if ".attn_" in name and values.ndim == 2 and "norm" not in name:
            a, b = rng.standard_normal((2, len(values), 4)), rng.standard_normal((4, made.WIDTH))
            change = a[0] @ b
            change *= 0.6 * np.linalg.norm(values) / np.linalg.norm(change)
            tensors[name] = (values + change).astype(np.float32)
    wrong = compared(source, made.write(tmp_path / "wrong.gguf", network, tensors, dtype=q4))
    assert wrong.first_wrong is not None, wrong.verdict
    operation = wrong.first_wrong.operation
    assert operation is not None
    assert operation.tensor == "blk.0.attn_q.weight"
    assert operation.reason.startswith("its matrix differs by 0.6")


# -- checkpoints with code of their own ---------------------------------------------------------


def with_code_of_its_own(
    folder: Path, name: str, class_name: str, tensors: dict[str, tuple[int, ...]]
) -> tuple[Path, Path]:
    """A checkpoint of another class, with more tensors, and the file of the rest."""
    network = made.NETWORKS[name]
    model = made.build(network)
    source = made.save(model, folder / "hf")
    stored = load_file(source / "model.safetensors")
    stored |= {n: torch.ones(shape) for n, shape in tensors.items()}
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": [class_name], "auto_map": {"AutoModel": f"modeling.{class_name}"}}
    (source / "config.json").write_text(json.dumps(config))
    file = made.write(folder / "m.gguf", network, made.converted(model, network))
    return source, file


OWN = [
    ("qwen3", "JinaForRanking", {"projector.0.weight": (32, 64), "projector.2.weight": (32, 32)}),
    ("llama", "RewardModel", {"value_head.weight": (1, 64)}),
    ("bert", "ColBERT", {"linear.weight": (16, 64)}),
]


@pytest.mark.parametrize(("name", "class_name", "tensors"), OWN, ids=[o[1] for o in OWN])
def test_what_a_checkpoint_s_own_code_makes_is_said_not_to_be_compared(
    tmp_path: Path, name: str, class_name: str, tensors: dict[str, tuple[int, ...]]
) -> None:
    source, file = with_code_of_its_own(tmp_path, name, class_name, tensors)
    found = compared(source, file)  # which holds the headline to what was not compared
    own = [s.reason for s in found.not_compared if s.what == BEHIND]
    assert len(own) == 1, found.not_compared
    assert next(iter(tensors)) in own[0]
    assert class_name in own[0]

    report = ggufnorm.audit(file, source=source)
    lost = [f for f in report.findings if f.rule == "T102" and f.severity != "info"]
    assert lost
    assert next(iter(tensors)) in lost[0].message


def test_a_checkpoint_that_transformers_would_fill_with_random_values_is_refused(
    tmp_path: Path,
) -> None:
    """Jina's reranker v2 names its tensors otherwise than XLM-RoBERTa."""
    source, file = with_code_of_its_own(tmp_path, "bert", "BertForSequenceClassification", {})
    stored = load_file(source / "model.safetensors")
    other = {n.replace("encoder.layer.", "encoder.layers."): v for n, v in stored.items()}
    save_file(other, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"finds no values for .* --trust-remote-code"):
        compared(source, file)
