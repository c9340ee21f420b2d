#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure, as ratios in one run, what the library adds to the bare work.

    python benchmarks/overhead.py --output benchmarks/results/overhead.json

Pairs are timed in turn, A B A B …, and the median of the ratios of each pair is reported.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from shared.environment import environment
from shared.formats import markdown, measured_by
from shared.noise_images import make_noise_images
from shared.results import write
from shared.timing import ratio

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTransformer2DModel,
    generate_from_coarse,
)
from diffusers_lowfreq.autoencoding import decode_latents
from diffusers_lowfreq.objectives import Distillation, FlowMatching, MeanFlow
from diffusers_lowfreq.training import KeyedBatchSampler, LatentCache, load_images, uniform


BASES = "from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DiffusionPipeline, ModelMixin, SchedulerMixin"


@torch.no_grad()
def pipeline_call(pipe, pairs):
    """Measure a guided pipeline call at batch 8 over the bare network calls that it makes."""
    pipe.set_progress_bar_config(disable=True)
    labels, steps, prior_steps = list(range(8)), 4, 8
    ours = lambda: pipe(  # noqa: E731
        labels,
        num_inference_steps=steps,
        prior_num_inference_steps=prior_steps,
        guidance_scale=2.0,
        prior_guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    x, low = torch.randn(16, *pipe.transformer.sample_shape), torch.randn(16, *pipe.prior.sample_shape)
    timestep, classes = torch.full((16,), 500.0), torch.zeros(16, dtype=torch.long)
    noise_ratio = {"noise_ratio": torch.full((16,), 0.5)} if pipe.transformer.config.use_noise_ratio else {}

    def bare():
        for _ in range(prior_steps):
            pipe.prior(low, timestep, class_labels=classes)
        for _ in range(steps):
            pipe.transformer(x, timestep, class_labels=classes, **noise_ratio)
        decode_latents(pipe.vae, x[:8])

    def largest():
        pipe.transformer(x, timestep, class_labels=classes, **noise_ratio)
        decode_latents(pipe.vae, x[:8])

    memory = {
        "pipeline_call_mib": round(peak_bytes(ours) / 2**20, 2),
        "largest_call_and_decode_mib": round(peak_bytes(largest) / 2**20, 2),
    }
    memory["ratio"] = round(memory["pipeline_call_mib"] / memory["largest_call_and_decode_mib"], 4)
    return ratio(ours, bare, pairs, "pipeline call"), memory


def peak_bytes(function) -> int:
    """Return the peak of the tensor memory that a call allocates, from the events of the allocator."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def training_step(pipe, pairs, batch_size):
    """Measure a training step from the low-frequency source over the same step from plain Gaussian noise."""
    model = pipe.transformer.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    objective = FlowMatching()
    sampler = KeyedBatchSampler(batch_size, batch_size, 0, range(1))
    sample = torch.randn(batch_size, *model.sample_shape)
    labels = torch.zeros(batch_size, dtype=torch.long)

    def step(low_frequency):
        generators = sampler.generators(0, 0)
        noise = randn_tensor(sample.shape, generator=generators)
        alpha = uniform(batch_size, generators)
        source = pipe.scheduler.make_source_from_sample(sample, noise, alpha) if low_frequency else noise
        noise_ratio = {"noise_ratio": alpha} if model.config.use_noise_ratio else {}
        objective(model, source, sample, generator=generators, class_labels=labels, **noise_ratio).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return ratio(lambda: step(True), lambda: step(False), pairs, "training step")


def objective_steps(pipe, pairs, batch_size):
    """Measure a training step of each one-step objective over one of flow matching; half of the times are equal."""
    config = {k: v for k, v in pipe.transformer.config.items() if not k.startswith("_")}
    model = LowFreqTransformer2DModel.from_config(config | {"use_meanflow": True}).train()
    model.load_state_dict(pipe.transformer.state_dict(), strict=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    source, sample = torch.randn(2, batch_size, *model.sample_shape)
    condition = {"class_labels": torch.zeros(batch_size, dtype=torch.long)}
    if model.config.use_noise_ratio:
        condition["noise_ratio"] = torch.full((batch_size,), 0.5)
    teacher = copy.deepcopy(pipe.transformer).eval().requires_grad_(False)
    network, guided = {"tangent": "network"}, {"guidance_scale": 2.0}
    objectives = {
        "MeanFlow (the pair's tangent)": MeanFlow(),
        "MeanFlow (the pair's tangent), central difference": MeanFlow(derivative="central"),
        "improved MeanFlow (the network's tangent)": MeanFlow(**network),
        "improved MeanFlow, guidance folded in": MeanFlow(**network, **guided),
        "distillation": Distillation(teacher=teacher),
        "distillation, guidance folded in": Distillation(teacher=teacher, **guided),
    }

    def step(objective):
        generator = torch.Generator().manual_seed(0)
        objective(model, source, sample, generator=generator, **condition).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    bare = FlowMatching()
    return {name: ratio(lambda: step(o), lambda: step(bare), pairs, name) for name, o in objectives.items()}


@torch.no_grad()
def stock_starts(pairs):
    """Measure `generate_from_coarse` on stock pipelines over their bare call with as many network calls, both in latents."""
    sd3 = SD3Transformer2DModel(
        sample_size=32,
        num_layers=6,
        num_attention_heads=8,
        joint_attention_dim=512,
        caption_projection_dim=512,
        pooled_projection_dim=512,
    )
    sana = SanaTransformer2DModel(
        sample_size=32,
        num_layers=6,
        num_attention_heads=16,
        num_cross_attention_heads=8,
        cross_attention_head_dim=64,
        cross_attention_dim=512,
        caption_channels=512,
    )
    no_encoders = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    euler, text = FlowMatchEulerDiscreteScheduler(shift=3.0), torch.randn(1, 64, 512)
    pipes = {
        "StableDiffusion3Pipeline": StableDiffusion3Pipeline(
            transformer=sd3, scheduler=euler, vae=None, **no_encoders
        ),
        "SanaPipeline": SanaPipeline(transformer=sana, scheduler=euler, vae=None, text_encoder=None, tokenizer=None),
    }
    prompts = {
        "StableDiffusion3Pipeline": {"pooled_prompt_embeds": torch.randn(1, 512)},
        "SanaPipeline": {"prompt_attention_mask": torch.ones(1, 64), "use_resolution_binning": False},
    }
    source, figures = LowFreqFlowMatchScheduler(factor=4, noise_ratio=0.6), {}
    for name, pipe in pipes.items():
        pipe.set_progress_bar_config(disable=True)
        channels = pipe.transformer.config.in_channels
        call = {
            "prompt_embeds": text,
            "guidance_scale": 1.0,
            "num_inference_steps": 4,
            "output_type": "latent",
        } | prompts[name]
        call |= {"height": 32 * pipe.vae_scale_factor, "width": 32 * pipe.vae_scale_factor}
        low, noise = torch.randn(1, channels, 8, 8), torch.randn(1, channels, 32, 32)
        ours = lambda: generate_from_coarse(pipe, source, prior_latents=low, **call)  # noqa: E731
        figures[name] = ratio(ours, lambda: pipe(latents=noise, **call), pairs, name)
    return figures


def loader_wait(pipe, batch_size, steps):
    """Measure the share of the training time that goes into waiting for the loader of cached latents."""
    with tempfile.TemporaryDirectory() as folder:
        make_noise_images(f"{folder}/images", 1024)
        images = load_images(train_data_dir=f"{folder}/images", resolution=32, cache_dir=f"{folder}/hf")
        cache = LatentCache.build(images, pipe.vae, f"{folder}/cache", shard_size=256)
        sampler = KeyedBatchSampler(len(cache), batch_size, 0, range(steps), random_flip=True)
        loader = torch.utils.data.DataLoader(cache, batch_sampler=sampler, collate_fn=lambda batch: batch)
        model, objective = pipe.transformer.train(), FlowMatching()
        waited = 0.0
        started = before = time.perf_counter()
        for batch in loader:
            waited += time.perf_counter() - before
            sample = batch["sample"]
            source = pipe.scheduler.make_source_from_sample(
                sample, torch.randn_like(sample), torch.full((len(sample),), 0.5)
            )
            noise_ratio = {"noise_ratio": torch.full((len(sample),), 0.5)} if model.config.use_noise_ratio else {}
            objective(model, source, sample, **noise_ratio).mean().backward()
            model.zero_grad()
            before = time.perf_counter()
        return {"share": round(waited / (time.perf_counter() - started), 5), "steps": steps}


def import_cost(pairs):
    """Measure `import diffusers_lowfreq` over importing the classes of diffusers it builds on, in fresh processes."""
    run = lambda code: subprocess.run([sys.executable, "-c", code], check=True)  # noqa: E731
    return ratio(lambda: run(f"{BASES}\nimport diffusers_lowfreq"), lambda: run(BASES), pairs, "import")


# ------------------------------------------------------------------------------------------------------------ tables


def measured(result: dict) -> str:
    return measured_by("overhead", result, f"{result['threads']} threads")


def objectives_table(result: dict) -> str:
    """Write the time of a training step of each one-step objective over one of flow matching."""
    text = (
        f"Time of a training step over one of flow matching with the same network and batch, in turn in one run: medians and "
        f"quartiles. Half of the pairs of times are equal. With the flow of `{result['pipeline']}`. {measured(result)}"
    )
    lines = []
    for name, row in result["objective_steps"].items():
        low, high = row["quartiles"]
        lines.append([name, f"{row['ratio']:.2f}× ({low:.2f} to {high:.2f})", f"{1 / row['ratio']:.2f}×"])
    return f"{text}\n\n{markdown(['objective', 'time of a step', 'training images a second'], lines)}"


def starts_sentence(result: dict) -> str:
    """Write the time of `generate_from_coarse` on stock pipelines over their bare call."""
    found = [
        f"{row['ratio']:.3f} (quartiles {row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f}) on `{name}`"
        for name, row in result["stock_starts"].items()
    ]
    (pairs,) = {row["pairs"] for row in result["stock_starts"].values()}
    return (
        f"The time of a call over that of the bare stock call with as many network calls, both in latents and in turn in one run: "
        f"{', '.join(found)}; {pairs} pairs. {measured(result)}"
    )


def table(result: dict, view: str = "objectives") -> str:
    """Write the times of the `objectives`, or of the `starts` of other people's pipelines."""
    return {"objectives": objectives_table, "starts": starts_sentence}[view](result)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", default="checkpoints/cifar10-32")
    parser.add_argument("--output", required=True)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    pipe = LowFreqPipeline.from_pretrained(args.pipeline)
    result = {"script": "overhead"} | environment()
    result |= {"threads": torch.get_num_threads(), "pipeline": os.path.basename(args.pipeline)}
    result["pipeline_call"], result["peak_memory"] = pipeline_call(pipe, args.pairs)
    result["training_step"] = training_step(pipe, args.pairs, args.batch_size)
    result["objective_steps"] = objective_steps(pipe, args.pairs, args.batch_size)
    result["stock_starts"] = stock_starts(args.pairs)
    result["loader_wait"] = loader_wait(pipe, args.batch_size, args.pairs)
    result["import"] = import_cost(max(5, args.pairs // 3))
    write(result, args.output)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
