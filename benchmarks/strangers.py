#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Start a Gaussian flow, which plays somebody else's model, from coarse latents: as it is, and with a LoRA.

    python benchmarks/strangers.py --tier cpu --train_data cifar10/train.parquet --test_data cifar10/test.parquet

`examples/train_lowfreq.py` trains the flow and the prior model of coarse latents, `examples/finetune_lora.py` the LoRAs, each
once; after an interruption run the command again. It compares, at equal numbers of network calls:

- *plain*: from Gaussian noise, on the grid `linspace(1, 1 / N, N)`, as it is and trained on for as long as a LoRA;
- *SDEdit as in img2img*: from the upsampled coarse image with noise, as diffusers' image-to-image pipelines do, on the part of
  the stock scheduler's grid that a strength leaves, each strength of the study;
- *training-free start*: `generate_from_coarse` at each of these strengths (which is SDEdit on an even grid);
- *LoRA*: the same call with a LoRA trained on the true pairs of one noise ratio.

Settings are in `benchmarks/studies/strangers.json`; results go to `benchmarks/results/strangers-TIER.json` after every seed.
"""

import argparse
import os

import torch
from evaluate import parse_args as parse_evaluation
from run_study import evaluation_options, load_reference, read_study, run_options
from shared.environment import environment
from shared.example_scripts import BENCHMARKS, DECIDED, ROOT, command_line, train, train_lora
from shared.formats import METRICS, markdown, measured_by, seeds, spread
from shared.reference import Reference, batches
from shared.results import earlier, write
from tqdm.auto import tqdm

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTransformer2DModel,
    generate_from_coarse,
)
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.training import keyed_generator


OWN = ("strengths", "lora", "lora_noise_ratios")  # of this study, beside what every study has
TITLES = {
    "SDEdit as in img2img": "SDEdit, stock grid (image-to-image)",
    "training-free start": "training-free start (SDEdit, even grid)",
}


# ------------------------------------------------------------------------------------------------------------- train


def train_seed(study: dict, tier: dict, seed: int, args) -> tuple[dict, dict]:
    """Train the networks of a seed; return their folders, and the facts of the training of all but the LoRAs."""
    folder = os.path.join(args.work_dir, f"models-{args.tier}")
    data = {"train_data_dir": args.train_data, "seed": seed, "cache_dir": os.path.join(args.work_dir, "cache")}
    common, folders, facts = run_options({}, tier, "train") | data, {}, {}
    flow = common | run_options({}, tier, "flow")
    folders["plain"], facts["flow"] = train("flow", flow, folder)
    folders["prior"], facts["prior"] = train("prior", common | run_options({}, tier, "prior"), folder)
    longer = {name: value for name, value in flow.items() if name not in DECIDED}
    longer |= {name: study["lora"][name] for name in ("max_train_steps", "train_batch_size", "lr_warmup_steps")}
    longer["pretrained_model_name_or_path"] = folders["plain"]
    folders["plain, trained longer"], facts["flow, longer"] = train("flow", longer, folder)
    folders["LoRA"] = {}
    for noise_ratio in study["lora_noise_ratios"]:
        own = {"train_data_dir": args.train_data, "resolution": tier["train"]["resolution"]}
        own |= {"factor": tier["train"]["factor"]} | study["lora"] | {"noise_ratio": noise_ratio}
        own |= {"seed": seed, "cache_dir": data["cache_dir"]}
        folders["LoRA"][noise_ratio] = train_lora(folders["plain"], own, folder)
    return folders, facts


# ------------------------------------------------------------------------------------------------------------- grade


def sdedit(pipe, scheduler, low, strength: float, steps: int, generators):
    """Sample as image-to-image pipelines do: from the upsampled coarse image, the `steps` of the stock grid that `strength` leaves."""
    stock = FlowMatchEulerDiscreteScheduler()
    found = []
    for total in range(steps, 10 * steps + 10):
        if total - int(total - min(total * strength, total)) == steps:  # as `get_timesteps` of those pipelines
            stock.set_timesteps(total)
            found.append(stock.sigmas[total - steps : -1])
    levels = min(found, key=lambda levels: abs(levels[0] - strength))  # of the grids that leave so many, the nearest
    guide = scheduler.projection.upsample(low)
    noise = torch.cat([torch.randn(1, *guide.shape[1:], generator=g) for g in generators])
    start = (1 - levels[0]) * guide + levels[0] * noise
    return pipe(latents=start, sigmas=levels.tolist(), output_type="pt").images


def sample_coarse(flow, maker, prior, seed: int, tier: dict, reference: Reference, options) -> dict[str, list]:
    """Return the batches of coarse latents that the prior model generates, and those of true images."""
    sampler = LowFreqPipeline(flow, maker, prior=prior)
    sampler.set_progress_bar_config(disable=True)
    (prior_steps,) = tier["evaluate"]["prior_steps"]
    lows = {"generated": [], "true": []}
    for start, stop in batches(options.num_images, options.batch_size):
        low, _ = sampler.prepare_prior_latents(
            stop - start,
            *prior.sample_shape[1:],
            prior_steps,
            condition={},
            unconditional=None,
            generator=[keyed_generator(seed, "prior", i) for i in range(start, stop)],
            device=torch.device(options.device),
        )
        lows["generated"].append(low)
        lows["true"].append(maker.projection.downsample(reference.batch(start, stop)[0] * 2 - 1))
    return lows


@torch.no_grad()
def grade_seed(folders: dict, study: dict, tier: dict, seed: int, reference: Reference, options) -> list[dict]:
    """Grade every method, strength, kind of coarse latents and number of steps."""
    pipes = {name: LowFreqPipeline.from_pretrained(folders[name]) for name in ("plain", "plain, trained longer")}
    for pipe in pipes.values():
        pipe.to(options.device).set_progress_bar_config(disable=True)
    stranger, loras = pipes["plain"], folders["LoRA"]
    prior = LowFreqTransformer2DModel.from_pretrained(folders["prior"], subfolder="prior", use_safetensors=True)
    prior.to(options.device)
    factor, (prior_steps,) = tier["train"]["factor"], tier["evaluate"]["prior_steps"]
    makers = {s: LowFreqFlowMatchScheduler(factor=factor, noise_ratio=s) for s in {*study["strengths"], *loras}}
    flow, maker = stranger.transformer, next(iter(makers.values()))  # all makers project alike
    lows = sample_coarse(flow, maker, prior, seed, tier, reference, options)
    cost = prior_steps * count_flops(prior, prior.sample_shape) / count_flops(flow, flow.sample_shape)

    def sample(method, strength, coarse, steps, start, stop):
        generators = [keyed_generator(seed, i) for i in range(start, stop)]
        if strength is None:
            call = {"num_inference_steps": steps, "num_images_per_prompt": stop - start, "generator": generators}
            return pipes[method](**call, output_type="pt").images
        low, maker = lows[coarse][start // options.batch_size], makers[strength]
        if method.startswith("SDEdit"):
            return sdedit(stranger, maker, low, strength, steps, generators)
        call = {"num_inference_steps": steps, "generator": generators, "output_type": "pt"}
        return generate_from_coarse(stranger, maker, prior_latents=low, **call).images

    methods = [(name, None) for name in pipes]
    methods += [(name, s) for name in TITLES for s in study["strengths"]] + [("LoRA", s) for s in loras]
    rows = []
    for method, strength in tqdm(methods, desc=f"seed {seed}"):
        if method == "LoRA":
            name = f"at_{100 * strength:.0f}"
            stranger.load_lora_weights(loras[strength], adapter_name=name)
            stranger.set_adapters(name)
        for coarse in ("generated", "true") if strength is not None else (None,):
            for steps in options.steps:
                figures, _ = reference.grade(
                    lambda _, __, *batch: sample(method, strength, coarse, steps, *batch),  # noqa: B023
                    options.num_images,
                    options.batch_size,
                )
                row = {"seed": seed, "method": method, "noise_ratio": strength, "coarse": coarse, "steps": steps}
                row |= {"effective_nfe": round(steps + (cost if coarse == "generated" else 0), 4)}
                rows.append(row | figures)
    return rows


# ------------------------------------------------------------------------------------------------------------- table


def prior_cost(result: dict) -> float:
    """Return the effective NFE of the prior model."""
    row = next(row for row in result["rows"] if row["coarse"] == "generated")
    return row["effective_nfe"] - row["steps"]


def caption(result: dict) -> str:
    """Say what was trained, what was graded, and by what."""
    all_seeds = sorted({row["seed"] for row in result["rows"]})
    lora, flow = result["lora"], result["training"][str(all_seeds[0])]["flow"]
    evaluation = result["settings"]["evaluate"]
    (prior_steps,) = evaluation["prior_steps"]
    return (
        f"**{result['question']}** Tier `{result['tier']}`, {seeds(all_seeds)} A flow "
        f"of {flow['parameters']} parameters from Gaussian noise ({flow['steps']} steps of {flow['global batch']} images) is the "
        f"stranger. A LoRA of rank {lora['rank']} is trained on it for {lora['max_train_steps']} steps of "
        f"{lora['train_batch_size']}, and so is the stranger itself in the row *trained longer*. Coarse latents are *generated* by a "
        f"prior model in {prior_steps} steps, which cost {prior_cost(result):.2f} effective NFE more than the columns say, or *true*, an oracle: "
        f"those of other test images. In brackets the strength (the noise ratio of the start) that was best there, of "
        f"{', '.join(f'{s:g}' for s in result['strengths'])}. {evaluation['num_images']:,} images, features of "
        f"`{result['extractor']}`; not an FID. {measured_by('strangers', result)}"
    )


def brief_caption(result: dict) -> str:
    """Say what the cells are."""
    return (
        f"Distances by the grader `{result['extractor']}`. Tier `{result['tier']}`, "
        f"{seeds((row['seed'] for row in result['rows']), is_brief=True)} The columns do not count the {prior_cost(result):.2f} effective NFE of the "
        "prior model. In brackets: the best strength there, the noise ratio of the start."
    )


def distances_table(result: dict, metric: str, is_brief: bool) -> str:
    """
    Write the distances of each way to sample the stranger, in brief without true coarse latents.

    Of several strengths the best for each number of steps is written.
    """
    title, scale = METRICS[metric]
    steps, cells = result["settings"]["evaluate"]["steps"], {}
    for row in result["rows"]:
        setting = (row["method"], row["coarse"], row["noise_ratio"], row["steps"])
        cells.setdefault(setting, []).append(scale * row[metric])

    def best(method, coarse, n, ratios):
        found = [(cells[method, coarse, ratio, n], ratio) for ratio in ratios]
        values, ratio = min(found, key=lambda item: sum(item[0]) / len(item[0]))
        return spread(values, 1) + (f" ({ratio:g})" if len(ratios) > 1 else "")

    lines = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["method"] == method]
        ratios, kinds = (list(dict.fromkeys(row[name] for row in own)) for name in ("noise_ratio", "coarse"))
        for choice in [[ratio] for ratio in ratios] if method == "LoRA" else [ratios]:
            name = f"LoRA (α = {choice[0]:g})" if method == "LoRA" else TITLES.get(method, method)
            for coarse in kinds:
                if is_brief and coarse == "true":
                    continue
                lines.append([name, coarse or "-", *(best(method, coarse, n, choice) for n in steps)])
    return markdown([title[0].upper() + title[1:], "coarse", *(f"NFE {n}" for n in steps)], lines)


def table(result: dict, *words: str) -> str:
    """Write both distances, or the one that `words` name; with `brief` among them, under a short caption."""
    if not set(words) <= {*METRICS, "brief"}:
        raise ValueError(f"`words` must be of {[*METRICS, 'brief']}, got {list(words)}.")
    is_brief = "brief" in words
    text = brief_caption(result) if is_brief else caption(result)
    metrics = [name for name in words if name in METRICS] or list(METRICS)
    return "\n\n".join([text, *(distances_table(result, name, is_brief) for name in metrics)])


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tier", required=True, help="a key of benchmarks/tiers.json")
    parser.add_argument("--train_data", required=True)
    parser.add_argument("--test_data", required=True)
    parser.add_argument("--graders_dir", default=os.path.join(ROOT, "checkpoints/graders"))
    parser.add_argument("--work_dir", default="out/studies")
    parser.add_argument("--output", help="by default benchmarks/results/strangers-TIER.json")
    parser.add_argument("--benchmarks_dir", default=BENCHMARKS, help="the folder of tiers.json, studies/ and results/")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    study, tier = read_study("strangers", args.tier, args.benchmarks_dir)
    path = args.output or os.path.join(args.benchmarks_dir, "results", f"strangers-{args.tier}.json")
    options = parse_evaluation(command_line(evaluation_options(tier, args, path)))
    reference = load_reference(tier, args, options)
    header = {"script": "strangers", "study": "strangers", "question": study["question"], "tier": args.tier}
    header |= {"settings": tier} | {name: study[name] for name in OWN} | reference.facts
    header |= {"num_images": options.num_images, "seed": options.seed} | environment()
    result = header | {"training": {}, "rows": []}
    before = earlier(path, header, ("settings", *OWN, "reference_fingerprint", "machine", "torch"))
    if before is not None:
        result |= {name: before[name] for name in ("training", "rows")}
    for seed in tier["seeds"]:
        if any(row["seed"] == seed for row in result["rows"]):
            continue
        folders, result["training"][str(seed)] = train_seed(study, tier, seed, args)
        result["rows"] += grade_seed(folders, study, tier, seed, reference, options)
        write(result, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
