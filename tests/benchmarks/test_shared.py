# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share: times in turn, results files, formats."""

import json
from pathlib import Path

import pytest
from shared.formats import duration, listing, markdown, percentages, seeds, si, spread
from shared.results import earlier, read, refuse_existing, write
from shared.timing import in_turn, medians, ratio, summarize_ratios


def test_cases_are_timed_in_turn_after_a_call_that_warms_up():
    calls = []
    times = in_turn({"a": lambda: calls.append("A"), "b": lambda: calls.append("B")}, 3, "test")
    assert "".join(calls) == "AB" + "ABABAB" and [len(seconds) for seconds in times.values()] == [3, 3]
    calls.clear()
    row = ratio(lambda: calls.append("A"), lambda: calls.append("B"), 4, "test")
    assert (
        "".join(calls) == "AB" * 5 and row["pairs"] == 4 and row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
    )
    found = medians({size: lambda: None for size in (1, 2)}, 3, "test")
    assert list(found) == [1, 2] and {row["repeats"] for row in found.values()} == {3}


def test_ratios_are_of_pairs_and_not_of_medians():
    assert summarize_ratios([2.0, 30.0, 3.0], [1.0, 10.0, 1.0]) == {"ratio": 3.0, "quartiles": [2.0, 3.0]}
    with pytest.raises(ValueError, match="shorter|longer"):
        summarize_ratios([1.0, 2.0], [1.0])


def test_results_are_added_to_only_if_nothing_else_differs(tmp_path):
    path, header = str(tmp_path / "a/results.json"), {"script": "toy", "settings": {"steps": (1, 2)}, "machine": "one"}
    assert earlier(path, header, ("settings",)) is None
    refuse_existing(path)
    refuse_existing(None)
    write(header, path)
    assert [file.name for file in Path(path).parent.iterdir()] == ["results.json"]
    assert (
        earlier(path, header | {"machine": "another"}, ("settings",)) == read(path) == json.loads(json.dumps(header))
    )
    for key, value in (("settings", {"steps": (1, 3)}), ("machine", "another")):
        with pytest.raises(ValueError, match=f"another configuration .`{key}`.; nothing is overwritten"):
            earlier(path, header | {key: value}, ("settings", "machine"))
    with pytest.raises(ValueError, match="`output` must not exist, nothing is overwritten"):
        refuse_existing(path)


def test_formats():
    assert markdown(["a", ""], [["x", 1], ["", "y"]]) == "| a | |\n|---|---|\n| x | 1 |\n| | y |"
    assert spread([1.0, 2.0], 1) == "1.5 ± 0.5" and spread([1.0], 2) == "1.00"
    assert percentages([0.5, 0.25]) == "37.5 % (50.0, 25.0)"
    assert [listing(values, "seed") for values in ([3], [1, 0], [2, 0, 1])] == ["seed 3", "seeds 0 and 1", "seeds 0, 1 and 2"]  # fmt: skip
    assert seeds(iter([1, 0])) == "seeds 0 and 1: means ± half the range between seeds." and "±" not in seeds(
        [0, 1], True
    )
    assert seeds([0, 0]) == seeds([0], is_brief=True) == "seed 0, so no difference here is a finding."
    assert [si(value, "B") for value in (999.6, 1.5e9, 0.002)] == ["1 kB", "1.5 GB", "2 mB"]
    assert [duration(seconds) for seconds in (90, 150, 3 * 86400)] == ["90 s", "2.5 minutes", "3 days"]
