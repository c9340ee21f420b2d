# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The levels of the flow and of the prior model."""

import numpy as np
import torch

from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin


def set_grid(
    scheduler: SchedulerMixin,
    model: ModelMixin,
    height: int,
    width: int,
    device: torch.device,
    num_inference_steps: int | None = None,
    sigmas: list[float] | None = None,
):
    """
    Set the grid of `scheduler`, by its levels or by their number.

    A dynamic shift is linear in the number of tokens of `model` for latents of `height` times `width`.
    """
    grid = {"num_inference_steps": num_inference_steps} if sigmas is None else {"sigmas": sigmas}
    config = scheduler.config
    if config.get("use_dynamic_shifting", False):
        tokens = height * width // model.config.patch_size**2
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        grid["mu"] = config.base_shift + slope * (tokens - config.base_image_seq_len)
    scheduler.set_timesteps(device=device, **grid)
    scheduler.set_begin_index(0)


def prior_sigmas(num_inference_steps: int, final_sigma: float = 0.0) -> list[float]:
    """Return evenly spaced levels of the prior model, from 1 to `final_sigma`; without 0, which schedulers add."""
    sigmas = np.linspace(1, final_sigma, num_inference_steps + 1).tolist()
    return sigmas if final_sigma else sigmas[:-1]
