# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The schedule of the learning rate."""

import torch

from diffusers.optimization import get_scheduler


# The schedules of diffusers that need no table of steps, and one for runs whose length is not known at the start
LR_SCHEDULERS = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
LR_SCHEDULERS += ["warmup_stable_decay"]


def get_lr_scheduler(
    name: str, optimizer: torch.optim.Optimizer, num_warmup_steps: int, num_training_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """
    Make the schedule of the learning rate: one of diffusers, or `"warmup_stable_decay"`.

    `"warmup_stable_decay"` rises linearly, stays constant, and falls as `1 - sqrt(share)` over the last tenth of the steps
    (Hägele et al. 2024, arXiv 2405.18392). Until it falls, a resumed run may change `num_training_steps`.

    Args:
        name (`str`):
            One of `LR_SCHEDULERS`.
        optimizer (`torch.optim.Optimizer`):
            The optimizer.
        num_warmup_steps (`int`), num_training_steps (`int`):
            In optimizer steps.
    """
    if name != "warmup_stable_decay":
        return get_scheduler(name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps)
    start = decay_start(num_training_steps)

    def factor(step):
        share = (step - start) / max(num_training_steps - start, 1)
        return min((step + 1) / (num_warmup_steps + 1), 1 - min(max(share, 0.0), 1.0) ** 0.5)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def decay_start(num_training_steps: int) -> int:
    """Return the step at which `"warmup_stable_decay"` begins to fall."""
    return num_training_steps - num_training_steps // 10
