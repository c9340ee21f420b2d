# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Curvature of learned trajectories."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from diffusers.utils import BaseOutput

from .distances import refuse_non_finite


@dataclass
class CurvatureOutput(BaseOutput):
    """
    Output of [`curvature`].

    The figure to report for a set of samples is `curvature.mean()` (raw, in squared units of the sample) beside
    `curvature.mean() / squared_path_length.mean()` (free of scale). The mean of `normalized_curvature` is another
    number, which the shortest paths dominate.

    Args:
        curvature (`torch.Tensor` of shape `(batch,)`, float64):
            Mean squared deviation of the velocity from the straight line between the end points, per element.
        normalized_curvature (`torch.Tensor` of shape `(batch,)`, float64):
            `curvature / squared_path_length`; NaN where a path has no length.
        squared_path_length (`torch.Tensor` of shape `(batch,)`, float64):
            Squared distance between the end points, per element.
        sample (`torch.Tensor` of the shape and type of the source):
            The end points, at `sigma = 0`.
    """

    curvature: torch.Tensor
    normalized_curvature: torch.Tensor
    squared_path_length: torch.Tensor
    sample: torch.Tensor


@torch.no_grad()
def curvature(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    source: torch.Tensor,
    num_steps: int = 128,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> CurvatureOutput:
    """
    Measure how far each trajectory of a velocity field bends, along equal Euler steps from `sigma = 1` to `0`.

    The mean over steps and elements of `((x_i - x_{i+1}) / dt - (x_first - x_last))^2` (Lee et al. 2023, arXiv
    2301.12003). A step's displacement over `dt` is the velocity there, and the whole displacement is the mean velocity,
    so this is the variance of the velocity along the path; it is accumulated as such (Welford 1962), in float64 and
    with memory for two samples, whatever the number of steps.

    Args:
        velocity (`Callable`):
            `velocity(x, sigma)`, guided or not, estimates `source - sample` at `x`, which has the shape, type and
            device of the source; `sigma` is a float32 tensor of shape `(batch,)`, 1 at the source.
        source (`torch.Tensor` of shape `(batch, ...)`):
            Where the trajectories start.
        num_steps (`int`, defaults to `128`):
            Euler steps, one call of the velocity each. Fewer see less of the curvature.
        progress (`Callable`, *optional*):
            Wraps the iterable of the steps, as `tqdm` does.

    Returns:
        [`CurvatureOutput`]: One value per sample, and the end points.

    Raises:
        ValueError: If the source is not a batch of floating point samples, there is no step, the velocity has another
            shape than the source, or values are not finite.
    """
    if source.ndim < 2 or len(source) < 1 or not source.is_floating_point():
        raise ValueError(f"`source` must be floating point (batch, ...), got {source.dtype} {tuple(source.shape)}.")
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    refuse_non_finite("source", source)
    device = "cpu" if source.device.type == "mps" else source.device  # MPS has no float64
    start = source.to(device, torch.float64)
    mean = torch.zeros_like(start)
    deviation = start.new_zeros(len(start))
    steps = range(num_steps)
    for i in steps if progress is None else progress(steps):
        x = (start - i / num_steps * mean).to(source)
        v = velocity(x, torch.full((len(source),), 1 - i / num_steps, device=source.device, dtype=torch.float32))
        if not isinstance(v, torch.Tensor) or v.shape != source.shape:
            came = tuple(v.shape) if isinstance(v, torch.Tensor) else type(v).__name__
            raise ValueError(f"`velocity` must return a tensor of shape {tuple(source.shape)}, got {came}.")
        difference = v.to(start) - mean
        mean += difference / (i + 1)
        deviation += i / (i + 1) * difference.square().flatten(1).mean(1)
    refuse_non_finite("velocity", mean)
    squared_path_length = mean.square().flatten(1).mean(1)
    raw = deviation / num_steps
    return CurvatureOutput(raw, raw / squared_path_length, squared_path_length, (start - mean).to(source))
