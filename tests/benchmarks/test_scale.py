# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/scale.py`."""

import json
from pathlib import Path

import pytest
import report
import scale
import scale_formulas
import torch
from scripts import make_vae
from small_studies import ROOT, call, read


SMALL_SCALE = {
    "repeats": 2,
    "batch_size": 2,
    "token_size": "1x1x8",
    "sample_sizes": [4, 8],
    "sizes": ["1x1x8", "2x1x8"],
}
SMALL_SCALE |= {"images": 128, "shard_size": 64, "latents": {"tiny": [4, 2, 2]}, "set_size": 1000}
SMALL_SCALE |= {"reduced_bytes": [4, 4000], "process_sizes": ["1x1x8"], "checkpoint_size": "1x1x8"}
SMALL_SCALE |= {"activations": [[1, 4, 16], [2, 4, 16]]}


@pytest.mark.slow
def test_scale_measures_calculates_and_is_written_into_tables(workplace):
    Path("settings.json").write_text(json.dumps(SMALL_SCALE))
    make_vae(workplace / "vae")
    call(scale, vae="vae", settings="settings.json", output="scale.json")
    result = read("scale.json")
    measured, calculated = result["measured"], result["calculated"]
    for row in measured["steps"]["tokens"] + measured["steps"]["parameters"]:
        assert row["forward_flops"] == row["calculated_flops"] and row["seconds"] > 0
    for row in measured["activations"]:
        assert row["calculated"] == pytest.approx(row["measured"], rel=0.2)
    assert measured["checkpoint"]["state_bytes_per_parameter"] == {"weights": 4, "gradients": 4, "moments": 8, "averages": 4}  # fmt: skip
    halves = measured["two_processes"]["fsdp2_state_bytes_per_parameter"]
    assert halves == pytest.approx({"weights": 2, "gradients": 2, "moments": 4, "averages": 2}, rel=0.2)
    assert measured["cache"]["calculated_bytes_per_image"] < measured["cache"]["stored_bytes_per_image"]
    assert measured["order"]["bytes_per_image"] == 5 and calculated["held_bytes_per_image"] == pytest.approx(
        21, abs=0.2
    )
    views = [None, "costs", "checked", "networks", "engines", "sets", "limits"]
    marks = [f"<!-- study scale{f' {view}' if view else ''} -->\n<!-- /study -->" for view in views]
    Path("scale.md").write_text("\n\n".join(marks))
    report.write_tables(result, "scale", ["scale.md"])
    text = Path("scale.md").read_text()
    kinds = ("Measured**", "Measured**", "Calculated over measured**", *["Calculated**"] * 4)
    assert [text.count(f"**{kind}") for kind in set(kinds)] == [kinds.count(kind) for kind in set(kinds)]


def test_formulas_of_scale_agree_with_what_they_are_made_of():
    for engine in scale_formulas.ENGINES:  # on one process nothing is in parts, and nothing is sent
        alone = scale_formulas.memory_bytes(engine, 10**9, 1, 0, 0)
        assert alone["moments"] == 8e9 and alone["averages"] == 4e9
        assert (
            alone["weights"] - 2e9 * (engine == "ZeRO-3") >= 4e9
            and scale_formulas.communicated_bytes(engine, 10**9, 1) == 0
        )
        sizes = [scale_formulas.memory_bytes(engine, 10**9, n, 10**7, 10**6) for n in (8, 64, 1024)]
        assert all(sum(v for k, v in size.items() if k != "all") == pytest.approx(size["all"]) for size in sizes)
        shrinks = sizes[0]["all"] > sizes[1]["all"] > sizes[2]["all"]
        assert shrinks == (engine != "DDP") and (sizes[0] == sizes[2]) == (engine == "DDP")
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert f"{scale_formulas.memory_bytes('DDP', 1, 64, 0, 0)['all']} bytes a parameter" in page
    assert "`24·tokens·width² + 4·tokens²·width`" in page
    layer = scale_formulas.forward_flops(2, 64, 100) - scale_formulas.forward_flops(1, 64, 100)
    assert layer == 24 * 100 * 64**2 + 4 * 100**2 * 64
    # The interval between checkpoints at which writing and what a failure loses cost the same
    interval = scale_formulas.best_interval(20.0, 1024, 50_000)
    assert 20 / interval == pytest.approx(interval / 2 / (50_000 * 3600 / 1024))
    assert scale_formulas.latent_bytes([4, 8, 8]) == 2 * torch.zeros(4, 8, 8).half().nbytes
