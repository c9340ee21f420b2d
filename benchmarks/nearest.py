#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Show generated images beside the training images nearest to them in the grader's features: are they copies?

    python benchmarks/nearest.py --pipeline checkpoints/cifar10-32 --grader checkpoints/graders/cifar10-32 \
        --train_data cifar10/train.parquet --output checkpoints/cifar10-32/assets/nearest.jpg
"""

import argparse
import os

import torch
from graders import Grader
from shared.example_scripts import picture
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFreqPipeline
from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images


@torch.no_grad()
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--grader", required=True)
    parser.add_argument("--train_data", required=True)
    parser.add_argument("--cache_dir", default="out/grader-cache")
    parser.add_argument("--output", required=True)
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--num_neighbours", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pipe = LowFreqPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    grader = Grader.from_pretrained(args.grader, use_safetensors=True).float().eval()
    images = load_images(train_data_dir=args.train_data, resolution=32)
    cache = LatentCache.build(images, None, args.cache_dir, progress=tqdm)

    def train(indices):
        return (cache.__getitems__([(i, False) for i in indices])["sample"] + 1) / 2

    classes = list(pipe.labels)
    generated = pipe(
        classes,
        num_inference_steps=8,
        guidance_scale=args.guidance_scale,
        prior_guidance_scale=args.guidance_scale,
        generator=[keyed_generator(args.seed, "nearest", i) for i in range(len(classes))],
        output_type="pt",
    ).images
    query = grader(generated)[1]
    best = torch.full((len(classes), args.num_neighbours), float("inf"))
    nearest = torch.zeros(len(classes), args.num_neighbours, dtype=torch.long)
    for start in tqdm(range(0, len(cache), 500)):
        indices = list(range(start, min(start + 500, len(cache))))
        distance = torch.cdist(query, grader(train(indices))[1])
        best, order = torch.cat([best, distance], 1).topk(args.num_neighbours, largest=False)
        nearest = torch.cat([nearest, torch.tensor(indices).expand(len(classes), -1)], 1).gather(1, order)
    to_pil = pipe.image_processor.numpy_to_pil
    columns = {"generated": to_pil(generated.permute(0, 2, 3, 1).numpy())}
    for k in range(args.num_neighbours):
        columns[f"nearest {k + 1}"] = to_pil(train(nearest[:, k].tolist()).permute(0, 2, 3, 1).numpy())
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    picture(columns, classes).save(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
