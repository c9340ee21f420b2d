# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The tables of `benchmarks/run_study.py`."""

import pytest
import study_tables
from shared.formats import METRICS
from small_studies import study_results


def test_study_table_has_means_half_ranges_and_costs():
    lines = study_tables.table(study_results(), "frechet_distance").splitlines()
    assert lines[2].count("|") == lines[3].count("|")
    assert lines[4] == (
        "| plain | - | - | 0.10 | 0.0250 ± 0.0050 | 0.0500 ± 0.0100 | 0.500 ± 0.000 | - | 1.00 / 2.00 | 12.4 ± 0.4 | "
        "6.4 ± 0.4 |"
    )
    assert lines[6].startswith("| ours | generated | 2 | 0.11 |")  # 2e6 * 1000 * 50 + 2e5 * 1000 * 50
    assert "| 0.250 ± 0.000 | 1.20 / 2.20 |" in lines[6]
    assert lines[7].startswith("| ours | true | - |") and "| - | 1.00 / 2.00 |" in lines[7] and len(lines) == 8
    assert study_tables.table(study_results()).endswith("| 30.0 ± 0.0 | 15.0 ± 0.0 |")
    for fact in (
        "Which?",
        "seeds 0 and 1",
        "2,000 images",
        "10,000 test",
        "tiny-grader",
        "not an FID",
        "torch 2.13.0",
    ):
        assert fact in lines[0]


def test_study_table_says_what_is_missing_or_differs():
    result = study_results()
    result["runs"].pop()
    text = study_tables.table(result, "frechet_distance")
    assert "Not run with seed 1: ours." in text and "| 12.4 ± 0.4 |" in text and "| 12.0 | 6.0 |" in text
    result["runs"] = result["runs"][:2]
    assert (
        "no difference here is a finding" in study_tables.table(result)
        and "±" not in study_tables.table(result).split("\n\n")[1]
    )
    for key, value in (("noise_ratio", 0.3), ("guidance_scale", 2.0)):
        result = study_results()
        more = [row | {key: value} for row in result["runs"][0]["rows"]]
        result["runs"][0]["rows"] += more
        header = study_tables.table(result).splitlines()[2]
        assert ("α" in header) == (key == "noise_ratio") and ("guidance" in header) == (key == "guidance_scale")
    result = study_results()
    result["runs"][0]["rows"][0]["effective_nfe"] = 3.0
    with pytest.raises(ValueError, match="one effective NFE"):
        study_tables.table(result)
    result = study_results()
    result["runs"][0]["rows"][0]["extractor"] = "another"
    with pytest.raises(ValueError, match="one extractor"):
        study_tables.table(result)


def test_budgets_table_takes_the_best_split_within_each_budget():
    lines = study_tables.table(study_results(), "budgets", "frechet_distance").splitlines()
    assert lines[2].endswith("| NFE 1 | NFE 2 | NFE 4 | NFE 8 |") and len(lines) == 6
    best = "6.4 ± 0.4 (2)"
    assert lines[4] == f"| plain | 0.10 | 12.4 ± 0.4 (1) | {best} | {best} | {best} |"
    # 1.2 is over the budget of 1, true coarse latents take no part, and of equals the first is shown
    best = "7.4 ± 0.4 (2 + 1)"
    assert lines[5] == f"| ours | 0.11 | 13.4 ± 0.4 (1 + 1) | {best} | {best} | {best} |"
    # What is better but costs more than 0.1 over is not taken
    result = study_results()
    for run in result["runs"]:
        for row in run["rows"]:
            row["frechet_distance"] -= 5 if row["prior_steps"] == 2 else 0
    assert "| ours | 0.11 | 13.4 ± 0.4 (1 + 1) | 7.4 ± 0.4 (2 + 1) | 2.4 ± 0.4 (2 + 2) |" in study_tables.table(
        result, "budgets", "frechet_distance"
    )
    # A run that costs more than a budget has no place in it
    result = study_results()
    for run in result["runs"]:
        run["rows"] = [row for row in run["rows"] if run["run"] == "plain" or row["steps"] == 2]
    assert "| ours | 0.11 | - | 7.4" in study_tables.table(result, "budgets", "frechet_distance")


def test_gap_table_subtracts_seed_by_seed():
    lines = study_tables.table(study_results(), "gap", "frechet_distance").splitlines()
    assert lines[4:] == [f"| ours | {n} | 1.0 ± 0.0 (+8%) | 1.0 ± 0.0 (+16%) |" for n in (1, 2)]


