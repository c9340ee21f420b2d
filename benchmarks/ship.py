#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Turn the output of a training run into a checkpoint to ship: half precision, nothing but the pipeline and its card.

python benchmarks/ship.py --pipeline out/cifar10-32 --output checkpoints/cifar10-32 --noise_ratio 0.5

What a person has to say about a checkpoint is in `benchmarks/cards/NAME.md`, NAME being that of the output folder.
"""

import argparse
import glob
import json
import os
import re

import torch

from diffusers_lowfreq import LowFreqPipeline
from diffusers_lowfreq.schedulers import LowFreqFlowMatchScheduler


CARDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cards")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--noise_ratio", type=float, help="the default of the shipped scheduler")
    parser.add_argument("--guidance_scale", type=float, default=4.0, help="in the example of the card, both networks")
    args = parser.parse_args()

    pipe = LowFreqPipeline.from_pretrained(args.pipeline)
    if args.noise_ratio is not None:
        pipe.scheduler = LowFreqFlowMatchScheduler.from_config(pipe.scheduler.config, noise_ratio=args.noise_ratio)
    pipe.to(dtype=torch.float16).save_pretrained(args.output)
    # Where the run lay on this machine is nobody's business.
    for path in glob.glob(os.path.join(args.output, "**/*.json"), recursive=True):
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config.pop("_name_or_path", None)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)
            file.write("\n")
    with open(os.path.join(args.pipeline, "README.md"), encoding="utf-8") as file:
        card = file.read()
    name = os.path.basename(args.output.rstrip("/"))
    card = card.replace(f'from_pretrained("{name}")', f'from_pretrained("checkpoints/{name}")  # from a clone')
    call = f"pipe({json.dumps(list(pipe.labels)[-2:])}, num_inference_steps="
    if pipe.transformer.config.use_meanflow:
        call += "1, prior_num_inference_steps=1)"
    else:
        call += f"4, guidance_scale={args.guidance_scale}, prior_guidance_scale={args.guidance_scale})"
    card = re.sub(r"pipe\(.*\)\.images", lambda _: f"{call}.images", card)
    head, tables = card.split("\n## Data\n")
    with open(os.path.join(CARDS, f"{name}.md"), encoding="utf-8") as file:
        text = file.read()
    with open(os.path.join(args.output, "README.md"), "w", encoding="utf-8") as file:
        file.write(f"{head}\n{text}\n## Data\n{tables}")
    size = sum(os.path.getsize(os.path.join(root, f)) for root, _, files in os.walk(args.output) for f in files)
    print(f"{args.output}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
