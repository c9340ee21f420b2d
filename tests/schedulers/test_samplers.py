# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What is said of the schedulers of diffusers, against what they do."""

import inspect

import pytest
import torch
from stock_models import make_stock
from tiny import make_components, randn, seeded

import diffusers
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline
from diffusers_lowfreq.schedulers import is_flow_sampler, redraws_noise
from diffusers_lowfreq.stock import generate_from_coarse


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW_SAMPLERS = [
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    diffusers.FlowMatchHeunDiscreteScheduler(),
    diffusers.FlowMatchLCMScheduler(),
    LowFreqFlowMatchScheduler(),
    diffusers.UniPCMultistepScheduler(**FLOW),
    diffusers.DEISMultistepScheduler(**FLOW),
    diffusers.SASolverScheduler(**FLOW),
    *(
        diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type=kind)
        for kind in ("dpmsolver++", "sde-dpmsolver++")
    ),
]
OTHERS = [
    diffusers.EulerAncestralDiscreteScheduler(),
    diffusers.LCMScheduler(),
    diffusers.DDIMScheduler(),
    diffusers.EulerDiscreteScheduler(),
]


def run(scheduler, seed):
    """Three steps with a velocity of its own for every step; only what the sampler draws depends on the seed."""
    scheduler.set_timesteps(4)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    torch.manual_seed(seed)
    sample = randn(1, 4, 4, 4)
    for i, t in enumerate(scheduler.timesteps[:3]):
        options = {"generator": seeded(seed + i)} if takes_generator else {}
        sample = scheduler.step(randn(1, 4, 4, 4, seed=i), t, sample, **options).prev_sample
    return sample


@pytest.mark.parametrize("scheduler", FLOW_SAMPLERS + OTHERS, ids=lambda s: type(s).__name__)
def test_what_redraws_noise_depends_on_the_seed(scheduler):
    assert redraws_noise(scheduler) == (not torch.equal(run(scheduler, 0), run(scheduler, 100)))
    assert is_flow_sampler(scheduler) == (scheduler in FLOW_SAMPLERS)


def test_a_sampler_that_redraws_noise_is_refused_everywhere():
    sampler = diffusers.SASolverScheduler(**FLOW)
    with pytest.raises(ValueError, match="`prior_scheduler` must be a deterministic .* SASolverScheduler"):
        LowFreqPipeline(**make_components(prior_scheduler=sampler))
    pipe = make_stock("sana")
    pipe.register_modules(scheduler=sampler)
    with pytest.raises(
        ValueError, match="`pipe` must be a flow pipeline .* a SASolverScheduler, which draws new noise"
    ):
        generate_from_coarse(
            pipe, LowFreqFlowMatchScheduler(noise_ratio=0.6), prior_latents=randn(1, 4, 4, 4), prompt="a horse"
        )
