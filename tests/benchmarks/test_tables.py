# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/tables.py`: the figures of checkpoints in the README and the model cards."""

import json
from pathlib import Path

import pytest
import tables
from small_studies import BENCHMARKS, ROOT, call, read


RESULTS = ("cifar10-32", "cifar10-32-prior-steps", "cifar10-32-one-step-prior", "cifar10-32-one-step")
PAGES = ("README.md", "checkpoints/cifar10-32/README.md", "checkpoints/cifar10-32-one-step/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_committed_figures_are_those_of_the_results_files(tmp_path, page):
    text, copy = (ROOT / page).read_text(encoding="utf-8"), tmp_path / "page.md"
    results = [BENCHMARKS / "results" / f"{name}.json" for name in RESULTS]
    for planted in (text, text.replace("10.16", "10.17")):
        copy.write_text(planted, encoding="utf-8")
        call(tables, results=results, files=[copy])
        assert copy.read_text(encoding="utf-8") == text


def test_only_figures_of_one_way_of_grading_are_put_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = read(BENCHMARKS / "results/cifar10-32.json")
    for name, change in (("first", {}), ("second", {"seed": 1})):
        Path(f"{name}.json").write_text(json.dumps(result | change))
    Path("page.md").write_text("no marks")
    with pytest.raises(ValueError, match="must agree on `seed`: 'second.json' does not"):
        tables.merge(["first.json", "second.json"])
    with pytest.raises(ValueError, match="page.md has no <!-- figures --> mark"):
        call(tables, results=["first.json"], files=["page.md"])
