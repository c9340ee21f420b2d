#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Grade a saved pipeline, a low-frequency one or one of diffusers' own, over a list of step counts.

    python benchmarks/evaluate.py --pipeline checkpoints/cifar10-32 --grader checkpoints/graders/cifar10-32 \
        --data cifar10/test.parquet --split test --output benchmarks/results/cifar10-32.json

Coarse latents come from the prior model (generated) or from images (true, the oracle); these images, the first of a fixed
random order, are no part of what is compared with. Effective NFE counts forward passes of the flow per image, and those of
the prior by their share of its FLOPs. With several graders the figures of the first are those of a row.
"""

import argparse
import hashlib
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
from diffusers_lowfreq.evaluation import (
    FeatureMoments,
    FeatureStatistics,
    curvature,
    frechet_distance,
    radial_power_spectrum,
)
from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images, machine_kind


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--prior", help="a pipeline whose prior model is to take the place of that one's")
    parser.add_argument(
        "--grader", nargs="+", required=True, help="folders of `train_features.py`, or TorchScript files"
    )
    parser.add_argument("--grader_resolution", type=int, help="images are resized to it for the grader")
    parser.add_argument("--data", required=True, help="images to compare with: a folder, or parquet files")
    parser.add_argument("--split", required=True, help="what results call these images")
    parser.add_argument("--cache_dir", default="out/grader-cache")
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--prior_steps", type=int, nargs="+", default=[8])
    parser.add_argument(
        "--guidance_scale", type=float, nargs="+", help="by default 1, or what a one-step model has folded in"
    )
    parser.add_argument(
        "--prior_guidance_scale", type=float, nargs="+", help="by default that of the flow, or what is folded in"
    )
    parser.add_argument("--noise_ratio", type=float, nargs="+", help="by default the scheduler's own")
    parser.add_argument(
        "--coarse", nargs="+", choices=["generated", "true", "truncated"], default=["generated", "true"]
    )
    parser.add_argument("--curvature_images", type=int, default=0, help="images of the curvature, 128 steps; 0: none")
    parser.add_argument("--spectrum", action="store_true", help="write the power spectra too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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
        return (torch.cat(classes).cpu() == labels.cpu()).float().mean().item() if classes else None


def fingerprint(cache: LatentCache) -> str:
    """A hash of what a cache of pixels holds, the same on every machine."""
    digest = hashlib.sha256()
    for values in (*cache.latents, cache.labels):
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


class Reference:
    """
    Real images in a fixed shuffled order.

    The first `num_held_out` lend their labels and, for the oracle, their coarse versions; all others are what generated
    images are compared with, so that the oracle is not graded by the images that it was made from.
    """

    def __init__(
        self, data: str, split: str, resolution: int, extractors: list[Extractor], cache_dir: str, num_held_out: int
    ):
        self.cache = LatentCache.build(
            load_images(train_data_dir=data, resolution=resolution), None, cache_dir, progress=tqdm
        )
        if not 0 < num_held_out < len(self.cache) - 1:
            raise ValueError(
                f"`num_images` must leave at least 2 of the {len(self.cache)} images of `data` to compare with, got "
                f"{num_held_out}."
            )
        self.order = torch.randperm(len(self.cache), generator=keyed_generator(0, "test")).tolist()
        self.extractors, self.split = extractors, split
        self.device = next((p.device for p in extractors[0].parameters()), torch.device("cpu"))
        self.statistics = [FeatureStatistics(e, e.name, split, max_features=2000) for e in extractors]
        classes, spectra = [], []
        for start in tqdm(range(num_held_out, len(self.cache), 500), desc=f"features of {split}"):
            images, labels = self.batch(start, start + 500)
            for statistics in self.statistics:
                statistics.update(images)
            classes.append(labels)
            spectra.append(radial_power_spectrum(images))
        self.accuracy = [extractor.named(torch.cat(classes)) for extractor in extractors]
        self.spectrum = torch.cat(spectra).mean(0).tolist()

    @property
    def facts(self) -> dict:
        """What these figures depend on, for a results file."""
        return {
            "extractor": self.extractors[0].name,
            "graders": {e.name: {"accuracy": a} for e, a in zip(self.extractors, self.accuracy)},
            "split": self.split,
            "num_reference": self.statistics[0].num_images,
            "reference_fingerprint": fingerprint(self.cache),
        }

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images in [0, 1] and their labels."""
        batch = self.cache.__getitems__([(i, False) for i in self.order[start:stop]])
        return ((batch["sample"] + 1) / 2).to(self.device), batch["label"].to(self.device)

    def compare(self, generated: list[FeatureStatistics]) -> dict:
        """Figures of the first grader, and the distances of the others by their names."""
        first, *others = [s.compare(r, kernel_subsets=None) for s, r in zip(generated, self.statistics, strict=True)]
        distances = ("frechet_distance", "kernel_distance")
        return first | ({"graders": {o["extractor"]: {k: o[k] for k in distances} for o in others}} if others else {})


