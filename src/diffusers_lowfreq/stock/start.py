# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Start a stock flow model from a coarse latent, without training and without a copy of its pipeline."""

import copy

import numpy as np
import torch
from PIL import Image

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from ..adapters import adapters_left_out
from ..autoencoding import decode_latents, encode_images, image_channels
from ..images import prepare_images
from ..schedulers import LowFreqFlowMatchScheduler
from .inputs import call_parameters, check_call, check_pipeline, read_scheduler, repeat_low, resolve_size
from .latents import cast_given_latents, latent_size, pack_latents, unpack_latents
from .plain_scheduler import checked_scheduler, plain_scheduler


def generate_from_coarse(
    pipe: DiffusionPipeline,
    scheduler: LowFreqFlowMatchScheduler | None = None,
    *,
    image: Image.Image | np.ndarray | torch.Tensor | list | None = None,
    prior_latents: torch.Tensor | None = None,
    coarse_num_inference_steps: int | None = None,
    upsample: str = "pixels",
    resize_mode: str | None = None,
    num_inference_steps: int = 4,
    height: int | None = None,
    width: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    **call,
):
    r"""
    Call a stock flow pipeline from a coarse latent, and skip the part of its schedule that would have generated it.

    The source of a low-frequency flow is `(1 - noise_ratio) * U(low) + noise_ratio * noise`. To a model trained from Gaussian
    noise it looks almost like its state at the level `sigma = noise_ratio`, with a partly blurred image under the noise. So the
    call of the pipeline starts there: with `latents=source`, over `sigmas = linspace(noise_ratio, noise_ratio / N, N)`, then 0.
    This is SDEdit (Meng et al. 2021, arXiv 2108.01073) on `U(low)`. A LoRA trained on the true pairs learns the rest.

    The call runs on a shallow copy of `pipe`, which does not change. The scheduler of the copy is the stock Euler scheduler
    *without the shift of the model*, which would move the start: from 0.5 to 0.75 with a shift of 3. Every step checks that the
    copy starts from the source and uses these levels.

    Args:
        pipe (`DiffusionPipeline`):
            A flow pipeline whose call takes `latents` and `sigmas`: Stable Diffusion 3, FLUX, SANA, Lumina 2 and others, or a
            [`LowFreqPipeline`] with a noise ratio of 1.
        scheduler ([`LowFreqFlowMatchScheduler`], *optional*):
            Defines the source: its `projection`, `factor` and `noise_ratio`. That of the active LoRA when omitted.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
            Images of any size, whose coarse latents are the start: PIL images of any mode, arrays `(height, width, channels)`
            and tensors `(channels, height, width)`, with numbers in [0, 1] or bytes.
        prior_latents (`torch.Tensor` of shape `(batch, channels, latent_height / factor, latent_width / factor)`, *optional*):
            Coarse latents of unit scale, from a prior model: one for all images, one per prompt, or one per image.
        coarse_num_inference_steps (`int`, *optional*):
            Let the pipeline itself generate the coarse latents first, in this number of ordinary steps, at `1 / factor` of the
            height and width.
        upsample (`str`, defaults to `"pixels"`):
            How to upsample what `coarse_num_inference_steps` generates. `"pixels"` decodes it, resizes the picture and encodes
            it again. `"latents"` uses it as the coarse latent. That saves the round trip, but is right only for autoencoders
            whose latents look like small pictures. With many others the image blurs or breaks, because the latent of a small
            picture is not the coarse version of the latent of a large one.
        resize_mode (`str`, *optional*):
            What to do with an `image` whose aspect ratio is not that of `height` and `width`: `"crop"`, `"fill"` or `"default"`
            (squeeze), as in diffusers' image processors. Omitted, it is refused.
        num_inference_steps (`int`, defaults to `4`):
            The number of steps N from the source.
        height (`int`, *optional*), width (`int`, *optional*):
            Size in pixels; by default that of `prior_latents`, or else the default of the pipeline.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
            Draws the noise of the source, and goes to the pipeline.
        call:
            All other arguments go to the pipeline unchanged: `prompt`, `guidance_scale`, `num_images_per_prompt`,
            `output_type` ...

    Returns:
        The output of the pipeline.

    Raises:
        ValueError: If the pipeline cannot start from a coarse latent, or an argument is not allowed. The error names it.
    """
    # 1. Check
    check_pipeline(pipe)
    scheduler = read_scheduler(pipe, scheduler)
    starts = {"image": image, "prior_latents": prior_latents, "coarse_num_inference_steps": coarse_num_inference_steps}
    check_call(pipe, num_inference_steps, starts, upsample, call)
    if "use_resolution_binning" in call_parameters(pipe):  # SANA would change the size
        call.setdefault("use_resolution_binning", False)
    height, width = resolve_size(pipe, scheduler, prior_latents, height, width)
    device = pipe._execution_device

    with torch.no_grad():
        # 2. The coarse latent
        if coarse_num_inference_steps is not None:
            options = {"num_inference_steps": coarse_num_inference_steps, "generator": generator}
            low = _generate_low(pipe, scheduler, upsample, height, width, call | options)
        elif image is not None:
            channels = image_channels(pipe.vae, pipe.transformer)
            pixels = prepare_images(image, height, width, channels, resize_mode).to(device)
            low = scheduler.projection.downsample(encode_images(pipe.vae, pixels).float())
        else:
            low = prior_latents
        low = repeat_low(low.to(device, torch.float32), call, generator)

        # 3. The source
        shape = (*low.shape[:2], *latent_size(pipe, height, width))
        noise = randn_tensor(shape, generator=generator, device=device, dtype=low.dtype)
        source = pack_latents(pipe, scheduler.make_source(low, noise))

    # 4. The call of the pipeline, from the level of the source
    noise_ratio = scheduler.config.noise_ratio
    levels = np.linspace(noise_ratio, noise_ratio / num_inference_steps, num_inference_steps).tolist()
    started = copy.copy(pipe)  # with a scheduler of its own; it shares the other components
    cast_given_latents(started)
    started.scheduler = checked_scheduler(plain_scheduler(pipe.scheduler), source, levels)
    options = {"num_inference_steps": num_inference_steps, "generator": generator}
    return started(height=height, width=width, sigmas=levels, latents=source, **options, **call)


def _generate_low(
    pipe: DiffusionPipeline, scheduler: LowFreqFlowMatchScheduler, upsample: str, height: int, width: int, call: dict
) -> torch.Tensor:
    """Let the pipeline generate coarse latents in its ordinary way, at `1 / factor` of the size."""
    height_low, width_low = height // scheduler.config.factor, width // scheduler.config.factor
    latent_size(pipe, height_low, width_low)
    dropped = ("output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
    call = {k: v for k, v in call.items() if k not in dropped}
    with adapters_left_out(pipe):  # they were trained on blurred images and low levels
        latents = pipe(height=height_low, width=width_low, output_type="latent", return_dict=False, **call)[0]
    latents = unpack_latents(pipe, latents, height_low, width_low)
    if upsample == "latents":
        return latents
    pixels = decode_latents(pipe.vae, latents).float()
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    return scheduler.projection.downsample(encode_images(pipe.vae, pixels).float())
