#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Draw how samples form: strips from the source to the data, for several low-frequency pipelines, one below the other.

    python benchmarks/trajectories.py --study few-steps --runs "Gaussian, independent" "low-frequency (α = 0.25)" \
        --train_data cifar10/train.parquet --output docs/figures/trajectories.png
    python benchmarks/trajectories.py --pipelines checkpoints/cifar10-32 --output strips.png

It takes the pipelines of runs of a study (and trains those that are not yet), or saved ones. Each strip is one call of the
pipeline; its states are decoded as they are, noise included. All pipelines get the same noise in the source and the same seeds
of the prior model. A pipeline of noise ratio 1 is plain flow matching.
"""

import argparse
import os

import torch
from run_study import build, check_runs, read_study
from shared.example_scripts import BENCHMARKS
from shared.figures import write_figure

from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq import LowFreqPipeline
from diffusers_lowfreq.autoencoding import decode_latents
from diffusers_lowfreq.training import keyed_generator


@torch.no_grad()
def strips(pipe: LowFreqPipeline, args) -> tuple[torch.Tensor, list[float]]:
    """Return decoded states `(columns, num_samples, channels, height, width)`, from the source on, and their levels sigma."""
    pipe.set_progress_bar_config(disable=True)
    number = args.num_samples
    labels = None
    if pipe.transformer.config.num_classes is not None:
        names = args.class_labels or list(pipe.labels) or list(range(pipe.transformer.config.num_classes))
        names = [int(name) if str(name).isdigit() else name for name in names]
        labels = [names[i % len(names)] for i in range(number)]
    count = {"class_labels": labels, "num_images_per_prompt": number if labels is None else 1}
    scales = {"guidance_scale": args.guidance_scale, "prior_guidance_scale": args.guidance_scale}
    output = pipe(
        num_inference_steps=1,
        prior_num_inference_steps=args.prior_num_inference_steps,
        generator=[keyed_generator(args.seed, "prior", i) for i in range(number)],
        output_type="latent",
        **count,
        **scales,
    )
    generators = [keyed_generator(args.seed, "noise", i) for i in range(number)]
    source = randn_tensor(output.images.shape, generator=generators, dtype=output.images.dtype)
    if pipe.scheduler.config.noise_ratio < 1:
        source = pipe.scheduler.make_source(output.prior_latents, source)
    states = [source]

    def keep(pipe, step, timestep, tensors):
        if (step + 1) % args.steps_per_column == 0:
            states.append(tensors["latents"].clone())
        return {}

    steps = (args.columns - 1) * args.steps_per_column
    pipe(num_inference_steps=steps, latents=source, callback_on_step_end=keep, output_type="latent", **count, **scales)
    decoded = [decode_latents(pipe.vae, state) for state in states]
    sigmas = pipe.scheduler.sigmas[:: args.steps_per_column].tolist()
    return (torch.stack(decoded).float() / 2 + 0.5).clamp(0, 1), sigmas


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pipelines", nargs="+", help="folders, or names on the Hub")
    source.add_argument("--runs", nargs="+", help="runs of a study")
    parser.add_argument("--study", default="few-steps")
    parser.add_argument("--tier", default="cpu")
    parser.add_argument("--train_data", help="of the study")
    parser.add_argument("--work_dir", default="out/studies", help="of the study")
    parser.add_argument("--vae", help="of the study, if it is in latents")
    parser.add_argument("--output", required=True)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--steps_per_column", type=int, default=4, help="steps of the flow between two columns")
    parser.add_argument("--num_samples", type=int, default=3)
    parser.add_argument("--class_labels", nargs="+", help="names or numbers; by default the first classes")
    parser.add_argument("--prior_num_inference_steps", type=int, default=8)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--benchmarks_dir", default=BENCHMARKS, help="the folder of tiers.json and studies/")
    args = parser.parse_args(argv)
    for name, least in (("columns", 2), ("steps_per_column", 1), ("num_samples", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"`{name}` must be at least {least}, got {getattr(args, name)}.")
    return args


def load_pipelines(args) -> dict[str, LowFreqPipeline]:
    """Load the pipelines, or build those of the runs, by their names."""
    if not args.runs:
        return {os.path.basename(path.rstrip("/")): LowFreqPipeline.from_pretrained(path) for path in args.pipelines}
    study, tier = read_study(args.study, args.tier, args.benchmarks_dir)
    check_runs(args.runs, study)
    if args.train_data is None:
        raise ValueError("`train_data` must be given with `runs`: networks are found by what they are trained on.")
    return {run: build(study["runs"][run], tier, args.seed, args)[0] for run in args.runs}


def main(argv=None):
    args = parse_args(argv)

    from matplotlib.figure import Figure

    pictures = [(name, *strips(pipe, args)) for name, pipe in load_pipelines(args).items()]
    rows = len(pictures) * args.num_samples
    figure = Figure(figsize=(1 + 1.05 * args.columns, 0.9 + 1.05 * rows), layout="constrained")
    panels = figure.subfigures(len(pictures), 1, squeeze=False)[:, 0]
    for panel, (name, picture, sigmas) in zip(panels, pictures):
        grid = panel.subplots(args.num_samples, args.columns, squeeze=False)
        panel.supylabel(name, fontsize=11)
        for column in range(args.columns):
            ends = {0: "source, ", args.columns - 1: "data, "}
            grid[0, column].set_title(f"{ends.get(column, '')}σ = {sigmas[column]:.2g}", fontsize=8)
            for row in range(args.num_samples):
                pixels = picture[column, row].permute(1, 2, 0).numpy()
                grid[row, column].imshow(pixels, interpolation="nearest")
                grid[row, column].set_axis_off()
    write_figure(figure, args.output)


if __name__ == "__main__":
    main()
