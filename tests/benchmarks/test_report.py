# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/report.py`: tables of results files between the marks of pages."""

import json
import re
from pathlib import Path

import pytest
import report
import study_tables
from PIL import Image
from scripts import run_process
from small_studies import BENCHMARKS, ROOT, call, read, study_results


DOCUMENTS = [
    "README.md",
    "checkpoints/cifar10-32-upscale/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
RESULTS = sorted(path.name for path in (BENCHMARKS / "results").glob("*.json"))


def stale_tables(text: str, results: Path) -> list[str]:
    """Name the results files whose tables in a text are not what they give."""
    tables = report.marks(text)
    return [name for name, words, old in tables if report.table(report.load(results / f"{name}.json"), *words) != old]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_committed_tables_are_those_of_their_results_files(document):
    """No figure between the marks of a study can be typed by hand."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert text.count("<!-- study ") == len(report.marks(text)) == text.count("<!-- /study -->")
    assert not stale_tables(text, BENCHMARKS / "results")


def test_the_evidence_is_short_and_every_study_has_a_page_of_its_own():
    """What a stranger reads first: 25 KB at most; all tables are one link away."""
    text = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 25_000
    assert {name for name, _, _ in report.marks(text)} <= {
        name
        for page in (ROOT / "docs/evidence").glob("*.md")
        for name, words, _ in report.marks(page.read_text(encoding="utf-8"))
        if not words
    }
    for page in (ROOT / "docs/evidence").glob("*.md"):
        assert f"](evidence/{page.name}" in text


@pytest.mark.parametrize("page", sorted((ROOT / "docs/evidence").glob("*.md")), ids=lambda page: page.stem)
def test_links_of_the_pages_of_studies_exist(page):
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs/evidence.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file()
        assert not anchor or (target == "../evidence.md" and anchor in anchors)


@pytest.mark.parametrize("results", RESULTS)
def test_results_say_which_script_wrote_them(results):
    script = read(BENCHMARKS / "results" / results)["script"]
    assert (BENCHMARKS / f"{script}.py").is_file() and (script in report.SCRIPTS) == (script != "space")


def test_marks_hand_their_words_to_the_script():
    text = "<!-- study few budgets by a.b-c -->\nold\n<!-- /study -->\n<!-- study more -->\n<!-- /study -->"
    assert report.marks(text) == [("few", ["budgets", "by", "a.b-c"], "old"), ("more", [], "")]
    result = study_results()
    assert report.table(result, "gap", "frechet_distance") == study_tables.table(result, "gap", "frechet_distance")
    for words in (["another"], ["budgets", "by"], ["by", "another"]):
        with pytest.raises(ValueError, match="`words`|`by`"):
            report.table(result, *words)


PAGE = "Kept.\n<!-- study few -->\n<!-- /study -->\n<!-- study few gap frechet_distance -->\nold\n<!-- /study -->\n"
PAGE += "<!-- study another -->\nold\n<!-- /study -->\n"


def write_pages(workplace: Path):
    (workplace / "few.json").write_text(json.dumps(study_results()))
    (workplace / "evidence.md").write_text(PAGE)
    (workplace / "other.md").write_text("no marks")


def test_report_writes_tables_only_where_marks_are(workplace):
    write_pages(workplace)
    call(report, "evidence.md", "other.md", results="few.json")
    text = (workplace / "evidence.md").read_text()
    assert text.startswith("Kept.\n<!-- study few -->\n**Which?**") and text.count("\nold\n") == 1
    assert (workplace / "other.md").read_text() == "no marks"
    text = text.split("<!-- study another")[0]
    assert len(report.marks(text)) == 2 and not stale_tables(text, workplace)
    assert stale_tables(text.replace("30.0 ± 0.0", "30.1 ± 0.0", 1), workplace) == ["few"]
    with pytest.raises(ValueError, match="`files`"):
        call(report, "other.md", results="few.json")


@pytest.mark.slow
def test_report_script_draws_figures(workplace):
    """In a process of its own, from another folder."""
    write_pages(workplace)
    script = [BENCHMARKS / "report.py", "--results", "few.json", "--figures_dir", "pictures"]
    run_process(*script, "evidence.md", cwd=workplace)
    assert not stale_tables((workplace / "evidence.md").read_text().split("<!-- study another")[0], workplace)
    for name in ("few", "few-spectrum"):
        assert Image.open(workplace / f"pictures/{name}.png").size[0] > 500


def test_report_refuses_what_has_no_results_and_what_no_known_script_wrote(workplace):
    for result, message in (
        ({"script": "run_study", "study": "few", "runs": []}, "must hold `runs`"),
        ({"study": "few", "runs": [{}]}, "must hold a `script` of .*'run_study'.*got None"),
        ({"script": "os", "runs": [{}]}, "must hold a `script` of .*got 'os'"),
    ):
        (workplace / "wrong.json").write_text(json.dumps(result))
        with pytest.raises(ValueError, match=message):
            report.load("wrong.json")


def test_report_draws_no_figure_of_a_script_that_has_none(workplace):
    result = {"script": "overhead", "objective_steps": {"MeanFlow": {"ratio": 1.6, "quartiles": [1.5, 1.8]}}}
    (workplace / "times.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="`figures_dir`"):
        call(report, results="times.json", figures_dir="pictures")
