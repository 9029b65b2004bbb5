"""Faults of tokenizers and of keys that people found by hand, planted, and what is said of them.

``python -m tests.engine.test_tokenizer_faults`` prints the table of ``docs/detection-audit.md``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ggufnorm.analysis.audit.run import audit
from ggufnorm.analysis.audit.source.keys.splitting import OF_NAME, names_of, source_traits
from ggufnorm.core.audit import AuditReport, Finding
from ggufnorm.core.check import SuspectName
from tests.pairs import NETWORKS, TOKENS, Whole, whole
from tests.vocabularies import (
    N_WORDS,
    SPLITS,
    STOP,
    byte_pairs,
    pieces,
    unigrams,
    word_pieces,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "detection-audit.md"
HEADING = "## Tokenizers, options and types (H, K)"
SELECTED = ("H", "K")
ALL = tuple(n for n in NETWORKS if n != "newest")
_KEY = "tokenizer.ggml."

Make = Callable[[Whole], Whole]
Spoil = Callable[[Whole], None]


@dataclass(frozen=True)
class Fault:
    """A fault, where it was reported, and what the finding says.

    Attributes:
        words: for the table.
        make: a right tokenizer, or nothing of it.
        spoil: plants it.
        rule: that names it.
        says: a part of the message.
        suspect: whom ``check`` accuses of it.
        alone: whether the file alone shows it.
    """

    words: str
    make: Make
    spoil: Spoil
    rule: str
    says: str
    suspect: SuspectName = "tokenizer"
    alone: bool = False
    names: tuple[str, ...] = ALL


def plain(made: Whole) -> Whole:
    return made


def key(name: str, value: object) -> Spoil:
    """A key of the tokenizer with another value; None for one that is missing."""

    def spoil(made: Whole) -> None:
        made.keys.pop(_KEY + name, None)
        if value is not None:
            made.keys[_KEY + name] = value

    return spoil


def entry(name: str, at: int, value: object) -> Spoil:
    """One entry of a list of the tokenizer."""
    return lambda made: made.keys[_KEY + name].__setitem__(at, value)


def types(value: int, start: int, stop: int) -> Spoil:
    def spoil(made: Whole) -> None:
        made.keys[_KEY + "token_type"][start:stop] = [value] * (stop - start)

    return spoil


def added_lost(made: Whole) -> None:
    for i in range(N_WORDS + 2, N_WORDS + 4):
        made.keys[_KEY + "tokens"][i] = f"[PAD{i}]"
        made.keys[_KEY + "token_type"][i] = 5


def added_moved(made: Whole) -> None:
    tokens = made.keys[_KEY + "tokens"]
    tokens[N_WORDS + 2], tokens[N_WORDS + 3] = tokens[N_WORDS + 3], tokens[N_WORDS + 2]


def dense_behind(made: Whole) -> None:
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    rows = [{"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.{kind}"}
            for i, kind in enumerate(kinds)]  # fmt: skip
    made.extra["modules.json"] = json.dumps(rows)


def foreign_template(made: Whole) -> None:
    made.keys["tokenizer.chat_template"] = (
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    )


def foreign_merges(made: Whole) -> None:
    made.keys[_KEY + "merges"] = [f"{a}1 {a}2" for a in "abcdefghij"]


def exchanged(name: str, a: int, b: int) -> Spoil:
    def spoil(made: Whole) -> None:
        values = made.keys[_KEY + name]
        values[a], values[b] = values[b], values[a]

    return spoil


def scaled(kind: str) -> Spoil:
    def spoil(made: Whole) -> None:
        made.keys |= {"rope.scaling.type": kind, "rope.scaling.factor": 4.0}

    return spoil


def yarn(**wrong: float | int) -> Spoil:
    """YaRN as the config asks for it, but for one key."""

    def spoil(made: Whole) -> None:
        made.config["rope_scaling"] = {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
        }  # fmt: skip
        right = {"type": "yarn", "factor": 4.0, "original_context_length": 128}
        made.keys |= {f"rope.scaling.{k}": v for k, v in (right | wrong).items()}

    return spoil


def both(config: dict[str, object], **keys: object) -> Spoil:
    """What the config says, and other values of the file's."""

    def spoil(made: Whole) -> None:
        made.config |= config
        made.keys |= {k.replace("__", "."): v for k, v in keys.items()}

    return spoil


