"""Tokenizers that work, trained on a few sentences, as checkpoints come with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from tests.vocabularies import SPLITS, sentencepiece

N_TOKENS = 512
PAD, BOS, EOS = 0, 1, 2
"""Ids of every tokenizer here but BERT's and XLM-RoBERTa's own."""

PRE = "llama_cpp_pre"
"""Key of tokenizer_config.json with the name that the converter finds by a digest."""

_TEXT = """\
The rain in Spain stays mainly in the plain, and so it is said to be in the end. She sold 1,250
sea shells by the sea shore in 1998; he didn't, they've had none since then, and we'll see why.
def norm(x, eps=1e-6): return x / (mean(x ** 2) + eps) ** 0.5  # what a model does in each layer
Große Häuser stehen am Fluss, où les élèves étudient l'été. Москва далеко, и зима длинная.
"""
_UNKNOWN, _NORMAL, _CONTROL, _BYTE = 2, 1, 3, 6
_SPACE = "▁"


def _save(folder: Path, made: Tokenizer, **config: Any) -> None:
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def byte_pairs(
    folder: Path, *more: str, first: tuple[str, ...] = ("<pad>", "<s>"), pre: str = "gpt-2"
) -> None:
    """Pairs of bytes, words split by an expression.

    Args:
        folder: to write to.
        more: further special tokens that a converter asks for by name.
        first: those of ids 0 and 1.
        pre: the converter's name of the expression.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre != "gpt-2":
        *splits, plain = SPLITS[pre][0]["pretokenizers"]
        expressions = [Regex(s["pattern"]["Regex"]) for s in splits]
        made.pre_tokenizer = pre_tokenizers.Sequence([
            *(pre_tokenizers.Split(e, "isolated") for e in expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain["use_regex"]),
        ])  # fmt: skip
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator([_TEXT], trainers.BpeTrainer(
        vocab_size=N_TOKENS, special_tokens=[*first, "</s>", *more],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
    _save(folder, made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", add_bos_token=False,
          **{PRE: pre})  # fmt: skip


def _merged() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces in the order of their merges, letters first, and the merges."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Replace(" ", _SPACE)
    made.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
    made.train_from_iterator([_TEXT], trainers.BpeTrainer(
        vocab_size=N_TOKENS - 3 - 256, special_tokens=[], show_progress=False))  # fmt: skip
    model = json.loads(made.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(m) for m in model["merges"]]


def sentences(folder: Path, *, prefix: bool = True) -> None:
    """Llama's: pieces with scores and bytes for what they do not cover.

    Args:
        prefix: whether a space is put before a text.
    """
    pieces, merges = _merged()
    n_letters = len(pieces) - len(merges)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    ranks = [-1e9] * n_letters + [-float(i) for i in range(len(merges))]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * 256 + [_NORMAL] * len(pieces)
    written = sentencepiece(tokens, [0.0] * 259 + ranks, kinds, merges=True, prefix=prefix)
    (folder / "tokenizer.model").write_bytes(written)
    made = Tokenizer(models.BPE(
        {t: i for i, t in enumerate(tokens)}, merges, byte_fallback=True, unk_token="<unk>",
        fuse_unk=True, ignore_merges=False))  # fmt: skip
    spaces = normalizers.Replace(" ", _SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces][not prefix :])
    made.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(),
                                      decoders.Fuse()])  # fmt: skip
    made.add_special_tokens(tokens[:3])
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    _save(folder, made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True,
          add_eos_token=False)  # fmt: skip


def word_pieces(folder: Path) -> None:
    """BERT's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator([_TEXT], trainers.WordPieceTrainer(
        vocab_size=N_TOKENS, special_tokens=special, show_progress=False))  # fmt: skip
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # fmt: skip
    vocabulary = made.get_vocab()
    lines = "\n".join(sorted(vocabulary, key=lambda t: vocabulary[t]))
    (folder / "vocab.txt").write_text(lines + "\n", encoding="utf-8")
    _save(folder, made, tokenizer_class="BertTokenizer", do_lower_case=True, cls_token="[CLS]",
          sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")  # fmt: skip


def _likely(n: int) -> list[tuple[str, float]]:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Replace(" ", _SPACE)
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=n, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator([_TEXT], trainer)
    pieces = json.loads(made.to_str())["model"]["vocab"]
    return [(t, s) for t, s in pieces if t != "<unk>"]


def _unigrams(folder: Path, vocabulary: list[tuple[str, float]], unknown: int, end: str) -> None:
    made = Tokenizer(models.Unigram(vocabulary, unk_id=unknown))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])  # fmt: skip
    made.decoder = decoders.Metaspace()
    ids = {t: i for i, (t, _) in enumerate(vocabulary)}
    special = [t for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if t in ids]
    made.add_special_tokens(special)
    made.post_processor = TemplateProcessing(
        single=end, special_tokens=[(t, ids[t]) for t in end.split() if t != "$A"])  # fmt: skip
    roles = {"bos_token": "<s>", "cls_token": "<s>", "mask_token": "<mask>"}
    _save(folder, made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
          **{k: t for k, t in roles.items() if t in ids})  # fmt: skip


def t5(folder: Path) -> None:
    """T5's: pieces with their likelihood, and an end after each text."""
    pieces = _likely(300)
    first = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    kinds = [_CONTROL, _CONTROL, _UNKNOWN] + [_NORMAL] * len(pieces)
    texts, scores = zip(*first, *pieces, strict=True)
    written = sentencepiece(list(texts), list(scores), kinds, joins=True)
    (folder / "spiece.model").write_bytes(written)
    _unigrams(folder, [*first, *pieces], 2, "$A </s>")


def xlm_roberta(folder: Path) -> None:
    """XLM-RoBERTa's: ids of its own order, which the SentencePiece model has not."""
    pieces = _likely(300)
    in_file = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *pieces]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL] + [_NORMAL] * len(pieces)
    texts, scores = zip(*in_file, strict=True)
    written = sentencepiece(list(texts), list(scores), kinds, joins=True)
    (folder / "sentencepiece.bpe.model").write_bytes(written)
    first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    _unigrams(folder, [*first, *pieces, ("<mask>", 0.0)], 3, "<s> $A </s>")


def no_prefix(folder: Path) -> None:
    """Gemma's: Llama's without the space before a text."""
    sentences(folder, prefix=False)


def begun(folder: Path) -> None:
    """Byte pairs, and BOS before each text."""
    byte_pairs(folder)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    _save(folder, made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", add_bos_token=True)


def qwen2(folder: Path) -> None:
    """Qwen 2's: digits one by one."""
    byte_pairs(folder, pre="qwen2")


def glm(folder: Path) -> None:
    """Byte pairs with the special tokens that the converter names."""
    byte_pairs(folder, "[gMASK]", "<|endoftext|>", "<|startoftext|>", "<|user|>",
               "<|observation|>", "<unk>")  # fmt: skip


def roberta(folder: Path) -> None:
    """Byte pairs between CLS and SEP."""
    byte_pairs(folder, "<unk>", "<mask>", first=("<s>", "<pad>"))
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    _save(folder, made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
          cls_token="<s>", sep_token="</s>", mask_token="<mask>")  # fmt: skip


KINDS: dict[str, Callable[[Path], None]] = {
    "begun": begun, "byte pairs": byte_pairs, "glm": glm, "no prefix": no_prefix, "qwen2": qwen2,
    "roberta": roberta, "sentences": sentences, "t5": t5, "word pieces": word_pieces,
    "xlm-roberta": xlm_roberta,
}  # fmt: skip
"""By what the networks are called that come with them, or by what they are."""
