# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the Space computes: pictures with their cost, from a class or from an image. The page is in `app.py`."""

import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps

from diffusers_lowfreq import LowFreqPipeline
from diffusers_lowfreq.autoencoding import decode_latents, encode_images
from diffusers_lowfreq.images import to_rgb


HUB_IDS = ("diffusers-lowfreq/cifar10-32", "diffusers-lowfreq/cifar10-32-one-step")
CHECKPOINTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "checkpoints")  # of a clone


@dataclass
class Picture:
    """
    An image of the page.

    Args:
        title (`str`):
            What it is.
        image (`PIL.Image.Image`):
            The image.
        effective_nfe (`float`):
            What it took, in unguided forward passes of the flow.
        seconds (`float`):
            The time until it was there.
    """

    title: str
    image: Image.Image
    effective_nfe: float
    seconds: float


def load_pipelines() -> dict[str, LowFreqPipeline]:
    """Load the shipped pipelines, from the clone that this file lies in or else from the Hub."""
    pipelines = {}
    for hub_id in HUB_IDS:
        name = hub_id.split("/")[1]
        folder = os.path.join(CHECKPOINTS, name)
        pipelines[name] = LowFreqPipeline.from_pretrained(folder if os.path.isdir(folder) else hub_id)
        pipelines[name].set_progress_bar_config(disable=True)
    return pipelines


def settings(pipe: LowFreqPipeline) -> dict[str, dict]:
    """
    Say what can be chosen: the `minimum`, `maximum` and first `value` of each setting, and whether it is `interactive`.

    A one-step model has its guidance folded in, and a noise ratio can be chosen where the model was trained over a range.
    """
    model, scheduler = pipe.transformer.config, pipe.scheduler.config
    lowest, highest = scheduler.noise_ratio_range or (0.0, 1.0)
    steps = {"maximum": 4, "value": 1} if model.use_meanflow else {"maximum": 16, "value": 8}
    return {
        "num_inference_steps": {"minimum": 1, "interactive": True, **steps},
        "guidance_scale": {
            "minimum": 1.0,
            "maximum": 8.0,
            "value": model.guidance_scale if model.use_meanflow else 4.0,
            "interactive": not model.use_meanflow,
        },
        "noise_ratio": {
            "minimum": lowest,
            "maximum": highest,
            "value": scheduler.noise_ratio,
            "interactive": scheduler.noise_ratio_range is not None,
        },
    }


def _arguments(pipe, class_label, num_inference_steps, guidance_scale, noise_ratio, seed) -> dict:
    """What both tabs pass to the pipeline; it checks all but the seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be an integer from 0 to {2**32 - 1}, got {seed!r}.")
    arguments = {
        "num_inference_steps": num_inference_steps,
        "noise_ratio": noise_ratio,
        "generator": torch.Generator().manual_seed(seed),
    }
    if class_label is not None:  # else there is nothing to guide to
        arguments |= {"class_labels": class_label, "guidance_scale": guidance_scale}
    return arguments


def generate(
    pipe: LowFreqPipeline,
    class_label: str | None,
    num_inference_steps: int,
    guidance_scale: float,
    noise_ratio: float,
    seed: int,
) -> list[Picture]:
    """
    Generate an image, with a prior model of eight steps, or of one where it is a one-step model.

    Args:
        pipe (`LowFreqPipeline`):
            One of [`load_pipelines`].
        class_label (`str`, *optional*):
            The class; without one, an image of any.
        num_inference_steps (`int`), guidance_scale (`float`), noise_ratio (`float`), seed (`int`):
            As in a call of the pipeline; the guidance is that of the prior model too.

    Returns:
        `list[Picture]`: The coarse image and the image.

    Raises:
        ValueError: If an argument is not allowed; it is named.
    """
    arguments = _arguments(pipe, class_label, num_inference_steps, guidance_scale, noise_ratio, seed)
    if class_label is not None:
        arguments["prior_guidance_scale"] = guidance_scale
    prior_seconds = []

    def time_prior(pipe, step, timestep, tensors):
        prior_seconds.append(time.perf_counter() - started)
        return tensors

    started = time.perf_counter()
    output = pipe(
        prior_num_inference_steps=1 if pipe.prior.config.use_meanflow else 8,
        prior_callback_on_step_end=time_prior,
        output_prior_images=True,
        **arguments,
    )
    seconds = time.perf_counter() - started
    flow_nfe = num_inference_steps * (2 if pipe.do_classifier_free_guidance else 1)
    nfe = pipe.effective_nfe
    steps = f"{num_inference_steps} step{'s' * (num_inference_steps > 1)}"
    return [
        Picture("Coarse, by the prior model", output.prior_images[0], nfe - flow_nfe, prior_seconds[-1]),
        Picture(f"After {steps} of the flow", output.images[0], nfe, seconds),
    ]


def fit_image(pipe: LowFreqPipeline, image: Image.Image | None) -> Image.Image:
    """
    Crop the centre of an image of any mode and size and resize it to that of the model; what is transparent becomes white.

    Raises:
        ValueError: If there is no image, or nothing on it.
    """
    if image is None or (image.has_transparency_data and image.convert("RGBA").getextrema()[3] == (0, 0)):
        raise ValueError(
            "The canvas is empty: paint on it, or upload an image. A file that is no image leaves it empty."
        )
    height, width = pipe.default_size
    return ImageOps.fit(to_rgb(image), (width, height), Image.Resampling.BICUBIC)


@torch.no_grad()
def encode_coarse(pipe: LowFreqPipeline, image: Image.Image) -> torch.Tensor:
    """Make the coarse latent of an image of the model's size, of shape `(1, channels, height / factor, width / factor)`."""
    return pipe.scheduler.projection.downsample(encode_images(pipe.vae, pipe.image_processor.preprocess(image)))


