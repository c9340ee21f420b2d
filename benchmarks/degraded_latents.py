#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure how far the coarse latent of a degraded image is from that of the image itself, `|D E(x) - D E(degraded x)|`.

    python benchmarks/degraded_latents.py --pipeline checkpoints/cifar10-32 --data cifar10/test.parquet --split test \
        --output benchmarks/results/degraded-latents.json

A linear encoder would commute with the degradation. Beside each figure stands that of the pixels, with a projection to the same
number of places.
"""

import argparse
import os

import torch
from shared.environment import environment
from shared.formats import markdown, measured_by
from shared.reference import image_size
from shared.results import write
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFrequencyProjection, LowFreqUpscalePipeline
from diffusers_lowfreq.autoencoding import encode_images
from diffusers_lowfreq.training import DEGRADATIONS, degrade, keyed_generator, load_images


@torch.no_grad()
def measure(spaces: dict, images: torch.Tensor, degradation: str, factor: float, batch_size: int) -> dict:
    """Measure the distance in each space, over the length of `D E(x)` and over its length without the mean of each channel."""
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


def table(result: dict) -> str:
    """Write the distance of each degradation, in latents and in pixels."""
    text = (
        f"Distance of the coarse latents of {result['num_images']:,} degraded {result['split']} images from those of the images "
        f"themselves, `|D E(x) - D E(degraded x)| / |D E(x)|`, with the autoencoder of `{result['pipeline']}` and its projection "
        f"(`{result['projection']}`, factor {result['factor']}); in brackets over the length without the mean of each channel. "
        f"In pixels: the same for `D` itself, by {result['pixel_factor']} to as many places: what a linear encoder would "
        f"leave. {measured_by('degraded_latents', result)}"
    )
    lines = []
    for row in result["degradations"]:
        cells = [
            f"{row[k]['relative_distance']:.1%} ({row[k]['centred_distance']:.1%})" for k in ("latents", "pixels")
        ]
        lines.append([f"{row['degradation']} by {row['factor']:g}", *cells])
    return f"{text}\n\n{markdown(['degradation', 'latents', 'pixels'], lines)}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--data", required=True, help="a folder of images, or parquet files")
    parser.add_argument("--split", required=True, help="the name of these images in the results")
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_images", type=int, default=2000, help="the first of a fixed random order")
    parser.add_argument("--factor", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--batch_size", type=int, default=100)
    args = parser.parse_args(argv)

    pipe = LowFreqUpscalePipeline.from_pretrained(args.pipeline)
    projection = pipe.scheduler.projection
    data = load_images(train_data_dir=args.data, resolution=image_size(pipe)[0])
    order = torch.randperm(len(data), generator=keyed_generator(0, "test")).tolist()[: args.num_images]
    images = torch.stack([image for _, image in data.decode_all(order)])
    in_pixels = LowFrequencyProjection(projection.projection, projection.factor * pipe.vae_scale_factor)
    spaces = {
        "latents": lambda x: projection.downsample(encode_images(pipe.vae, x)),
        "pixels": in_pixels.downsample,
    }
    settings = [(degradation, factor) for degradation in DEGRADATIONS for factor in args.factor]
    result = {"script": "degraded_latents", "pipeline": os.path.basename(args.pipeline.rstrip("/"))}
    result |= {"split": args.split, "num_images": len(images), "projection": projection.projection}
    result |= {"factor": projection.factor, "pixel_factor": in_pixels.factor} | environment()
    result["degradations"] = [measure(spaces, images, *setting, args.batch_size) for setting in tqdm(settings)]
    write(result, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
