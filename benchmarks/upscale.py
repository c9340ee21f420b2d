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
import json
import os
import sys

import torch
import torch.nn.functional as F
from evaluate import Extractor, Reference, environment
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFreqUpscalePipeline
from diffusers_lowfreq.autoencoding import decode_latents, encode_images
from diffusers_lowfreq.evaluation import FeatureStatistics
from diffusers_lowfreq.training import degrade, keyed_generator


sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples"))
from demo import picture  # noqa: E402


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--lora", required=True, help="a folder of `train_lowfreq.py --rank --degraded_share`")
    parser.add_argument("--grader", required=True, nargs="+", help="folders of `train_features.py`")
    parser.add_argument("--data", required=True, help="a folder of images, or parquet files")
    parser.add_argument("--split", required=True, help="what results call these images")
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
    """Degrade images in [0, 1] as the setting says: `none`, or kind and factor as in `thumbnail-4`."""
    if degradation == "none":
        return images
    kind, factor = degradation.split("-")
    return degrade((images * 255).round().to(torch.uint8), kind, float(factor)).float() / 255


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return -10 * (a - b).square().flatten(1).mean(1).clamp(min=1e-10).log10()


class Upscaler:
    """The flow by itself and with the LoRA, told the labels."""

    def __init__(self, args):
        self.pipe = LowFreqUpscalePipeline.from_pretrained(args.pipeline).to(args.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.load_lora_weights(args.lora)
        self.args = args

    def __call__(self, method: str, images: torch.Tensor, labels: torch.Tensor, generators, **options):
        self.pipe.enable_lora() if method == "LoRA" else self.pipe.disable_lora()
        options = {"guidance_scale": self.args.guidance_scale, "output_type": "pt"} | options
        return self.pipe(images, labels, generator=generators, **options)


@torch.no_grad()
def grade(upscaler: Upscaler, reference: Reference, args) -> list[dict]:
    """
    A row for each degradation and method.

    Fidelity is the PSNR between thumbnails, by the total factor of the coarse latent, of the result and of the image.
    """
    pipe = upscaler.pipe
    small = [side // (pipe.scheduler.config.factor * pipe.vae_scale_factor) for side in pipe._default_size(None, None)]
    thumbnail = lambda x: F.interpolate(x, small, mode="bicubic", antialias=True)  # noqa: E731
    settings = [(d, m, None, None) for d in ("none", *args.degradation) for m in ("image", "autoencoder")]
    settings += [
        (degradation, method, strength, steps)
        for degradation in ("none", *args.degradation)
        for strength in args.strength
        for steps in args.steps
        for method in ("flow", "LoRA")
    ]
    batches = [(s, min(s + args.batch_size, args.num_images)) for s in range(0, args.num_images, args.batch_size)]
    rows = []
    for degradation, method, strength, steps in tqdm(settings, desc="settings"):
        statistics = [FeatureStatistics(e, e.name, max_features=2000) for e in reference.extractors]
        classes, fidelity, similarity = [], [], []
        for start, stop in batches:
            images, labels = reference.batch(start, stop)
            made = degraded(images, degradation)
            if method == "autoencoder" and pipe.vae is not None:
                made = (decode_latents(pipe.vae, encode_images(pipe.vae, made * 2 - 1)).clamp(-1, 1) + 1) / 2
            elif strength is not None:
                generators = [keyed_generator(args.seed, i) for i in range(start, stop)]
                options = {"strength": strength, "num_inference_steps": steps}
                made = upscaler(method, made, labels, generators, **options).images
            for gathered in statistics:
                gathered.update(made)
            classes.append(labels)
            fidelity.append(psnr(thumbnail(made), thumbnail(images)))
            similarity.append(psnr(made, images))
        row = {"degradation": degradation, "method": method, "strength": strength, "steps": steps}
        row |= reference.compare(statistics)
        row["class_named"] = [extractor.named(torch.cat(classes)) for extractor in reference.extractors][0]
        row |= {"fidelity_db": torch.cat(fidelity).mean().item(), "psnr_db": torch.cat(similarity).mean().item()}
        rows.append(row)
    return rows


@torch.no_grad()
def draw(upscaler: Upscaler, reference: Reference, args, degradation: str = "thumbnail-4", rows: int = 8):
    """Before and after: the image and its degraded copy, their coarse latents, what flow and LoRA make of them."""
    images, labels = reference.batch(0, rows)
    inputs = {"true": images, "degraded": degraded(images, degradation)}
    to_pil = lambda x: upscaler.pipe.image_processor.numpy_to_pil(x.cpu().permute(0, 2, 3, 1).numpy())  # noqa: E731
    columns = {"image": to_pil(images), degradation: to_pil(inputs["degraded"])}
    made = {}

    def add(title, method, kind, strength, *key):
        generators = [keyed_generator(args.seed, *key, i) for i in range(rows)]
        options = {"strength": strength, "num_inference_steps": args.steps[-1], "output_prior_images": True}
        output = upscaler(method, inputs[kind], labels, generators, **options)
        columns.setdefault(f"coarse, {kind}", to_pil(output.prior_images))
        made[title] = to_pil(output.images)

    for method in ("flow", "LoRA"):
        for kind in inputs:
            add(f"{method}, {kind}", method, kind, args.strength[0])
    for k in (2, 3):
        add(f"variation {k}", "LoRA", "degraded", args.strength[0], "variation", k)
    for strength in args.strength[1:]:
        add(f"strength {strength:g}", "LoRA", "degraded", strength)
    columns |= made
    names = {number: name for name, number in upscaler.pipe.labels.items()}
    return picture(columns, [names[label] for label in labels.tolist()], cell=112)


def main(argv=None):
    args = parse_args(argv)
    if args.output is not None and os.path.exists(args.output):
        raise ValueError(f"`output` must not exist, nothing is overwritten: {args.output!r} does.")
    upscaler = Upscaler(args)
    extractors = [Extractor(path).to(args.device) for path in args.grader]
    resolution = upscaler.pipe._default_size(None, None)[0]
    reference = Reference(args.data, args.split, resolution, extractors, args.cache_dir, args.num_images)
    if args.figure is not None:
        os.makedirs(os.path.dirname(os.path.abspath(args.figure)), exist_ok=True)
        draw(upscaler, reference, args).save(args.figure)
        print(f"wrote {args.figure}")
    if args.output is not None:
        names = {k: os.path.basename(getattr(args, k).rstrip("/")) for k in ("pipeline", "lora")}
        result = names | {"guidance_scale": args.guidance_scale} | reference.facts | environment(args)
        result["upscaling"] = grade(upscaler, reference, args)
        os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
