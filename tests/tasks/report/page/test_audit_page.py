"""The page, the table and the figure of an audit; names in it are inert."""

import json
import re

import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.report.page.audit import (
    Audit,
    as_json,
    audit_figure,
    audit_html,
    audit_table,
    read_audit,
    tracked_audit,
)

EVIL = "<script>alert(1)</script> | [x](javascript:1)"


def row(method, lds, control="", **others):
    return {
        "method": method, "control": control, "lds": lds, "standard_error": 0.02, "error_subsets": 0.01,
        "error_queries": 0.01, "below_first": 0.7 - lds, "below_first_low": 0.6 - lds, "below_first_high": 0.8 - lds,
        "tied_with_first": lds > 0.65, "sources": 0.5, "sources_error": 0.1, "removal": None, "removal_error": None,
        "patch": 0.001, "patch_error": float("nan"), "seconds": 1.25, "bytes": 3 << 20,
    } | others  # fmt: skip


@pytest.fixture
def audit():
    rows = [
        row("recommended", 0.7),
        row("dot", -0.1),
        row("ekfac", 0.68),
        row("recommended, shuffled labels", 0.0, "shuffled"),
    ]
    ceiling = {"lds": 0.9, "standard_error": 0.01, "error_subsets": 0.01, "error_queries": 0.0}
    findings = {"ceiling": ceiling, "rows": rows, "n_subsets": 20, "n_queries": 10, "n_documents": 1000}
    trial = {"projection": {"rank": 8}, "curvature": {"kind": "ekfac"}, "lds": 0.6, "standard_error": 0.03}
    return Audit(
        title=EVIL, made=1_700_000_000_000, started=1_699_999_000_000, parameters={"audit": {"problem": EVIL}},
        findings=findings, notes=["bm25 is left out: it compares texts."], trials=[trial],
        tuned={"projection": {"rank": 8}}, command=f"cd here\ndataworth audit --model '{EVIL}'",
        fingerprints={"problem": "ab"},
    )  # fmt: skip


def test_what_it_comes_to(audit):
    said = "\n".join(audit.sentences())
    assert "20 subsets of 1,000 documents and 10 queries" in said
    assert "Best: recommended, 0.700 ± 0.020, 78% of the ceiling." in said
    assert "Not told apart from recommended at 95 %: ekfac." in said
    assert "shuffled labels 0.000" in said
    assert "bm25 is left out" in said


def test_without_a_ceiling_it_says_why(audit):
    findings = {**audit.findings, "ceiling": {"lds": None, "standard_error": None}}
    without = Audit(**{**json.loads(as_json(audit)), "findings": findings})
    assert any("two seeds or more" in sentence for sentence in without.sentences())
    assert audit_figure(without).startswith(b"\x89PNG")
    assert "Methods" in audit_html(without)


def test_the_best_come_first_and_controls_last(audit):
    header, cells = audit_table(audit)
    assert [line[0] for line in cells] == ["recommended", "ekfac", "dot", "recommended, shuffled labels"]
    assert all(len(line) == len(header) for line in cells)


def test_the_page_stands_alone_and_escapes(audit):
    page = audit_html(audit)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=", page)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    assert page.count('<rect class="plus"') == 3
    assert "<pre>cd here\ndataworth audit" in page


def test_read_back_as_it_was(audit, tmp_path):
    (tmp_path / "audit.json").write_text(as_json(audit))
    assert as_json(read_audit(tmp_path)) == as_json(audit)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"title": "t"}'])
def test_a_damaged_record_is_a_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "audit.json").write_text(content)
    with pytest.raises(InputError, match="no finished audit" if content is None else "is damaged"):
        read_audit(tmp_path)


def test_what_is_logged(audit, tmp_path):
    (tmp_path / "figures").mkdir()
    tracked = tracked_audit(audit, tmp_path, None)
    assert tracked.kind == "audit"
    assert tracked.values["lds/recommended"] == 0.7
    assert tracked.values["lds/noise ceiling"] == 0.9
    assert tracked.series.startswith("audit: ")
    assert [step.metrics["lds"] for step in tracked.steps] == [0.6]
    assert not any(value != value for value in tracked.metrics.values())
