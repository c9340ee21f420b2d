# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/training_speed.py`."""

from pathlib import Path

import pytest
import report
import training_speed
from scripts import make_vae
from small_studies import call, read


@pytest.mark.slow
def test_training_speed_is_measured_and_written_into_a_table(workplace):
    make_vae(workplace / "vae")
    small = {"vae": "vae", "resolution": 16, "num_images": 24, "transformer_size": "1x1x8", "batch_size": 4}
    small |= {"process_batch_size": 8, "block": 2, "blocks": 4, "steps": 8, "repeats": 1, "memory_steps": 20}
    call(training_speed, output="training-speed.json", **small)
    result = read("training-speed.json")
    for kind in ("independent", "minibatch_ot"):
        assert result[kind]["blocks"] == 3 and result[kind]["ratio"] > 0
    processes = result["two_processes"]
    assert processes["mb_sent_by_each_measured"] >= processes["mb_sent_by_each_calculated"] > 0
    saves = result["checkpoints"]
    assert saves["saves"] == 4  # every two steps
    assert saves["share"] == pytest.approx(
        saves["save_ms"] / saves["checkpointing_steps"] / saves["step_ms"], rel=0.1, abs=1e-4
    )
    assert len(result["memory"]["mib_by_tenth_of_the_run"]) == 10
    Path("page.md").write_text("<!-- study training-speed -->\n<!-- /study -->")
    report.write_tables(result, "training-speed", ["page.md"])
    assert f"**{processes['ratio']:.2f}**" in Path("page.md").read_text()
