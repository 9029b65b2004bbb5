"""Texts are cut into tokens by llama.cpp, long ones in a process of their own."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.engines import worker
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.errors import EngineError, InputError
from ggufnorm.runs.corpus import Corpus, TokenizeJob, make_corpus, tokenize
from ggufnorm.samples import default_text
from tests import in_process

OPTIONS = EngineOptions(64, 1)


@pytest.fixture(scope="module")
def long_text() -> str:
    return 2 * default_text()


@pytest.fixture(scope="module")
def other(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with scores that make it prefer other tokens."""
    path = tmp_path_factory.mktemp("tokens") / "other.gguf"
    shutil.copyfile(sample, path)
    path.chmod(0o644)
    reader = gguf.GGUFReader(path, "r+")
    scores = reader.fields["tokenizer.ggml.scores"]
    for i in scores.data:
        scores.parts[i][0] *= -1
    reader.data.flush()
    return path


def test_a_long_text_is_cut_as_one_that_is_not(sample: Path, long_text: str) -> None:
    corpus = make_corpus(long_text, "long", [str(sample)])
    assert corpus.text is None
    with in_process.engine(), LlamaModel(str(sample), OPTIONS) as model:
        expected = model.tokenize(long_text)
        assert len(expected) > 20_000
        assert np.array_equal(corpus.encode(model), expected)
        corpus = make_corpus("the people", "short", [str(sample)])
        assert corpus == Corpus("short", "the people")
        assert np.array_equal(corpus.encode(model, model), model.tokenize("the people"))


@pytest.mark.parametrize("times", [1, 2])
def test_models_that_cut_a_text_differently_are_refused(
    sample: Path, other: Path, times: int
) -> None:
    for run in (ggufnorm.drift, partial(ggufnorm.attribute, budget=60.0)):
        with pytest.raises(InputError, match="cut the text into different tokens"):
            run(sample, other, text=times * default_text(), n_ctx=64, chunks=1)


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path, long_text: str) -> None:
    path = tmp_path / "none.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineError, match=r"none\.gguf|llama\.cpp"):
        worker.call(tokenize, TokenizeJob(Corpus("long", long_text), (str(path),)))


def test_a_setting_that_crashes_llama_cpp_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from ggufnorm.analysis.crosscheck import token_keys
    from ggufnorm.engines.llama.vocabulary import Change
    from ggufnorm.errors import EngineError

    names = [f"p{i}" for i in range(9)]
    asked: list[int] = []

    def tokenize(_path: object, texts: object, changes: tuple[Change, ...]) -> object:
        asked.append(len(changes))
        chosen = [change.names.get("tokenizer.ggml.pre", "as it is") for change in changes]
        if {"p3", "p7"} & set(chosen):
            raise EngineError("llama.cpp crashed (SIGABRT)")
        return tuple(((len(name), int(name[1])),) if name[0] == "p" else () for name in chosen)

    monkeypatch.setattr(token_keys, "tokenize", tokenize)
    candidates = [Change({}, {"tokenizer.ggml.pre": name}) for name in names]
    found = token_keys._tried("m.gguf", ["text"], Change(), candidates)
    assert [ids[0][1] if ids else None for ids in found] == [0, 1, 2, None, 4, 5, 6, None, 8]
    assert len(asked) <= 13


def test_a_file_is_not_held_to_ids_that_it_cannot_have(tmp_path: Path) -> None:
    from ggufnorm.analysis.crosscheck.token_ids import _sayable

    texts = ["plain", "a line\nand another", "<extra_id_0>"]
    theirs = [(1, 2), (1, 2), (1, 40)]
    for model, mapped, said in (
        ("t5", False, [True, False, False]),
        ("t5", True, [True, True, False]),
        ("llama", False, [True, True, False]),
    ):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "t5")
        writer.add_tokenizer_model(model)
        if mapped:
            writer.add_precompiled_charsmap(b"map")
        writer.add_tensor("token_embd.weight", np.zeros((32, 8), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert list(_sayable(tmp_path / "m.gguf", texts, theirs)) == said


def test_bos_that_the_source_says_nothing_of_is_no_fault(tmp_path: Path) -> None:
    from ggufnorm.analysis.crosscheck.token_ids import _with_bos
    from ggufnorm.engines.tokenizer import _states_bos

    (tmp_path / "tokenizer.model").touch()
    assert not _states_bos(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for text, states in (("{}", False), ('{"add_bos_token": false}', True), ("[", False)):
        config.write_text(text)
        assert _states_bos(tmp_path) == states
    (tmp_path / "tokenizer.json").touch()
    assert _states_bos(tmp_path)

    theirs, ours = ((5, 6), (7,), (1,)), ((1, 5, 6), (1, 7), (1, 1))
    alike, left = _with_bos(theirs, ours)
    assert alike == ours
    assert left is not None
    # what is the file's own doing stays a difference
    assert _with_bos(theirs, ((1, 5), (1, 7), (1, 1)))[0] != ((1, 5), (1, 7), (1, 1))
    assert _with_bos(((1, 5), (1, 7)), ((5,), (7,))) == (((1, 5), (1, 7)), None)
    assert _with_bos(((5,), (7,)), ((5,), (7,)))[1] is None
