# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""
Where the prior model may stop early: no step is spent on removing noise that the source would add again.

The state of the prior model at level `s`, divided by `1 - s`, is the coarse latent plus noise. The standard deviation of the
noise is `s / (1 - s)` times the prior's `sample_std`. The source, `(1 - alpha) * U(low) + alpha * noise`, contains such noise
anyway.
"""

import torch

from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..schedulers import LowFreqFlowMatchScheduler


def final_prior_sigma(
    prior: ModelMixin, scheduler: LowFreqFlowMatchScheduler, alpha: float, height: int, width: int
) -> float:
    """
    Compute the level at which the noise of the prior model is the coarse noise that the source needs.

    White noise `alpha * noise` can contain `(1 - alpha) * U(n)` if the standard deviation of `n`, times `1 - alpha`, is at
    most `alpha` times the [`~LowFrequencyProjection.coarse_noise_scale`].

    Args:
        prior (`ModelMixin`):
            The prior model.
        scheduler ([`LowFreqFlowMatchScheduler`]):
            Makes the source.
        alpha (`float`):
            The noise ratio of the source, below 1.
        height (`int`), width (`int`):
            Size of the coarse latents.

    Returns:
        `float`: The level, from 0 to below 1.
    """
    room = alpha * scheduler.projection.coarse_noise_scale(height, width)
    ratio = room / ((1 - alpha) * max(prior.config.sample_std or [1.0]))  # s / (1 - s)
    return ratio / (1 + ratio)


def noise_at_stop(prior: ModelMixin, final_sigma: float, device: torch.device) -> torch.Tensor:
    """Return the standard deviation `(channels, 1, 1)` of the noise left by a prior model that stops at `final_sigma`."""
    std = torch.tensor(prior.config.sample_std or [1.0], device=device).view(-1, 1, 1)
    return final_sigma / (1 - final_sigma) * std


def check_stop(scheduler: SchedulerMixin, num_inference_steps: int, final_sigma: float):
    """
    Check that the grid of the prior model reaches `final_sigma` after `num_inference_steps`.

    Raises:
        ValueError: If it does not, because the scheduler shifts it or takes more than one level per step.
    """
    if final_sigma and abs(float(scheduler.sigmas[num_inference_steps]) - final_sigma) > 1e-4:
        raise ValueError(
            "`truncate_prior` must be False with a `prior_scheduler` that shifts its grid or is not of first order."
        )
