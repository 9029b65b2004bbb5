"""``ggufnorm audit`` around its rules: what is checked, what is accepted, how it is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from sarif_pydantic import Sarif

import ggufnorm
from ggufnorm.analysis.audit.fleet import run as fleet
from ggufnorm.analysis.audit.fleet import work
from ggufnorm.analysis.audit.fleet.run import audit_all
from ggufnorm.analysis.audit.ignores import Ignore, read_ignores
from ggufnorm.analysis.audit.pages import all_pages, write_pages
from ggufnorm.analysis.audit.registry import SECTIONS, Rule
from ggufnorm.analysis.audit.rules import BY_ID, FAMILIES, RULES
from ggufnorm.analysis.audit.run import AuditOptions, AuditProgress
from ggufnorm.cli.audit import command
from ggufnorm.cli.main import cli
from ggufnorm.core.audit import AuditReport, AuditSet, AuditSummary, Finding
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import from_plain
from ggufnorm.errors import ConfigError, InputError, TensorDataError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.location import expand
from ggufnorm.report.github import to_github
from ggufnorm.report.sarif import to_sarif
from tests.conversions import Model, build, encoder, write
from tests.paths import DOCS, ROOT
from tests.servers import RangeServer, running

EPSILON = "llama.attention.layer_norm_rms_epsilon"
ZERO = "blk.3.attn_norm.weight"


def faulty(path: Path, arch: str = "llama") -> Path:
    """All of one norm is zero (N302, an error), and another is all one (N303, a warning)."""
    model = build(arch)
    model.tensors[ZERO][:] = 0
    model.tensors["blk.5.ffn_norm.weight"][:] = 1
    return write(path, model)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bad(here: Path) -> Path:
    return faulty(here / "bad.gguf")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


def code(result: Result) -> object:
    """As the program ends with: what a command returns, or its error's code."""
    return getattr(result.exception, "exit_code", None) or result.return_value


def rules_of(report: AuditReport) -> list[str]:
    return [f.rule for f in report.findings]


# -- what is checked ---------------------------------------------------------------------


def test_the_gravest_findings_come_first(bad: Path) -> None:
    report = ggufnorm.audit(bad)
    assert rules_of(report) == ["N302", "N303", "N403"]
    assert (report.findings[0].tensor, report.findings[0].layer) == (ZERO, 3)
    summary = report.summary
    assert (summary.errors, summary.warnings, summary.infos, summary.ignored) == (1, 1, 1, 0)


def test_every_rule_ran_or_says_why_not(bad: Path) -> None:
    report = ggufnorm.audit(bad)
    told = {*report.summary.rules_run, *(n.rule for n in report.not_run)}
    assert told == {r.id for r in RULES}
    assert all(n.reason for n in report.not_run)
    assert "N602" in {n.rule for n in report.not_run}
    assert "N602" in ggufnorm.audit(bad, full=True).summary.rules_run


@pytest.mark.parametrize(
    ("select", "ignore", "found"),
    [
        (["N3"], [], ["N302", "N303"]),
        (["n302"], [], ["N302"]),
        (["N"], ["N303", "N4"], ["N302"]),
        (["E", "V"], [], []),
    ],
)
def test_rules_are_chosen_by_the_beginning_of_their_id(
    bad: Path, select: list[str], ignore: list[str], found: list[str]
) -> None:
    assert rules_of(ggufnorm.audit(bad, select=select, ignore=ignore)) == found


def test_rules_are_chosen_by_name_too(bad: Path) -> None:
    assert rules_of(ggufnorm.audit(bad, select=["norm-zero"])) == ["N302"]
    assert rules_of(ggufnorm.audit(bad, select=["N3"], ignore=["norm-zero"])) == ["N303"]


@pytest.mark.parametrize("selector", ["X", "N9", "N3022", ""])
def test_a_selector_that_means_no_rule_is_an_error(bad: Path, selector: str) -> None:
    with pytest.raises(ConfigError, match="is the beginning of no rule's id"):
        ggufnorm.audit(bad, select=[selector])


