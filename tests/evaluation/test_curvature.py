# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Curvature against closed forms."""

import math

import pytest
import torch
from tiny import randn

from diffusers_lowfreq.evaluation import curvature


def test_constant_velocity_is_straight():
    """For any offset only the rounding of the mean remains, and the end point is `source - v`."""
    source, v = randn(4, 3, 8, 8), 1e4 * randn(4, 3, 8, 8, seed=1)
    output = curvature(lambda x, sigma: v, source, num_steps=7)
    assert (output.normalized_curvature < 1e-28).all()
    torch.testing.assert_close(output.squared_path_length, v.double().square().mean((1, 2, 3)))
    torch.testing.assert_close(output.sample, source - v)


@pytest.mark.parametrize("num_steps", [1, 2, 128])
def test_velocity_of_time_alone_shows_the_grid(num_steps):
    """`v = sigma` on the grid 1, 1 - 1/N, ..., 1/N has mean (N + 1) / 2N and variance (N^2 - 1) / 12 N^2."""
    times = []

    def velocity(x, sigma):
        assert sigma.dtype == torch.float32 and sigma.shape == (2,) and x.dtype == torch.float64
        times.append(sigma[1])
        return sigma.to(x).view(-1, 1, 1, 1).expand_as(x)

    output = curvature(velocity, randn(2, 3, 4, 4, dtype=torch.float64), num_steps)
    torch.testing.assert_close(torch.stack(times), torch.linspace(1, 1 / num_steps, num_steps))
    variance, mean = (num_steps**2 - 1) / (12 * num_steps**2), (num_steps + 1) / (2 * num_steps)
    torch.testing.assert_close(output.curvature, torch.full((2,), variance, dtype=torch.float64))
    torch.testing.assert_close(output.squared_path_length, torch.full((2,), mean**2, dtype=torch.float64))


def test_rotation_field():
    """Euler steps of `v = w J x` multiply by `1 - i w / N`: every figure is a geometric sum."""
    w, num_steps = 2.0, 16
    source = randn(5, 2, dtype=torch.float64)
    output = curvature(lambda x, sigma: w * torch.stack([-x[:, 1], x[:, 0]], 1), source, num_steps)
    a = (w / num_steps) ** 2
    square = source.square().mean(1)
    speed = square * w**2 * ((1 + a) ** num_steps - 1) / (num_steps * a)
    path = square * abs((1 - 1j * w / num_steps) ** num_steps - 1) ** 2
    torch.testing.assert_close(output.squared_path_length, path)
    torch.testing.assert_close(output.curvature, speed - path)
    torch.testing.assert_close(output.normalized_curvature, speed / path - 1)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_gaussian_data_with_the_exact_velocity(std):
    """From N(0, 1) to N(0, s^2) the path is `x sqrt((1 - sigma)^2 s^2 + sigma^2)`, whose curvature is `s (2 - pi / 2) x^2`."""

    def velocity(x, sigma):
        sigma = sigma.double()[:, None]
        return (sigma - (1 - sigma) * std**2) / ((1 - sigma) ** 2 * std**2 + sigma**2) * x

    source = randn(3, 4, dtype=torch.float64)
    output = curvature(velocity, source, num_steps=1024)
    expected = std * (2 - math.pi / 2) * source.square().mean(1)
    torch.testing.assert_close(output.curvature, expected, rtol=1e-2, atol=0)
    torch.testing.assert_close(output.sample, std * source, rtol=1e-2, atol=0)


def bent(x, sigma):
    return (3 * x.roll(1, 1)).tanh() * sigma.to(x).view(-1, 1, 1) + 10


def test_is_the_definition():
    """The running sum equals the mean of ((x_i - x_{i+1}) / dt - (x_first - x_last))^2 over stored points."""
    source, num_steps = randn(3, 4, 5, dtype=torch.float64), 9
    seen = []
    output = curvature(bent, source, num_steps, progress=lambda steps: (seen.append(i) or i for i in steps))
    assert seen == list(range(num_steps))
    points = [source]
    for i in range(num_steps):
        sigma = torch.full((3,), 1 - i / num_steps)
        points.append(points[-1] - bent(points[-1], sigma) / num_steps)
    terms = [((a - b) * num_steps - (source - points[-1])).square().mean((1, 2)) for a, b in zip(points, points[1:])]
    torch.testing.assert_close(output.curvature, torch.stack(terms).mean(0))
    torch.testing.assert_close(output.sample, points[-1])


def test_scale_cancels_in_the_normalized_figure_and_samples_are_independent():
    source = randn(4, 4, 5, dtype=torch.float64)
    one = curvature(bent, source, 8)
    scaled = curvature(lambda x, sigma: 3 * bent(x / 3, sigma), 3 * source, 8)
    torch.testing.assert_close(scaled.normalized_curvature, one.normalized_curvature)
    torch.testing.assert_close(scaled.curvature, 9 * one.curvature)
    alone = curvature(bent, source[2:3], 8)
    torch.testing.assert_close(alone.curvature, one.curvature[2:3])


def test_half_precision_samples_lose_nothing_to_the_sums():
    """The velocity gets bfloat16, but the path is summed in float64, so 1000 steps of 1e-3 add up to 1."""
    output = curvature(lambda x, sigma: torch.ones_like(x), torch.full((1, 4), 256.0).bfloat16(), 1000)
    assert output.squared_path_length.item() == 1 and output.sample.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "velocity, source, num_steps, message",
    [
        (lambda x, s: x[:, :1], torch.zeros(2, 3), 4, r"`velocity` must return a tensor of shape \(2, 3\), got \(2, 1\)"),
        (lambda x, s: (x,), torch.zeros(2, 3), 4, "`velocity` .* got tuple"),
        (lambda x, s: x / x, torch.tensor([[1.0], [0.0], [2.0]]), 4, "`velocity` .* 1 of 3 samples are not: 1"),
        (lambda x, s: x, torch.tensor([[1.0], [math.nan]]), 4, "`source` must be finite, but 1 of 2 samples are not: 1"),
        (lambda x, s: x, torch.zeros(2, 3), 0, "`num_steps` must be a positive integer, got 0"),
        (lambda x, s: x, torch.zeros(2, 3).long(), 4, "`source` must be a floating point tensor"),
        (lambda x, s: x, torch.zeros(2), 4, "`source` must be a floating point tensor"),
    ],
)  # fmt: skip
def test_bad_input(velocity, source, num_steps, message):
    with pytest.raises(ValueError, match=message):
        curvature(velocity, source, num_steps)
