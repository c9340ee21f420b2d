# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/strangers.py`."""

import json

import pytest
import strangers
import torch
from small_studies import BENCHMARKS, call, read, write_study
from tiny import make_pipeline

from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline
from diffusers_lowfreq import LowFreqFlowMatchScheduler


@pytest.mark.parametrize("strength", [0.3, 0.45, 0.6, 0.75])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_baseline_of_strangers_is_image_to_image_of_diffusers(strength, steps):
    """The very levels of the stock pipeline's own `get_timesteps`, with as many network calls."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    img2img = StableDiffusion3Img2ImgPipeline(None, scheduler, None, *[None] * 6)
    pipe = make_pipeline(None, prior=None, scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio=1.0))
    levels = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: levels.append(float(args[1][0]) / 1000), with_kwargs=True
    )
    pipe("cat", num_inference_steps=1)
    levels.clear()
    strangers.sdedit(pipe, pipe.scheduler, torch.zeros(1, 4, 4, 4), strength, steps, [torch.Generator()])
    assert len(levels) == steps
    found = []
    for total in range(1, 40):
        scheduler.set_timesteps(total)
        timesteps, number = img2img.get_timesteps(total, strength, "cpu")
        found.append([round(float(t) / 1000, 5) for t in timesteps] if len(timesteps) == steps else None)
    assert [round(level, 5) for level in levels] in found


@pytest.mark.slow
def test_strangers_trains_and_grades_once(workplace, grader):
    study = json.loads((BENCHMARKS / "studies/strangers.json").read_text())
    study["settings"] = {"flow": {"noise_ratio": 1.0}, "evaluate": {"steps": [1, 2], "prior_steps": [2]}}
    study["strengths"] = [0.4, 0.6]
    study["lora"] |= {"rank": 2, "max_train_steps": 2, "train_batch_size": 4, "lr_warmup_steps": 1}
    options = {"tier": "cpu", "train_data": "images", "test_data": "images", "graders_dir": "."}
    options["benchmarks_dir"] = write_study(workplace, study, "strangers")
    call(strangers, **options)
    path = workplace / "benchmarks/results/strangers-cpu.json"
    result, written = read(path), path.read_bytes()
    # Two plain ones; two strengths of two methods and two LoRAs, each from generated and from true coarse images
    assert len(result["rows"]) == 2 * (2 + 2 * (2 * 2 + 2))
    assert {row["effective_nfe"] == row["steps"] for row in result["rows"] if row["coarse"] == "generated"} == {False}
    assert {row["effective_nfe"] == row["steps"] for row in result["rows"] if row["coarse"] != "generated"} == {True}
    distances = {
        (r["method"], r["noise_ratio"], r["coarse"], r["steps"]): r["frechet_distance"] for r in result["rows"]
    }
    assert len(set(distances.values())) >= len(distances) - 4  # few ways of sampling come to the same with one step
    assert len(strangers.table(result).splitlines()) == 2 * (2 + 2 + 2 * 4) + 3
    brief = strangers.table(result, "frechet_distance", "brief").splitlines()
    assert len(brief) == 2 + 2 + 2 + 4 and not any("| true |" in line for line in brief)  # without the oracle
    with pytest.raises(ValueError, match="`words`"):
        strangers.table(result, "budgets")
    call(strangers, **options)
    assert path.read_bytes() == written
    write_study(workplace, study | {"strengths": [0.5]}, "strangers")
    with pytest.raises(ValueError, match="another configuration.*nothing is overwritten"):
        call(strangers, **options)
