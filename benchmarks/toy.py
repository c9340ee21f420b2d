#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A toy in two dimensions: pairs that cross bend the trajectories; pairs of points with their own coarse version hardly do.

    python benchmarks/toy.py --output docs/figures/toy.png

Nothing is trained. For a finite data set the field that flow matching learns, the mean velocity of all pairs that pass through
a point, has a closed form. Points lie on a curve; the coarse version of a point is its first coordinate, which holds 86 % of the
energy, as factor 4 does of photographs. Two dimensions are few: at `--noise_ratio 0.5` half as many pairs cross as from a
Gaussian, and the numbers in the picture are those of this toy, no evidence about images.
"""

import argparse

import torch
from shared.figures import write_figure

from diffusers_lowfreq.evaluation import coupling_check, curvature


ORANGE, BLUE, BLACK = "#D55E00", "#0072B2", "#000000"  # of Okabe and Ito


def make_samples(number: int, generator: torch.Generator) -> torch.Tensor:
    """Points near a wave, `(number, 2)`, with a variance of 2 in all, 86 % of it along the first axis."""
    x = torch.linspace(-1.7, 1.7, number, dtype=torch.float64)
    y = 1.3 * torch.sin(2.2 * x) + 0.12 * torch.randn(number, generator=generator, dtype=torch.float64)
    sample = torch.stack([x, y], 1)
    return (sample - sample.mean(0)) / sample.std(0) * torch.tensor([1.72, 0.28], dtype=torch.float64).sqrt()


def make_source(sample: torch.Tensor, noise: torch.Tensor, noise_ratio: float) -> torch.Tensor:
    """`(1 - noise_ratio) * T(x) + noise_ratio * noise`, with `T` the projection on the first axis."""
    return (1 - noise_ratio) * sample * sample.new_tensor([1.0, 0.0]) + noise_ratio * noise


def exact_velocity(sample: torch.Tensor, noise_ratio: float):
    """
    The field that flow matching learns from this data set: `E[source - sample | x_sigma = x] = (x - E[sample | x]) / sigma`.

    Given its sample, the state at `sigma` is Gaussian, with the mean `(1 - sigma) x + sigma (1 - noise_ratio) T(x)` and
    the standard deviation `sigma * noise_ratio`; so the samples have softmax weights.
    """

    def velocity(x, sigma):
        level = sigma.to(x)[:, None]
        mean = (1 - level[..., None]) * sample + level[..., None] * make_source(sample, 0 * sample, noise_ratio)
        squared = (x[:, None] - mean).square().sum(-1)
        weights = torch.softmax(-squared / (2 * (level * noise_ratio) ** 2), 1)
        return (x - weights @ sample) / level

    return velocity


def trajectories(velocity, source: torch.Tensor, num_steps: int = 128) -> torch.Tensor:
    """States of equal Euler steps from `sigma = 1` to 0, `(num_steps + 1, number, 2)`."""
    states = [source]
    for i in range(num_steps):
        sigma = torch.full((len(source),), 1 - i / num_steps)
        states.append(states[-1] - velocity(states[-1], sigma) / num_steps)
    return torch.stack(states)


def num_crossings(start: torch.Tensor, stop: torch.Tensor) -> int:
    """Count the pairs of segments that cut each other."""

    def side(a, b, c):  # which side of the line through a and b each c is on
        return ((b[0] - a[0]) * (c[:, 1] - a[1]) - (b[1] - a[1]) * (c[:, 0] - a[0])).sign()

    def apart(first, second):  # [i, j]: the ends of segment j lie on different sides of segment i
        return torch.stack([side(a, b, first) != side(a, b, second) for a, b in zip(start, stop)])

    cut = apart(start, stop)
    return int((cut & cut.T).triu(1).sum())


def draw_column(column, sample: torch.Tensor, noise: torch.Tensor, drawn: torch.Tensor, noise_ratio: float, name: str):
    """Draw the pairs of a source, and below them the trajectories; print and write above them how they cross and bend."""
    top, bottom = column
    source = make_source(sample, noise, noise_ratio)
    cost = coupling_check(source, sample).cost_ratio
    velocity = exact_velocity(sample, noise_ratio)
    bend = curvature(velocity, source)
    raw, length = bend.curvature.mean().item(), bend.squared_path_length.mean().item()
    start, stop = source[drawn], sample[drawn]
    path = trajectories(velocity, start)
    crossings = num_crossings(start, stop)
    for a, b in zip(start, stop):
        top.plot(*zip(a.tolist(), b.tolist()), color="0.55", linewidth=0.8, zorder=1)
    for i in range(len(drawn)):
        bottom.plot(path[:, i, 0], path[:, i, 1], color="0.55", linewidth=0.8, zorder=1)
    for axes, end in ((top, stop), (bottom, path[-1])):
        axes.plot(sample[:, 0], sample[:, 1], linestyle="", marker=".", markersize=2, color="0.8", zorder=0)
        axes.plot(start[:, 0], start[:, 1], linestyle="", marker="o", markersize=4, color=ORANGE, zorder=2)
        axes.plot(end[:, 0], end[:, 1], linestyle="", marker="x", markersize=4.5, color=BLUE, zorder=2)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=8)
    total = len(drawn) * (len(drawn) - 1) // 2
    top.set_title(
        f"{name}\n{crossings} of {total:,} couples of pairs cross; optimal transport would cost {cost:.0%}", fontsize=9
    )
    bottom.set_title(
        f"trajectories of the exact field\ncurvature {raw:.3f}, path² {length:.3f}, ratio {raw / length:.3f}",
        fontsize=10,
    )
    print(f"{name}: crossings {crossings}, cost ratio {cost:.3f}, curvature {raw:.4f}, path^2 {length:.4f}, ratio {raw / length:.4f}")  # fmt: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--noise_ratio", type=float, default=0.1, help="of the low-frequency source, above 0")
    parser.add_argument("--num_samples", type=int, default=200)
    parser.add_argument("--num_drawn", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not 0 < args.noise_ratio <= 1:
        raise ValueError(f"`noise_ratio` must be above 0 and at most 1, got {args.noise_ratio}.")
    if not 2 <= args.num_drawn <= args.num_samples:
        raise ValueError(f"`num_drawn` must be from 2 to `num_samples`, {args.num_samples}, got {args.num_drawn}.")
    return args


def main(argv=None):
    args = parse_args(argv)

    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    generator = torch.Generator().manual_seed(args.seed)
    sample = make_samples(args.num_samples, generator)
    noise = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
    drawn = torch.randperm(args.num_samples, generator=generator)[: args.num_drawn]
    figure = Figure(figsize=(10, 8), layout="constrained")
    columns = figure.subplots(2, 2, sharex=True, sharey=True).T
    names = {1.0: "Gaussian source, independent pairs"}
    names[args.noise_ratio] = f"source: own coarse version, α = {args.noise_ratio:g}"
    for column, (noise_ratio, name) in zip(columns, names.items()):
        draw_column(column, sample, noise, drawn, noise_ratio, name)
    handles = [
        Line2D([], [], linestyle="", marker="o", color=ORANGE, label="source"),
        Line2D([], [], linestyle="", marker="x", color=BLUE, label="data"),
        Line2D([], [], linestyle="", marker=".", color="0.7", label="the whole data set"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    write_figure(figure, args.output)


if __name__ == "__main__":
    main()
