#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure how far the coarse latent of a degraded image is from that of the image itself, `|D E(x) - D E(degraded x)|`.

    python benchmarks/degraded_latents.py --pipeline checkpoints/cifar10-32 --data cifar10/test.parquet --split test \
        --output benchmarks/results/degraded-latents.json

A linear encoder would commute with the degradation; beside each figure stands that of the pixels themselves, with a projection
to the same number of places.
"""

import argparse
import json
import os

import torch
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFrequencyProjection, LowFreqUpscalePipeline
from diffusers_lowfreq.autoencoding import encode_images
from diffusers_lowfreq.training import DEGRADATIONS, degrade, keyed_generator, load_images, machine_kind


@torch.no_grad()
def measure(spaces: dict, images: torch.Tensor, degradation: str, factor: float, batch_size: int) -> dict:
    """The distance in each space, over the length of `D E(x)` and over its length without the mean of each channel."""
    row = {"degradation": degradation, "factor": factor}
    for name, coarse in spaces.items():
        true, other = (
            torch.cat([coarse(b.float() / 127.5 - 1).double() for b in pixels.split(batch_size)])
            for pixels in (images, degrade(images, degradation, factor))
        )
        distance = (true - other).norm()
        row[name] = {
            "relative_distance": (distance / true.norm()).item(),
            "centred_distance": (distance / (true - true.mean((0, 2, 3), keepdim=True)).norm()).item(),
        }
    return row


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--data", required=True, help="a folder of images, or parquet files")
    parser.add_argument("--split", required=True, help="what results call these images")
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_images", type=int, default=2000, help="the first of a fixed random order")
    parser.add_argument("--factor", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--batch_size", type=int, default=100)
    args = parser.parse_args(argv)

    pipe = LowFreqUpscalePipeline.from_pretrained(args.pipeline)
    projection, height = pipe.scheduler.projection, pipe._default_size(None, None)[0]
    data = load_images(train_data_dir=args.data, resolution=height)
    order = torch.randperm(len(data), generator=keyed_generator(0, "test")).tolist()[: args.num_images]
    images = torch.stack([image for _, image in data.decode_all(order)])
    in_pixels = LowFrequencyProjection(projection.projection, projection.factor * pipe.vae_scale_factor)
    spaces = {
        "latents": lambda x: projection.downsample(encode_images(pipe.vae, x)),
        "pixels": in_pixels.downsample,
    }
    settings = [(degradation, factor) for degradation in DEGRADATIONS for factor in args.factor]
    result = {
        "pipeline": os.path.basename(args.pipeline.rstrip("/")),
        "split": args.split,
        "num_images": len(images),
        "projection": projection.projection,
        "factor": projection.factor,
        "pixel_factor": in_pixels.factor,
        "machine": machine_kind(),
        "torch": torch.__version__,
        "degradations": [measure(spaces, images, *setting, args.batch_size) for setting in tqdm(settings)],
    }
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