def generate(pipe, steps: int, labels: torch.Tensor, generators: list[torch.Generator], **inputs):
    """Call any pipeline; return images in [0, 1], the effective NFE, and the coarse latents where there are any."""
    if isinstance(pipe, LowFreqPipeline):
        labels = labels if pipe.transformer.config.num_classes is not None else None
        number = 1 if labels is not None or "prior_latents" in inputs else len(generators)
        inputs |= {"class_labels": labels, "num_images_per_prompt": number, "output_type": "pt"}
        output = pipe(num_inference_steps=steps, generator=generators, **inputs)
        return output.images, pipe.effective_nfe, output.prior_latents
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
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2).float(), sum(rows) / len(labels), None


def folded_guidance(pipe, component: str) -> float | None:
    """The guidance that a one-step model has folded in, 1 if none; `None` for other models, which leave the choice."""
    config = getattr(getattr(pipe, component, None), "config", {})
    return (config.get("guidance_scale") or 1.0) if config.get("use_meanflow") else None


def flow_velocity(pipe, labels, noise_ratio: float, guidance_scale: float):
    """The velocity that a low-frequency pipeline integrates."""
    model = pipe.transformer

    def velocity(x, sigma):
        inputs = {}
        if model.config.use_noise_ratio:
            inputs["noise_ratio"] = torch.full((len(x),), noise_ratio, device=x.device)
        if model.config.guidance_scale_range is not None:
            inputs["guidance"] = torch.full((len(x),), guidance_scale, device=x.device)
        if model.config.num_classes is None:
            return model(x, sigma * 1000, return_dict=False, **inputs)[0]
        conditional = model(x, sigma * 1000, class_labels=labels, return_dict=False, **inputs)[0]
        if guidance_scale == 1 or model.config.use_meanflow:  # the guidance of a one-step model is folded in
            return conditional
        unconditional = model(x, sigma * 1000, return_dict=False, **inputs)[0]
        return unconditional + guidance_scale * (conditional - unconditional)

    return velocity


@torch.no_grad()
def grade(pipe, reference: Reference, args, progress=tqdm) -> dict:
    """Grade a pipeline in every setting of `args`; a dictionary with a row for each."""
    if args.curvature_images > args.num_images:
        raise ValueError(f"`curvature_images` must be at most `num_images`, got {args.curvature_images}.")
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
            for prior_steps in args.prior_steps if coarse in ("generated", "truncated") else [None]:
                prior_scales = args.prior_guidance_scale if coarse in ("generated", "truncated") else None
                scales = product(
                    args.guidance_scale or [folded_guidance(pipe, "transformer") or 1.0], prior_scales or [None]
                )
                settings += [(noise_ratio, coarse, prior_steps, *scale) for scale in scales]
    if any(coarse == "generated" for _, coarse, *_ in settings):
        true_low = torch.cat([true_coarse(reference.batch(*batch)[0]).flatten(1) for batch in batches])
        true_moments = FeatureMoments(true_low.shape[1])
        true_moments.update(true_low)
    bar = progress(total=len(settings) * len(batches) * len(args.steps))
    for noise_ratio, coarse, prior_steps, guidance_scale, prior_guidance_scale in settings:
        if prior_guidance_scale is None:
            prior_guidance_scale = folded_guidance(pipe, "prior") or guidance_scale
        setting = {"coarse": coarse, "prior_steps": prior_steps, "noise_ratio": noise_ratio}
        setting |= {"guidance_scale": guidance_scale}
        inputs = {"guidance_scale": guidance_scale, "noise_ratio": noise_ratio}
        if coarse in ("generated", "truncated"):
            inputs["truncate_prior"] = coarse == "truncated"
            inputs |= {"prior_num_inference_steps": prior_steps, "prior_guidance_scale": prior_guidance_scale}
            setting["prior_guidance_scale"] = prior_guidance_scale
        if coarse == "generated":
            coarse_moments = FeatureMoments(true_moments.dim)
        for steps in args.steps:
            statistics = [FeatureStatistics(e, e.name, max_features=2000) for e in reference.extractors]
            classes, spectra, seconds = [], [], 0.0
            for start, stop in batches:
                images, labels = reference.batch(start, stop)
                if coarse == "true":
                    inputs["prior_latents"] = true_coarse(images)
                generators = [keyed_generator(args.seed, i) for i in range(start, stop)]
                started = time.perf_counter()
                generated, nfe, low = generate(pipe, steps, labels, generators, **inputs)
                seconds += time.perf_counter() - started
                if coarse == "generated" and steps == args.steps[0]:
                    coarse_moments.update(low.flatten(1))
                for gathered in statistics:
                    gathered.update(generated)
                classes.append(labels)
                if args.spectrum:
                    spectra.append(radial_power_spectrum(generated))
                bar.update()
            row = setting | {"steps": steps, "effective_nfe": round(nfe, 4)}
            if coarse == "generated":
                row["coarse_frechet_distance"] = frechet_distance(coarse_moments, true_moments)
            row |= reference.compare(statistics) | {"seconds_per_image": round(seconds / args.num_images, 5)}
            named = [extractor.named(torch.cat(classes)) for extractor in reference.extractors]
            if is_conditional:
                row["class_named"] = named[0]
            if args.spectrum:
                row["spectrum"] = torch.cat(spectra).mean(0).tolist()
            result["rows"].append(row)
        if ours and args.curvature_images and coarse != "truncated" and prior_steps in (None, args.prior_steps[-1]):
            figures = grade_paths(pipe, reference, args, inputs, true_coarse)
            result.setdefault("curvature", []).append(setting | figures)
    bar.close()
    return result


