# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/toy.py`."""

import pytest
import torch
import toy
from PIL import Image
from small_studies import call
from tiny import randn, seeded

from diffusers_lowfreq.evaluation import curvature


@pytest.mark.parametrize("noise_ratio", [0.3, 1.0])
def test_toy_velocity_is_the_regression_of_the_pairs(noise_ratio):
    """E[(source - sample) g(x)] = E[v(x) g(x)] for any g, and one Euler path ends on the data set."""
    sample = toy.make_samples(12, seeded())
    velocity = toy.exact_velocity(sample, noise_ratio)
    x_1 = sample.repeat(4000, 1)
    source = toy.make_source(x_1, randn(*x_1.shape, seed=1, dtype=torch.float64), noise_ratio)
    for sigma in (0.25, 0.75, 1.0):
        x = (1 - sigma) * x_1 + sigma * source
        v = velocity(x, torch.full((len(x),), sigma))
        for g in (torch.ones_like(x), x, torch.sin(3 * x.flip(1))):
            difference = ((source - x_1 - v) * g).mean(0)
            assert (difference.abs() < 5 * ((source - x_1 - v) * g).std(0) / len(x) ** 0.5).all()
    end = toy.trajectories(velocity, source[:200])[-1]
    assert torch.cdist(end, sample).min(1).values.quantile(0.9) < 0.01
    assert torch.allclose(end.float(), curvature(velocity, source[:200]).sample.float(), atol=1e-4)


def test_toy_with_one_sample_has_straight_paths():
    sample = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    bend = curvature(toy.exact_velocity(sample, 0.5), randn(6, 2, dtype=torch.float64))
    assert bend.curvature.max() < 1e-20 and torch.allclose(bend.sample, sample.expand(6, 2))


def test_toy_counts_crossings():
    """Against the solution of the two linear equations of each couple of segments."""
    start, stop = randn(25, 2, seed=1, dtype=torch.float64), randn(25, 2, seed=2, dtype=torch.float64)
    number = 0
    for i in range(25):
        for j in range(i):
            places = torch.linalg.solve(torch.stack([stop[i] - start[i], start[j] - stop[j]], 1), start[j] - start[i])
            number += bool(((places > 0) & (places < 1)).all())
    assert toy.num_crossings(start, stop) == number > 20


def test_toy_script_draws_fewer_crossings_and_less_curvature(workplace, capsys):
    call(toy, output="a/toy.png", num_samples=60, num_drawn=20)
    lines = [line.split("crossings ")[1] for line in capsys.readouterr().out.splitlines() if "crossings" in line]
    plain, ours = ([float(part.split()[-1]) for part in line.split(",")] for line in lines)
    assert plain[0] > ours[0] and plain[1] < ours[1] <= 1  # crossings, and what optimal transport would cost
    assert plain[2] > ours[2] and plain[4] == pytest.approx(plain[2] / plain[3], rel=2e-3)
    assert Image.open(workplace / "a/toy.png").size[0] > 800
    for name, value in (("noise_ratio", 0.0), ("num_drawn", 61)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            call(toy, **{"output": "b/toy.png", "num_samples": 60, name: value})
    assert not (workplace / "b").exists()
