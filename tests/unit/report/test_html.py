"""HTML reports, without a browser (tests/browser.py has the rest)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from ggufnorm.core.audit import AuditSet, NotRun
from ggufnorm.core.drift import DriftSet
from ggufnorm.core.model import InspectionSet, Skipped
from ggufnorm.core.result import Result
from ggufnorm.errors import MissingPackageError
from ggufnorm.report.formats import render
from ggufnorm.report.html.charts.parts import Chart, Charts
from ggufnorm.report.kinds import BY_NAME, kind_of, reports_of
from ggufnorm.report.notebook import to_fragment
from tests.pages import Page, check_html
from tests.processes import ggufnorm as run
from tests.processes import loaded_after, one_line_error
from tests.results import (
    DOT,
    HOSTILE,
    audit_report,
    diff_report,
    difference,
    drift_report,
    inspection,
    one_of_each,
    recipe_report,
)

every_kind = pytest.mark.parametrize("kind", BY_NAME)


def charts_of(result: Result) -> tuple[Charts, ...]:
    return kind_of(result).charts(result)


NOTHING = difference(0.0)


def page_of(result: Result) -> tuple[str, Page]:
    html = render(result, "html")
    return html, check_html(html)


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


@every_kind
def test_hostile_names_are_text(kind: str) -> None:
    html, page = page_of(one_of_each(HOSTILE)[kind])
    assert HOSTILE in page.text()
    assert HOSTILE not in html
    shown = [a["src"] for tag, a in zip(page.tags, page.attributes) if tag == "img"]
    assert set(shown) <= {f"data:image/png;base64,{DOT}"}
    assert html.replace(page_scripts(html)[1], "").count("<img") == len(shown)
    assert page.tags.count("script") == 3


@pytest.mark.parametrize("kind", ["inspect", "drift", "drift-set", "diff"])
def test_hostile_names_reach_the_charts_as_they_are(kind: str) -> None:
    html = render(one_of_each(HOSTILE)[f"ggufnorm/{kind}"], "html")
    written = json.dumps(data_of(html), ensure_ascii=False)
    assert json.dumps(HOSTILE.rpartition("/")[2])[1:-1] in written  # of a path, its last part


def page_scripts(html: str) -> list[str]:
    return re.findall(r"<script[^>]*>(.*?)</script>", html, re.S)


@every_kind
def test_pages_fetch_nothing_and_run_no_script_but_their_own(kind: str) -> None:
    html, page = page_of(one_of_each()[kind])
    policy = next(
        a["content"] for a in page.attributes if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    _, library, script = page_scripts(html)
    for text in (library, script):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "\r" not in html  # a browser would turn it into \n, and the digests would not fit
    assert not re.search(r"@import|url\(", re.findall(r"<style>(.*?)</style>", html, re.S)[0])


@every_kind
def test_every_chart_has_its_place_and_its_data_and_compiles(kind: str) -> None:
    result = one_of_each()[kind]
    html, page = page_of(result)
    data = data_of(html)
    places = [a["id"] for a in page.attributes if a.get("class") == "chart"]
    assert sorted(data["charts"]) == sorted(str(p) for p in places)
    assert len(places) == sum(len(c.charts) for c in charts_of(result))
    for name, spec in data["charts"].items():
        datasets = data["datasets"][name.rpartition("-")[2]]
        for used in {spec["data"]["name"], *(x["data"]["name"] for x in layers_with_data(spec))}:
            assert datasets[used], (name, used)
        compiled = vl_convert.vegalite_to_vega(json.dumps({**spec, "datasets": datasets}))
        assert compiled["marks"], name


def layers_with_data(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [layer for layer in spec.get("layer", []) if "data" in layer]


def test_a_report_of_80_layers_is_under_3_megabytes() -> None:
    report = drift_report(80, faulty=True)
    html, _ = page_of(report)
    assert len(html.encode()) < 3_000_000
    rows = data_of(html)["datasets"]["0"]["operations"]
    assert len(rows) == len(report.operations) == 80 * 12
    assert [r["node"] for r in rows if r["fault"]] == ["ffn_down-40"]


def test_the_first_words_are_the_answer() -> None:
    _, sound = page_of(drift_report())
    _, faulty = page_of(drift_report(faulty=True))
    assert [t for tag, t in sound.texts if tag == "strong"] == ["✓ Nothing is out of line"]
    assert [t for tag, t in faulty.texts if tag == "strong"] == [
        "✗ Out of line: blk.1.ffn_down.weight, layer 1"
    ]
    assert "0.0042 nats" in [t for tag, t in faulty.texts if tag == "dd"]


@pytest.mark.parametrize(
    ("kld", "status", "more"),
    [
        (0.03, "ok", ""),
        (0.05, "warning", ", but predictions drift more than Llama 3 8B's in Q4_K_M"),
        (2.0, "warning", ", but predictions drift more than Llama 3 8B's in Q2_K"),
        (None, "ok", ""),
    ],
)
def test_drift_that_nobody_is_to_blame_for_is_not_called_fine(
    kld: float | None, status: str, more: str
) -> None:
    report = drift_report()
    assert report.logits is not None
    drifted = replace(report, logits=replace(report.logits, mean_kld=kld))
    (view,) = reports_of(drifted)
    assert (view.status, view.headline) == (status, f"Nothing is out of line{more}")
    several, *_ = reports_of(DriftSet((drifted, drifted)))
    assert several.status == status


# -- what charts hold --------------------------------------------------------------------


def chart(result: Result, name: str) -> tuple[Chart, dict[str, list[dict[str, Any]]]]:
    (charts,) = charts_of(result)
    return charts.charts[name], charts.datasets


def test_operations_stand_in_graph_order_each_layer_one_wide() -> None:
    _, datasets = chart(drift_report(2), "own")
    rows = datasets["operations"]
    assert [r["x"] for r in rows] == sorted(r["x"] for r in rows)
    assert {int(r["x"]): r["layer"] for r in rows} == {0: "0", 1: "1"}
    assert [r["what"] for r in rows[:3]] == ["attn_q", "attn_k", "attn_v"]
    assert [r["cumulative"] for r in datasets["layers"]] == [0.02, 0.021]


def test_what_is_outside_the_layers_has_a_place_of_its_own() -> None:
    report = drift_report(2)
    first = replace(report.operations[0], node="embd", tensor="token_embd.weight", layer=None)
    last = replace(first, node="result_output", tensor="output.weight")
    _, datasets = chart(replace(report, operations=(first, *report.operations, last)), "own")
    rows = datasets["operations"]
    assert [(rows[i]["x"], rows[i]["what"]) for i in (0, -1)] == [
        (0.5, "token_embd"),
        (3.5, "output"),
    ]


def test_an_operation_of_another_layer_stands_where_it_is_used() -> None:
    report = drift_report(2)
    shared = replace(report.operations[0], node="attn_rel_b", layer=0)
    operations = (*report.operations[:15], shared, *report.operations[15:])
    _, datasets = chart(replace(report, operations=operations), "own")
    assert [int(r["x"]) for r in datasets["operations"]] == [0] * 12 + [1] * 13


def test_a_comparison_of_traces_has_no_own_errors_and_says_drift_instead() -> None:
    report = drift_report()
    unknown = replace(NOTHING, rel_l2=None, rows=0)
    traces = replace(report, operations=tuple(replace(o, local=unknown) for o in report.operations))
    (charts,) = charts_of(traces)
    assert list(charts.charts) == ["heat", "cumulative", "kld"]
    assert "bind" not in charts.charts["heat"].spec["params"][0]
    _, page = page_of(traces)
    assert "all that is upstream counted in" in page.text()


def test_a_report_without_drift_has_no_empty_charts() -> None:
    report = drift_report()
    same = tuple(replace(o, local=NOTHING, cumulative=NOTHING) for o in report.operations)
    nothing = replace(report.localisation, layers=(), worst_tokens=())
    _, page = page_of(replace(report, operations=same, logits=None, localisation=nothing))
    assert "Every operation gives the reference's result." in page.text()
    assert [a for a in page.attributes if a.get("class") == "chart"] == []


def test_nan_is_framed_and_told() -> None:
    report = drift_report()
    bad = replace(NOTHING, rel_l2=None, rows=0, non_finite_rows=5, non_finite_token=3)
    broken = (replace(report.operations[0], local=bad, cumulative=bad), *report.operations[1:])
    spec, datasets = chart(replace(report, operations=broken), "heat")
    assert [r["node"] for r in datasets["operations"] if r["bad"]] == ["attn_q-0"]
    assert len(spec.spec["layer"]) == 2
    _, page = page_of(replace(report, operations=broken))
    assert "NaN" in [t for tag, t in page.texts if tag == "td"]


def test_models_of_one_name_are_told_apart() -> None:
    _, datasets = chart(DriftSet((drift_report(), drift_report())), "depths")
    assert list(dict.fromkeys(r["model"] for r in datasets["depths"])) == [
        "blk-Q4_K_M.gguf",
        "blk-Q4_K_M.gguf (2)",
    ]


def test_several_reports_are_one_table_and_one_chart() -> None:
    other = drift_report(5, faulty=True)
    other = replace(other, reference=replace(other.reference, fingerprint="another"))
    _, page = page_of(DriftSet((drift_report(), other)))
    assert "1 of 2 out of line" in page.text()
    assert "The references differ" in page.text()


def test_tensors_of_a_diff_stand_by_layer() -> None:
    _, datasets = chart(diff_report(), "tensors")
    assert [r["layer"] for r in datasets["tensors"]] == ["0"] * 7 + ["1"] * 7 + ["2"] * 7


# -- as a user meets it ------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_the_page(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "norms.html"
    done = run("inspect", sample, "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith(f"written to {out}\n")
    assert "blk.0.attn_norm.weight" in check_html(out.read_text()).text()


def test_text_imports_neither_templates_nor_charts_nor_pandas(sample: Path) -> None:
    command = f"cli.main(['inspect', {str(sample)!r}], standalone_mode=False)"
    loaded = loaded_after(f"from ggufnorm.cli.main import cli; {command}")
    assert "rich" in loaded
    assert loaded.isdisjoint({"jinja2", "vl_convert", "pandas"})


def test_without_its_packages_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingPackageError, match=r"vl_convert.*pip install 'ggufnorm\[html\]'"):
        inspection().save(tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_run_when_the_page_cannot_be_made() -> None:
    script = "import sys; sys.modules['jinja2'] = None; from ggufnorm.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "drift", "a.gguf", "b.gguf", "-o", "x.html"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    one_line_error(done, 2, "jinja2", "pip install 'ggufnorm[html]'")


def test_kinds_without_a_view_are_an_error_and_failures_are_shown() -> None:
    with pytest.raises(TypeError, match="no view of Result"):
        reports_of(Result())
    _, page = page_of(InspectionSet((), (Skipped("x.gguf", "is no model"),)))
    assert "x.gguf: is no model" in page.text()


def test_a_finding_leads_to_what_its_rule_says() -> None:
    text, page = page_of(AuditSet((audit_report(), audit_report()), ()))
    links = re.findall(r'<a href="#([^"]+)">', text)
    assert links
    for anchor in links:
        assert text.count(f'<details id="{anchor}">') == 1
    assert "Look at the source" in page.text()


def test_a_command_is_shown_to_be_copied() -> None:
    text, _ = page_of(recipe_report("a<b"))
    code = re.search(r"<pre>(.*?)</pre>", text, re.S)
    assert code
    assert code[1].splitlines()[0] == "llama-quantize \\"
    assert "a&lt;b.0.attn_q=Q5_K" in code[1]


# -- what people see ---------------------------------------------------------------------


def test_a_table_keeps_the_column_that_names_its_rows() -> None:
    html, _ = page_of(drift_report())
    operations = html[html.index("Largest errors of") :]
    assert re.search(r'<th class="left main">Reads</th>', operations)
    assert 'data-title="Reads" class="left main"' in operations


def test_sentences_become_blocks_where_there_is_no_room() -> None:
    html, _ = page_of(one_of_each()["ggufnorm/check"])
    assert '<table class="prose">' in html
    assert '<table class="prose">' not in page_of(drift_report())[0]


def test_the_colours_of_the_heat_map_are_those_of_the_layers() -> None:
    report = drift_report(4)
    embedding = report.operations[0]
    far = replace(embedding, layer=None, local=difference(1e-9), cumulative=difference(1e-9))
    (charts,) = charts_of(replace(report, operations=(far, *report.operations[1:])))
    scale = charts.charts["heat"].spec["layer"][0]["encoding"]["color"]["scale"]
    lowest = [float(x) for x in re.findall(r"[\d.e-]+(?= :|$)", scale["domainMin"]["expr"])]
    assert scale["clamp"]
    assert min(lowest) > 1e-6


def test_what_was_not_examined_has_no_tick() -> None:
    unknown = replace(NOTHING, rel_l2=None, rows=0)
    report = drift_report()
    traces = replace(report, operations=tuple(replace(o, local=unknown) for o in report.operations))
    audit = audit_report()
    without_source = replace(
        audit,
        findings=(),
        summary=replace(audit.summary, errors=0, warnings=0),
        not_run=(NotRun("T104", "no source was given"),),
    )
    for result in (traces, without_source):
        assert "<strong>✓" not in render(result, "html")
        assert "✓" not in to_fragment(result)
    with_source = replace(without_source, not_run=())
    assert "<strong>✓" in render(with_source, "html")
    assert "✓" in to_fragment(with_source)


def test_a_headline_says_which_of_several_is_best() -> None:
    good = drift_report()
    assert good.logits is not None
    bad = replace(
        good,
        quant=replace(good.quant, path="worse.gguf"),
        logits=replace(good.logits, mean_kld=9 * (good.logits.mean_kld or 1)),
    )
    headline = reports_of(DriftSet((good, bad)))[0].headline
    assert re.search(r"best .*\.gguf \(KL divergence .*\), worst worse\.gguf", headline)
