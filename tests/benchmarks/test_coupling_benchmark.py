# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/coupling.py`."""

from pathlib import Path

import coupling
import pytest
import torch
from scripts import make_folder
from small_studies import call, read
from tiny import make_pipeline, randn, seeded


def coupling_results() -> dict:
    result = {
        "script": "coupling",
        "study": "coupling",
        "space": "pixels",
        "machine": "CPU",
        "torch": "2.13.0",
        "rows": [],
    }
    for seed, noise_ratio, kept in ((0, 0.0, 1.0), (0, 0.5, 0.9), (1, 0.0, 1.0), (1, 0.5, 0.8)):
        cell = {"seed": seed, "num_pairs": 1000, "operator": "area", "factor": 4, "noise_ratio": noise_ratio}
        result["rows"].append(cell | {"identity_kept": kept, "cost_ratio": 1.0})
    return result


def test_coupling_table_and_figure():
    lines = coupling.table(coupling_results()).splitlines()
    assert (
        lines[-1] == "| 1,000 | area | 4 | 100.00 ± 0.00 | 85.00 ± 5.00 |" and "1,000 pairs: seeds 0 and 1" in lines[0]
    )
    (axes,) = coupling.figures(coupling_results(), "kernel_distance")[""].axes
    (line,) = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert line.get_xydata() == pytest.approx(torch.tensor([[0.0, 100.0], [0.5, 85.0]]).numpy())


@pytest.mark.parametrize("name", coupling.MASKS)
def test_masks_are_orthogonal_projections_of_the_same_rank(name):
    sample = randn(3, 2, 16, 16)
    kept = coupling.project(sample, name, 4, seeded(1))
    assert torch.equal(coupling.project(kept, name, 4, seeded(1)), kept)
    assert (kept * (sample - kept)).abs().max() == 0 and (kept != 0).sum() == kept.numel() / 16
    side = 4 if name == "patch mask" else 1
    blocks = (kept != 0).float().unfold(2, side, side).unfold(3, side, side).mean((-1, -2))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}


def test_coupling_script_keeps_the_identity_without_noise_and_what_is_done(workplace):
    make_folder(workplace / "images")
    options = {"data": "images", "resolution": 16, "num_pairs": 18, "factor": [2, 4], "seeds": 0, "output": "a/c.json"}
    call(coupling, noise_ratio=0.0, **options)
    first = read("a/c.json")["rows"]
    for row in first:  # an orthogonal projection of distinct images is its own optimal transport
        if row["operator"] in ("area", "dct", "pca"):
            assert row["identity_kept"] == 1 and row["cost_ratio"] == pytest.approx(1)
    call(coupling, noise_ratio=[0.0, 1.0], **options)
    rows = read("a/c.json")["rows"]
    assert rows[: len(first)] == first and len(rows) == 2 * len(first) == 24
    assert all(row["cost_ratio"] < 1 and row["identity_kept"] < 1 for row in rows[len(first) :])
    assert len(coupling.table(read("a/c.json")).splitlines()) == 4 + 12
    written = Path("a/c.json").read_bytes()
    with pytest.raises(ValueError, match="`num_pairs`"):
        call(coupling, **options | {"num_pairs": 19})
    make_pipeline().save_pretrained("tiny-pipeline")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        call(coupling, vae="tiny-pipeline", **options)
    assert Path("a/c.json").read_bytes() == written
    call(coupling, vae="tiny-pipeline", noise_ratio=0.5, operators="area", **options | {"output": "latents.json"})
    assert [row["factor"] for row in read("latents.json")["rows"]] == [2, 4]
