#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Study "coupling": what share of samples keeps its own source in an exact assignment, and where that breaks.

    python benchmarks/coupling.py --data cifar10/train.parquet --output benchmarks/results/coupling-pixels.json
    python benchmarks/coupling.py --data cifar10/train.parquet --vae checkpoints/cifar10-32 \
        --output benchmarks/results/coupling-latents.json

Against the noise ratio, the factor and the number of pairs, for the four projections (`pca` is fitted to the samples) and, as
controls, for random masks of pixels and of patches, which are orthogonal projections too. What is done is not done again after an interruption.
"""

import argparse
import json
import os
import time
from itertools import product

import torch
from tqdm.auto import tqdm

from diffusers_lowfreq.autoencoding import encode_images, load_autoencoder
from diffusers_lowfreq.evaluation import coupling_check
from diffusers_lowfreq.projections import PROJECTIONS, LowFrequencyProjection, fit_projection_basis
from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images, machine_kind


MASKS = {"pixel mask": 1, "patch mask": None}  # sides of the patches that are kept or dropped; None: the factor


def project(sample: torch.Tensor, name: str, factor: int, generator: torch.Generator) -> torch.Tensor:
    """`T(x)`: low frequencies, or a random share `1 / factor^2` of the places, one mask for all samples."""
    if name == "pca":
        return LowFrequencyProjection(name, factor, fit_projection_basis(sample.split(1000), factor))(sample)
    if name not in MASKS:
        return LowFrequencyProjection(name, factor)(sample)
    side = MASKS[name] or factor
    height, width = (n // side for n in sample.shape[-2:])
    kept = torch.randperm(height * width, generator=generator)[: height * width // factor**2]
    mask = torch.zeros(height * width).index_fill(0, kept, 1.0).view(height, width)
    return sample * mask.repeat_interleave(side, 0).repeat_interleave(side, 1)


@torch.no_grad()
def main():
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
    args = parser.parse_args()

    cache = LatentCache.build(load_images(train_data_dir=args.data, resolution=args.resolution), None, args.cache_dir)
    if max(args.num_pairs) > len(cache):
        raise ValueError(f"`num_pairs` must be at most the number of images, {len(cache)}, got {max(args.num_pairs)}.")
    vae = load_autoencoder(args.vae, "vae") if args.vae else None
    space = f"latents of {os.path.basename(args.vae.rstrip('/'))}" if vae is not None else "pixels in [-1, 1]"
    result = {"study": "coupling", "space": space, "machine": machine_kind(), "torch": torch.__version__, "rows": []}
    if os.path.exists(args.output):
        with open(args.output, encoding="utf-8") as file:
            result = json.load(file)
        if result["space"] != space:
            raise ValueError(f"`output` {args.output!r} holds results of {result['space']}; nothing is overwritten.")
    keys = ("seed", "num_pairs", "operator", "factor", "noise_ratio")
    done = {tuple(row[k] for k in keys) for row in result["rows"]}
    cells = list(product(args.seeds, args.num_pairs, args.operators, args.factor, args.noise_ratio))
    samples = {}
    for cell in tqdm(cells, desc="coupling"):
        seed, num_pairs, name, factor, noise_ratio = cell
        if cell in done:
            continue
        if (seed, num_pairs) not in samples:
            order = torch.randperm(len(cache), generator=keyed_generator(seed, "pairs"))[:num_pairs].tolist()
            batches = [order[i : i + 250] for i in range(0, num_pairs, 250)]
            images = (cache.__getitems__([(i, False) for i in batch])["sample"] for batch in batches)
            encoded = [encode_images(vae, x) if vae is not None else x for x in images]
            samples = {(seed, num_pairs): torch.cat(encoded)}
        sample = samples[seed, num_pairs]
        started = time.monotonic()
        noise = torch.randn(sample.shape, generator=keyed_generator(seed, "noise"))
        low = project(sample, name, factor, keyed_generator(seed, "mask"))
        check = coupling_check((1 - noise_ratio) * low + noise_ratio * noise, sample)
        row = dict(zip(keys, cell)) | {"identity_kept": check.identity_fraction, "cost_ratio": check.cost_ratio}
        result["rows"].append(row | {"seconds": round(time.monotonic() - started, 2)})
        os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
        with open(args.output + ".new", "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
        os.replace(args.output + ".new", args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