def test_ratios_table_divides_by_many_steps_of_the_first_run():
    result = study_results()
    result["runs"] = result["runs"][1::2] + result["runs"][::2]  # "ours" first
    for run in result["runs"][:2]:
        for row in [row for row in run["rows"] if row["steps"] == 2]:
            prior_steps = row["prior_steps"] or 0
            many = {"steps": 16, "frechet_distance": 2.0 + run["seed"] + prior_steps}
            run["rows"].append(row | many | {"effective_nfe": 16 + 0.1 * prior_steps})
    lines = study_tables.table(result, "ratios", "frechet_distance").splitlines()
    assert "4.5 with generated coarse latents of 2 prior steps and 2.5 with true coarse latents" in lines[0]
    # 13 / 4 and 13.8 / 5 with generated ones, 12 / 2 and 12.8 / 3 with true ones; without, over the former
    first = (
        "| ours | generated | 1 | 1.10 | 13.4 ± 0.4 (3.00×) | 2.10 | 7.4 ± 0.4 (1.66×) | 16.10 | 3.5 ± 0.5 (0.78×) |"
    )
    assert lines[4] == first and lines[5].endswith("| 4.5 ± 0.5 (1.00×) |")
    assert lines[6].startswith("| ours | true | - | 1.00 | 12.4 ± 0.4 (5.13×) |")
    assert lines[7].startswith("| plain | - | - | 1.00 | 12.4 ± 0.4 (2.78×) |") and lines[7].endswith("| - | - |")
    assert len(lines) == 8


def test_training_cost_counts_the_teacher_too():
    run = study_results()["runs"][1]
    before = study_tables.training_teraflops(run)
    assert study_tables.training_teraflops(run | {"student flow": run["flow"]}) == pytest.approx(before + 0.1)


def test_curvature_table_has_ratios_to_the_first_run():
    result = study_results()
    for run in result["runs"][1::2]:
        for row in run["curvature"]:
            row |= {"curvature": row["curvature"] / 5, "squared_path_length": 0.25}
    lines = study_tables.table(result, "curvature").splitlines()
    plain = "0.0250 ± 0.0050 | 1.0 | 0.500 ± 0.000 | 1.0 | 0.0500 ± 0.0100 | 1.0 |"
    assert lines[4] == f"| plain | - | {plain}" and "from 250 sources" in lines[0]
    ours = "0.0050 ± 0.0010 | 5.0 | 0.250 ± 0.000 | 2.0 | 0.0500 ± 0.0100 | 1.0 |"
    assert lines[5] == f"| ours | generated | {ours}" and len(lines) == 8


def test_captions_tell_how_far_two_graders_agree():
    result = study_results()
    assert "Kendall" not in study_tables.table(result)
    result["graders"]["another"] = {}
    for sign in (1, -1):
        for run in result["runs"]:
            for row in run["rows"]:
                row["graders"] = {"another": {k: sign * row[k] for k in METRICS}}
        text = study_tables.table(result, "frechet_distance")
        assert f"`another` agrees on the order of the 8 settings with Kendall's τ = {sign}.000" in text


def test_tables_by_the_second_grader_have_its_figures():
    result = study_results()
    result["graders"]["another"] = {}
    for run in result["runs"]:
        for row in run["rows"]:
            row["graders"] = {"another": {k: 2 * row[k] for k in METRICS}}
    text = study_tables.table(result, "budgets", "frechet_distance", "by", "another")
    assert "extractor `another`" in text and "The grader `tiny-grader` agrees" in text
    assert "| plain | 0.10 | 24.8 ± 0.8 (1) |" in text


def test_brief_tables_have_a_short_caption_and_the_same_cells():
    result = study_results()
    for words in (["budgets"], ["gap"], ["frechet_distance"]):
        full, brief = (study_tables.table(result, *words, *more) for more in ([], ["brief"]))
        assert len(brief.split("\n\n")[0]) < 0.5 * len(full.split("\n\n")[0]) and "tiny-grader" in brief
        if words != ["frechet_distance"]:
            assert brief.split("\n\n")[1] == full.split("\n\n")[1]
    assert (
        brief.splitlines()[2]
        == "| run | coarse | prior steps | effective NFE | distance, 1 step | distance, 2 steps |"
    )
    assert brief.splitlines()[4] == "| plain | - | - | 1.00 / 2.00 | 12.4 ± 0.4 | 6.4 ± 0.4 |"
    full, brief = (study_tables.table(result, "curvature", *more).splitlines() for more in ([], ["brief"]))
    assert brief[2:] == [line for line in full[2:] if "| true |" not in line] and len(brief) == 7
