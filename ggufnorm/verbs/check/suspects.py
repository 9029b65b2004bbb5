"""What steps say of suspects, and what follows from all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ggufnorm.core.check import STATES, SUSPECTS, State, Suspect, SuspectName


@dataclass(frozen=True)
class Judgement:
    """What one step says of a suspect.

    Attributes:
        suspect: which.
        state: what the step knows of it.
        sentence: see :class:`~ggufnorm.core.check.Suspect`.
        do: the same.
        command: the same.
        rule: id of the rule of audit that says so; empty for none.
        figures: see :class:`~ggufnorm.core.check.Suspect`.
        fixable: whether ``ggufnorm fix`` mends it.
        note: what accuses nobody, and belongs into the answer all the same.
    """

    suspect: SuspectName
    state: State
    sentence: str
    do: str = ""
    command: str = ""
    rule: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    fixable: bool = False
    note: str = ""


def weigh(judgements: Sequence[Judgement]) -> tuple[Suspect, ...]:
    """Each suspect, by all that was said of it.

    What accuses it goes before what clears it. Where a step cleared it, a cheaper one that saw
    only a part of it, or a dearer one that did not run, takes nothing back.

    Args:
        judgements: of all steps, in the order in which they ran; at least one of each suspect.
    """
    return tuple(_one(name, [j for j in judgements if j.suspect == name]) for name in SUSPECTS)


_MOST_MENDS = 4
_ACCUSING: tuple[State, ...] = STATES[:2]
_CLEARING: tuple[State, ...] = ("cleared", "partly", "not examined")


def _one(name: SuspectName, said: Sequence[Judgement]) -> Suspect:
    found = {j.state for j in said}
    state = next(s for s in (*_ACCUSING, *_CLEARING) if s in found)
    those = [j for j in said if j.state == state]
    sentences = list(dict.fromkeys(j.sentence for j in those))
    if state in _ACCUSING:
        others = [j.sentence for j in said if j.state in _ACCUSING and j.sentence != sentences[0]]
        shown, evidence = sentences[0], tuple(dict.fromkeys(others))
        do = "; ".join(list(dict.fromkeys(j.do for j in those if j.do))[:_MOST_MENDS])
    else:
        shown, evidence = "; ".join(sentences), ()
        do = next((j.do for j in reversed(those) if j.do), "")
    command = next((j.command for j in those if j.command), "")
    rules = tuple(dict.fromkeys(j.rule for j in said if j.rule and j.state in _ACCUSING))
    figures = next((dict(j.figures) for j in those if j.figures), {})
    do = do if state != "cleared" else ""
    return Suspect(name, state, shown, evidence, do, command, rules, figures)


def next_command(
    suspects: Sequence[Suspect], judgements: Sequence[Judgement], model: str, fix: str
) -> str:
    """The command line to run next; empty where none helps.

    Args:
        suspects: all.
        judgements: of all steps.
        model: the location of the model, for a shell.
        fix: the command line that mends it.
    """
    accused = [s for state in _ACCUSING for s in suspects if s.state == state]
    if accused:
        first = accused[0]
        mends = any(j.fixable for j in judgements if j.suspect == first.name)
        return fix if mends else first.command
    _, do = answer(suspects)
    found = re.search(r"ggufnorm .*", do)
    return found[0].replace("MODEL", model, 1) if found else ""


def answer(suspects: Sequence[Suspect]) -> tuple[str, str]:
    """The answer in a sentence or two, and the next step."""
    accused = [s for state in _ACCUSING for s in suspects if s.state == state]
    if accused:
        first, *others = accused
        word = "Guilty" if first.state == "guilty" else "Probably guilty"
        also = f" Also {_named(others)}." if others else ""
        return f"{word}: {first.name}: {_ended(first.sentence)}{also}", first.do
    cleared, partly, unseen = (_of(suspects, s) for s in _CLEARING)
    said = [
        f"Cleared: {_named(cleared)}." if cleared else "Nothing is cleared.",
        f"Nothing wrong in what was examined of {_named(partly)}." if partly else "",
        f"Not examined: {_named(unseen)}." if unseen else "",
    ]
    do = next((s.do for s in (*partly, *unseen) if s.do), "")
    return " ".join(filter(None, ["Nobody is found guilty.", *said])), do


def _of(suspects: Iterable[Suspect], state: State) -> list[Suspect]:
    return [s for s in suspects if s.state == state]


def _named(suspects: Sequence[Suspect]) -> str:
    names = [s.name for s in suspects]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
