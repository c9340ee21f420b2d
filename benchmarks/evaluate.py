#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Grade a saved pipeline, a low-frequency one or one of diffusers' own, over a list of step counts.

    python benchmarks/evaluate.py --pipeline checkpoints/cifar10-32 --grader checkpoints/graders/cifar10-32 \
        --data cifar10/test.parquet --split test --output benchmarks/results/cifar10-32.json

Coarse latents come from the prior model (generated) or from the images (true, the oracle). Effective NFE counts forward
passes of the flow per image, and those of the prior by their share of its FLOPs.
"""

import argparse
import inspect
import json
import os
import time
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from graders import Grader
from tqdm.auto import tqdm

import diffusers
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq import LowFreqPipeline
from diffusers_lowfreq.autoencoding import decode_latents, encode_images
from diffusers_lowfreq.evaluation import FeatureStatistics, curvature, frechet_distance, radial_power_spectrum
from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images, machine_kind


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--grader", required=True, help="a folder of `train_features.py`, or a TorchScript file")
    parser.add_argument("--grader_resolution", type=int, help="images are resized to it for the grader")
    parser.add_argument("--data", required=True, help="images to compare with: a folder, or parquet files")
    parser.add_argument("--split", required=True, help="what results call these images")
    parser.add_argument("--cache_dir", default="out/grader-cache")
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--prior_steps", type=int, nargs="+", default=[8])
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[1.0])
    parser.add_argument("--prior_guidance_scale", type=float, nargs="+", help="by default that of the flow")
    parser.add_argument("--noise_ratio", type=float, nargs="+", help="by default the scheduler's own")
    parser.add_argument("--coarse", nargs="+", choices=["generated", "true"], default=["generated", "true"])
    parser.add_argument("--curvature_images", type=int, default=0, help="images of the curvature, 128 steps; 0: none")
    parser.add_argument("--spectrum", action="store_true", help="write the power spectra too")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


class Extractor(torch.nn.Module):
    """A grader of `train_features.py` or a TorchScript extractor; remembers which images it took for what they are."""

    def __init__(self, path: str, resolution: int | None = None):
        super().__init__()
        self.resolution = resolution
        self.name = os.path.basename(path.rstrip("/"))
        if os.path.isfile(path):
            self.network = torch.jit.load(path, map_location="cpu").eval()
        else:
            self.network = Grader.from_pretrained(path, use_safetensors=True).float().eval()
        self.classes = []

    def forward(self, images):
        if self.resolution is not None:
            size = (self.resolution, self.resolution)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        output = self.network(images)
        if isinstance(output, tuple):
            self.classes.append(output[0].argmax(1))
        return output

    def named(self, labels: torch.Tensor) -> float | None:
        """The share of the images since the last call that it takes for their labels; `None` if it does not classify."""
        classes, self.classes = self.classes, []
        return (torch.cat(classes) == labels).float().mean().item() if classes else None


class Reference:
    """Real images in a fixed shuffled order, and the statistics of their features."""

    def __init__(self, data: str, split: str, resolution: int, extractor: Extractor, cache_dir: str, seed: int):
        images = load_images(train_data_dir=data, resolution=resolution)
        self.cache = LatentCache.build(images, None, cache_dir, progress=tqdm)
        self.order = torch.randperm(len(self.cache), generator=keyed_generator(seed, "test")).tolist()
        self.extractor, self.split = extractor, split
        self.statistics = FeatureStatistics(extractor, extractor.name, split, max_features=2000)
        classes, spectra = [], []
        for start in tqdm(range(0, len(self.cache), 500), desc=f"features of {split}"):
            images, labels = self.batch(start, start + 500)
            self.statistics.update(images)
            classes.append(labels)
            spectra.append(radial_power_spectrum(images))
        self.accuracy = extractor.named(torch.cat(classes))
        self.spectrum = torch.cat(spectra).mean(0).tolist()

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images in [0, 1] and their labels."""
        batch = self.cache.__getitems__([(i, False) for i in self.order[start:stop]])
        return (batch["sample"] + 1) / 2, batch["label"]


