# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""An Euler scheduler over exactly the given levels, for pipelines whose own scheduler would shift them."""

import functools
import inspect
import itertools

import torch

from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..schedulers import LowFreqFlowMatchScheduler


PLAIN = {
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


def plain_scheduler(stock: SchedulerMixin) -> SchedulerMixin:
    """Build an Euler scheduler with the settings of `stock`, but without anything that changes the levels of a call."""
    is_ours = isinstance(stock, LowFreqFlowMatchScheduler)
    cls = LowFreqFlowMatchScheduler if is_ours else FlowMatchEulerDiscreteScheduler
    known = inspect.signature(cls.__init__).parameters
    kept = {k: v for k, v in stock.config.items() if k in known}
    return cls(**kept | {k: v for k, v in PLAIN.items() if k in known})


def checked_scheduler(scheduler: SchedulerMixin, source: torch.Tensor, levels: list[float]) -> SchedulerMixin:
    """
    Make every step of `scheduler` check its level, and the first step its state.

    Args:
        scheduler (`SchedulerMixin`):
            The scheduler of one call. It is changed in place.
        source (`torch.Tensor`):
            The state of the first step.
        levels (`list[float]`):
            The level of each step.

    Returns:
        `SchedulerMixin`: The same scheduler. A step raises a `ValueError` if the pipeline starts from another state, or goes
        to another level.
    """
    step, count = scheduler.step, itertools.count()

    @functools.wraps(step)
    def checked_step(model_output, timestep, sample, *args, **kwargs):
        i = next(count)
        level, level_of_model = float(scheduler.sigmas[i]), float(timestep) / scheduler.config.num_train_timesteps
        if i >= len(levels) or max(abs(level - levels[i]), abs(level_of_model - levels[i])) > 1e-4:
            raise ValueError(
                f"`pipe` must start at the level {levels[0]} and go over those that its call is given; in step {i + 1} it went to "
                f"{level:.4g} and gave its model {level_of_model:.4g}."
            )
        expected = source.to(sample.device, sample.dtype) if i == 0 else sample
        if sample.shape != expected.shape or not torch.equal(sample, expected):
            raise ValueError("`pipe` must start from the `latents` that its call is given, this one starts elsewhere.")
        return step(model_output, timestep, sample, *args, **kwargs)

    scheduler.step = checked_step
    return scheduler
