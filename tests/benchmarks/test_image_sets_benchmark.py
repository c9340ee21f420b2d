# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/image_sets.py`."""

import image_sets
import pytest
import report
from small_studies import call, read


def test_a_rate_is_that_of_a_million_files():
    found = {"images": 1000, "seconds": 0.5, "seconds_dataset": 0.25, "memory_mb": 3, "memory_mb_dataset": 4}
    result = {"script": "image_sets", "machine": "CPU", "images": 1000, "layouts": {"flat": found}}
    assert report.table(result).endswith("| flat | 0.50 s | 0.25 s | 4 MB | 12 minutes |")


@pytest.mark.slow
def test_finding_a_set_is_measured(workplace):
    call(image_sets, images=2000, output="image-sets.json")
    result = read("image-sets.json")
    assert {found["images"] for found in result["layouts"].values()} == {2000}
    assert "| 1,000 classes |" in report.table(result)
