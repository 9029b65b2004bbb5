"""Mistakes planted in what processors feed, alone and in pairs, and how many are named.

``python -m tests.feeds`` prints the table in docs/detection.md, or the rows of some processors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ggufnorm
from ggufnorm.core.front_ends import FrontEnd
from ggufnorm.core.log_mel import whisper
from ggufnorm.engines.extractors import Extractor
from tests.front_ends import EXTRACTORS, wrong
from tests.sounds import RATE, sound, write_extractor, write_wav
from tests.vision import CLIP, IMAGENET, SIGLIP, levels, write_processor
from tests.waves import WRONG, normalized, recording

Values = np.ndarray


@dataclass(frozen=True)
class Planted:
    """A feed with known mistakes.

    Attributes:
        processor: whose it is.
        names: the mistakes; empty for a right feed.
        found: what the report names.
    """

    processor: str
    names: frozenset[str]
    found: frozenset[str]

    @property
    def outcome(self) -> str:
        """``found``, ``missed`` or ``misnamed``."""
        if self.names == self.found:
            return "found"
        return "missed" if self.found < self.names else "misnamed"


@dataclass(frozen=True)
class Case:
    """A processor, and how its feeds are made.

    Attributes:
        name: the processor's.
        right: what it feeds.
        alone: mistakes by name, each what is fed.
        pairs: two mistakes at once.
        report: what ggufnorm says of an array.
    """

    name: str
    right: Values
    alone: dict[str, Values]
    pairs: dict[frozenset[str], Values]
    report: Callable[[Values], frozenset[str]]


# -- Pictures ----------------------------------------------------------------------------

_PICTURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ViTImageProcessor": (SIGLIP, {"size": {"height": 48, "width": 48}, "resample": 2}),
    "CLIPImageProcessor": (CLIP, {"size": {"shortest_edge": 48}, "crop_size": 48}),
    "SiglipImageProcessor": (SIGLIP, {"size": {"height": 48, "width": 48}, "resample": 3}),
    "ConvNextImageProcessor": (IMAGENET, {"size": {"shortest_edge": 48}, "crop_pct": 0.875}),
    "DPTImageProcessor": (IMAGENET, {"size": {"height": 48, "width": 48}}),
}

Step = Callable[[Values, Values, Values], Values]
_LEVELS: dict[str, Callable[[Values], Values]] = {
    "channels-swapped": lambda x: x[..., ::-1],
    "mirrored": lambda x: x[:, ::-1],
}
_FORMULA: dict[str, Step] = {
    "not-scaled": lambda x, m, s: (x - m) / s,
    "scaled-twice": lambda x, m, s: (x / 255 / 255 - m) / s,
    "mean-std-exchanged": lambda x, m, s: (x / 255 - s) / m,
    "mean-unused": lambda x, m, s: x / 255 / s,
    "std-unused": lambda x, m, s: x / 255 - m,
    "precedence": lambda x, m, s: x / 255 - m / s,
    "normalized-twice": lambda x, m, s: ((x / 255 - m) / s - m) / s,
    "raw": lambda x, m, s: x,
}


def _picture_case(kind: str, folder: Path) -> Case:
    constants, entries = _PICTURES[kind]
    mean, std = (np.array(c) for c in constants)
    processor = write_processor(folder / kind, constants, image_processor_type=kind, **entries)
    original, path = levels(120, 160), folder / "p.png"
    Image.fromarray(original).save(path)
    from ggufnorm.engines.processors import Processor

    made = Processor(processor)

    def shown(x: Values) -> Values:
        return np.asarray(made.resized(np.ascontiguousarray(x))[0], np.float64)

    formula = {
        n: f for n, f in _FORMULA.items()
        if not (constants is SIGLIP and n in ("mean-std-exchanged", "precedence"))
    }  # fmt: skip
    right = (shown(original) / 255 - mean) / std
    alone = {n: f(shown(original), mean, std) for n, f in formula.items()}
    alone["channels-swapped"] = (
        right[..., ::-1]
        if constants is SIGLIP
        else ((shown(original)[..., ::-1] / 255 - mean) / std)
    )
    alone["mirrored"] = (shown(original[:, ::-1]) / 255 - mean) / std
    pairs = {
        frozenset({n, m}): f(shown(change(original)), mean, std)
        for (n, f), (m, change) in (
            (a, b) for a in formula.items() for b in _LEVELS.items()
        )
    }  # fmt: skip

    def report(values: Values) -> frozenset[str]:
        np.save(folder / "a.npy", values.astype(np.float32))
        made = ggufnorm.pixels(path, processor=processor, array=folder / "a.npy")
        last = made.pipelines[-1]
        return frozenset((*last.mistakes, *last.picture_mistakes))

    return Case(kind, right, alone, pairs, report)


# -- Sounds ------------------------------------------------------------------------------


def _sound_report(wav: Path, processor: Path) -> Callable[[Values], frozenset[str]]:
    array = processor / "a.npy"

    def report(values: Values) -> frozenset[str]:
        kept = values if values.dtype == np.int16 else values.astype(np.float32)
        np.save(array, kept)
        made = ggufnorm.audio(wav, processor=processor, array=array)
        return frozenset(made.pipelines[-1].mistakes)

    return report


def _front_end_case(kind: str, folder: Path) -> Case:
    samples = sound(1.237)
    wav = write_wav(folder / "s.wav", samples, dtype="<f4")
    config = {"feature_extractor_type": kind, "sampling_rate": RATE, **EXTRACTORS[kind]}
    processor = folder / kind
    processor.mkdir()
    (processor / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    front = Extractor(processor).formula
    assert isinstance(front, FrontEnd)
    changes = wrong(front)
    compatible = [n for n in changes if n not in ("logarithm-missing", "normalized")]
    pairs = {
        frozenset({a, b}): changes[b](changes[a](front)).apply(samples)
        for a, b in list(combinations(compatible, 2))[:10]
        if {a, b} != {"window-missing", "window-of-another"}
        and not {a, b} <= {"not-normalized", "normalized-over-all"}
    }
    alone = {n: change(front).apply(samples) for n, change in changes.items()}
    return Case(kind, front.apply(samples), alone, pairs, _sound_report(wav, processor))


def _whisper_case(folder: Path) -> Case:
    from dataclasses import replace

    samples = 2 * sound(1.2)
    wav = write_wav(folder / "w.wav", samples, dtype="<f4")
    processor = write_extractor(folder / "whisper")
    right = whisper(80)
    mels = {
        "mel-scale-of-another": lambda f: f.with_bank(replace(f.bank, scale="htk")),
        "mel-not-normalized": lambda f: f.with_bank(replace(f.bank, area=False)),
        "magnitudes": lambda f: replace(f, power=1.0),
        "window-missing": lambda f: replace(f, window="none"),
        "not-centred": lambda f: replace(f, centred=False),
        "edges-of-another": lambda f: replace(f, edge="zeros"),
    }
    alone = {n: change(right).apply(samples) for n, change in mels.items()}
    pairs = {
        frozenset({a, b}): mels[b](mels[a](right)).apply(samples)
        for a, b in combinations(mels, 2)
        if {a, b} != {"not-centred", "edges-of-another"}
    }
    report = _sound_report(wav, processor)
    return Case("WhisperFeatureExtractor", right.apply(samples), alone, pairs, report)


def _wave_case(kind: str, folder: Path) -> Case:
    made = recording()
    wav = write_wav(folder / "v.wav", made.channels.T, 44_100, "<f4")
    processor = folder / kind
    processor.mkdir()
    config = {
        "feature_extractor_type": kind, "feature_size": 1, "do_normalize": True,
        "return_attention_mask": True, "padding_value": 0.0, "sampling_rate": RATE,
    }  # fmt: skip
    (processor / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    fed = {how: (frozenset(names), feed(made)) for how, (names, feed) in WRONG.items()}
    alone = {how: values for how, (names, values) in fed.items() if len(names) == 1}
    several = {names: values for names, values in fed.values() if len(names) > 1}
    return Case(kind, normalized(made.mono), alone, several, _sound_report(wav, processor))


def case_of(name: str, folder: Path) -> Case:
    """A processor of :data:`PROCESSORS`; it writes into the folder."""
    if name in _PICTURES:
        return _picture_case(name, folder)
    if name in EXTRACTORS:
        return _front_end_case(name, folder)
    return _whisper_case(folder) if name == _WHISPER else _wave_case(name, folder)


_WHISPER = "WhisperFeatureExtractor"
_WAVES = ("Wav2Vec2FeatureExtractor", "SpeechT5FeatureExtractor")
PROCESSORS = (*_PICTURES, _WHISPER, *EXTRACTORS, *_WAVES)


def planted(case: Case) -> Iterator[Planted]:
    """All feeds of one processor."""
    yield Planted(case.name, frozenset(), case.report(case.right))
    for how, values in case.alone.items():
        names = frozenset(WRONG[how][0]) if how in WRONG else frozenset({how})
        yield Planted(case.name, names, case.report(values))
    for names, values in case.pairs.items():
        yield Planted(case.name, names, case.report(values))


def row(results: list[Planted]) -> str:
    """A line of the table."""
    right = [p for p in results if not p.names]
    counts = [Counter(p.outcome for p in results if n(len(p.names))) for n in (_one, _more)]
    quiet = "yes" if all(not p.found for p in right) else "no"
    cells = [f"{c['found']} / {c['misnamed']} / {c['missed']}" for c in counts]
    return f"| {results[0].processor} | {quiet} | {' | '.join(cells)} |"


def _one(n: int) -> bool:
    return n == 1


def _more(n: int) -> bool:
    return n > 1


def main(names: Sequence[str]) -> None:
    """Print the table, and what is not found on standard error."""
    for name in names or PROCESSORS:
        with tempfile.TemporaryDirectory() as folder:
            results = list(planted(case_of(name, Path(folder))))
        print(row(results), flush=True)
        for p in results:
            if p.outcome != "found":
                print(p.processor, sorted(p.names), sorted(p.found), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
