#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Grade upscaling with a flow and with a LoRA of it that is trained on degraded coarse latents, and draw both.

    python benchmarks/upscale.py --pipeline checkpoints/cifar10-32 --lora checkpoints/cifar10-32-upscale \
        --grader checkpoints/graders/cifar10-32 --data cifar10/test.parquet --split test \
        --output benchmarks/results/upscale.json --figure docs/figures/upscale.png

The images that are degraded, the first of a fixed random order, are no part of what the results are compared with. Without
an `--output` it only draws.
"""

import argparse
import os
from itertools import product

import torch
import torch.nn.functional as F
from shared.environment import environment
from shared.example_scripts import picture
from shared.formats import markdown, measured_by
from shared.reference import Extractor, Reference, image_size, psnr, through_autoencoder
from shared.results import refuse_existing, write
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFreqUpscalePipeline
from diffusers_lowfreq.training import degrade, keyed_generator


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--lora", required=True, help="a folder of `train_lowfreq.py --rank --degraded_share`")
    parser.add_argument("--grader", required=True, nargs="+", help="folders of `train_features.py`")
    parser.add_argument("--data", required=True, help="a folder of images, or parquet files")
    parser.add_argument("--split", required=True, help="the name of these images in the results")
    parser.add_argument("--cache_dir", default="out/grader-cache")
    parser.add_argument("--output")
    parser.add_argument("--figure")
    parser.add_argument("--degradation", nargs="+", default=["thumbnail-2", "thumbnail-4", "thumbnail-8", "blur-4"])
    parser.add_argument("--strength", type=float, nargs="+", default=[0.25, 0.4])
    parser.add_argument("--steps", type=int, nargs="+", default=[4])
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def degraded(images: torch.Tensor, degradation: str) -> torch.Tensor:
    """Degrade images in [0, 1]; `degradation` is `none`, or its name and factor as in `thumbnail-4`."""
    if degradation == "none":
        return images
    name, factor = degradation.split("-")
    return degrade((images * 255).round().to(torch.uint8), name, float(factor)).float() / 255


class Upscaler:
    """The flow by itself and with the LoRA; both are given the labels."""

    def __init__(self, args):
        self.pipe = LowFreqUpscalePipeline.from_pretrained(args.pipeline).to(args.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.load_lora_weights(args.lora)
        self.args = args

    def __call__(self, method: str, images: torch.Tensor, labels: torch.Tensor, generators, **options):
        self.pipe.enable_lora() if method == "LoRA" else self.pipe.disable_lora()
        options = {"guidance_scale": self.args.guidance_scale, "output_type": "pt"} | options
        return self.pipe(images, labels, generator=generators, **options)


def list_settings(args) -> list[tuple]:
    """List the degradations, methods, strengths and steps: without a network, and with the flow and its LoRA."""
    degradations = ("none", *args.degradation)
    settings = [
        (degradation, method, None, None) for degradation in degradations for method in ("image", "autoencoder")
    ]
    for degradation, strength, steps in product(degradations, args.strength, args.steps):
        settings += [(degradation, method, strength, steps) for method in ("flow", "LoRA")]
    return settings


def grade_setting(upscaler: Upscaler, reference: Reference, args, degradation, method, strength, steps) -> dict:
    """
    Grade one method on images of one degradation.

    Fidelity is the PSNR between thumbnails of the result and of the image, by the total factor of the coarse latent.
    """
    pipe, fidelity, similarity = upscaler.pipe, [], []
    small = [side // pipe.scheduler.config.factor for side in pipe.transformer.sample_shape[1:]]

    def thumbnail(images):
        return F.interpolate(images, small, mode="bicubic", antialias=True)

    def make(images, labels, start, stop):
        made = degraded(images, degradation)
        if method == "autoencoder":
            made = through_autoencoder(pipe.vae, made)
        elif strength is not None:
            generators = [keyed_generator(args.seed, i) for i in range(start, stop)]
            options = {"strength": strength, "num_inference_steps": steps}
            made = upscaler(method, made, labels, generators, **options).images
        fidelity.append(psnr(thumbnail(made), thumbnail(images)))
        similarity.append(psnr(made, images))
        return made

    figures, named = reference.grade(make, args.num_images, args.batch_size)
    row = {"degradation": degradation, "method": method, "strength": strength, "steps": steps}
    row |= figures | {"class_named": named}
    return row | {"fidelity_db": torch.cat(fidelity).mean().item(), "psnr_db": torch.cat(similarity).mean().item()}


@torch.no_grad()
def grade(upscaler: Upscaler, reference: Reference, args) -> list[dict]:
    """Return a row for each degradation and method."""
    settings = tqdm(list_settings(args), desc="settings")
    return [grade_setting(upscaler, reference, args, *setting) for setting in settings]


@torch.no_grad()
def draw(upscaler: Upscaler, reference: Reference, args, degradation: str = "thumbnail-4", rows: int = 6):
    """Draw the image and its degraded copy, their coarse latents, and what flow and LoRA make of them."""
    images, labels = reference.batch(0, rows)
    inputs = {"true": images, "degraded": degraded(images, degradation)}
    to_pil = lambda x: upscaler.pipe.image_processor.numpy_to_pil(x.cpu().permute(0, 2, 3, 1).numpy())  # noqa: E731
    columns = {"image": to_pil(images), degradation: to_pil(inputs["degraded"])}
    made = {}

    def add(title, method, source, strength, *key):
        generators = [keyed_generator(args.seed, *key, i) for i in range(rows)]
        options = {"strength": strength, "num_inference_steps": args.steps[-1], "output_prior_images": True}
        output = upscaler(method, inputs[source], labels, generators, **options)
        columns.setdefault(f"coarse, {source}", to_pil(output.prior_images))
        made[title] = to_pil(output.images)

    for method in ("flow", "LoRA"):
        for source in inputs:
            add(f"{method}, {source}", method, source, args.strength[0])
    for k in (2, 3):
        add(f"variation {k}", "LoRA", "degraded", args.strength[0], "variation", k)
    for strength in args.strength[1:]:
        add(f"strength {strength:g}", "LoRA", "degraded", strength)
    columns |= made
    names = {number: name for name, number in upscaler.pipe.labels.items()}
    return picture(columns, [names[label] for label in labels.tolist()], cell=112)


def table(result: dict) -> str:
    """Write what flow and LoRA make of each degradation, beside no network and the autoencoder alone."""
    methods = {
        "image": "none: the picture as it is",
        "autoencoder": "autoencoder alone",
        "flow": f"flow of `{result['pipeline']}`",
        "LoRA": f"with `{result['lora']}`",
    }
    accuracy = result["graders"][result["extractor"]]["accuracy"]
    text = (
        f"{result['num_images']:,} {result['split']} images, degraded and scaled up again (seed {result['seed']}, with their labels, "
        f"guidance {result['guidance_scale']:g}). *Fidelity*: PSNR between thumbnails of the result and of the image, of the "
        "size of the coarse latent. *Class named*: how often the grader, a classifier that is right on "
        f"{accuracy:.1%} of the real images, names the class; the distances are on its features, to {result['num_reference']:,} "
        f"other {result['split']} images, and no FID. Not degraded, the coarse latent is the true one: an oracle. "
        f"{measured_by('upscale', result)}"
    )
    header = ["picture", "method", "α", "steps", "fidelity", "PSNR", "class named", "Fréchet distance", "kernel distance × 1000"]  # fmt: skip
    lines = []
    for row in result["upscaling"]:
        is_same = row["degradation"] == "none" and row["method"] == "image"
        title = "the image" if row["degradation"] == "none" else row["degradation"].replace("-", " by ")
        cells = [title, methods[row["method"]], "-" if row["strength"] is None else f"{row['strength']:g}"]
        cells += [row["steps"] or "-", *("-" if is_same else f"{row[k]:.1f} dB" for k in ("fidelity_db", "psnr_db"))]
        cells += [
            f"{row['class_named']:.1%}",
            f"{row['frechet_distance']:.1f}",
            f"{1000 * row['kernel_distance']:.1f}",
        ]
        lines.append(cells)
    return f"{text}\n\n{markdown(header, lines)}"


def main(argv=None):
    args = parse_args(argv)
    refuse_existing(args.output)
    upscaler = Upscaler(args)
    extractors = [Extractor(path).to(args.device) for path in args.grader]
    resolution = image_size(upscaler.pipe)[0]
    reference = Reference(args.data, args.split, resolution, extractors, args.cache_dir, args.num_images)
    if args.figure is not None:
        os.makedirs(os.path.dirname(os.path.abspath(args.figure)), exist_ok=True)
        draw(upscaler, reference, args).save(args.figure)
        print(f"wrote {args.figure}")
    if args.output is not None:
        names = {name: os.path.basename(getattr(args, name).rstrip("/")) for name in ("pipeline", "lora")}
        result = {"script": "upscale"} | names | {"guidance_scale": args.guidance_scale} | reference.facts
        result |= {"num_images": args.num_images, "seed": args.seed} | environment()
        result["upscaling"] = grade(upscaler, reference, args)
        write(result, args.output)
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
