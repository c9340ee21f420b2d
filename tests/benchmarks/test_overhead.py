# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/overhead.py`."""

import overhead


def test_objectives_table_has_the_ratios_both_ways():
    result = {"machine": "CPU", "threads": 2, "torch": "2.13.0", "pipeline": "tiny"}
    result["objective_steps"] = {"MeanFlow": {"ratio": 1.6, "quartiles": [1.5, 1.81], "pairs": 3}}
    lines = overhead.table(result).splitlines()
    assert lines[4:] == ["| MeanFlow | 1.60× (1.50 to 1.81) | 0.62× |"] and "2 threads" in lines[0]
