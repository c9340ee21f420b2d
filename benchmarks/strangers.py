#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Start a Gaussian flow, in the part of somebody else's model, from coarse latents: as it is, and with a LoRA.

    python benchmarks/strangers.py --tier cpu --train_data cifar10/train.parquet --test_data cifar10/test.parquet

The flow and the prior model of coarse latents are trained by `examples/train_lowfreq.py`, the LoRAs by `examples/finetune_lora.py`, once
each; run the command once more after an interruption. Compared at equal numbers of network calls:

- *plain*: from Gaussian noise, on the grid `linspace(1, 1 / N, N)`, as it is and trained on for as long as a LoRA;
- *SDEdit as in img2img*: from the upsampled coarse image with noise, as diffusers' image-to-image pipelines do, on the part of
  the stock scheduler's grid that a strength leaves, each strength of the study;
- *training-free start*: `generate_from_coarse` at each of these strengths (which is SDEdit on an even grid);
- *LoRA*: the same call with a LoRA that was trained on the true pairs of one noise ratio.

Settings are in `benchmarks/studies/strangers.json`; results go to `benchmarks/results/strangers-TIER.json` after every seed.
"""

import argparse
import hashlib
import json
import os
import sys

import torch
from evaluate import Extractor, Reference, environment
from evaluate import parse_args as parse_evaluation
from run_study import ROOT, command_line, read_study, run_options, train, write
from tqdm.auto import tqdm

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTransformer2DModel,
    generate_from_coarse,
)
from diffusers_lowfreq.evaluation import FeatureStatistics, count_flops
from diffusers_lowfreq.training import keyed_generator


sys.path.insert(0, os.path.join(ROOT, "examples"))
import finetune_lora  # noqa: E402
import train_lowfreq  # noqa: E402


def train_lora(stranger: str, options: dict, folder: str) -> str:
    """Fine-tune a LoRA unless that was done, and return its folder."""
    key = hashlib.sha256(json.dumps([stranger, options], sort_keys=True).encode()).hexdigest()[:12]
    output = os.path.join(folder, f"lora-{key}")
    if not os.path.exists(os.path.join(output, "README.md")):
        line = command_line(options | {"pretrained_model_name_or_path": stranger, "output_dir": output})
        finetune_lora.main(finetune_lora.parse_args(line + ["--resume_from_checkpoint", "latest"]))
    return output


def sdedit(pipe, scheduler, low, strength: float, steps: int, generators):
    """From the upsampled coarse image, as image-to-image pipelines go: so many steps of the stock grid as `strength` leaves."""
    stock = FlowMatchEulerDiscreteScheduler()
    found = []
    for total in range(steps, 10 * steps + 10):
        if total - int(total - min(total * strength, total)) == steps:  # as `get_timesteps` of those pipelines
            stock.set_timesteps(total)
            found.append(stock.sigmas[total - steps : -1])
    levels = min(found, key=lambda levels: abs(levels[0] - strength))  # of the grids that leave so many, the nearest
    noise = torch.cat([torch.randn(1, *pipe._latent_shape, generator=g) for g in generators])
    guide = scheduler.projection.upsample(low)
    start = (1 - levels[0]) * guide + levels[0] * noise
    return pipe(latents=start, sigmas=levels.tolist(), output_type="pt").images


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tier", required=True, help="a key of benchmarks/tiers.json")
    parser.add_argument("--train_data", required=True)
    parser.add_argument("--test_data", required=True)
    parser.add_argument("--graders_dir", default=os.path.join(ROOT, "checkpoints/graders"))
    parser.add_argument("--work_dir", default="out/studies")
    parser.add_argument("--output", help="by default benchmarks/results/strangers-TIER.json")
    args = parser.parse_args()
    study, tier = read_study("strangers", args.tier)
    path = args.output or os.path.join(ROOT, "benchmarks/results", f"strangers-{args.tier}.json")
    evaluation = {"pipeline": "-", "data": args.test_data, "split": tier["split"], "output": path}
    evaluation |= {"grader": [os.path.join(args.graders_dir, name) for name in tier["graders"][: tier["num_graders"]]]}
    options = parse_evaluation(command_line(evaluation | tier["evaluate"]))
    extractors = [Extractor(grader, options.grader_resolution).to(options.device) for grader in options.grader]
    cache_dir, resolution = os.path.join(args.work_dir, "cache"), tier["train"]["resolution"]
    reference = Reference(args.test_data, tier["split"], resolution, extractors, cache_dir, options.num_images)
    header = {"study": "strangers", "question": study["question"], "tier": args.tier, "settings": tier}
    header |= (
        {k: study[k] for k in ("strengths", "lora", "lora_noise_ratios")} | reference.facts | environment(options)
    )
    result = header | {"training": {}, "rows": []}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        for key in ("settings", "strengths", "lora", "lora_noise_ratios", "reference_fingerprint", "machine", "torch"):
            if before[key] != json.loads(json.dumps(header[key])):
                raise ValueError(
                    f"`output` {path!r} holds results of another configuration (`{key}`); nothing is overwritten."
                )
        result |= {k: before[k] for k in ("training", "rows")}
    folder = os.path.join(args.work_dir, f"models-{args.tier}")
    for seed in tier["seeds"]:
        if any(row["seed"] == seed for row in result["rows"]):
            continue
        common = run_options({}, tier, "train") | {
            "train_data_dir": args.train_data,
            "seed": seed,
            "cache_dir": cache_dir,
        }
        flow_folder, flow_facts = train("flow", common | run_options({}, tier, "flow"), folder)
        prior_folder, prior_facts = train("prior", common | run_options({}, tier, "prior"), folder)
        decided = {*train_lowfreq.FROM_PIPELINE_ONLY, *train_lowfreq.NEW_PRIOR}
        longer = {k: v for k, v in (common | run_options({}, tier, "flow")).items() if k not in decided}
        longer |= {k: study["lora"][k] for k in ("max_train_steps", "train_batch_size", "lr_warmup_steps")}
        longer["pretrained_model_name_or_path"] = flow_folder
        longer_folder, longer_facts = train("flow", longer, folder)
        result["training"][str(seed)] = {"flow": flow_facts, "prior": prior_facts, "flow, longer": longer_facts}
        loras = {}
        for noise_ratio in study["lora_noise_ratios"]:
            own = {"train_data_dir": args.train_data, "resolution": resolution, "factor": tier["train"]["factor"]}
            own |= study["lora"] | {"noise_ratio": noise_ratio, "seed": seed, "cache_dir": cache_dir}
            loras[noise_ratio] = train_lora(flow_folder, own, folder)
        flows = {"plain": flow_folder, "plain, trained longer": longer_folder}
        result["rows"] += grade_seed(flows, prior_folder, loras, study, tier, seed, reference, options)
        write(result, path)
    print(f"wrote {path}")


@torch.no_grad()
def grade_seed(flows, prior_folder, loras, study, tier, seed, reference, options) -> list[dict]:
    pipe, longer = (LowFreqPipeline.from_pretrained(folder).to(options.device) for folder in flows.values())
    longer.set_progress_bar_config(disable=True)
    prior = LowFreqTransformer2DModel.from_pretrained(prior_folder, subfolder="prior", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    sampler = LowFreqPipeline(None, None, prior=prior.to(options.device))
    sampler.set_progress_bar_config(disable=True)
    size, channels = reference.cache[0, False]["sample"].shape[-1], pipe.transformer.config.in_channels
    factor, (prior_steps,) = tier["train"]["factor"], tier["evaluate"]["prior_steps"]
    low_size = size // factor
    cost = (
        prior_steps
        * count_flops(prior, (channels, low_size, low_size))
        / count_flops(pipe.transformer, (channels, size, size))
    )
    batches = [
        (s, min(s + options.batch_size, options.num_images)) for s in range(0, options.num_images, options.batch_size)
    ]
    makers = {s: LowFreqFlowMatchScheduler(factor=factor, noise_ratio=s) for s in {*study["strengths"], *loras}}
    maker = next(iter(makers.values()))  # all project alike
    lows = {"generated": [], "true": []}
    for start, stop in batches:
        generators = [keyed_generator(seed, "prior", i) for i in range(start, stop)]
        low = sampler.prepare_prior_latents(
            stop - start, low_size, low_size, prior_steps, {}, None, generators, torch.device(options.device)
        )[1]
        lows["generated"].append(low)
        lows["true"].append(maker.projection.downsample(reference.batch(start, stop)[0] * 2 - 1))
    pipe(num_inference_steps=1)  # sets the shape of its latents

    methods = [(name, None) for name in flows]
    methods += [(m, s) for m in ("SDEdit as in img2img", "training-free start") for s in study["strengths"]]
    methods += [("LoRA", s) for s in loras]
    rows = []
    for method, strength in tqdm(methods, desc=f"seed {seed}"):
        if method == "LoRA":
            pipe.load_lora_weights(loras[strength], adapter_name=f"at_{100 * strength:.0f}")
            pipe.set_adapters(f"at_{100 * strength:.0f}")
        for coarse in ("generated", "true") if strength is not None else (None,):
            for steps in options.steps:
                statistics = [FeatureStatistics(e, e.name, max_features=2000) for e in reference.extractors]
                for number, (start, stop) in enumerate(batches):
                    generators = [keyed_generator(seed, i) for i in range(start, stop)]
                    if strength is None:
                        count = {"num_images_per_prompt": stop - start}
                        images = (pipe if method == "plain" else longer)(
                            num_inference_steps=steps, generator=generators, output_type="pt", **count
                        ).images
                    elif method.startswith("SDEdit"):
                        images = sdedit(pipe, maker, lows[coarse][number], strength, steps, generators)
                    else:
                        images = generate_from_coarse(
                            pipe,
                            makers[strength],
                            prior_latents=lows[coarse][number],
                            num_inference_steps=steps,
                            generator=generators,
                            output_type="pt",
                        ).images
                    for gathered in statistics:
                        gathered.update(images)
                for extractor in reference.extractors:
                    extractor.classes.clear()
                row = {"seed": seed, "method": method, "noise_ratio": strength, "coarse": coarse, "steps": steps}
                row |= {"effective_nfe": round(steps + (cost if coarse == "generated" else 0), 4)}
                rows.append(row | reference.compare(statistics))
    return rows


if __name__ == "__main__":
    main()
