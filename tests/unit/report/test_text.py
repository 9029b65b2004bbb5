"""Text at the widths of terminals, and Markdown's limits."""

from __future__ import annotations

import re

import pytest

from ggufnorm.core.drift import DriftSet
from ggufnorm.report.formats import render
from ggufnorm.report.formatting import bars
from ggufnorm.report.kinds import BY_NAME
from tests.results import HOSTILE, diff_report, drift_report, one_of_each

WIDTHS = (80, 100, 160)
LONG = "sotu-of-many-words-and-one-more"
COMMENT = 65_536
"""Characters that GitHub takes."""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", BY_NAME)
def test_text_keeps_to_its_width_and_cuts_no_figure(kind: str, width: int) -> None:
    for name in ("blk", LONG, HOSTILE):
        shown = render(one_of_each(name)[kind], width=width)
        assert max(map(len, shown.splitlines())) <= width
        figures = [cell for line in shown.splitlines() for cell in re.findall(r"\d…", line)]
        assert figures == [] or name != "blk"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_of_80_layers_keep_their_columns(width: int) -> None:
    deep = drift_report(80, faulty=True)
    shown = render(deep, width=width)
    assert "…" not in shown
    assert "Cumulative" in shown
    _, _, table, *_ = render(DriftSet((deep, deep)), width=width).split("\n\n")
    header, _, *rows = [line for line in table.splitlines() if "left out" not in line]
    assert ("Size" in header, "KL divergence" in header) == (width > 100, True)
    assert all("blk.40.ffn_down.weight" in row for row in rows)
    header = render(diff_report(80), width=width).split("Largest differences")[1]
    assert "row:col" in header or width == 80


def test_drift_over_depth_is_drawn_in_at_most_40_bars() -> None:
    assert bars([1.0, 2.0, 4.0]) == "▃▅█"
    assert bars([0.0, 0.0]) == "▁▁"
    assert bars([]) == ""
    many = bars([float(i) for i in range(80)])
    assert (len(many), many[0], many[-1]) == (40, "▁", "█")
    spike = [0.1] * 100
    spike[50] = 1.0
    assert bars(spike).count("█") == 1
    deep = drift_report(80)
    drawn = bars([layer.rel_l2 for layer in deep.localisation.layers])
    assert drawn in render(deep, width=80)


def test_colour_is_asked_for_and_words_say_the_same_without() -> None:
    report = drift_report(faulty=True)
    plain, coloured = (render(report, color=c) for c in (False, True))
    assert "\x1b[1;31m" in coloured
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).split() == plain.split()


@pytest.mark.parametrize("kind", BY_NAME)
def test_markdown_is_well_formed(kind: str) -> None:
    shown = render(one_of_each(f"{HOSTILE}\n# x\n")[kind], "markdown")
    lines = shown.splitlines()
    tables = re.findall(r"(?:^\|.*\n)+", shown, re.M)
    for table in tables:
        counts = {re.sub(r"\\.", "", row).count("|") for row in table.splitlines()}
        assert len(counts) == 1
    assert tables
    assert not [line for line in lines if line == "# x"]
    assert shown.count("\n```\n") % 2 == 0
    shown = re.sub(r"\n(`{3,})\n.*?\n\1\n", "", shown, flags=re.S)  # code stands as it is
    assert not re.search(r"(?<!\\)<(?!/?(?:b|details|summary)>)", shown)
    assert shown.count("<details>") == shown.count("</details>")


def test_markdown_of_80_layers_fits_a_comment() -> None:
    for result in (drift_report(80, faulty=True), diff_report(80)):
        assert len(render(result, "markdown")) < COMMENT


def test_markdown_says_first_what_matters() -> None:
    lines = render(drift_report(faulty=True), "markdown").splitlines()
    assert lines[:5] == [
        "## blk-Q4\\_K\\_M.gguf against blk-f16.gguf",
        "",
        "**Out of line: blk.1.ffn\\_down.weight, layer 1**",
        "",
        "Drift enters at blk.",
    ]
    assert "| **1** | **matmul** | **blk.1.ffn\\_down.weight** |" in "\n".join(lines)