def grade_paths(pipe, reference, args, inputs, true_coarse) -> dict:
    """Measure the curvature from the sources of one setting."""
    is_conditional = pipe.transformer.config.num_classes is not None
    paths = []
    for start in range(0, args.curvature_images, args.batch_size):
        images, labels = reference.batch(start, min(start + args.batch_size, args.curvature_images))
        generators = [keyed_generator(args.seed, i) for i in range(start, start + len(images))]
        if "prior_latents" in inputs:
            inputs["prior_latents"] = true_coarse(images)
        output = pipe(
            labels if is_conditional else None,
            num_images_per_prompt=1 if is_conditional or "prior_latents" in inputs else len(images),
            num_inference_steps=1,
            generator=generators,
            output_type="latent",
            **inputs,
        )
        if inputs["noise_ratio"] == 1:
            source = randn_tensor(output.images.shape, generator=generators, device=reference.device)
        else:
            source = pipe.prepare_latents(output.prior_latents, inputs["noise_ratio"], generators)
        velocity = flow_velocity(pipe, labels, inputs["noise_ratio"], inputs["guidance_scale"])
        paths.append(curvature(velocity, source))
    bend, length = (
        torch.cat([getattr(p, k) for p in paths]).mean().item() for k in ("curvature", "squared_path_length")
    )
    figures = {"curvature": bend, "squared_path_length": length, "normalized_curvature": bend / max(length, 1e-12)}
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
    name = os.path.basename(args.pipeline.rstrip("/"))
    if args.prior is not None:
        pipe.register_modules(prior=DiffusionPipeline.from_pretrained(args.prior, use_safetensors=True).prior)
        name += f", prior of {os.path.basename(args.prior.rstrip('/'))}"
    network = getattr(pipe, "transformer", None) or pipe.unet
    size = network.config.sample_size
    vae, scale = getattr(pipe, "vae", None), 1
    if vae is not None:  # not every pipeline of diffusers says by how much its autoencoder shrinks an image
        scale = getattr(pipe, "vae_scale_factor", None) or 2 ** (len(vae.config.block_out_channels) - 1)
    resolution = (size if isinstance(size, int) else size[0]) * scale
    extractors = [Extractor(path, args.grader_resolution).to(args.device) for path in args.grader]
    reference = Reference(args.data, args.split, resolution, extractors, args.cache_dir, args.num_images)
    result = {"pipeline": name} | reference.facts | environment(args)
    if args.spectrum:
        result["spectrum"] = reference.spectrum
    result |= grade(pipe.to(args.device), reference, args)
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    for row in result["rows"]:
        print(json.dumps({k: v for k, v in row.items() if k != "spectrum"}))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
