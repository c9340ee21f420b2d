#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Grade a low-frequency pipeline: class named, Fréchet distance, autoencoder, with generated and with true coarse latents.

    python benchmarks/evaluate.py --pipeline checkpoints/cifar10-32 --grader checkpoints/graders/cifar10-32 \
        --test_data cifar10/test.parquet --output benchmarks/results/cifar10-32.json
"""

import argparse
import json
import os
import time

import torch
from graders import Grader
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFreqPipeline
from diffusers_lowfreq.autoencoding import decode_latents, encode_images
from diffusers_lowfreq.evaluation import frechet_distance
from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images, machine_kind


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--grader", required=True)
    parser.add_argument("--test_data", required=True, help="held-out images with labels")
    parser.add_argument("--cache_dir", default="out/grader-cache")
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--prior_steps", type=int, nargs="+", default=[8])
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[3.0], help="of the flow and of the prior")
    parser.add_argument("--noise_ratio", type=float, nargs="+", help="by default the scheduler's own")
    parser.add_argument("--coarse", nargs="+", choices=["generated", "true"], default=["generated", "true"])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@torch.no_grad()
def main():
    args = parse_args()
    pipe = LowFreqPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    grader = Grader.from_pretrained(args.grader, use_safetensors=True).float().eval()
    resolution = pipe.transformer.config.sample_size
    resolution = (resolution if isinstance(resolution, int) else resolution[0]) * pipe.vae_scale_factor
    cache = LatentCache.build(
        load_images(train_data_dir=args.test_data, resolution=resolution), None, args.cache_dir, progress=tqdm
    )
    # Test images in a fixed shuffled order: the reference of the distance, and the source of true coarse latents
    order = torch.randperm(len(cache), generator=keyed_generator(args.seed, "test")).tolist()

    def real(start, stop):
        batch = cache.__getitems__([(i, False) for i in order[start:stop]])
        return batch["sample"], batch["label"]

    batches = [(s, min(s + args.batch_size, args.num_images)) for s in range(0, args.num_images, args.batch_size)]
    reference, hits, psnr = [], [], []
    for start in range(0, len(cache), 500):
        images, labels = real(start, start + 500)
        logits, features = grader((images + 1) / 2)
        reference.append(features)
        hits.append(logits.argmax(1) == labels)
        if pipe.vae is not None and start < args.num_images:
            decoded = decode_latents(pipe.vae, encode_images(pipe.vae, images)).clamp(-1, 1)
            psnr.append(-10 * ((decoded - images) / 2).square().flatten(1).mean(1).log10())
    reference = torch.cat(reference)
    result = {
        "pipeline": os.path.basename(args.pipeline.rstrip("/")),
        "grader": os.path.basename(args.grader.rstrip("/")),
        "grader_accuracy_on_real_test_images": torch.cat(hits).float().mean().item(),
        "reference": f"{len(reference)} test images",
        "autoencoder_psnr_db": torch.cat(psnr).mean().item() if psnr else None,
        "autoencoder_psnr_images": sum(map(len, psnr)),
        "num_images": args.num_images,
        "seed": args.seed,
        "machine": machine_kind(),
        "torch": torch.__version__,
        "rows": [],
    }
    settings = [
        (coarse, prior_steps if coarse == "generated" else None, noise_ratio, guidance, steps)
        for coarse in args.coarse
        for prior_steps in (args.prior_steps if coarse == "generated" else [None])
        for noise_ratio in args.noise_ratio or [None]
        for guidance in args.guidance_scale
        for steps in args.steps
    ]
    progress = tqdm(total=len(settings) * len(batches))
    for coarse, prior_steps, noise_ratio, guidance, steps in settings:
        features, hits, seconds = [], [], 0.0
        for start, stop in batches:
            images, labels = real(start, stop)
            inputs = {"prior_num_inference_steps": prior_steps, "prior_guidance_scale": guidance}
            if coarse == "true":
                sample = encode_images(pipe.vae, images) if pipe.vae is not None else images
                inputs = {"prior_latents": pipe.scheduler.projection.downsample(sample)}
            started = time.perf_counter()
            generated = pipe(
                labels,
                num_inference_steps=steps,
                guidance_scale=guidance,
                noise_ratio=noise_ratio,
                generator=[keyed_generator(args.seed, i) for i in range(start, stop)],
                output_type="pt",
                **inputs,
            ).images
            seconds += time.perf_counter() - started
            logits, feature = grader(generated)
            features.append(feature)
            hits.append(logits.argmax(1) == labels)
            progress.update()
        result["rows"].append(
            {
                "coarse": coarse,
                "prior_steps": prior_steps,
                "noise_ratio": pipe.scheduler.config.noise_ratio if noise_ratio is None else noise_ratio,
                "guidance_scale": guidance,
                "steps": steps,
                "effective_nfe": round(pipe.effective_nfe, 2),
                "class_named": torch.cat(hits).float().mean().item(),
                "frechet_distance": frechet_distance(torch.cat(features), reference),
                "seconds_per_image": round(seconds / args.num_images, 4),
            }
        )
        progress.write(json.dumps(result["rows"][-1]))
        os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
        with open(args.output, "w") as file:
            json.dump(result, file, indent=1)
    progress.close()


if __name__ == "__main__":
    main()
