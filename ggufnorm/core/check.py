"""Which suspects are guilty of a bad answer, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ggufnorm.core.result import Result

SuspectName = Literal[
    "download", "file against source", "tokenizer", "normalization", "preprocessing", "pooling",
    "quantization", "K/V cache", "engine and device",
]  # fmt: skip
"""What may be to blame for a model that answers badly."""

SUSPECTS: tuple[SuspectName, ...] = (
    "download", "file against source", "tokenizer", "normalization", "preprocessing", "pooling",
    "quantization", "K/V cache", "engine and device",
)  # fmt: skip
"""In the order in which they are shown."""

State = Literal["guilty", "probable", "cleared", "partly", "not examined"]
"""What is known of a suspect:

- ``guilty``: it makes the model compute something else;
- ``probable``: it probably does;
- ``cleared``: all of it was examined, and nothing is wrong;
- ``partly``: nothing is wrong with what was examined, and not all of it was;
- ``not examined``: nobody looked at it, or nobody could.
"""

STATES: tuple[State, ...] = ("guilty", "probable", "not examined", "partly", "cleared")
"""The state that counts most first, where several steps speak of one suspect.

``not examined`` is what a step says that was to clear the suspect and could not.
"""


@dataclass(frozen=True)
class Suspect:
    """One suspect, and what is known of it.

    Attributes:
        name: which.
        state: what is known.
        sentence: what was found; or what was examined; or why it was not.
        evidence: what else was found, a sentence each.
        do: what to do about it, or the one thing that would examine it; empty for nothing.
        command: the command that shows the evidence in full; empty where none ran.
        rules: ids of audit's rules that accuse it.
        figures: the numbers behind the sentence, by name: those of the audit's finding, or of the
            run (``mean_kld`` in nats, ``same_top1`` from 0 to 1, ``ppl_ratio``, ``n_tokens``).
    """

    name: SuspectName
    state: State
    sentence: str
    evidence: tuple[str, ...] = ()
    do: str = ""
    command: str = ""
    rules: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """Something that was given to look at.

    Attributes:
        role: what it is taken for: model, source, better quant, encoder, text, picture, sound.
        location: as it was given.
    """

    role: str
    location: str


@dataclass(frozen=True)
class CheckStep:
    """One step of a check.

    Attributes:
        name: what it does.
        command: that does this alone.
        skipped: why it was not run; empty if it was.
    """

    name: str
    command: str
    skipped: str = ""


FIXABLE = "ggufnorm fix does it"
"""Stands in brackets behind what is to be done, where that is so."""

INTERRUPTED = "interrupted before it was run"
"""The reason of steps that a Ctrl-C kept from running."""


@dataclass(frozen=True)
class CheckReport(Result):
    """A table of suspects.

    Attributes:
        path: the model.
        architecture: ``general.architecture``; empty where the header cannot be read.
        name: ``general.name``, None if the file has none.
        types: the types of its tensors and how many have each, the commonest first:
            ``21 Q4_K, 13 F32``.
        answer: who is guilty, or what was examined and what was not: a sentence or two.
        next_step: the one thing to do now.
        next_command: the same as a command line; words in capitals stand for what was not given.
            Empty where no command helps.
        exit_code: that of ``ggufnorm check``: 1 if somebody is guilty, 130 after a Ctrl-C, else 0.
        suspects: all of them.
        given: what was given, and taken for what.
        steps: in the order in which they ran.
    """

    path: str
    architecture: str
    name: str | None
    types: str
    answer: str
    next_step: str
    next_command: str
    exit_code: int
    suspects: tuple[Suspect, ...]
    given: tuple[Given, ...]
    steps: tuple[CheckStep, ...]

    @property
    def guilty(self) -> tuple[Suspect, ...]:
        """The suspects that are guilty, the certain ones first."""
        return tuple(s for state in STATES[:2] for s in self.suspects if s.state == state)

    @property
    def interrupted(self) -> bool:
        """Whether a Ctrl-C kept steps from running."""
        return any(step.skipped == INTERRUPTED for step in self.steps)
