"""What a view says, every format says: no sentence and no cell is lost on the way."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.core.audit import AuditSet
from ggufnorm.core.drift import DriftReport, Place
from ggufnorm.core.model import InspectionSet, Skipped
from ggufnorm.core.result import Result
from ggufnorm.errors import InputError
from ggufnorm.report import markdown, notebook
from ggufnorm.report import text as text_format
from ggufnorm.report.formats import render
from ggufnorm.report.kinds import BY_NAME, kind_of, reports_of
from ggufnorm.report.view import Column, Report, Section, Table, table
from tests.pages import Page
from tests.processes import ggufnorm as run
from tests.processes import one_line_error
from tests.results import audit_report, drift_report, frameworks_report, inspection, one_of_each

NAMES = ("blk", "sotu-of_many words and *one* more")


def results() -> Iterator[tuple[str, Result]]:
    """One of every kind, and what the ordinary ones have not."""
    for name in NAMES:
        yield from ((f"{kind} of {name}", result) for kind, result in one_of_each(name).items())
    yield "drift that went wrong", broken_drift()


def broken_drift() -> DriftReport:
    """Another epsilon, a NaN, a jump, a floor, and different options of the two sides."""
    report = drift_report()
    place = Place("ffn_down-1", "blk.1.ffn_down.weight", 1, 3, 4, 9.5)
    assert report.logits is not None
    return replace(
        report,
        norms=(
            replace(report.norms[0], epsilon_metadata=1e-6),
            replace(report.norms[1], epsilon_used=1e-3),
            *report.norms[2:],
        ),
        localisation=replace(report.localisation, first_non_finite=place, first_jump=place),
        floor=replace(report.logits, mean_kld=1e-9),
        logits=replace(report.logits, non_finite_tokens=7),
        embedding=report.norms[0].output,
        run=replace(report.run, quant=replace(report.run.quant, cache_type_k="q8_0")),
    )


RESULTS = dict(results())
every_result = pytest.mark.parametrize("name", RESULTS)


# -- each format as plain words ------------------------------------------------------------


def squeezed(shown: str) -> str:
    """Without spaces and line breaks: formats wrap and align differently."""
    return re.sub(r"\s+", "", shown)


def of_text(result: Result) -> str:
    return squeezed(re.sub(r"“(.*)\[(.*)\]”", r"\1\2", render(result, "text", wide=True)))


def of_markdown(result: Result) -> str:
    shown = re.sub(r"(?<!\\)(?:\*\*|\||</?(?:b|details|summary)>)", "", render(result, "markdown"))
    return squeezed(unescape(re.sub(r"\\([\\`*_\[\]<>|&#~])", r"\1", shown)))


def of_html(result: Result) -> str:
    return squeezed(Page(render(result, "html")).text())


def of_a_notebook(result: Result) -> str:
    return squeezed(Page(result._repr_html_()).text())


FORMATS = {"text": of_text, "markdown": of_markdown, "html": of_html, "notebook": of_a_notebook}
SHORT = ("markdown", "notebook")
"""Those that show the first rows of a long table, and say how many more there are."""


def missing(report: Report, words: str, *, short: bool) -> list[str]:
    """What the report holds and a format does not say, or not as often."""
    expected = [report.title, report.headline, *(s.text for s in report.verdict)]
    expected += ["".join((figure.label, figure.value, figure.note)) for figure in report.figures]
    for section in report.shown:
        expected += [section.title, *of_section(section, short=short)]
    if report.facts is not None:
        expected += of_section(report.facts, short=short)
    counts = Counter(text for text in map(squeezed, expected) if text)
    return [text for text, n in counts.items() if words.count(text) < n]


def of_section(section: Section, *, short: bool) -> list[str]:
    """Sentences, lines, and rows as their cells one after the other."""
    found = list(section.code)
    for s in (*section.sentences, *(s for topic in section.topics for s in topic.sentences)):
        found.append(s.label + s.text)
    if section.table is None or not section.table.rows:
        return found
    rows = section.table.rows[: section.table.most] if short else section.table.rows
    if len(rows) < len(section.table.rows):
        found.append(f"… and {len(section.table.rows) - len(rows)} more")
    found += [s.text for s in section.table.notes]
    return found + ["".join(cell.before + cell.text for cell in row) for row in rows]


@pytest.mark.parametrize("fmt", FORMATS)
@every_result
def test_every_sentence_and_every_cell_is_in_every_format(name: str, fmt: str) -> None:
    result = RESULTS[name]
    words = FORMATS[fmt](result)
    for report in reports_of(result):
        assert missing(report, words, short=fmt in SHORT) == []


@every_result
def test_every_cell_and_every_heading_is_in_the_csv_of_its_table(name: str) -> None:
    result = RESULTS[name]
    tables = [t for report in reports_of(result) for t in report.tables]
    assert tables
    for one in {t.name: t for t in tables}.values():
        header, *rows = csv.reader(io.StringIO(render(result, "csv", table=one.name)))
        alike = [t for t in tables if t.name == one.name]
        assert len(rows) == sum(len(t.rows) for t in alike)
        if one.export is None:
            assert header[-len(one.columns) :] == [c.title for c in one.columns]
            cells = [cell for t in alike for row in t.rows for cell in row]
            written = [value for row in rows for value in row[-len(one.columns) :]]
            for cell, value in zip(cells, written, strict=True):
                full = cell.before + cell.text if cell.value is None else str(cell.value)
                assert value == ("" if full == "–" else full)


DROPPED = [
    (text_format, "_answer", "text"),
    (text_format, "_sentences", "text"),
    (text_format, "_figures", "text"),
    (markdown, "_sentences", "markdown"),
    (markdown, "_figures", "markdown"),
    (notebook, "_sentences", "notebook"),
    (notebook, "_table", "notebook"),
]


@pytest.mark.parametrize(("module", "part", "fmt"), DROPPED)
def test_a_format_that_drops_a_part_is_caught(
    module: ModuleType, part: str, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, part, lambda *_, **__: "" if part == "_figures" else ())
    result = RESULTS["drift that went wrong"]
    (report,) = reports_of(result)
    assert missing(report, FORMATS[fmt](result), short=fmt in SHORT)


def test_every_kind_names_a_table_that_it_has() -> None:
    for kind, result in one_of_each().items():
        names = {t.name for report in reports_of(result) for t in report.tables}
        assert kind_of(result).main in names, kind
    assert {kind_of(r) for r in one_of_each().values()} == set(BY_NAME.values())


# -- what formats used to disagree on ------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_is_wrong_with_a_drift_is_told_in_every_format(fmt: str) -> None:
    words = FORMATS[fmt](broken_drift())
    for told in (
        "first NaN or infinity",
        "blk.1.ffn_down.weight, token 3",
        "1e-05*",
        "* the metadata states another epsilon than llama.cpp uses",
        "1e-05→0.001",
        "90 % 0.0234",
        "Nothing is out of line",
        "Llama 3 8B: Q8_0 0.0014, Q4_K_M 0.031, Q2_K 0.33",
        "reference with itself",
        "7 positions with a NaN or infinite logit",
    ):
        assert squeezed(told) in words, told


def test_a_large_divergence_is_green_in_no_format() -> None:
    report = drift_report()
    assert report.logits is not None
    far = replace(report, logits=replace(report.logits, mean_kld=0.9))
    near = render(report, "text", color=True)
    green = "\x1b[1;32m"
    assert near.count(green) == 2  # headline and verdict
    assert "\x1b[1;32" not in render(far, "text", color=True)
    assert '<div class="answer ok">' in render(report, "html")
    assert '<div class="answer warning">' in render(far, "html")


@pytest.mark.parametrize(
    "result",
    [
        InspectionSet((inspection(),), (Skipped("bad.gguf", "bad.gguf: is no model"),)),
        AuditSet((audit_report(),), (Skipped("bad.gguf", "bad.gguf: is no model"),)),
    ],
)
def test_files_that_could_not_be_read_are_shown_again(result: Result, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    result.save(saved)
    for fmt in ("text", "markdown", "html", "json", "csv"):
        command = ["report", str(saved), "--format", fmt]
        done = CliRunner().invoke(cli, command, standalone_mode=False)
        assert done.return_value == 3
        assert "bad.gguf: is no model" in done.stdout or fmt == "csv", fmt
        assert done.stderr == "error: bad.gguf: is no model\n"


# -- narrow and wide text ------------------------------------------------------------------


def test_columns_go_by_their_priority_and_the_text_says_so() -> None:
    report = drift_report()
    headers = {}
    for width in (120, 100, 80, 60):
        lines = render(report, "text", width=width, verbose=True).splitlines()
        headers[width] = next(line for line in lines if line.startswith("Layer")).split()
        assert any("left out" in line for line in lines) == ("Tensor" not in headers[width])
    assert headers[120][-1] == "Tensor"
    assert "Cosine" in headers[80]
    assert "Own" in headers[60]
    assert len(headers[60]) < len(headers[80]) < len(headers[100]) < len(headers[120])


def made(*columns: Column[str], rows: int = 1) -> str:
    section = Section("", table=table("t", columns, ["x"] * rows))
    return text_format.to_text((Report("title", sections=(section,)),), width=40)


def test_numbers_are_never_cut_and_names_before_columns_are() -> None:
    long = Column[str]("Name", lambda _: 60 * "n", left=True, least=10)
    figure = Column[str]("Figure", lambda _: "0.123456789")
    other = Column[str]("Other", lambda _: "0.987654321", priority=1)
    shown = made(long, figure, other)
    assert "…" in shown
    assert "0.123456789 0.987654321" in shown
    shown = made(replace(long, least=25), figure, other)
    assert "0.987654321" not in shown
    assert "columns left out at this width: Other (--wide shows all)" in shown.replace("\n", " ")


@pytest.mark.slow
def test_the_command_shows_all_of_it_with_wide(tmp_path: Path) -> None:
    drift_report(8, name="a_name_of_many_words").save(tmp_path / "x.json")
    folded = run("report", tmp_path / "x.json").stdout
    assert "16 norms add nothing: their own error is 0 (-v shows them)" in folded
    assert "columns left out" not in folded
    narrow = run("report", tmp_path / "x.json", "-v").stdout
    wide = run("report", tmp_path / "x.json", "--wide").stdout
    assert max(map(len, narrow.splitlines())) <= 100 < max(map(len, wide.splitlines()))
    assert "columns left out at this width: Tensor (--wide shows all)" in narrow
    assert "more (--wide shows all)" in folded
    assert "shows all)" not in narrow.replace("Tensor (--wide shows all)", "")
    assert "--wide" not in wide
    assert "a_name_of_many_words.7.ffn_norm.weight" in wide


# -- tables for scripts --------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_any_table_as_csv(tmp_path: Path) -> None:
    saved = tmp_path / "x.json"
    report = drift_report()
    report.save(saved)
    rows = list(csv.DictReader(io.StringIO(run("report", saved, "--format", "csv").stdout)))
    assert [float(r["Own"]) for r in rows] == sorted(
        (o.local.rel_l2 for o in report.operations if o.local.rel_l2), reverse=True
    )
    out = tmp_path / "norms.csv"
    assert run("report", saved, "--table", "norms", "-o", out).returncode == 0
    (first, *_) = csv.DictReader(io.StringIO(out.read_text(encoding="utf-8")))
    assert (first["Tensor"], float(first["Out"])) == ("blk.0.attn_norm.weight", 0.02)


def test_an_unknown_table_is_refused_with_the_names_of_those_there_are(tmp_path: Path) -> None:
    saved = tmp_path / "x.json"
    drift_report().save(saved)
    done = run("report", saved, "--format", "csv", "--table", "layers")
    one_line_error(done, 3, "no table 'layers'", "norms, operations, experts, predictions")
    assert run("report", saved, "--table", "norms").returncode == 2
    with pytest.raises(InputError, match="no table 'x'"):
        render(frameworks_report(), "csv", table="x")


def test_the_rows_of_several_models_tell_their_file() -> None:
    result = AuditSet((audit_report("one"), audit_report("two")), ())
    rows = list(csv.DictReader(io.StringIO(render(result, "csv"))))
    assert [(r["File"], r["Layer"]) for r in rows] == [
        ("one.gguf", "0"), ("one.gguf", "0"), ("two.gguf", "0"), ("two.gguf", "0"),
    ]  # fmt: skip
    header = render(inspection(), "csv").splitlines()[0]
    assert header.startswith("path,architecture,tensor,layer,role,kind,epsilon,epsilon_key")


def test_a_set_without_its_main_table_is_an_empty_csv(tmp_path: Path) -> None:
    assert render(InspectionSet((), ()), "csv") == ""
    ggufnorm.save(drift_report(), tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text(encoding="utf-8").startswith("Layer,Operation")


def test_a_table_is_data() -> None:
    (report,) = reports_of(drift_report())
    names = [t.name for t in report.tables]
    assert names == ["norms", "operations", "experts", "predictions", "worst_tokens", "run"]
    assert all(isinstance(t, Table) and len(t.rows) == len(t.statuses) for t in report.tables)
    json.dumps([[c.text for c in row] for t in report.tables for row in t.rows])
