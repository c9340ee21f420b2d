# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The source of a call: a coarse latent, upsampled and mixed with noise."""

import torch

from diffusers.utils.torch_utils import randn_tensor

from ..schedulers import LowFreqFlowMatchScheduler


def draw_source(
    scheduler: LowFreqFlowMatchScheduler,
    low: torch.Tensor,
    noise_ratio: float | None,
    generator: torch.Generator | list[torch.Generator] | None,
    held_noise: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """
    Draw the noise of the source, reduced by the noise that is already in the coarse latents, and make the source.

    Args:
        scheduler ([`LowFreqFlowMatchScheduler`]):
            Makes the source.
        low (`torch.Tensor` of shape `(batch, channels, height / factor, width / factor)`):
            Coarse latents.
        noise_ratio (`float`, *optional*):
            The noise ratio of the call; that of the scheduler when omitted.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
            For the noise.
        held_noise (`torch.Tensor` of shape `(channels, 1, 1)` or `float`, defaults to `0.0`):
            The standard deviation of the noise in `low`, which an early stop leaves, see [`early_stop.noise_at_stop`].

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`.
    """
    factor = scheduler.config.factor
    shape = (*low.shape[:2], low.shape[2] * factor, low.shape[3] * factor)
    noise = randn_tensor(shape, generator=generator, device=low.device, dtype=low.dtype)
    if isinstance(held_noise, torch.Tensor) or held_noise:
        alpha = scheduler.alpha(noise_ratio)
        noise = scheduler.projection.remaining_noise(noise, (1 - alpha) / alpha * held_noise)
    return scheduler.make_source(low, noise, noise_ratio)
