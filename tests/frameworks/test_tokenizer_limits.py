"""Token ids that llama.cpp's tokenizer cannot give: told apart from what the file has wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ggufnorm.analysis.crosscheck.token_ids import compare_token_ids
from ggufnorm.core.frameworks import FrameworksReport, TokenizerFinding
from ggufnorm.engines.tokenizer import Tokenizer as Installed
from ggufnorm.report.views.frameworks import frameworks_view
from ggufnorm.verbs.check.by_runs import of_compare
from tests import in_process
from tests.pairs import NETWORKS, TOKENS, Whole, whole
from tests.results import frameworks_report
from tests.vocabularies import sentencepiece

ALL = tuple(n for n in NETWORKS if n not in ("newest", "t5"))
_KEY = "tokenizer.ggml."


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


# -- pieces: llama.cpp keeps runs of spaces, whatever the SentencePiece model says --------------

_WORDS = ["<unk>", "<s>", "</s>", "▁", *ascii_lowercase, "▁▁", "▁▁▁▁"]
_WORDS += [f"▁{a}" for a in ascii_lowercase] + ["th", "he", "in", "er", "▁th", "re", "on"]
_WORDS += [f"<u{i}>" for i in range(TOKENS - len(_WORDS))]
_PIECES = [*_WORDS, *(f"<0x{b:02X}>" for b in range(256))]
"""Bytes have no row in these networks: texts that need them are left out."""
_SCORES = [0.0] * 3 + [-float(i) for i in range(len(_PIECES) - 3)]
_KINDS = [2, 3, 3] + [1] * (TOKENS - 3) + [6] * 256


def of_pieces(made: Whole, **spoiled: Any) -> Whole:
    """A SentencePiece model that joins runs of spaces, and the file that is converted of it."""
    made.binary["tokenizer.model"] = sentencepiece(_PIECES, _SCORES, _KINDS, joins=True)
    made.extra["tokenizer_config.json"] = json.dumps({"add_bos_token": False})
    facts = {"model": "llama", "tokens": list(_PIECES), "scores": list(_SCORES),
             "token_type": list(_KINDS), "bos_token_id": 1, "eos_token_id": 2,
             "unknown_token_id": 0, "add_bos_token": False}  # fmt: skip
    if made.network.name == "gemma2":
        facts["add_space_prefix"] = False
    made.keys |= {f"{_KEY}{k}": v for k, v in (facts | spoiled).items()}
    return made


def joining(*, prefix: bool = True) -> Installed:
    """The same pieces in Transformers, joining runs of spaces."""
    known = {piece: i for i, piece in enumerate(_PIECES)}
    merges = [
        (piece[:at], piece[at:])
        for piece in _WORDS[4:]
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    inner = Tokenizer(models.BPE(known, merges, unk_token="<unk>", byte_fallback=True))
    steps: list[Any] = [normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend("▁")] if prefix else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    return Installed(fast)


def finding(folder: Path, made: Whole, tokenizer: Installed) -> TokenizerFinding | None:
    model, checkpoint = made.write(folder)
    ids = compare_token_ids(tokenizer, str(model), "the rain", folder=checkpoint)
    assert ids.skipped is None, ids.skipped
    return ids.finding


@pytest.mark.parametrize("name", ALL)
def test_runs_of_spaces_that_llama_cpp_keeps_are_its_own(tmp_path: Path, name: str) -> None:
    found = finding(tmp_path, of_pieces(whole(name)), joining(prefix=name != "gemma2"))
    assert found is not None
    assert (found.is_engines, found.is_common) == (True, False)
    assert "it is llama.cpp's tokenizer" in found.message


def exchanged(values: list[Any], a: int, b: int) -> list[Any]:
    return [values[b] if i == a else values[a] if i == b else v for i, v in enumerate(values)]


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba"])
@pytest.mark.parametrize(
    "spoiled",
    [
        {"scores": exchanged(_SCORES, 60, 4)},
        {"scores": [0.0] * len(_SCORES)},
        {"tokens": exchanged(_PIECES, _PIECES.index("th"), _PIECES.index("in"))},
        {"token_type": [2, 3, 3] + [3] * (len(_KINDS) - 259) + [6] * 256},
    ],
    ids=["scores exchanged", "no scores", "tokens exchanged", "control tokens"],
)
def test_lists_that_are_not_the_sources_are_the_files(
    tmp_path: Path, name: str, spoiled: dict[str, Any]
) -> None:
    made = of_pieces(whole(name), **spoiled)
    found = finding(tmp_path, made, joining(prefix=name != "gemma2"))
    assert found is not None
    assert (found.same_again, found.is_engines) == (False, False)


@pytest.mark.parametrize(
    ("name", "stated", "again"),
    [("gemma2", False, True), ("llama", False, False), ("mamba", False, False)],
)
def test_a_space_before_a_text_that_the_converter_leaves_out_is_told(
    tmp_path: Path, name: str, stated: bool, again: bool
) -> None:
    found = finding(tmp_path, of_pieces(whole(name), add_space_prefix=stated), joining())
    assert found is not None
    assert found.keys == ("tokenizer.ggml.add_space_prefix=bool:true",)
    assert found.same_again is again
    assert ("would write the same key again" in found.message) is again


def test_a_setting_that_spoils_other_texts_is_no_mend(tmp_path: Path) -> None:
    """Without the space before a text, the one that begins with a space would be right."""
    tokenizer = joining()
    inner = tokenizer._inner.backend_tokenizer
    once = normalizers.Replace(Regex("^▁▁"), "▁")
    inner.normalizer = normalizers.Sequence([inner.normalizer, once])
    made = of_pieces(whole("llama"))
    found = finding(tmp_path, made, tokenizer)
    assert found is not None
    assert found.keys == ()


# -- byte pairs: no name of a pre-tokenizer splits as the source does ---------------------------

_BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]


def of_merges(made: Whole, pre: Any, **spoiled: Any) -> tuple[Whole, Installed]:
    """A byte-level tokenizer that splits by ``pre`` first, and the file that is made of it."""
    made.keys.pop(f"{_KEY}scores", None)
    merges = [("t", "h"), ("th", "e"), ("Ġ", "t"), ("1", "9"), ("8", "4"), ("i", "n")]
    words = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", *"0123456789"]
    words += [a + b for a, b in merges]
    words += [b for b in _BYTES if b not in words]
    inner = Tokenizer(models.BPE({t: i for i, t in enumerate(words)}, merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre, level])
    made.extra["tokenizer.json"] = inner.to_str()
    made.extra["tokenizer_config.json"] = json.dumps({"add_bos_token": False})
    facts = {"model": "gpt2", "pre": "gpt-2", "tokens": words, "add_bos_token": False,
             "merges": [" ".join(m) for m in merges], "bos_token_id": 0, "eos_token_id": 1,
             "token_type": [3, 3] + [1] * (len(words) - 2)}  # fmt: skip
    made.keys |= {f"{_KEY}{k}": v for k, v in (facts | spoiled).items()}
    return made, Installed(transformers.PreTrainedTokenizerFast(tokenizer_object=inner))


_AT_E = pre_tokenizers.Split("e", "isolated")


@pytest.mark.parametrize("name", ["llama", "qwen3", "granite", "gpt2"])
def test_a_split_that_no_name_stands_for_is_llama_cpp_s_own(tmp_path: Path, name: str) -> None:
    found = finding(tmp_path, *of_merges(whole(name), _AT_E))
    assert found is not None
    assert found.is_engines, found


def test_other_merges_are_the_files(tmp_path: Path) -> None:
    made, tokenizer = of_merges(whole("llama"), _AT_E, merges=["h e", "t h", "i n"])
    found = finding(tmp_path, made, tokenizer)
    assert found is not None
    assert found.same_again is False


# -- what is said of it ---------------------------------------------------------------------------

_OWN = TokenizerFinding(3, (1,), (2,), "token ids differ in 3 of 24 texts", "runs of spaces",
                        "a  b", 3, 24, (), 3, same_again=True)  # fmt: skip


def of(ids: TokenizerFinding) -> FrameworksReport:
    report = frameworks_report()
    one = replace(report.comparisons[0], tokenizer=ids, first_wrong=None, pixels=(), compared=())
    return replace(report, comparisons=(one,))


def headline(ids: TokenizerFinding) -> str:
    (view,) = frameworks_view(of(ids))
    return view.headline or ""


def judged(ids: TokenizerFinding) -> dict[str, tuple[str, str]]:
    found = of_compare(of(ids), SimpleNamespace(pools=False), "ggufnorm compare")  # type: ignore[arg-type]
    return {j.suspect: (j.state, j.do or j.note) for j in found}


def test_the_first_line_speaks_of_llama_cpp_s_tokenizer() -> None:
    assert headline(_OWN).startswith("No mistake")
    assert "llama.cpp's tokenizer gives other ids in 3 of 24 texts" in headline(_OWN)
    assert headline(replace(_OWN, same_again=False)) == "Token ids are not the source's"


def test_check_accuses_the_file_only_of_what_the_file_has_wrong() -> None:
    state, note = judged(_OWN)["tokenizer"]
    assert state == "partly"
    assert "report it to llama.cpp" in note
    assert "pass ids" in note

    common = judged(replace(_OWN, differing=20))
    assert common["engine and device"][0] == "guilty"
    assert "tokenizer" not in common

    of_file = judged(replace(_OWN, same_again=False))["tokenizer"]
    assert of_file == ("guilty", "convert again with the source's tokenizer files")
    key = replace(_OWN, keys=("tokenizer.ggml.pre=str:gpt-2",), remaining=0)
    assert judged(key)["tokenizer"][1] == "run with --override-kv tokenizer.ggml.pre=str:gpt-2"
    unknown = judged(replace(key, same_again=None))["tokenizer"][1]
    assert unknown.endswith("and convert again with the source's tokenizer files")
