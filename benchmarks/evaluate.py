#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Grade a saved pipeline, a low-frequency one or one of diffusers, over a list of step counts.

    python benchmarks/evaluate.py --pipeline checkpoints/cifar10-32 --grader checkpoints/graders/cifar10-32 \
        --data cifar10/test.parquet --split test --output benchmarks/results/cifar10-32.json

Coarse latents come from the prior model (generated) or from images (true, the oracle). These images, the first of a fixed random
order, are not among those that the results are compared with. Effective NFE counts forward passes of the flow for an image, and
those of the prior model, each weighted by its FLOPs relative to a pass of the flow. With several graders, a row has the figures of the first.
"""

import argparse
import inspect
import json
import os
import time
from itertools import product
from types import SimpleNamespace

import numpy as np
import torch
from shared.environment import environment
from shared.formats import markdown
from shared.reference import Extractor, Reference, batches, image_size, psnr, through_autoencoder, true_coarse
from shared.results import refuse_existing, write
from tqdm.auto import tqdm

from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq import LowFreqPipeline
from diffusers_lowfreq.evaluation import FeatureMoments, curvature, frechet_distance, radial_power_spectrum
from diffusers_lowfreq.pipelines.velocity import GuidedVelocity, Network, PlainVelocity
from diffusers_lowfreq.training import keyed_generator


BY_PRIOR = ("generated", "truncated")  # the kinds of coarse latents that the prior model makes


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--prior", help="a pipeline whose prior model replaces the own one")
    parser.add_argument(
        "--grader", nargs="+", required=True, help="folders of `train_features.py`, or TorchScript files"
    )
    parser.add_argument("--grader_resolution", type=int, help="images are resized to it for the grader")
    parser.add_argument("--data", required=True, help="images to compare with: a folder, or parquet files")
    parser.add_argument("--split", required=True, help="the name of these images in the results")
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


# ---------------------------------------------------------------------------------------------------------- generate


def generate(pipe, steps: int, labels: torch.Tensor, generators: list[torch.Generator], **inputs):
    """Call any pipeline; return images in [0, 1], the effective NFE, and the coarse latents if there are any."""
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
    """Return the guidance that a one-step model has folded in, 1 if none, or `None` for a model that leaves the choice."""
    config = getattr(getattr(pipe, component, None), "config", {})
    return (config.get("guidance_scale") or 1.0) if config.get("use_meanflow") else None


def has_labels(pipe) -> bool:
    """Say whether a pipeline takes class labels."""
    if isinstance(pipe, LowFreqPipeline):
        return pipe.transformer.config.num_classes is not None
    return "class_labels" in inspect.signature(pipe.__call__).parameters


def flow_velocity(pipe: LowFreqPipeline, labels: torch.Tensor, noise_ratio: float, guidance_scale: float):
    """Return the guided velocity of the flow of a pipeline at a level; a one-step model has its guidance folded in."""
    config, condition = pipe.transformer.config, {}
    if config.guidance_scale_range is not None:
        condition["guidance"] = torch.full((len(labels),), guidance_scale, device=labels.device)
    if config.num_classes is not None:
        condition["class_labels"] = labels
    network = Network(pipe.transformer, noise_ratio=noise_ratio)
    velocity = PlainVelocity(network, condition)
    if config.num_classes is not None and not config.use_meanflow:
        unconditional = {"class_labels": torch.full_like(labels, config.num_classes)}
        velocity = GuidedVelocity(network, condition, unconditional, lambda: guidance_scale)
    # A velocity is asked for at a step of a scheduler: here the only one, at the level
    return lambda x, sigma: velocity(x, SimpleNamespace(timesteps=sigma * 1000), 0)


# ------------------------------------------------------------------------------------------------------------- grade


def list_settings(pipe, args) -> list[dict]:
    """List what to grade: each noise ratio with each kind of coarse latents, number of prior steps and guidance."""
    is_ours, settings = isinstance(pipe, LowFreqPipeline), []
    guidance_scales = args.guidance_scale or [folded_guidance(pipe, "transformer") or 1.0]
    for noise_ratio in (args.noise_ratio or [pipe.scheduler.config.noise_ratio]) if is_ours else [None]:
        for coarse in args.coarse if noise_ratio is not None and noise_ratio < 1 else [None]:
            all_prior_steps = args.prior_steps if coarse in BY_PRIOR else [None]
            prior_scales = args.prior_guidance_scale if coarse in BY_PRIOR else None
            for prior_steps, scale, prior_scale in product(all_prior_steps, guidance_scales, prior_scales or [None]):
                setting = {"coarse": coarse, "prior_steps": prior_steps, "noise_ratio": noise_ratio}
                setting["guidance_scale"] = scale
                if coarse in BY_PRIOR:
                    default = folded_guidance(pipe, "prior") or scale
                    setting["prior_guidance_scale"] = default if prior_scale is None else prior_scale
                settings.append(setting)
    return settings


def call_inputs(setting: dict) -> dict:
    """Return a setting as arguments of a pipeline."""
    inputs = {name: setting[name] for name in ("guidance_scale", "noise_ratio")}
    if setting["coarse"] in BY_PRIOR:
        inputs |= {"truncate_prior": setting["coarse"] == "truncated"}
        inputs |= {"prior_num_inference_steps": setting["prior_steps"]}
        inputs |= {"prior_guidance_scale": setting["prior_guidance_scale"]}
    return inputs


def grade_steps(pipe, reference: Reference, args, setting: dict, steps: int, coarse_moments, bar) -> dict:
    """Grade a setting at one number of steps; `coarse_moments` gathers the coarse latents, unless it is `None`."""
    inputs, costs, spectra, seconds = call_inputs(setting), [], [], []

    def make(images, labels, start, stop):
        if setting["coarse"] == "true":
            inputs["prior_latents"] = true_coarse(pipe, images)
        generators = [keyed_generator(args.seed, i) for i in range(start, stop)]
        started = time.perf_counter()
        generated, nfe, low = generate(pipe, steps, labels, generators, **inputs)
        seconds.append(time.perf_counter() - started)
        costs.append(nfe)
        if coarse_moments is not None:
            coarse_moments.update(low.flatten(1))
        if args.spectrum:
            spectra.append(radial_power_spectrum(generated))
        bar.update()
        return generated

    figures, named = reference.grade(make, args.num_images, args.batch_size)
    row = figures | {"seconds_per_image": round(sum(seconds) / args.num_images, 5)}
    row |= {"class_named": named} if has_labels(pipe) else {}
    row |= {"spectrum": torch.cat(spectra).mean(0).tolist()} if args.spectrum else {}
    return {"steps": steps, "effective_nfe": round(costs[-1], 4)} | row


@torch.no_grad()
def grade(pipe, reference: Reference, args, progress=tqdm) -> dict:
    """Grade a pipeline in every setting of `args`; return a dictionary with a row for each."""
    if args.curvature_images > args.num_images:
        raise ValueError(f"`curvature_images` must be at most `num_images`, got {args.curvature_images}.")
    pipe.set_progress_bar_config(disable=True)
    is_ours, settings, result = isinstance(pipe, LowFreqPipeline), list_settings(pipe, args), {"rows": []}
    cut = batches(args.num_images, args.batch_size)
    if is_ours and pipe.vae is not None:
        real = (reference.batch(*batch)[0] for batch in cut)
        values = torch.cat([psnr(through_autoencoder(pipe.vae, images), images) for images in real])
        result |= {"autoencoder_psnr_db": values.mean().item(), "autoencoder_psnr_images": args.num_images}
    if any(setting["coarse"] == "generated" for setting in settings):
        low = torch.cat([true_coarse(pipe, reference.batch(*batch)[0]).flatten(1) for batch in cut])
        true_moments = FeatureMoments(low.shape[1])
        true_moments.update(low)
    bar = progress(total=len(settings) * len(cut) * len(args.steps))
    for setting in settings:
        moments = FeatureMoments(true_moments.dim) if setting["coarse"] == "generated" else None
        for steps in args.steps:  # the coarse latents are the same whatever the steps of the flow
            found = moments if steps == args.steps[0] else None
            row = grade_steps(pipe, reference, args, setting, steps, found, bar)
            if moments is not None:
                row["coarse_frechet_distance"] = frechet_distance(moments, true_moments)
            result["rows"].append(setting | row)
        has_curvature = setting["coarse"] != "truncated" and setting["prior_steps"] in (None, args.prior_steps[-1])
        if is_ours and args.curvature_images and has_curvature:
            result.setdefault("curvature", []).append(setting | grade_paths(pipe, reference, args, setting))
    bar.close()
    return result


def grade_paths(pipe: LowFreqPipeline, reference: Reference, args, setting: dict) -> dict:
    """Measure the curvature of the paths from the sources of one setting."""
    inputs, paths = call_inputs(setting), []
    for start, stop in batches(args.curvature_images, args.batch_size):
        images, labels = reference.batch(start, stop)
        generators = [keyed_generator(args.seed, i) for i in range(start, stop)]
        if setting["coarse"] == "true":
            inputs["prior_latents"] = true_coarse(pipe, images)
        output = pipe(
            labels if has_labels(pipe) else None,
            num_images_per_prompt=1 if has_labels(pipe) or "prior_latents" in inputs else len(images),
            num_inference_steps=1,
            generator=generators,
            output_type="latent",
            **inputs,
        )
        if setting["noise_ratio"] == 1:
            source = randn_tensor(output.images.shape, generator=generators, device=reference.device)
        else:
            source = pipe.prepare_latents(output.prior_latents, setting["noise_ratio"], generators)
        velocity = flow_velocity(pipe, labels, setting["noise_ratio"], setting["guidance_scale"])
        paths.append(curvature(velocity, source))
    bend, length = (
        torch.cat([getattr(path, name) for path in paths]).mean().item()
        for name in ("curvature", "squared_path_length")
    )
    figures = {"curvature": bend, "squared_path_length": length, "normalized_curvature": bend / max(length, 1e-12)}
    return figures | {"curvature_images": args.curvature_images}


# ------------------------------------------------------------------------------------------------------------- table


def table(result: dict) -> str:
    """Write what the README and the model cards show."""
    accuracy = result["graders"][result["extractor"]]["accuracy"]
    kinds = {row["coarse"] for row in result["rows"]}
    meanings = {
        "generated": "*Generated* coarse latents come from the prior model.",
        "truncated": "*Truncated* ones come from the prior model, which stops early and leaves its noise to the source.",
        "true": f"*True* ones come from {result['num_images']:,} {result['split']} images that are not compared with.",
    }
    text = (
        f"Measured by `benchmarks/evaluate.py` (seed {result['seed']}, {result['num_images']:,} images with the labels of as "
        f"many {result['split']} images, {result['machine']}, torch {result['torch']}). *Class named* is how often the grader, "
        f"a classifier that is right on {accuracy:.1%} of the real {result['split']} images, names the "
        f"class asked for (chance: 10%). The distance is a Fréchet distance on that classifier's features against "
        f"{result['num_reference']:,} {result['split']} images; it is not an FID. "
        + " ".join(meaning for kind, meaning in meanings.items() if kind in kinds)
        + f" The autoencoder alone reaches {result['autoencoder_psnr_db']:.2f} dB PSNR on "
        f"{result['autoencoder_psnr_images']:,} {result['split']} images."
    )
    header = ["checkpoint", "coarse", "prior steps", "α", "guidance", "steps", "effective NFE", "class named", "Fréchet distance"]  # fmt: skip
    lines = []
    for row in result["rows"]:
        prior_steps = "-" if row["prior_steps"] is None else row["prior_steps"]
        cells = [row.get("pipeline", result["pipeline"]), row["coarse"], prior_steps, f"{row['noise_ratio']:g}"]
        cells += [f"{row['guidance_scale']:g}", row["steps"], f"{row['effective_nfe']:.2f}"]
        lines.append([*cells, f"{row['class_named']:.1%}", f"{row['frechet_distance']:.2f}"])
    return f"{text}\n\n{markdown(header, lines)}"


def main(argv=None):
    args = parse_args(argv)
    refuse_existing(args.output)
    pipe = DiffusionPipeline.from_pretrained(args.pipeline, use_safetensors=True)
    name = os.path.basename(args.pipeline.rstrip("/"))
    if args.prior is not None:
        pipe.register_modules(prior=DiffusionPipeline.from_pretrained(args.prior, use_safetensors=True).prior)
        name += f", prior of {os.path.basename(args.prior.rstrip('/'))}"
    extractors = [Extractor(path, args.grader_resolution).to(args.device) for path in args.grader]
    resolution = image_size(pipe)[0]
    reference = Reference(args.data, args.split, resolution, extractors, args.cache_dir, args.num_images)
    result = {"script": "evaluate", "pipeline": name} | reference.facts
    result |= {"num_images": args.num_images, "seed": args.seed} | environment()
    if args.spectrum:
        result["spectrum"] = reference.spectrum
    result |= grade(pipe.to(args.device), reference, args)
    write(result, args.output)
    for row in result["rows"]:
        print(json.dumps({name: value for name, value in row.items() if name != "spectrum"}))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