def generate(pipe, steps: int, labels: torch.Tensor, generators: list[torch.Generator], **inputs):
    """Call any pipeline; return images in [0, 1] and the effective NFE."""
    if isinstance(pipe, LowFreqPipeline):
        labels = labels if pipe.transformer.config.num_classes is not None else None
        number = 1 if labels is not None or "prior_latents" in inputs else len(generators)
        inputs |= {"class_labels": labels, "num_images_per_prompt": number, "output_type": "pt"}
        images = pipe(num_inference_steps=steps, generator=generators, **inputs).images
        return images, pipe.effective_nfe
    network = getattr(pipe, "transformer", None) or pipe.unet
    rows = []
    hook = network.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    inputs = {k: v for k, v in inputs.items() if k == "guidance_scale"}
    inputs |= {
        "class_labels": labels.tolist(),
        "batch_size": len(labels),
        "output_type": "np",
        "generator": generators,
    }
    if type(pipe.scheduler).__name__.startswith("FlowMatch"):
        # Called with a number of steps alone, diffusers' grid ends at sigma = 0.001: two steps would be one.
        inputs["sigmas"] = np.linspace(1, 1 / steps, steps).tolist()
    accepted = inspect.signature(pipe.__call__).parameters
    images = pipe(num_inference_steps=steps, **{k: v for k, v in inputs.items() if k in accepted}).images
    hook.remove()
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2).float(), sum(rows) / len(labels)


def flow_velocity(pipe, labels, noise_ratio: float, guidance_scale: float):
    """The velocity that a low-frequency pipeline integrates."""
    model = pipe.transformer

    def velocity(x, sigma):
        inputs = {"noise_ratio": torch.full((len(x),), noise_ratio)} if model.config.use_noise_ratio else {}
        if model.config.num_classes is None:
            return model(x, sigma * 1000, return_dict=False, **inputs)[0]
        conditional = model(x, sigma * 1000, class_labels=labels, return_dict=False, **inputs)[0]
        if guidance_scale == 1:
            return conditional
        unconditional = model(x, sigma * 1000, return_dict=False, **inputs)[0]
        return unconditional + guidance_scale * (conditional - unconditional)

    return velocity


@torch.no_grad()
def grade(pipe, reference: Reference, args, progress=tqdm) -> dict:
    """Grade a pipeline in every setting of `args`; a dictionary with a row for each."""
    pipe.set_progress_bar_config(disable=True)
    ours = isinstance(pipe, LowFreqPipeline)
    vae = getattr(pipe, "vae", None)
    if ours:
        is_conditional = pipe.transformer.config.num_classes is not None
    else:
        is_conditional = "class_labels" in inspect.signature(pipe.__call__).parameters
    batches = [(s, min(s + args.batch_size, args.num_images)) for s in range(0, args.num_images, args.batch_size)]

    def true_coarse(images):
        sample = encode_images(vae, images * 2 - 1) if vae is not None else images * 2 - 1
        return pipe.scheduler.projection.downsample(sample)

    result = {"rows": []}
    if ours and vae is not None:
        psnr = []
        for start, stop in batches:
            images, _ = reference.batch(start, stop)
            decoded = (decode_latents(vae, encode_images(vae, images * 2 - 1)).clamp(-1, 1) + 1) / 2
            psnr.append(-10 * (decoded - images).square().flatten(1).mean(1).log10())
        result |= {"autoencoder_psnr_db": torch.cat(psnr).mean().item(), "autoencoder_psnr_images": args.num_images}
    settings = []
    for noise_ratio in (args.noise_ratio or [pipe.scheduler.config.noise_ratio]) if ours else [None]:
        for coarse in args.coarse if noise_ratio is not None and noise_ratio < 1 else [None]:
            for prior_steps in args.prior_steps if coarse == "generated" else [None]:
                prior_scales = args.prior_guidance_scale if coarse == "generated" else None
                scales = product(args.guidance_scale, prior_scales or [None])
                settings += [(noise_ratio, coarse, prior_steps, *scale) for scale in scales]
    bar = progress(total=len(settings) * len(batches) * len(args.steps))
    for noise_ratio, coarse, prior_steps, guidance_scale, prior_guidance_scale in settings:
        prior_guidance_scale = guidance_scale if prior_guidance_scale is None else prior_guidance_scale
        setting = {"coarse": coarse, "prior_steps": prior_steps, "noise_ratio": noise_ratio}
        setting |= {"guidance_scale": guidance_scale}
        inputs = {"guidance_scale": guidance_scale, "noise_ratio": noise_ratio}
        if coarse == "generated":
            inputs |= {"prior_num_inference_steps": prior_steps, "prior_guidance_scale": prior_guidance_scale}
            setting["prior_guidance_scale"] = prior_guidance_scale
        for steps in args.steps:
            statistics = FeatureStatistics(reference.extractor, reference.extractor.name)
            classes, spectra, seconds = [], [], 0.0
            for start, stop in batches:
                images, labels = reference.batch(start, stop)
                if coarse == "true":
                    inputs["prior_latents"] = true_coarse(images)
                generators = [keyed_generator(args.seed, i) for i in range(start, stop)]
                started = time.perf_counter()
                generated, nfe = generate(pipe, steps, labels, generators, **inputs)
                seconds += time.perf_counter() - started
                statistics.update(generated)
                classes.append(labels)
                if args.spectrum:
                    spectra.append(radial_power_spectrum(generated))
                bar.update()
            generator = keyed_generator(args.seed, "kernel distance")
            row = setting | {"steps": steps, "effective_nfe": round(nfe, 4)}
            row |= statistics.compare(reference.statistics, generator=generator)
            row["seconds_per_image"] = round(seconds / args.num_images, 5)
            named = reference.extractor.named(torch.cat(classes))
            if is_conditional:
                row["class_named"] = named
            if args.spectrum:
                row["spectrum"] = torch.cat(spectra).mean(0).tolist()
            result["rows"].append(row)
        if ours and args.curvature_images:
            figures = grade_paths(pipe, reference, args, inputs, true_coarse)
            result.setdefault("curvature", []).append(setting | figures)
    bar.close()
    return result