@torch.no_grad()
def decode_picture(pipe: LowFreqPipeline, latents: torch.Tensor) -> Image.Image:
    """Decode the latent of one image, of shape `(1, channels, height, width)`."""
    return pipe.image_processor.postprocess(decode_latents(pipe.vae, latents), output_type="pil")[0]


def refine(
    pipe: LowFreqPipeline,
    image: Image.Image | None,
    class_label: str | None,
    num_inference_steps: int,
    guidance_scale: float,
    noise_ratio: float,
    seed: int,
) -> Iterator[Picture]:
    """
    Let detail grow from an image's coarse latent: after each step of the flow, what it would end in from there.

    That is `x_next - sigma_next * v`, with the velocity `v` of the step, and after the last step the image itself. For a
    one-step model, whose `v` is the mean velocity of the step, it is an approximation before.

    Args:
        pipe (`LowFreqPipeline`):
            One of [`load_pipelines`].
        image (`PIL.Image.Image`, *optional*):
            Of any mode and size, see [`fit_image`].
        class_label (`str`, *optional*), num_inference_steps (`int`), guidance_scale (`float`), noise_ratio (`float`), seed (`int`):
            As in [`generate`].

    Yields:
        `Picture`: The image at the model's size, the decoded coarse latent, then one picture for each step, as it is there.

    Raises:
        ValueError: If an argument is not allowed, or the image is missing or empty.
    """
    arguments = _arguments(pipe, class_label, num_inference_steps, guidance_scale, noise_ratio, seed)
    started = time.perf_counter()
    small = fit_image(pipe, image)
    yield Picture(f"Yours, {small.width} × {small.height}", small, 0.0, time.perf_counter() - started)
    prior_latents = encode_coarse(pipe, small)
    coarse = decode_picture(pipe, pipe.scheduler.projection.upsample(prior_latents))
    yield Picture("Its coarse latent, decoded", coarse, 0.0, time.perf_counter() - started)

    state = pipe.prepare_latents(prior_latents, noise_ratio, arguments.pop("generator"))
    pictures, left = queue.SimpleQueue(), threading.Event()

    def show(pipe, step, timestep, tensors):
        nonlocal state
        before, state = state, tensors["latents"]
        sigma, sigma_next = pipe.scheduler.sigmas[step : step + 2].tolist()
        velocity = (state - before) / (sigma_next - sigma)
        prediction = decode_picture(pipe, state - sigma_next * velocity)
        title = f"Step {step + 1} of {pipe.num_timesteps}"
        pictures.put(Picture(title, prediction, pipe.effective_nfe, time.perf_counter() - started))
        pipe._interrupt = left.is_set()
        return tensors

    with ThreadPoolExecutor(1) as executor:
        call = executor.submit(pipe, latents=state, output_type="latent", callback_on_step_end=show, **arguments)
        call.add_done_callback(lambda _: pictures.put(None))
        try:
            while (picture := pictures.get()) is not None:
                yield picture
        finally:
            left.set()  # a visitor who leaves is not waited for longer than a step
        call.result()