def test_a_truncated_file_has_a_finding_and_no_other_rule_runs(bad: Path) -> None:
    bad.write_bytes(bad.read_bytes()[:-100])
    report = ggufnorm.audit(bad)
    assert rules_of(report) == ["N601"]
    assert report.summary.rules_run == ("N601",)
    assert len(report.not_run) == len(RULES) - 1
    with pytest.raises(TensorDataError, match="ends 100 bytes after the end"):
        ggufnorm.audit(bad, select=["N3"])


def test_of_a_remote_model_only_header_and_norms_are_fetched(tmp_path: Path) -> None:
    model = build("llama")
    model.tensors[ZERO][:] = 0
    model.tensors["output.weight"] = np.zeros((4096, 256), np.float16)
    path = write(tmp_path / "m.gguf", model)
    with running(RangeServer({"/m.gguf": path.read_bytes()})) as server:
        report = ggufnorm.audit(f"{server.url}/m.gguf", select=["N", "E"])
    assert rules_of(report)[0] == "N302"
    assert server.sent < path.stat().st_size / 5


# -- accepted findings -------------------------------------------------------------------


def test_an_accepted_finding_is_told_with_its_reason(bad: Path, here: Path) -> None:
    (here / ".ggufnorm-ignore.toml").write_text(
        '[[ignore]]\nrule = "N302"\ntensor = "blk.*.attn_norm.*"\nreason = "pruned on purpose"\n'
    )
    result = run(bad)
    assert code(result) == 0
    assert "Accepted: 1" in result.stdout
    assert "(pruned on purpose)" in result.stdout
    assert "0 errors, 1 warning, 1 info, 1 accepted" in result.stdout


def test_accepted_findings_may_stand_in_pyproject(bad: Path, here: Path) -> None:
    (here / "pyproject.toml").write_text(
        '[tool.ggufnorm]\nignore = [{rule = "N3", reason = "an experiment"}]\n'
    )
    report = json.loads(run(bad, "--format", "json").stdout)
    assert [f["rule"] for f in report["findings"]] == ["N403"]
    assert [i["finding"]["rule"] for i in report["ignored"]] == ["N302", "N303"]
    assert {i["reason"] for i in report["ignored"]} == {"an experiment"}


@pytest.mark.parametrize(
    ("entry", "covered"),
    [
        (Ignore("N", "why"), True),
        (Ignore("n302", "why"), True),
        (Ignore("N303", "why"), False),
        (Ignore("N302", "why", tensor="blk.4.*"), False),
        (Ignore("N302", "why", model="bad.gguf"), True),
        (Ignore("N302", "why", model="good*"), False),
    ],
)
def test_an_entry_covers_what_all_of_its_keys_fit(bad: Path, entry: Ignore, covered: bool) -> None:
    report = ggufnorm.audit(bad, select=["N302"], accepted=[entry])
    assert bool(report.ignored) is covered


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[ignore]]\nrule = "N302"\n', "entry 1 of `ignore` gives no reason"),
        ('[[ignore]]\nrule = "N302"\nreason = " "\n', "'reason' must be a text that is not empty"),
        ('[[ignore]]\nreason = "why"\n', "gives no rule"),
        ('[[ignore]]\nrule = "N1"\nreason = "w"\nlayer = "3"\n', "unknown key 'layer'"),
        ('[[ignore]]\nrule = 302\nreason = "why"\n', "'rule' must be a text"),
        ('[ignore]\nrule = "N302"\n', "must be tables"),
        ('ignore = ["N302"]\n', "entry 1 of `ignore` is no table"),
        ("[[ignore\n", "not a TOML file"),
        ("\xff", "not a TOML file"),
    ],
)
def test_a_wrong_ignore_file_is_an_error(here: Path, text: str, problem: str) -> None:
    path = here / "accepted.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=re.escape(problem)) as raised:
        read_ignores(path)
    assert "\n" not in str(raised.value)
    assert code(run(path, "--ignore-file", path)) == 2


def test_an_ignore_file_that_is_not_there_is_an_error(bad: Path) -> None:
    assert code(run(bad, "--ignore-file", "nothing.toml")) == 2


