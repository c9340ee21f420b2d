# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Curvature of learned trajectories."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from diffusers.utils import BaseOutput

from ..guards.tensors import check_finite, check_shape
from ..guards.values import check_count


@dataclass
class CurvatureOutput(BaseOutput):
    """
    Output of [`curvature`].

    For a set of samples, report `curvature.mean()` (in squared units of the sample) together with
    `curvature.mean() / squared_path_length.mean()` (independent of scale). The mean of `normalized_curvature` is a different
    number, dominated by the shortest paths.

    Args:
        curvature (`torch.Tensor` of shape `(batch,)`, float64):
            Mean squared deviation of the velocity from the straight line between the end points, per element.
        normalized_curvature (`torch.Tensor` of shape `(batch,)`, float64):
            `curvature / squared_path_length`; NaN for a path of length zero.
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
    Measure how much each trajectory of a velocity field bends, along equal Euler steps from `sigma = 1` to `0`.

    The curvature is the mean over steps and elements of `((x_i - x_{i+1}) / dt - (x_first - x_last))^2` (Lee et al. 2023,
    arXiv 2301.12003). The displacement of a step divided by `dt` is the velocity there, and the whole displacement is the
    mean velocity, so this is the variance of the velocity along the path. It is accumulated in one pass (Welford 1962), in
    float64, with memory for two batches whatever the number of steps.

    Args:
        velocity (`Callable`):
            `velocity(x, sigma)`, guided or not, estimates `source - sample` at `x`. `x` has the shape, dtype and device of
            the source; `sigma` is a float32 tensor of shape `(batch,)`, 1 at the source.
        source (`torch.Tensor` of shape `(batch, ...)`):
            The start points of the trajectories.
        num_steps (`int`, defaults to `128`):
            Number of Euler steps, with one call of the velocity each. Fewer steps miss some of the curvature.
        progress (`Callable`, *optional*):
            Wraps the iterable of the steps, as `tqdm` does.

    Returns:
        [`CurvatureOutput`]: One value per sample, and the end points.

    Raises:
        ValueError: If the source is not a batch of floating point samples, `num_steps` is not positive, the velocity does not
            have the shape of the source, or a value is not finite.
    """
    check_shape("source", source, "batch", "size", ..., is_floating=True)
    check_count("num_steps", num_steps)
    check_finite("source", source)
    device = "cpu" if source.device.type == "mps" else source.device  # MPS has no float64
    start = source.to(device, torch.float64)
    mean = torch.zeros_like(start)
    deviation = start.new_zeros(len(start))
    steps = range(num_steps)
    for i in steps if progress is None else progress(steps):
        x = (start - i / num_steps * mean).to(source)
        v = velocity(x, torch.full((len(source),), 1 - i / num_steps, device=source.device, dtype=torch.float32))
        if not isinstance(v, torch.Tensor) or v.shape != source.shape:
            got = tuple(v.shape) if isinstance(v, torch.Tensor) else type(v).__name__
            raise ValueError(f"`velocity` must return a tensor of shape {tuple(source.shape)}, got {got}.")
        difference = v.to(start) - mean
        mean += difference / (i + 1)
        deviation += i / (i + 1) * difference.square().flatten(1).mean(1)
    check_finite("velocity", mean)
    squared_path_length = mean.square().flatten(1).mean(1)
    variance = deviation / num_steps
    return CurvatureOutput(variance, variance / squared_path_length, squared_path_length, (start - mean).to(source))