def as_type(role: str, dtype: str) -> Spoil:
    def spoil(made: Whole) -> None:
        made.types |= {n: dtype for n in made.tensors if n.endswith(f"{role}.weight")}

    return spoil


ROTARY = ("llama", "qwen2", "qwen3", "granite", "qwen3moe")
FAULTS = (
    Fault("special tokens typed as text", byte_pairs, types(1, N_WORDS, N_WORDS + 4), "K404",
          "4 of 4 special tokens"),
    Fault("a turn marker typed as text", byte_pairs, types(1, STOP, STOP + 1), "K404",
          "'<|stop|>'"),
    Fault("words typed as control tokens", byte_pairs, types(3, 5, 25), "K404",
          "20 of 67 ordinary tokens"),
    Fault("types of tokens missing", byte_pairs, key("token_type", None), "K404", "missing"),
    Fault("added tokens lost", byte_pairs, added_lost, "K403", "2 of 4 added tokens"),
    Fault("two added tokens exchanged", byte_pairs, added_moved, "K403", "2 of 4 added tokens"),
    Fault("EOS missing", byte_pairs, key("eos_token_id", None), "K401", "takes 11"),
    Fault("BOS missing, and added", byte_pairs, key("bos_token_id", None), "K401", "takes 11"),
    Fault("end of a turn missing", byte_pairs, key("eot_token_id", None), "K401",
          f"'<|stop|>' ({STOP})"),
    Fault("pre-tokenizer missing", byte_pairs, key("pre", None), "K401", "'llama-bpe' splits",
          alone=True),
    Fault("pre-tokenizer 'default'", byte_pairs, key("pre", "default"), "K401",
          "'llama-bpe' splits", alone=True),
    Fault("template of another model", byte_pairs, foreign_template, "H303", "'<|im_end|>'",
          alone=True),
    Fault("merges of another tokenizer", byte_pairs, foreign_merges, "H301", "make no token",
          alone=True),
    Fault("merges missing", byte_pairs, key("merges", None), "H301", "refuses", alone=True),
    Fault("a token twice", byte_pairs, entry("tokens", 40, "a"), "H301", "more than once",
          alone=True),
    Fault("EOS past the vocabulary", byte_pairs, key("eos_token_id", 5000), "H301",
          "80 tokens", alone=True),
    Fault("too few types", byte_pairs, key("token_type", [1] * 70), "H301", "70 entries",
          alone=True),
    Fault("a space before texts left out", pieces, key("add_space_prefix", False), "K401",
          "no space before a text"),
    Fault("scores lost", pieces, key("scores", [0.0] * TOKENS), "H301", "joined first",
          alone=True),
    Fault("scores too few", pieces, key("scores", [0.0] * 70), "H301", "70 entries", alone=True),
    Fault("two scores exchanged", pieces, exchanged("scores", 20, 30), "K403", "2 of 69 scores"),
    Fault("two pieces exchanged", pieces, exchanged("tokens", 20, 30), "K403", "2 of 69 tokens"),
    Fault("pieces typed as control tokens", pieces, types(3, 20, 40), "K404",
          "20 of 69 ordinary tokens"),
    Fault("bytes typed as text", pieces, types(1, 3, 11), "H301", "8 of 8 byte tokens",
          alone=True),
    Fault("capitals folded", word_pieces, key("normalizer.lowercase", None), "K401",
          "folds capitals"),
    Fault("letters not normalized", unigrams, key("precompiled_charsmap", None), "K401",
          "precompiled_charsmap"),
    Fault("letters normalized by another map", unigrams,
          key("precompiled_charsmap", [0, 0, 0, 0, 1, 0, 0, 0]), "K401",
          "precompiled_charsmap is not the source's"),
    Fault("runs of spaces kept", unigrams, key("remove_extra_whitespaces", None), "K401",
          "runs of spaces"),
    Fault("dense layers behind the pooling lost", plain, dense_behind, "K104", "2_Dense",
          "pooling", names=("bert", "gemma2", "qwen3")),
    Fault("linear scaling that the source has not", plain, scaled("linear"), "K201",
          "asks for no scaling", "file against source", names=ROTARY),
    Fault("YaRN that the source has not", plain, scaled("yarn"), "K201", "asks for no scaling",
          "file against source", names=ROTARY),
    Fault("another factor of YaRN", plain, yarn(factor=2.0), "K201", "factor",
          "file against source", names=ROTARY),
    Fault("another context before YaRN", plain, yarn(original_context_length=512), "K201",
          "before scaling", "file against source", names=ROTARY),
    Fault("a longer context stated", plain, both({}, context_length=131072), "K101",
          "trained with", "file against source", names=ROTARY),
    Fault("groups of experts", plain,
          both({"n_group": 2, "topk_group": 1}, expert_group_count=2, expert_group_used_count=2),
          "K101", "groups", "file against source", names=("deepseek2",)),
    Fault("another first token of a decoder", plain,
          both({"decoder_start_token_id": 0}, decoder_start_token_id=1), "K101",
          "decoder begins", "file against source", names=("t5",)),
    Fault("other relative positions", plain,
          both({"relative_attention_num_buckets": 32}, attention__relative_buckets_count=16),
          "K101", "relative positions", "file against source", names=("t5",)),
    Fault("an activation that the graph has not", plain, both({"hidden_act": "relu2"}), "K103",
          "llama.cpp's", "file against source", names=("llama", "qwen2", "qwen3", "granite",
                                                       "qwen3moe", "deepseek2", "gemma2", "bert")),
    Fault("routers quantized", plain, as_type("ffn_gate_inp", "Q4_0"), "H203", "routers",
          "quantization", alone=True, names=("qwen3moe", "deepseek2")),
    Fault("positions quantized", plain, as_type("position_embd", "Q4_0"), "H203", "leaves",
          "quantization", alone=True, names=("gpt2", "bert")),
)  # fmt: skip