# -- several models, exit codes ----------------------------------------------------------


@pytest.mark.parametrize(
    ("fail_on", "rules", "expected"),
    [
        ("error", "N302", 1),
        ("error", "N303", 0),
        ("warning", "N303", 1),
        ("warning", "N403", 0),
        ("info", "N403", 1),
        ("info", "E", 0),
    ],
)
def test_the_exit_code_tells_of_findings_at_a_level(
    bad: Path, fail_on: str, rules: str, expected: int
) -> None:
    assert code(run(bad, "--select", rules, "--fail-on", fail_on)) == expected


def test_a_model_that_cannot_be_read_does_not_keep_the_others_back(bad: Path, here: Path) -> None:
    (here / "no.gguf").write_bytes(b"GGUF and no more")
    result = run(bad, here / "no.gguf", write(here / "good.gguf", build("gpt2")))
    assert code(result) == 3
    assert "Skipped: 1" in result.stdout
    lines = result.stdout.splitlines()
    first = lines[lines.index("Summary") :][:6]
    assert [n for n in ("bad.gguf", "good.gguf") if any(line.startswith(n) for line in first)] == [
        "bad.gguf", "good.gguf",
    ]  # fmt: skip


def test_a_single_model_that_cannot_be_read_is_the_error(here: Path) -> None:
    assert code(run(here / "nothing.gguf")) == 3
    assert code(run("--select", "N")) == 2


def test_models_come_in_the_order_given_with_progress_in_between(here: Path) -> None:
    names = [f"m{i}.gguf" for i in (3, 1, 2, 0, 5, 4)]
    for i, name in enumerate(names):
        write(here / name, build("llama", seed=i))
    steps: list[int] = []
    options = AuditOptions(select=["N", "E"])
    found = list(audit_all(names, options, lambda p: steps.append(p.done)))
    assert [f.path for f in found if isinstance(f, AuditReport)] == names
    assert steps == list(range(1, 6 * sum(r.id[0] in "NE" for r in RULES) + 1))


def test_an_interrupt_leaves_a_report_of_what_was_checked(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"m{i}.gguf" for i in range(4)]
    for i, name in enumerate(names):
        write(here / name, build("llama", seed=i))
    inner = work.audit_opened

    def interrupted_at(name: str) -> None:
        def audit(location: str, *rest: Any) -> AuditReport:
            if location == name:
                raise KeyboardInterrupt
            return inner(location, *rest)

        monkeypatch.setattr(work, "audit_opened", audit)

    interrupted_at("m2.gguf")
    result = run(*names, "--format", "json", "--select", "N")
    assert code(result) == 130
    report = json.loads(result.stdout)
    assert [m["path"] for m in report["models"]] == names[:2]
    reason = "interrupted before it was checked"
    assert report["failed"] == [{"what": n, "reason": reason} for n in names[2:]]
    assert "the report covers the models that were checked" in result.stderr
    interrupted_at("m0.gguf")
    assert isinstance(run(*names).exception, click.Abort)


def test_who_is_still_at_work_ends_after_its_rule(here: Path) -> None:
    for i in range(5):
        write(here / f"m{i}.gguf", build("llama", seed=i))
    go, steps = threading.Event(), []

    def show(progress: AuditProgress) -> None:
        steps.append(progress.done)
        go.wait(60)

    names = ["gone.gguf", *(f"m{i}.gguf" for i in range(5))]
    reports = audit_all(names, AuditOptions(select=["N"]), show)
    assert isinstance(next(reports), InputError)
    threading.Timer(0.2, go.set).start()
    reports.close()
    assert len(steps) <= fleet._FEW


