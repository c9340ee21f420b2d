#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Study "coupling": what share of samples keeps its own source in an exact assignment, and where that breaks.

    python benchmarks/coupling.py --data cifar10/train.parquet --output benchmarks/results/coupling-pixels.json
    python benchmarks/coupling.py --data cifar10/train.parquet --vae checkpoints/cifar10-32 \
        --output benchmarks/results/coupling-latents.json

It is measured against the noise ratio, the factor and the number of pairs, for the four projections (`pca` is fitted to the
samples) and, as controls, for random masks of pixels and of patches, which are orthogonal projections too. After an interruption
run the command again: nothing is done twice.
"""

import argparse
import os
import time
from itertools import product

import torch
from shared.environment import environment
from shared.figures import add_grid, style
from shared.formats import listing, markdown, measured_by, spread
from shared.results import earlier, write
from tqdm.auto import tqdm

from diffusers_lowfreq.autoencoding import encode_images, load_autoencoder
from diffusers_lowfreq.evaluation import coupling_check
from diffusers_lowfreq.projections import PROJECTIONS, LowFrequencyProjection, fit_projection_basis
from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images


MASKS = {"pixel mask": 1, "patch mask": None}  # sides of the patches that are kept or dropped; None: the factor
KEYS = ("seed", "num_pairs", "operator", "factor", "noise_ratio")  # of a row, what it was measured at


def project(sample: torch.Tensor, name: str, factor: int, generator: torch.Generator) -> torch.Tensor:
    """Return `T(x)`: the low frequencies, or a random share `1 / factor^2` of the places, one mask for all samples."""
    if name == "pca":
        return LowFrequencyProjection(name, factor, fit_projection_basis(sample.split(1000), factor))(sample)
    if name not in MASKS:
        return LowFrequencyProjection(name, factor)(sample)
    side = MASKS[name] or factor
    height, width = (n // side for n in sample.shape[-2:])
    kept = torch.randperm(height * width, generator=generator)[: height * width // factor**2]
    mask = torch.zeros(height * width).index_fill(0, kept, 1.0).view(height, width)
    return sample * mask.repeat_interleave(side, 0).repeat_interleave(side, 1)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--vae", help="a pipeline whose autoencoder makes latents; none: pixels in [-1, 1]")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--cache_dir", default="out/coupling-cache")
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_pairs", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--factor", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--noise_ratio", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--operators", nargs="+", default=[*PROJECTIONS, "pca", *MASKS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return parser.parse_args(argv)


def load_samples(cache: LatentCache, vae, seed: int, number: int) -> torch.Tensor:
    """Draw images of a cache of pixels, and encode them."""
    order = torch.randperm(len(cache), generator=keyed_generator(seed, "pairs"))[:number].tolist()
    chunks = [order[i : i + 250] for i in range(0, number, 250)]
    return torch.cat(
        [encode_images(vae, cache.__getitems__([(i, False) for i in chunk])["sample"]) for chunk in chunks]
    )


def measure(sample: torch.Tensor, seed: int, name: str, factor: int, noise_ratio: float) -> dict:
    """Measure what share of the samples keeps its own source in an exact assignment."""
    started = time.monotonic()
    noise = torch.randn(sample.shape, generator=keyed_generator(seed, "noise"))
    low = project(sample, name, factor, keyed_generator(seed, "mask"))
    check = coupling_check((1 - noise_ratio) * low + noise_ratio * noise, sample)
    figures = {"identity_kept": check.identity_fraction, "cost_ratio": check.cost_ratio}
    return figures | {"seconds": round(time.monotonic() - started, 2)}


@torch.no_grad()
def main(argv=None):
    args = parse_args(argv)
    cache = LatentCache.build(load_images(train_data_dir=args.data, resolution=args.resolution), None, args.cache_dir)
    if max(args.num_pairs) > len(cache):
        raise ValueError(f"`num_pairs` must be at most the number of images, {len(cache)}, got {max(args.num_pairs)}.")
    vae = load_autoencoder(args.vae, "vae" if args.vae else None)
    space = f"latents of {os.path.basename(args.vae.rstrip('/'))}" if args.vae else "pixels in [-1, 1]"
    header = {"script": "coupling", "study": "coupling", "space": space} | environment()
    result = earlier(args.output, header, ("space",)) or header | {"rows": []}
    done = {tuple(row[name] for name in KEYS) for row in result["rows"]}
    cells = list(product(args.seeds, args.num_pairs, args.operators, args.factor, args.noise_ratio))
    samples = {}
    for cell in tqdm(cells, desc="coupling"):
        if cell in done:
            continue
        seed, num_pairs, *rest = cell
        if (seed, num_pairs) not in samples:
            samples = {(seed, num_pairs): load_samples(cache, vae, seed, num_pairs)}
        result["rows"].append(dict(zip(KEYS, cell)) | measure(samples[seed, num_pairs], seed, *rest))
        write(result, args.output)
    print(f"wrote {args.output}")


# ------------------------------------------------------------------------------------------------ table and figure


def cells_of(result: dict) -> dict[tuple, dict[float, list[float]]]:
    """Gather the identity kept, in percent: `{(pairs, operator, factor): {noise ratio: [one for each seed]}}`."""
    cells = {}
    for row in result["rows"]:
        cell = cells.setdefault((row["num_pairs"], row["operator"], row["factor"]), {})
        cell.setdefault(row["noise_ratio"], []).append(100 * row["identity_kept"])
    operators = list(dict.fromkeys(operator for _, operator, _ in cells))
    return dict(sorted(cells.items(), key=lambda item: (item[0][0], operators.index(item[0][1]), item[0][2])))


def table(result: dict) -> str:
    """Write the share of pairs that stay together, for each operator, factor and number of pairs."""
    cells = cells_of(result)
    ratios = sorted({ratio for cell in cells.values() for ratio in cell})
    seeds = {}
    for row in result["rows"]:
        seeds.setdefault(row["num_pairs"], set()).add(row["seed"])
    counts = "; ".join(f"{pairs:,} pairs: {listing(s, 'seed')}" for pairs, s in sorted(seeds.items()))
    text = (
        f"Share of pairs (%) that an exact assignment between sources and samples leaves together, in {result['space']}, "
        f"by noise ratio α: means ± half the range between seeds ({counts}). The masks are controls: orthogonal projections "
        f"that are not of low frequency. {measured_by('coupling', result)}"
    )
    lines = [
        [f"{pairs:,}", operator, factor, *(spread(cell[ratio], 2) if ratio in cell else "-" for ratio in ratios)]
        for (pairs, operator, factor), cell in cells.items()
    ]
    header = ["pairs", "operator", "factor", *(f"α = {ratio:g}" for ratio in ratios)]
    return f"{text}\n\n{markdown(header, lines)}"


def figures(result: dict, metric: str) -> dict:
    """Draw the identity kept against the noise ratio: a panel for each factor and number of pairs."""
    from matplotlib.figure import Figure

    cells = cells_of(result)
    pairs, factors = (sorted({key[i] for key in cells}) for i in (0, 2))
    operators = list(dict.fromkeys(operator for _, operator, _ in cells))
    figure = Figure(figsize=(1.2 + 3.1 * len(factors), 1.1 + 2.5 * len(pairs)), layout="constrained")
    panels = figure.subplots(len(pairs), len(factors), squeeze=False, sharex=True, sharey=True)
    for (count, operator, factor), cell in cells.items():
        axes = panels[pairs.index(count)][factors.index(factor)]
        ratios = sorted(cell)
        means = [sum(cell[r]) / len(cell[r]) for r in ratios]
        bars = [[m - min(cell[r]) for r, m in zip(ratios, means)], [max(cell[r]) - m for r, m in zip(ratios, means)]]
        line = {"linestyle": "--" if operator.endswith("mask") else "-", "linewidth": 1.4, "markersize": 5}
        axes.errorbar(ratios, means, bars, capsize=2, label=operator, **style(operators.index(operator)), **line)
    for i, row in enumerate(panels):
        for j, axes in enumerate(row):
            axes.set_title(f"factor {factors[j]}, {pairs[i]:,} pairs", fontsize=10)
            add_grid(axes)
            axes.set_ylim(-4, 104)
            axes.set(xlabel="noise ratio α", ylabel="identity kept, %")
            axes.tick_params(labelbottom=True, labelleft=True)
            axes.set_visible(axes.has_data())  # not every number of pairs is measured at every factor
    shown = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    handles = [shown[operator] for operator in operators]
    figure.legend(handles, operators, loc="outside lower center", ncols=len(operators), frameon=False)
    figure.suptitle(f"Pairs that an exact assignment leaves together, {result['space']}", fontsize=11)
    return {"": figure}


if __name__ == "__main__":
    main()
