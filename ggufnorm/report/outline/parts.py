"""What an outline is made of: words and figures, no markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.model import Skipped

Mood = Literal["sound", "wrong", "neutral"]


@dataclass(frozen=True)
class Excerpt:
    """A token within the text before it.

    Attributes:
        before: the text that leads up to it.
        token: that is meant.
    """

    before: str
    token: str


@dataclass(frozen=True)
class Reference:
    """Words that stand for a section of the same outline.

    Attributes:
        text: to be shown.
        anchor: the section's.
    """

    text: str
    anchor: str


Cell = str | Excerpt | Reference
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        rows: cells by the columns' titles, the same titles in each.
        left: columns that are aligned to the left.
        marked: numbers of the rows that are out of line.
    """

    rows: tuple[Row, ...]
    left: tuple[str, ...]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A number that belongs at the top.

    Attributes:
        label: what it is of.
        value: with its unit and its standard error.
        note: what to compare it with.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture that a document holds.

    Attributes:
        png: the file in base64, and nothing else.
        caption: whose it is.
    """

    png: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side.

    Attributes:
        title: what they are of.
        pictures: at least one.
        note: how to read them.
        wide: whether each takes the whole width, whatever its proportions.
    """

    title: str
    pictures: tuple[Picture, ...]
    note: str
    wide: bool


def gallery(
    title: str, named: Iterable[tuple[str, str | None]], note: str, *, wide: bool = False
) -> Gallery | None:
    """Those of ``(caption, PNG)`` that are base64, None if none is.

    A document may come from anywhere, and a PNG's text goes into a page's address.
    """
    pictures = tuple(
        Picture(png, caption)
        for caption, png in named
        if png is not None and re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", png)
    )
    return Gallery(title, pictures, note, wide) if pictures else None


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: empty for none.
        lines: sentences, each a line.
        charts: names of the charts that a face with charts shows here.
        table: below them.
        folded: whether it may be hidden until it is asked for.
        code: lines to be copied as they are.
        anchor: what references call it, empty if none does.
        gallery: of pictures, for a face that shows them.
    """

    title: str
    lines: tuple[str, ...] = ()
    charts: tuple[str, ...] = ()
    table: Table | None = None
    folded: bool = False
    code: tuple[str, ...] = ()
    anchor: str = ""
    gallery: Gallery | None = None


@dataclass(frozen=True)
class Outline:
    """A report, as a face without a fixed width shows it.

    Attributes:
        title: what was looked at.
        headline: the answer in a few words.
        verdict: the answer in words.
        mood: whether that is good.
        figures: the most telling ones.
        sections: all else.
    """

    title: str
    headline: str = ""
    verdict: str = ""
    mood: Mood = "neutral"
    figures: tuple[Figure, ...] = ()
    sections: tuple[Section, ...] = ()


def skipped_section(skipped: tuple[str, ...]) -> tuple[Section, ...]:
    """What was not looked at, if anything; several with one reason stay apart."""
    if not skipped:
        return ()
    return (Section(f"Skipped: {len(skipped)}", lines=skipped, folded=True),)


def unread_outline(failed: tuple[Skipped, ...]) -> tuple[Outline, ...]:
    """The models of a set that could not be read, if any."""
    if not failed:
        return ()
    lines = tuple(f"{s.what}: {s.reason}" for s in failed)
    return (Outline("Could not be read", mood="wrong", sections=(Section("", lines=lines),)),)


def mood_of(findings: Iterable[FeedFinding]) -> Mood:
    """How pipelines fare by what was found on them."""
    severities = {f.severity for f in findings}
    return "wrong" if "error" in severities else "neutral" if severities else "sound"


def findings_section(findings: Sequence[FeedFinding]) -> tuple[Section, ...]:
    """What is to be known about pipelines, if anything."""
    if not findings:
        return ()
    rows = tuple({"Severity": f.severity, "Finding": f.name, "What": f.message} for f in findings)
    return (Section("Findings", table=Table(rows, left=("Severity", "Finding", "What"))),)