def test_folders_and_patterns_stand_for_the_models_in_them(here: Path) -> None:
    (here / "a" / "b").mkdir(parents=True)
    for name in ("a/z.gguf", "a/b/y.gguf", "a/no.txt", "x-00001-of-00002.gguf",
                 "x-00002-of-00002.gguf"):  # fmt: skip
        (here / name).touch()
    assert expand(["a"]) == ["a/b/y.gguf", "a/z.gguf"]
    assert expand(["**/*.gguf"]) == ["a/b/y.gguf", "a/z.gguf", "x-00001-of-00002.gguf"]
    assert expand([str(here / "*.gguf")]) == [str(here / "x-00001-of-00002.gguf")]
    assert expand(["x-00002-of-00002.gguf", "x-00001-of-00002.gguf"]) == ["x-00002-of-00002.gguf"]
    assert expand(["https://host/*.gguf", "gone.gguf"]) == ["https://host/*.gguf", "gone.gguf"]
    for nothing in ("a/*.bin", str(here / "empty")):
        (here / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="there is no GGUF file"):
            expand([nothing])


# -- how it is told ----------------------------------------------------------------------


def test_the_text_says_what_is_wrong_why_it_matters_and_what_to_do(bad: Path) -> None:
    text = run(bad).stdout
    assert "error N302 norm-zero" in text
    assert f"what {ZERO}: all 64 values are 0" in text
    assert "why  The norm's output is nothing but its bias" in text
    assert "do   Look at the source" in text
    assert "S*, T*, K*: no source was given (--source)" in text
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[3].startswith("bad.gguf: 1 error, 1 warning, 1 info (")


def test_the_document_keeps_its_names_and_can_be_read_back(bad: Path) -> None:
    report = ggufnorm.audit(bad)
    found = json.loads(run(bad, "--format", "json").stdout)
    assert (found.pop("schema"), found.pop("version")) == ("ggufnorm/audit", 1)
    assert set(found) == {
        "path", "architecture", "name", "findings", "ignored", "not_run", "summary", "provenance",
        "engine",
    }  # fmt: skip
    assert set(found["findings"][0]) == {
        "rule", "severity", "tensor", "layer", "message", "evidence", "mend"
    }  # fmt: skip
    assert set(found["not_run"][0]) == {"rule", "reason"}
    found["path"] = report.path
    assert from_plain(AuditReport, found) == report


def test_several_models_make_one_document(bad: Path, here: Path) -> None:
    write(here / "v.gguf", encoder())
    (here / "no.gguf").touch()
    found = json.loads(run(here, "--format", "json").stdout)
    assert found["schema"] == "ggufnorm/audit-set"
    assert [Path(m["path"]).name for m in found["models"]] == ["bad.gguf", "v.gguf"]
    assert "the file is empty" in found["failed"][0]["reason"]


def test_markdown_has_a_row_per_finding(bad: Path) -> None:
    shown = run(bad, "--format", "markdown").stdout.splitlines()
    rows = [line for line in shown if line.startswith("| error | N302")]
    assert rows == [
        r"| error | N302 norm-zero | blk.3.attn\_norm.weight | 3 |"
        r" blk.3.attn\_norm.weight: all 64 values are 0 |"
    ]


def hostile() -> AuditSet:
    """A finding with all that could be taken for something else."""
    message = "50% \r\n::error::of it\x1b[31m, and: more"
    finding = Finding("N302", "warning", "blk.0:a,b", 0, message, {"n": float("nan")})
    summary = AuditSummary(0, 1, 0, 0, 1, ("N302",))
    report = AuditReport("a dir/50%,x:y.gguf", "llama", None, (finding,), (), (), summary)
    return AuditSet((report,), (Skipped("no.gguf", "is\nempty"),))


def test_annotations_cannot_be_broken_out_of() -> None:
    lines = to_github(hostile()).splitlines()
    assert lines == [
        "::warning file=a dir/50%25%2Cx%3Ay.gguf,title=N302 norm-zero::50%25 \\r\\n::error::of it"
        "\\x1b[31m, and: more",
        "::error file=no.gguf::is\\nempty",
    ]