def check(folder: Path, made: Whole, *, alone: bool = False) -> AuditReport:
    model, checkpoint = made.write(folder)
    return audit(model, source=None if alone else checkpoint, select=SELECTED)


def told(report: AuditReport) -> list[Finding]:
    return [f for f in report.findings if f.severity != "info"]


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    name: str
    findings: tuple[Finding, ...]
    alone: tuple[Finding, ...]

    @property
    def is_found(self) -> bool:
        of_file = not self.fault.alone or bool(self.alone)
        return of_file and any(
            f.rule == self.fault.rule and self.fault.says in f.message for f in self.findings
        )

    @property
    def is_misnamed(self) -> bool:
        allowed = {self.fault.rule, *_BESIDE.get(self.fault.words, ())}
        return any(f.rule not in allowed for f in (*self.findings, *self.alone))


_BESIDE = {
    "pre-tokenizer missing": ("H302",), "pre-tokenizer 'default'": ("H302",),
    "merges of another tokenizer": ("K403",), "a token twice": ("K403",),
    "EOS past the vocabulary": ("K401",), "scores lost": ("K403",), "scores too few": ("K403",),
    "too few types": ("K404",),
}  # fmt: skip
"""Rules that a fault concerns too."""


def outcome(fault: Fault, name: str) -> Outcome:
    made = fault.make(whole(name))
    fault.spoil(made)
    with tempfile.TemporaryDirectory() as folder:
        beside = told(check(Path(folder), made))
        model = Path(folder) / "model.gguf"
        alone = told(audit(model, select=SELECTED)) if fault.alone else []
    return Outcome(fault, name, tuple(beside), tuple(alone))


_OUTCOMES: list[Outcome] = []


def outcomes() -> list[Outcome]:
    if not _OUTCOMES:
        _OUTCOMES.extend(outcome(f, name) for f in FAULTS for name in f.names)
    return _OUTCOMES


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.words)
def test_a_planted_fault_is_found_and_named(fault: Fault) -> None:
    mine = [o for o in outcomes() if o.fault is fault]

    assert [(o.name, [f.message for f in o.findings]) for o in mine if not o.is_found] == []
    assert [(o.name, [f"{f.rule} {f.message}" for f in (*o.findings, *o.alone)])
            for o in mine if o.is_misnamed] == []  # fmt: skip


