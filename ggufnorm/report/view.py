"""What a report is made of: sentences, tables and figures, no markup and no layout.

A view (``report/views/``) says once what a result holds; text, Markdown, HTML, notebooks and
CSV each render it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Status = Literal["ok", "warning", "error", "neutral"]
"""How good something is: of a report, a sentence, a row or a cell."""

MARKS: Mapping[Status, str] = {"ok": "✓ ", "error": "✗ "}
"""What stands before a headline: nothing where not all was looked at."""

Layout = Literal["grid", "facts", "records"]
"""How a table is shown where columns are scarce:

- ``grid``: columns under a header;
- ``facts``: labels with what they stand for, no header;
- ``records``: rows of prose, under a heading made of the first two columns.
"""

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: as it is shown.
        value: in full, for CSV; None where the text says all.
        status: how good it is.
        before: of a token, the text that leads up to it.
        anchor: the topic that it leads to, empty for none.
    """

    text: str
    value: float | str | None = None
    status: Status = "neutral"
    before: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table of ``T``.

    Attributes:
        title: its header.
        cell: makes its cell of a row's object.
        short: header where columns are scarce, empty for the title.
        left: whether it is aligned to the left: words, not numbers.
        priority: 0 stays at any width; of the others the largest number goes first.
        least: characters to which a cell may be cut before other columns go, 0 for none.
        prose: whether it holds sentences, which may be wrapped.
    """

    title: str
    cell: Callable[[T], str | Cell]
    short: str = ""
    left: bool = False
    priority: int = 0
    least: int = 0
    prose: bool = False


Columns = tuple[Column[T], ...]


@dataclass(frozen=True)
class Sentence:
    """A sentence, or a line of words and figures.

    Attributes:
        text: of it.
        status: how good it is.
        label: what it is about, in a word or two; empty for none.
    """

    text: str
    status: Status = "neutral"
    label: str = ""


@dataclass(frozen=True)
class Export:
    """A table for scripts, whose names are promised.

    Attributes:
        header: names of the columns.
        rows: values in full.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        name: what ``--table`` calls it.
        columns: at least one.
        rows: a cell for each column.
        statuses: of each row.
        quiet: of each row, whether it says nothing; a terminal counts those rows. Empty if
            all say something.
        quiet_words: what is true of those rows.
        most: rows that a format of little room shows, None for all.
        notes: footnotes.
        layout: how it is shown where columns are scarce.
        export: what CSV holds in place of the cells, None for the cells.
    """

    name: str
    columns: tuple[Column[Any], ...]
    rows: tuple[tuple[Cell, ...], ...]
    statuses: tuple[Status, ...]
    quiet: tuple[bool, ...] = ()
    quiet_words: str = ""
    most: int | None = None
    notes: tuple[Sentence, ...] = ()
    layout: Layout = "grid"
    export: Export | None = None

    @property
    def is_prose(self) -> bool:
        """Whether its rows hold sentences, which need a line of their own on a narrow screen."""
        return self.layout != "facts" and any(c.prose for c in self.columns)

    @property
    def main(self) -> int:
        """The column that says what a row is about: it stays in sight where the others scroll."""
        named = [i for i, c in enumerate(self.columns) if c.least and not c.prose]
        left = [i for i, c in enumerate(self.columns) if c.left and not c.prose]
        return next(iter(named or left), 0)


def table(
    name: str,
    columns: Columns[T],
    items: Iterable[T],
    *,
    status: Callable[[T], Status] | None = None,
    quiet: Callable[[T], bool] | None = None,
    quiet_words: str = "",
    most: int | None = None,
    notes: Sequence[Sentence] = (),
    layout: Layout = "grid",
    export: Export | None = None,
) -> Table:
    """A table with a row for each item.

    Args:
        name: what ``--table`` calls it.
        columns: what is shown of an item.
        items: in the rows' order.
        status: how good an item is; by default neutral.
        quiet: whether an item says nothing; by default none does.
        quiet_words: what is true of those items: ``rows whose own error is 0``.
        most: rows that a format of little room shows, None for all.
        notes: footnotes.
        layout: how it is shown where columns are scarce.
        export: what CSV holds in place of the cells.
    """
    chosen = tuple(items)
    rows = tuple(tuple(_cell(c.cell(item)) for c in columns) for item in chosen)
    statuses = tuple(status(item) if status else "neutral" for item in chosen)
    return Table(
        name,
        columns,
        rows,
        statuses,
        tuple(map(quiet, chosen)) if quiet else (),
        quiet_words,
        most,
        tuple(notes),
        layout,
        export,
    )


def _cell(made: str | Cell) -> Cell:
    return Cell(made) if isinstance(made, str) else made


def facts(name: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A table of labels and what they stand for."""
    return table(name, _FACTS, rows, layout="facts")


_FACTS: Columns[tuple[str, str]] = (
    Column("Fact", lambda row: row[0], left=True),
    Column("Value", lambda row: row[1], left=True, prose=True),
)


@dataclass(frozen=True)
class Figure:
    """A number that belongs beside the answer.

    Attributes:
        label: what it is of.
        value: with its unit.
        note: its standard error, and what to compare it with.
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
    """Pictures side by side, for a format that can show them.

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


@dataclass(frozen=True)
class Topic:
    """What holds for all rows of a table that have one heading.

    Attributes:
        title: as in the heading.
        sentences: about it.
        anchor: what cells call it.
    """

    title: str
    sentences: tuple[Sentence, ...]
    anchor: str


@dataclass(frozen=True)
class Section:
    """A part of a report, in the order in which it is shown.

    Attributes:
        title: empty for none.
        gallery: of pictures, for a format that shows them.
        charts: names of the charts that a format with charts shows here.
        sentences: each a line.
        most: sentences that a format of little room shows, None for all.
        table: below them.
        topics: explanations of the table's rows.
        code: lines to be copied as they are.
        folded: whether it may be hidden until it is asked for.
    """

    title: str
    gallery: Gallery | None = None
    charts: tuple[str, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    most: int | None = None
    table: Table | None = None
    topics: tuple[Topic, ...] = ()
    code: tuple[str, ...] = ()
    folded: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show; its table may still be asked for by name."""
        rows = self.table.rows if self.table else ()
        return not (self.sentences or rows or self.code or self.gallery)


@dataclass(frozen=True)
class Report:
    """All that is to be said of a result, or of one of several things in it.

    Every format shows the answer first: headline, figures, verdict, next step.

    Attributes:
        title: what was looked at.
        subject: the file, to tell it from others in one CSV table.
        headline: the answer in a few words.
        status: how good the answer is.
        figures: the most telling ones.
        verdict: the answer in sentences.
        next_step: what to do now, empty if there is nothing to be done.
        facts: how it came about; a terminal shows it after the answer, others fold it at the
            end.
        sections: all else; see :attr:`shown`.
    """

    title: str
    subject: str = ""
    headline: str = ""
    status: Status = "neutral"
    figures: tuple[Figure, ...] = ()
    verdict: tuple[Sentence, ...] = ()
    next_step: str = ""
    facts: Section | None = None
    sections: tuple[Section, ...] = ()

    @property
    def shown(self) -> Iterator[Section]:
        """The sections that hold something, without the facts."""
        return (s for s in self.sections if not s.is_empty)

    @property
    def tables(self) -> Iterator[Table]:
        """All tables, empty ones too."""
        for section in (*self.sections, *([self.facts] if self.facts else [])):
            if section.table is not None:
                yield section.table