def grade_paths(pipe, reference, args, inputs, true_coarse) -> dict:
    """Measure the curvature from the sources of one setting, and how far its coarse latents are from true ones."""
    is_conditional = pipe.transformer.config.num_classes is not None
    paths, low, true_low = [], [], []
    for start in range(0, args.curvature_images, args.batch_size):
        images, labels = reference.batch(start, min(start + args.batch_size, args.curvature_images))
        generators = [keyed_generator(args.seed, i) for i in range(start, start + len(images))]
        true_low.append(true_coarse(images))
        if "prior_latents" in inputs:
            inputs["prior_latents"] = true_low[-1]
        output = pipe(
            labels if is_conditional else None,
            num_images_per_prompt=1 if is_conditional or "prior_latents" in inputs else len(images),
            num_inference_steps=1,
            generator=generators,
            output_type="latent",
            **inputs,
        )
        if inputs["noise_ratio"] == 1:
            source = randn_tensor(output.images.shape, generator=generators)
        else:
            low.append(output.prior_latents)
            source = pipe.prepare_latents(low[-1], inputs["noise_ratio"], generators)
        velocity = flow_velocity(pipe, labels, inputs["noise_ratio"], inputs["guidance_scale"])
        paths.append(curvature(velocity, source))
    bend, length = (
        torch.cat([getattr(p, k) for p in paths]).mean().item() for k in ("curvature", "squared_path_length")
    )
    figures = {"curvature": bend, "squared_path_length": length, "normalized_curvature": bend / length}
    if low and "prior_latents" not in inputs:
        figures["coarse_frechet_distance"] = frechet_distance(
            torch.cat(low).flatten(1), torch.cat(true_low).flatten(1)
        )
    return figures | {"curvature_images": args.curvature_images}


def environment(args) -> dict:
    """What a figure depends on beside the pipeline."""
    return {
        "num_images": args.num_images,
        "seed": args.seed,
        "machine": machine_kind(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def main():
    args = parse_args()
    if os.path.exists(args.output):
        raise ValueError(f"`output` must not exist, nothing is overwritten: {args.output!r} does.")
    pipe = DiffusionPipeline.from_pretrained(args.pipeline, use_safetensors=True)
    network = getattr(pipe, "transformer", None) or pipe.unet
    size = network.config.sample_size
    vae, scale = getattr(pipe, "vae", None), 1
    if vae is not None:  # not every pipeline of diffusers says by how much its autoencoder shrinks an image
        scale = getattr(pipe, "vae_scale_factor", None) or 2 ** (len(vae.config.block_out_channels) - 1)
    resolution = (size if isinstance(size, int) else size[0]) * scale
    extractor = Extractor(args.grader, args.grader_resolution)
    reference = Reference(args.data, args.split, resolution, extractor, args.cache_dir, args.seed)
    result = {
        "pipeline": os.path.basename(args.pipeline.rstrip("/")),
        "extractor": extractor.name,
        "split": args.split,
    }
    result |= {"num_reference": reference.statistics.num_images, "grader_accuracy": reference.accuracy}
    result |= environment(args)
    if args.spectrum:
        result["spectrum"] = reference.spectrum
    result |= grade(pipe, reference, args)
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    for row in result["rows"]:
        print(json.dumps({k: v for k, v in row.items() if k != "spectrum"}))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