@pytest.mark.parametrize(
    "make", [byte_pairs, pieces, word_pieces, unigrams], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("name", ALL)
def test_a_right_tokenizer_raises_no_alarm(tmp_path: Path, name: str, make: Make) -> None:
    made = make(whole(name))

    assert told(check(tmp_path, made)) == []
    assert told(audit(tmp_path / "model.gguf", select=SELECTED)) == []


# -- how texts are split before merging ------------------------------------------------------


def of_splits(wrong: str, right: str) -> list[Finding]:
    made = byte_pairs(whole("granite"), right)
    made.keys[_KEY + "pre"] = wrong
    with tempfile.TemporaryDirectory() as folder:
        return told(check(Path(folder), made))


@pytest.mark.parametrize("name", SPLITS)
def test_a_name_that_splits_as_the_source_does_is_right(name: str) -> None:
    traits = source_traits({"pre_tokenizer": SPLITS[name][0]})

    assert traits is not None
    assert OF_NAME[name].parting(traits) is None
    assert names_of(traits, "", whole_words=SPLITS[name][1])[0] == name
    assert of_splits(name, name) == []


def splits() -> Iterator[tuple[str, str]]:
    for right in SPLITS:
        for wrong, traits in OF_NAME.items():
            # Of a name of the model's own family it is the tokenizer that was changed.
            if traits.parting(OF_NAME[right]) and not wrong.startswith("granite"):
                yield wrong, right


@pytest.mark.parametrize("right", SPLITS)
def test_each_other_name_is_found_with_the_right_one(right: str) -> None:
    wrong = next(w for w, r in splits() if r == right)

    (finding,) = of_splits(wrong, right)

    assert finding.rule == "K401"
    assert finding.evidence["expected"] == right
    assert f"{right!r} splits as it does" in finding.message
    assert finding.mend is not None
    assert finding.mend.override_kv == f"--override-kv tokenizer.ggml.pre=str:{right}"


def test_names_part_by_more_than_digits() -> None:
    parted = {OF_NAME[wrong].parting(OF_NAME[right]) for wrong, right in splits()}

    assert {"digits", "contractions", "before", "accents", "lines"} <= parted


def test_what_splits_by_other_means_is_not_judged(tmp_path: Path) -> None:
    made = byte_pairs(whole("llama"))
    fast = json.loads(made.extra["tokenizer.json"])
    fast["pre_tokenizer"] = {"type": "Whitespace"}
    made.extra["tokenizer.json"] = json.dumps(fast)
    made.keys[_KEY + "pre"] = "gpt-2"

    assert told(check(tmp_path, made)) == []


# -- limits ------------------------------------------------------------------------------------


def test_markers_in_plain_text_are_a_models_own_affair(tmp_path: Path) -> None:
    made = byte_pairs(whole("llama"))
    made.keys["tokenizer.chat_template"] = (
        "{% for m in messages %}{{ '<|user|>' + m['content'] }}{% endfor %}"
    )
    made.keys[_KEY + "tokens"] = [
        t.replace("<|", "<").replace("|>", ">") for t in made.keys[_KEY + "tokens"]
    ]

    assert told(check(tmp_path, made, alone=True)) == []


def test_a_token_that_there_is_not_is_no_fault(tmp_path: Path) -> None:
    made = byte_pairs(whole("llama"))
    made.keys[_KEY + "seperator_token_id"] = 2**32 - 1  # LLAMA_TOKEN_NULL, as llama2.c's converter

    assert told(check(tmp_path, made, alone=True)) == []


def test_types_are_mended_as_the_source_has_them(tmp_path: Path) -> None:
    made = byte_pairs(whole("llama"))
    types(1, STOP, STOP + 1)(made)

    (finding,) = told(check(tmp_path, made))

    assert finding.mend is not None
    assert finding.mend.value == byte_pairs(whole("llama")).keys[_KEY + "token_type"]


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                                  b"\x00" * 40, b"{}", bytes(range(256))])  # fmt: skip
def test_a_tokenizer_of_nonsense_is_no_crash(tmp_path: Path, data: bytes) -> None:
    made = pieces(whole("llama"))
    made.binary["tokenizer.model"] = data or b"\x08"

    assert told(check(tmp_path, made)) == []


