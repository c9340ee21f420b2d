#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Train the grader, a classifier on real images, so that every published figure can be made again.

    python benchmarks/train_features.py --train_data cifar10/train.parquet --test_data cifar10/test.parquet \
        --output_dir checkpoints/graders/cifar10-32
    python benchmarks/train_features.py --train_data tiny-imagenet-50/train.parquet --resolution 64 --epochs 12 \
        --test_data tiny-imagenet-50/validation.parquet --output_dir checkpoints/graders/tiny-imagenet-64

`facts.json` beside the weights of each shipped grader has its seed, epochs and resolution.
"""

import argparse
import json
import os
import time

import torch
import torch.nn.functional as F
from graders import Grader
from shared.results import write
from tqdm.auto import tqdm

from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images, machine_kind


def load(path, resolution, cache_dir):
    """Return all images of one set as `uint8`, and their labels."""
    cache = LatentCache.build(load_images(train_data_dir=path, resolution=resolution), None, cache_dir, progress=tqdm)
    return torch.cat(cache.latents)[:, 0], cache.labels


@torch.no_grad()
def accuracy(model, images, labels):
    """Return the share of images whose class the model names."""
    model.eval()
    hits = [model(x.float() / 255)[0].argmax(1) == y for x, y in zip(images.split(500), labels.split(500))]
    return torch.cat(hits).float().mean().item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_data", required=True)
    parser.add_argument("--test_data", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--cache_dir", default="out/grader-cache")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    images, labels = load(args.train_data, args.resolution, args.cache_dir)
    torch.manual_seed(args.seed)
    model = Grader(num_classes=int(labels.max()) + 1, patch_size=args.resolution // 16)
    model.to(memory_format=torch.channels_last)
    shift = args.resolution // 8
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = args.epochs * (len(images) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, steps)
    started = time.monotonic()
    progress = tqdm(total=steps)
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(images), generator=keyed_generator(args.seed, epoch))
        for step, rows in enumerate(order.split(args.batch_size)[: len(images) // args.batch_size]):
            # A random shift by up to an eighth for the batch, and a mirror image for half of it
            generator = keyed_generator(args.seed, epoch, step)
            x = F.pad(images[rows].float() / 255, (shift,) * 4, mode="reflect")
            top, left = torch.randint(2 * shift + 1, (2,), generator=generator).tolist()
            x = x[:, :, top : top + args.resolution, left : left + args.resolution]
            flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
            x = torch.where(flip, x.flip(-1), x).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x)[0], labels[rows], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            progress.update()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    progress.close()

    facts = {
        "train_images": len(images),
        "resolution": args.resolution,
        "test_accuracy": accuracy(model, *load(args.test_data, args.resolution, args.cache_dir)),
        "parameters": model.num_parameters(),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "seed": args.seed,
        "epochs": args.epochs,
        "machine": machine_kind(),
        "torch": torch.__version__,
    }
    model.to(torch.float16).save_pretrained(args.output_dir)
    write(facts, os.path.join(args.output_dir, "facts.json"))
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
