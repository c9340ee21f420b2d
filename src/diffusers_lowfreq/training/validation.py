# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What a run shows of itself: images with fixed seeds, a row for each number of steps, and the error of an autoencoder."""

import os
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from diffusers.utils import make_image_grid

from ..autoencoding import normalize_latents
from ..stock.start import generate_from_coarse
from .engines import averaged_weights
from .keyed import keyed_generator
from .start_pipeline import NETWORKS, is_conditional, trained_parts


NUM_STEPS = (1, 2, 4, 8)


def make_rows(generate: Callable, num_images: int, seed: int) -> list[Image.Image]:
    """Make a row of images for each of `NUM_STEPS` by `generate(num_inference_steps, generators)`; each has the same noise."""
    images = []
    for num_inference_steps in NUM_STEPS:
        images += generate(num_inference_steps, [keyed_generator(seed, "validation", i) for i in range(num_images)])
    return images


def save_grid(run, images: list[Image.Image], num_images: int, name: str):
    """Save rows of images as `samples/<name>-steps-1-2-4-8.png` of the output folder, and log them."""
    if not run.accelerator.is_main_process:
        return
    grid = make_image_grid(images, rows=len(images) // num_images, cols=num_images)
    folder = os.path.join(run.args.output_dir, "samples")
    os.makedirs(folder, exist_ok=True)
    grid.save(os.path.join(folder, f"{name}-steps-{'-'.join(map(str, NUM_STEPS))}.png"))
    for tracker in run.accelerator.trackers:
        if tracker.name == "tensorboard":
            title = f"{run.title}/samples" if run.title else "samples"
            tracker.log_images({title: np.asarray(grid)[None]}, step=run.step, dataformats="NHWC")


def read_coarse(scheduler, vae, cache, rows: list[int], device, name: str = "sample") -> tuple[torch.Tensor, dict]:
    """Return the coarse latents of some images of a cache, and their batch."""
    batch = cache.__getitems__([(row, False) for row in rows])
    return scheduler.projection.downsample(normalize_latents(vae, batch[name].to(device))), batch


# ------------------------------------------------------------------------------------------------ a pipeline of our own


@torch.no_grad()
def validate_pipeline(run, part: str, pipeline, cache, captions, teacher=None):
    """
    Show what a low-frequency pipeline makes with the averaged weights.

    While the prior trains, the images are its coarse latents, upsampled and decoded. While the flow trains, they are its own.
    They start from coarse latents of the prior model if there is one; otherwise from those of the first images of the set,
    degraded if the flow is trained on such; or from noise alone if the source is nothing else. With captions, the images are
    spread over the set. The rows of a teacher come first, with the guidance that is folded into the student.

    Args:
        run ([`Run`]):
            The run.
        part (`str`):
            `"prior"` or `"flow"`, what it trains.
        pipeline ([`LowFreqPipeline`] or [`LowFreqTextToImagePipeline`]):
            The pipeline whose network is trained.
        cache ([`LatentCache`] or [`DegradedPairs`]), captions ([`CaptionCache`], *optional*):
            The data.
        teacher ([`LowFreqPipeline`] or [`LowFreqTextToImagePipeline`], *optional*):
            The pipeline that is distilled.
    """
    if pipeline.transformer is None:
        return  # a prior model alone makes no image
    args, device = run.args, run.device
    model = getattr(pipeline, NETWORKS[part]).eval()
    n, images = args.num_validation_images, []
    steps_name = "prior_num_inference_steps" if part == "prior" else "num_inference_steps"
    with run.autocast(), averaged_weights(run.accelerator, run.parameters, run.ema):
        inputs, negative, origin = _call_inputs(part, pipeline, cache, captions, args, device)
        for pipe in (pipeline,) if teacher is None else (teacher, pipeline):
            for network in (pipe.transformer, pipe.prior, pipe.vae):
                if network is not None:
                    network.to(device)
            pipe.set_progress_bar_config(disable=True)
            guidance = _guidance(pipe, args, teacher)
            fixed = inputs | guidance | (negative if guidance else {})

            def generate(num_inference_steps, generators, pipe=pipe, fixed=fixed):
                output = pipe(
                    **fixed,
                    **{steps_name: num_inference_steps},
                    num_images_per_prompt=1 if inputs else n,
                    generator=generators,
                    output_prior_images=part == "prior",
                )
                return output.prior_images if part == "prior" else output.images

            images += make_rows(generate, n, args.seed)
    model.train()
    order = "-teacher-then-student" if teacher is not None else ""
    save_grid(run, images, n, f"{part}-{run.step:06d}-{origin}-coarse{order}")


def _call_inputs(part: str, pipeline, cache, captions, args, device) -> tuple[dict, dict, str]:
    """The condition of each image and its negative, as a call takes them, and where the coarse latents come from."""
    n, num_classes = args.num_validation_images, pipeline.transformer.config.num_classes
    rows = [i % len(cache) if captions is None else i * len(cache) // n for i in range(n)]
    inputs, negative, origin = {}, {}, "generated"
    if num_classes is not None:
        inputs["class_labels"] = [i % num_classes for i in range(n)]
    if captions is not None:  # as embeddings: the text encoder stays where it is
        shown = captions.choose(cache.positions[rows], torch.zeros(n))
        for call, texts, prefix in ((inputs, shown, ""), (negative, torch.tensor([captions.empty]), "negative_")):
            encoded = captions.embeddings(texts, device)
            call[f"{prefix}prompt_embeds"] = encoded["encoder_hidden_states"]
            call[f"{prefix}prompt_attention_mask"] = encoded["encoder_attention_mask"]
    is_upscaler = part == "flow" and args.degraded_share is not None
    if (pipeline.prior is None or is_upscaler) and pipeline.scheduler.config.noise_ratio < 1:
        name, origin = ("degraded", "degraded") if is_upscaler else ("sample", "true")
        inputs["prior_latents"], batch = read_coarse(pipeline.scheduler, pipeline.vae, cache, rows, device, name)
        if "class_labels" in inputs:
            inputs["class_labels"] = batch["label"]
    return inputs, negative, origin


def _guidance(pipe, args, teacher) -> dict:
    """The guidance of a call: folded into a one-step model, as the student's for its teacher, and otherwise that of validation."""
    guidance = {"guidance_interval": args.guidance_interval} if pipe is teacher else {}
    for part, option in (("flow", "guidance_scale"), ("prior", "prior_guidance_scale")):
        network = getattr(pipe, NETWORKS[part])
        if is_conditional(pipe.transformer) and network is not None and not network.config.use_meanflow:
            is_distilled = teacher is not None and part in trained_parts(args)
            guidance[option] = (getattr(args, option) or 1.0) if is_distilled else args.validation_guidance_scale
    return guidance


# ------------------------------------------------------------------------------------------- somebody else's pipeline


@torch.no_grad()
def validate_stock_pipeline(run, pipe, scheduler, cache, num_images: int, inputs: Callable[[list[int]], dict]):
    """
    Show what a stock pipeline makes from the coarse latents of the first images.

    Args:
        run ([`Run`]):
            The run.
        pipe (`DiffusionPipeline`):
            The pipeline whose transformer is trained.
        scheduler ([`LowFreqFlowMatchScheduler`]):
            What makes the source.
        cache ([`LatentCache`]), num_images (`int`):
            The data, and how many images to show.
        inputs (`Callable`):
            Returns further arguments of the call for the positions of images in the set.
    """
    modules = {name: module for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    devices = {name: module.device for name, module in modules.items()}
    pipe.transformer.eval()
    pipe.to(run.device)
    pipe.set_progress_bar_config(disable=True)
    n = min(num_images, len(cache))
    low, batch = read_coarse(scheduler, pipe.vae, cache, list(range(n)), run.device)
    call = inputs(batch["position"].tolist())

    def generate(num_inference_steps, generators):
        steps = {"num_inference_steps": num_inference_steps, "generator": generators}
        return generate_from_coarse(pipe, scheduler, prior_latents=low, **steps, **call).images

    save_grid(run, make_rows(generate, n, run.args.seed), n, f"{run.step:06d}-true-coarse")
    for name, device in devices.items():
        modules[name].to(device)
    pipe.transformer.train()


# ---------------------------------------------------------------------------------------------------- an autoencoder


@torch.no_grad()
def measure_psnr(vae, cache, indices: list[int], device) -> float:
    """Measure the mean PSNR in dB of an autoencoder over some images of a cache of pixels, with values in [0, 1]."""
    psnr = []
    for start in range(0, len(indices), 64):
        images = cache.__getitems__([(i, False) for i in indices[start : start + 64]])["sample"].to(device)
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((decoded - images) / 2).square().flatten(1).mean(1)
        psnr.append(-10 * mse.clamp(min=1e-10).log10())
    return torch.cat(psnr).mean().item()