def test_a_shard_of_another_quantization_is_named(tmp_path: Path) -> None:
    made, other = whole("llama", file_type="F16"), whole("llama", file_type="Q4_0")
    for one in (made, other):
        one.tensors = dict(sorted(one.tensors.items()))
    made.write_model(tmp_path / "x.gguf", per_shard=12)
    other.write_model(tmp_path / "y.gguf", per_shard=12)
    name = "{}-00002-of-00004.gguf"
    (tmp_path / name.format("y")).replace(tmp_path / name.format("x"))

    first = tmp_path / "x-00001-of-00004.gguf"
    (finding,) = told(audit(first, select=SELECTED))

    assert finding.rule == "H204"
    assert f"{name.format('x')} holds Q4_0 where the other shards hold F16" in finding.message


@pytest.mark.parametrize("mixed", [False, True])
def test_shards_of_one_file_are_right(tmp_path: Path, mixed: bool) -> None:
    made = whole("llama", file_type="Q8_0")
    made.tensors = dict(sorted(made.tensors.items()))
    if mixed:  # as K-quants give some layers more
        made.types = {n: "Q4_0" for n in made.tensors if n.startswith(("blk.0.ffn", "blk.3.attn"))}
    made.write_model(tmp_path / "x.gguf", per_shard=12)

    assert told(audit(tmp_path / "x-00001-of-00004.gguf", select=SELECTED)) == []


def test_a_zero_expert_is_found_in_the_file_alone(tmp_path: Path) -> None:
    made = whole("qwen3moe", file_type="Q8_0")
    made.tensors["blk.1.ffn_up_exps.weight"] = made.tensors["blk.1.ffn_up_exps.weight"].copy()
    made.tensors["blk.1.ffn_up_exps.weight"][2] = 0
    made.tensors["blk.2.attn_q.weight"] = np.zeros_like(made.tensors["blk.2.attn_q.weight"])
    model, _ = made.write(tmp_path)

    found = [f.message for f in audit(model, full=True).findings if f.rule == "N603"]

    assert sorted(found) == [
        "blk.1.ffn_up_exps.weight is zero in expert 2 of 4",
        "blk.2.attn_q.weight is zero everywhere",
    ]


# -- the document ------------------------------------------------------------------------------


def table() -> str:
    lines = [
        "| fault | rule | in the file alone | planted in | found | misnamed |",
        "|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        mine = [o for o in outcomes() if o.fault is fault]
        names = ", ".join(o.name for o in mine) if len(mine) < 5 else f"{len(mine)} architectures"
        alone = "yes" if fault.alone else "no"
        found, wrong = sum(o.is_found for o in mine), sum(o.is_misnamed for o in mine)
        lines.append(f"| {fault.words} | {fault.rule} | {alone} | {names} | {found} | {wrong} |")
    pairs = list(splits())
    right = sum(f.evidence.get("expected") == r for w, r in pairs for f in of_splits(w, r)[:1])
    every = outcomes()
    lines += [
        "",
        f"{len(every)} faults: {sum(o.is_found for o in every)} found,"
        f" {sum(o.is_misnamed for o in every)} misnamed. Names of pre-tokenizers that split"
        f" otherwise than the source: {right} of {len(pairs)} found with the right name.",
    ]
    return "\n".join(lines)


def test_the_document_tells_what_was_found() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]

    told_there = [line for line in section.splitlines() if line.startswith("|")]
    assert told_there == [line for line in table_rows() if line]


def table_rows() -> list[str]:
    """The rows, without what takes long to count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.splits", lambda: iter(()))
        return [line for line in table().splitlines() if line.startswith("|")]


if __name__ == "__main__":
    print(table())
