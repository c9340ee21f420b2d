#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Show what a low-frequency flow does: the coarse image of the prior, then 1, 2, 4 and 8 steps, a row for each class.

    python examples/demo.py --output out/demo.png

Next to them are the coarse image and the image of the one-step models distilled from it: one call of each network.
"""

import argparse
import os
import resource
import sys
import time

import torch
from PIL import Image, ImageDraw, ImageFont

from diffusers_lowfreq import LowFreqPipeline


STEPS = (1, 2, 4, 8)
SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "checkpoints", "cifar10-32")
ONE_STEP = f"{SHIPPED}-one-step"


def peak_memory_mib() -> float:
    """Return the peak memory of this process in MiB, or that of the accelerator if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def picture(columns: dict[str, list[Image.Image]], rows: list[str], cell: int = 80) -> Image.Image:
    """Draw columns of images next to each other, with their titles and the names of the rows."""
    font = ImageFont.load_default(size=14)
    margin, top, gap = 88, 26, 6
    width, height = margin + len(columns) * (cell + gap), top + len(rows) * (cell + gap)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for r, name in enumerate(rows):
        draw.text((margin - 8, top + r * (cell + gap) + cell / 2), name, fill="black", font=font, anchor="rm")
    for c, (title, images) in enumerate(columns.items()):
        x = margin + c * (cell + gap)
        draw.text((x + cell / 2, top / 2), title, fill="black", font=font, anchor="mm")
        for r, image in enumerate(images):
            canvas.paste(image.resize((cell, cell), Image.Resampling.BICUBIC), (x, top + r * (cell + gap)))
    return canvas


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pretrained_model_name_or_path", default=SHIPPED, help="a folder or a name on the Hub")
    parser.add_argument(
        "--one_step_model_name_or_path",
        help="models distilled from it; by default the shipped ones, for the shipped pipeline",
    )
    parser.add_argument("--output", default="out/demo.png")
    parser.add_argument("--class_labels", nargs="+", help="names or numbers; by default every class, at most ten")
    parser.add_argument("--prior_num_inference_steps", type=int, default=8)
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--prior_guidance_scale", type=float, default=4.0)
    parser.add_argument("--noise_ratio", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    pipe = LowFreqPipeline.from_pretrained(args.pretrained_model_name_or_path).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    names = args.class_labels or list(pipe.labels)[:10] or None
    labels = [int(name) if name.isdecimal() else name for name in names] if names else None
    count = len(labels) if labels else 6
    conditional = {"class_labels": labels} if labels else {"num_images_per_prompt": count}

    one_step = args.one_step_model_name_or_path
    if one_step is None and args.pretrained_model_name_or_path == SHIPPED:
        one_step = ONE_STEP
    guidance = {"guidance_scale": args.guidance_scale, "prior_guidance_scale": args.prior_guidance_scale}
    prior_steps = args.prior_num_inference_steps
    runs = [(f"{n} step{'s' * (n > 1)}", pipe, "coarse", n, prior_steps, guidance) for n in STEPS]
    if one_step is not None:
        student = LowFreqPipeline.from_pretrained(one_step).to(args.device)
        student.set_progress_bar_config(disable=True)
        runs.append(("distilled", student, "1 + 1:", 1, 1, {}))  # the guidance is folded in

    columns = {}
    print(f"{'':>10} {'prior steps':>12} {'steps':>6} {'effective NFE':>14} {'seconds per image':>18}")
    for title, model, coarse, num_inference_steps, prior_num_inference_steps, scales in runs:
        # One generator for each image: every column has the same noise, and the same coarse image of each prior model
        generators = [torch.Generator().manual_seed(args.seed * 10_000 + i) for i in range(count)]
        started = time.perf_counter()
        output = model(
            num_inference_steps=num_inference_steps,
            prior_num_inference_steps=prior_num_inference_steps,
            noise_ratio=args.noise_ratio,
            generator=generators,
            output_prior_images=True,
            **scales,
            **conditional,
        )
        seconds = (time.perf_counter() - started) / count
        print(
            f"{title:>10} {prior_num_inference_steps:>12} {num_inference_steps:>6} {model.effective_nfe:>14.2f} "
            f"{seconds:>18.3f}"
        )
        columns.setdefault(coarse, output.prior_images)
        columns[title] = output.images
    if one_step is not None:
        print("(distilled: one call of each network, and one of the prior for the picture of its coarse latent)")
    print(f"peak memory {peak_memory_mib():.0f} MiB")

    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    picture(columns, [str(name) for name in names] if names else [""] * count).save(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
