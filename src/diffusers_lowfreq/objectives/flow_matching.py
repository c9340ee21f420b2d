# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Flow matching on given pairs of source and sample."""

from dataclasses import dataclass

import torch

from diffusers.utils.torch_utils import randn_tensor

from ..guards.values import check_choice


TIME_SAMPLINGS = ("uniform", "logit_normal")


def sample_times(
    batch_size: int,
    time_sampling: str = "uniform",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """
    Draw continuous times in (0, 1), float32, each from one normal number, so that one generator per sample works.

    Args:
        batch_size (`int`):
            The number of times.
        time_sampling (`str`, defaults to `"uniform"`):
            `"uniform"`, or `"logit_normal"`: `sigmoid(logit_mean + logit_std * n)` (arXiv 2403.03206, eq. 19). A
            positive mean favours times near the source (1), a negative one times near the data (0).
        logit_mean (`float`, defaults to `0.0`), logit_std (`float`, defaults to `1.0`):
            Mean and standard deviation of the logit.
        generator (`torch.Generator` or a list of one per sample, *optional*), device (`torch.device`, *optional*):
            Where the normal numbers come from.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`.

    Raises:
        ValueError: If `time_sampling` is unknown.
    """
    check_choice("time_sampling", time_sampling, TIME_SAMPLINGS)
    normal = randn_tensor((batch_size,), generator=generator, device=device, dtype=torch.float32)
    if time_sampling == "uniform":
        return torch.special.ndtr(normal)
    return torch.sigmoid(logit_mean + logit_std * normal)


def per_sample(values: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Shape one value per sample, `(batch,)`, so that it multiplies the `states`, `(batch, ...)`."""
    return values.view(-1, *[1] * (states.ndim - 1))


def interpolate(source: torch.Tensor, sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the states `x_t = (1 - t) x + t source`, in the dtype of `sample`."""
    t = per_sample(t, sample)
    return ((1 - t) * sample + t * source).to(sample.dtype)


@dataclass
class FlowMatching:
    """
    Regress the velocity of the straight line between source and sample (Lipman et al. 2022, arXiv 2210.02747, eq. 9).

    Call it as `objective(model, source, sample, *, generator, **condition)`. It does not know where the pair comes from.

    Args:
        time_sampling (`str`, defaults to `"uniform"`), logit_mean (`float`, defaults to `0.0`), logit_std (`float`, defaults to `1.0`):
            See [`sample_times`].
    """

    time_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __call__(
        self,
        model,
        source: torch.Tensor,
        sample: torch.Tensor,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **condition,
    ) -> torch.Tensor:
        """
        Compute the loss of each sample.

        Args:
            model (callable):
                `model(x_t, timestep, **condition).sample` is the velocity; `timestep` is from 0 to 1000.
            source (`torch.Tensor` of shape `(batch, channels, height, width)`):
                The state at t = 1.
            sample (`torch.Tensor` of the shape of `source`):
                Data, the state at t = 0.
            generator (`torch.Generator` or a list of one per sample, *optional*):
                Draws the times.
            condition:
                Further inputs of the model, such as `class_labels`.

        Returns:
            `torch.Tensor` of shape `(batch,)`, float32: Squared error, averaged over the elements of each sample.
        """
        t = sample_times(
            len(sample), self.time_sampling, self.logit_mean, self.logit_std, generator, device=sample.device
        )
        x_t = interpolate(source, sample, t)
        v = source - sample
        prediction = model(x_t, t * 1000, **condition).sample
        return (prediction.float() - v.float()).square().flatten(1).mean(dim=1)