def test_annotations_fold_what_repeats() -> None:
    def model(path: str, *findings: Finding) -> AuditReport:
        return AuditReport(path, "llama", None, findings, (), (), AuditSummary(2, 0, 0, 0, 1, ()))

    zeros = [
        Finding("N302", "error", f"blk.{i}.attn_norm.weight", i, f"{i}: all are 0", {})
        for i in range(8)
    ]
    other = Finding("E102", "error", None, None, "epsilon is 0", {})
    found = AuditSet((model("a.gguf", *zeros, other), model("b.gguf", *zeros)), ())

    lines = to_github(found).splitlines()

    assert len(lines) == 2
    assert lines[0].startswith(
        "::error file=a.gguf,title=N302 norm-zero::0: all are 0 And 7 more: "
    )
    assert "blk.5.attn_norm.weight, … The same in 1 other file: b.gguf" in lines[0]
    assert lines[1] == "::error file=a.gguf,title=E102 epsilon-zero::epsilon is 0"


@pytest.mark.parametrize("severity", ["error", "warning", "notice"])
def test_annotations_have_githubs_severities(bad: Path, severity: str) -> None:
    lines = run(bad, "--format", "github").stdout.splitlines()
    assert sum(line.startswith(f"::{severity} file=") for line in lines) == 1


def test_sarif_has_what_its_schema_requires(bad: Path, here: Path) -> None:
    accepted = here / "accepted.toml"
    accepted.write_text('[[ignore]]\nrule = "N303"\nreason = "on purpose"\n')
    log = json.loads(run(bad, "--format", "sarif", "--ignore-file", accepted).stdout)
    check_sarif(log)
    results = log["runs"][0]["results"]
    assert [(r["ruleId"], r["level"]) for r in results] == [
        ("N302", "error"), ("N403", "note"), ("N303", "warning")
    ]  # fmt: skip
    assert results[2]["suppressions"] == [{"kind": "external", "justification": "on purpose"}]
    assert results[0]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == ZERO


def test_sarif_of_hostile_names_is_sound_too() -> None:
    log = json.loads(to_sarif(hostile()))
    check_sarif(log)
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is False
    assert log["runs"][0]["results"][0]["properties"]["evidence"] == {"n": None}


def check_sarif(log: dict) -> None:
    """What sarif-schema-2.1.0.json requires of the parts that are used here."""
    Sarif.model_validate(log)
    assert set(log) == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    for run_ in log["runs"]:
        driver = run_["tool"]["driver"]
        assert driver["name"]
        ids = [r["id"] for r in driver["rules"]]
        assert len(ids) == len(set(ids))
        for r in driver["rules"]:
            assert r["shortDescription"]["text"]
            assert r["help"]["text"]
            assert r["defaultConfiguration"]["level"] in ("error", "warning", "note", "none")
        for invocation in run_["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)
        for result in run_["results"]:
            assert ids[result["ruleIndex"]] == result["ruleId"]
            assert result["level"] in ("error", "warning", "note", "none")
            assert result["message"]["text"]
            for location in result["locations"]:
                uri = location["physicalLocation"]["artifactLocation"]["uri"]
                assert re.fullmatch(r"([A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-F]{2})+", uri)
            for suppression in result.get("suppressions", []):
                assert suppression["kind"] in ("inSource", "external")


def test_an_output_file_is_of_the_format_that_its_name_says(bad: Path, here: Path) -> None:
    run(bad, "-o", here / "out.sarif")
    assert json.loads((here / "out.sarif").read_text())["version"] == "2.1.0"


# -- the rules' documentation ------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.id)
def test_every_rule_is_documented(rule: Rule) -> None:
    assert tuple(rule.sections) == SECTIONS
    assert all(rule.sections.values())
    assert rule.summary.endswith(".")
    assert re.fullmatch(r"[NEHSTKMVILC]\d{3}", rule.id)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)


def test_ids_and_names_are_unique_and_families_known() -> None:
    assert len(BY_ID) == len(RULES) == len({r.name for r in RULES})
    assert {r.id[0] for r in RULES} <= set(FAMILIES)


def test_the_rules_pages_are_those_of_the_docstrings() -> None:
    folder = DOCS / "rules"
    pages = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert pages == all_pages(), "run `python -m ggufnorm.analysis.audit.pages docs/rules`"


