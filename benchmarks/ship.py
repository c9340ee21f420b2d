#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Turn the output of a training run into a checkpoint to ship: half precision, nothing but the pipeline and its card.

    python benchmarks/ship.py --pipeline out/cifar10-32 --output checkpoints/cifar10-32 --noise_ratio 0.5
    python benchmarks/ship.py --lora out/upscale --output checkpoints/cifar10-32-upscale

What a person has to say about a checkpoint is in `benchmarks/cards/NAME.md`, with the name of the output folder.
"""

import argparse
import glob
import json
import os
import re

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline


CARDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cards")
SKETCH = """image = Image.new("RGB", (8, 8), "skyblue")  # a sketch in colours; or open a thumbnail, or a blurred photo
image.paste("darkgreen", (0, 5, 8, 8))
image.paste("saddlebrown", (2, 3, 6, 6))
"""


def read_card(folder: str) -> str:
    with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
        return file.read()


def ship_pipeline(args) -> str:
    """Save the pipeline in half precision; return its card, with a call for a clone of this repository."""
    pipe = LowFreqPipeline.from_pretrained(args.pipeline)
    if args.noise_ratio is not None:
        pipe.scheduler = LowFreqFlowMatchScheduler.from_config(pipe.scheduler.config, noise_ratio=args.noise_ratio)
    pipe.to(dtype=torch.float16).save_pretrained(args.output)
    # The folder of the run on this machine is nobody's business
    for path in glob.glob(os.path.join(args.output, "**/*.json"), recursive=True):
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config.pop("_name_or_path", None)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)
            file.write("\n")
    name = os.path.basename(args.output.rstrip("/"))
    card = read_card(args.pipeline)
    card = card.replace(f'from_pretrained("{name}")', f'from_pretrained("checkpoints/{name}")  # from a clone')
    call = f"pipe({json.dumps(list(pipe.labels)[-2:])}, num_inference_steps="
    if pipe.transformer.config.use_meanflow:
        call += "1, prior_num_inference_steps=1)"
    else:
        call += f"4, guidance_scale={args.guidance_scale}, prior_guidance_scale={args.guidance_scale})"
    return re.sub(r"pipe\(.*\)\.images", lambda _: f"{call}.images", card)


def ship_lora(args) -> str:
    """Save the LoRA in half precision, with its metadata; return its card, with a picture to try it on."""
    with safe_open(os.path.join(args.lora, LORA_WEIGHT_NAME_SAFE), framework="pt") as file:
        metadata = file.metadata()
        weights = {key: file.get_tensor(key).half() for key in file.keys()}  # noqa: SIM118
    os.makedirs(args.output, exist_ok=True)
    save_file(weights, os.path.join(args.output, LORA_WEIGHT_NAME_SAFE), metadata)
    card = read_card(args.lora)
    base = re.search(r'from_pretrained\("(.+)"\)', card)[1]
    card = card.replace(f'from_pretrained("{base}")', f'from_pretrained("checkpoints/{base}")  # from a clone')
    name = os.path.basename(args.output.rstrip("/"))
    card = re.sub(r'load_lora_weights\(".+"\)', f'load_lora_weights("checkpoints/{name}")  # from a clone', card)
    call = f'{SKETCH}images = pipe(image, "horse", num_images_per_prompt=2).images'
    card = re.sub(r"images = pipe\(.*\)\.images", lambda _: call, card)
    return card.replace("```py\n", "```py\nfrom PIL import Image\n", 1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pipeline")
    source.add_argument("--lora", help="of `train_lowfreq.py --rank --degraded_share`, for a pipeline in checkpoints/")
    parser.add_argument("--output", required=True)
    parser.add_argument("--noise_ratio", type=float, help="the default of the shipped scheduler")
    parser.add_argument("--guidance_scale", type=float, default=4.0, help="in the example of the card, both networks")
    parser.add_argument("--cards_dir", default=CARDS, help="the folder of the texts of the cards")
    args = parser.parse_args(argv)

    card = ship_lora(args) if args.lora is not None else ship_pipeline(args)
    head, tables = card.split("\n## Data\n")
    with open(
        os.path.join(args.cards_dir, f"{os.path.basename(args.output.rstrip('/'))}.md"), encoding="utf-8"
    ) as file:
        text = file.read()
    with open(os.path.join(args.output, "README.md"), "w", encoding="utf-8") as file:
        file.write(f"{head}\n{text}\n## Data\n{tables}")
    size = sum(os.path.getsize(os.path.join(root, f)) for root, _, files in os.walk(args.output) for f in files)
    print(f"{args.output}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
