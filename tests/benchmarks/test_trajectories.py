# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/trajectories.py`."""

import argparse

import pytest
import torch
import trajectories
from PIL import Image
from small_studies import call, write_study
from tiny import make_pipeline, make_transformer

from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline
from diffusers_lowfreq.autoencoding import decode_latents
from diffusers_lowfreq.training import keyed_generator


def strip_arguments(**changes):
    arguments = {"num_samples": 2, "class_labels": None, "guidance_scale": 1.5, "prior_num_inference_steps": 2}
    arguments |= {"columns": 3, "steps_per_column": 2, "seed": 0}
    return argparse.Namespace(**arguments | changes)


def test_strips_run_from_the_source_to_what_the_pipeline_makes():
    pipe = make_pipeline()
    picture, sigmas = trajectories.strips(pipe, strip_arguments())
    assert sigmas == pytest.approx([1.0, 0.5, 0.0]) and len(picture) == 3
    call = {"guidance_scale": 1.5, "prior_guidance_scale": 1.5, "output_type": "latent"}
    generators = [keyed_generator(0, "prior", i) for i in range(2)]
    low = pipe([0, 1], generator=generators, prior_num_inference_steps=2, **call).prior_latents
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=keyed_generator(0, "noise", i)) for i in range(2)])
    source = pipe.scheduler.make_source(low, noise)
    end = pipe([0, 1], latents=source, num_inference_steps=4, **call).images
    for state, image in ((source, picture[0]), (end, picture[-1])):
        decoded = decode_latents(pipe.vae, state).detach()
        assert torch.allclose(image, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)
    finer, _ = trajectories.strips(pipe, strip_arguments(columns=5, steps_per_column=1))
    assert torch.allclose(finer[::2], picture, atol=1e-6)


def test_trajectories_script(workplace):
    """Of saved pipelines, and of the runs of a study, trained once."""
    make_pipeline().save_pretrained("ours")
    options = {"columns": 3, "num_samples": 2}
    call(trajectories, pipelines="ours", output="a/strips.png", **options)
    wide, high = Image.open(workplace / "a/strips.png").size
    assert wide > 300 and high > 200
    options |= {"study": "tiny", "benchmarks_dir": write_study(workplace), "output": "b/strips.png"}
    with pytest.raises(ValueError, match="`runs`"):
        call(trajectories, runs="none", train_data="images", **options)
    with pytest.raises(ValueError, match="`train_data`"):
        call(trajectories, runs="plain", **options)
    assert not (workplace / "b").exists()
    for _ in range(2):
        call(trajectories, runs=["plain", "ours"], train_data="images", **options)
    assert len(list((workplace / "out/studies/models-cpu").glob("*/model_index.json"))) == 2
    assert Image.open(workplace / "b/strips.png").size[1] > 1.5 * high


def test_strips_of_plain_and_low_frequency_flows_get_the_same_noise():
    scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=1.0)
    plain = LowFreqPipeline(make_transformer(in_channels=3, sample_size=16, num_classes=None), scheduler)
    picture, _ = trajectories.strips(plain, strip_arguments())
    noise = torch.cat([torch.randn(1, 3, 16, 16, generator=keyed_generator(0, "noise", i)) for i in range(2)])
    assert torch.allclose(picture[0], (noise / 2 + 0.5).clamp(0, 1))