def test_pages_of_rules_that_are_no_more_go(tmp_path: Path) -> None:
    (tmp_path / "N999-old.md").touch()
    write_pages(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(all_pages())


def test_a_rule_can_be_explained_and_all_be_listed() -> None:
    explained = CliRunner().invoke(cli, ["rule", "n302"])
    assert explained.output == all_pages()["N302-norm-zero.md"]
    listed = CliRunner().invoke(cli, ["rules"]).output.splitlines()
    assert [line.split()[0] for line in listed] == [r.id for r in RULES]
    unknown = CliRunner().invoke(cli, ["rule", "N000"])
    assert unknown.exit_code == 2
    assert "'N000' is no rule: `ggufnorm rules` lists them" in unknown.output
    near = CliRunner().invoke(cli, ["rule", "norm-dup"])
    assert "did you mean N402 norm-duplicated?" in near.output
    by_name = CliRunner().invoke(cli, ["rule", "norm-zero"])
    assert by_name.output == explained.output


@pytest.mark.slow
def test_a_malformed_model_is_one_line_of_error(here: Path) -> None:
    (here / "bad.gguf").write_bytes(b"no model")
    script = "from ggufnorm.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "audit", "bad.gguf"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: bad.gguf: byte 0: magic:")


def test_a_model_of_an_unknown_architecture_is_audited(here: Path) -> None:
    model = build("gemma2")
    model.arch = "hereafter"
    report = ggufnorm.audit(write(here / "m.gguf", model), select=["N", "E"])
    assert [f for f in report.findings if f.severity != "info"] == []
    reasons = {n.rule: n.reason for n in report.not_run}
    assert "does not know the architecture 'hereafter'" in reasons["N101"]


def test_a_file_without_norms_says_what_could_not_be_checked(here: Path) -> None:
    model = Model("llama", {"{arch}.block_count": 0}, {"token_embd.weight": np.ones((2, 8), "f4")})
    report = ggufnorm.audit(write(here / "m.gguf", model), select=["N3", "N4", "N5"])
    assert report.findings == ()
    assert report.summary.rules_run == ()


def test_the_readme_shows_a_real_report(sample: Path, here: Path) -> None:
    path = here / "sotu-faulty.gguf"
    data = bytearray(sample.read_bytes())
    with GGUFFile(sample) as file:
        first, second = file.tensors["blk.1.ffn_norm.weight"], file.tensors["blk.2.ffn_norm.weight"]
        n, epsilon = first.n_bytes, file.raw_metadata_at[EPSILON][1]
    data[second.offset : second.offset + n] = data[first.offset : first.offset + n]
    data[epsilon : epsilon + 4] = bytes(4)
    path.write_bytes(data)
    report, _, _ = run(path).stdout.partition("Not run")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"$ ggufnorm audit sotu-faulty.gguf\n{report}" in readme


def test_what_was_not_run_in_any_model_is_told_once(bad: Path, here: Path) -> None:
    write(here / "other.gguf", build("gemma2"))
    text = run(here).stdout
    assert text.count("S*, T*, K*: no source was given (--source)") == 1
    assert "Not run in any of the models:" in text
    assert text.count("N501, N502: llama's converter adds 1 to no norm") == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_model_is_audited_or_refused_in_one_line(here: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sound = write(here / "m.gguf", build(("llama", "gemma2", "gpt2", "qwen3next")[seed % 4]))
    data = sound.read_bytes()
    with GGUFFile(sound) as file:
        header = file.header_size
    refusals = []
    for i in range(25):
        damaged = np.frombuffer(data, np.uint8).copy()
        # Metadata and names on even turns, the tensors' data on odd ones.
        low, high = (16, header) if i % 2 == 0 else (header, len(data))
        damaged[rng.integers(low, high, size=8)] = rng.integers(256, size=8)
        sound.write_bytes(damaged.tobytes())
        try:
            assert ggufnorm.audit(sound, full=True).summary.rules_run
        except InputError as error:
            refusals.append(str(error))
    assert all("\n" not in refusal for refusal in refusals)
    assert len(refusals) < 25
