# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Start a flow model of any diffusers pipeline from a coarse latent, without training and without a copy of the pipeline."""

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
from .inputs import call_parameters, check_call, check_pipeline, read_scheduler, read_size, repeat_low
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
    Call a stock flow pipeline from a coarse latent, and skip the part of its schedule that would have found it.

    The source of a low-frequency flow, `(1 - noise_ratio) * U(low) + noise_ratio * noise`, is a state that a model trained
    from Gaussian noise nearly knows, at its own level `sigma = noise_ratio`, with a partly blurred image under the noise. So the
    pipeline's own call starts there, with `latents=source` over `sigmas = linspace(noise_ratio, noise_ratio / N, N)`, then 0.
    That is SDEdit (Meng et al. 2021, arXiv 2108.01073) on `U(low)`; a LoRA trained on the true pairs learns the rest.

    The call runs on a shallow copy of `pipe` whose scheduler is the stock Euler scheduler *without the model's shift*, which
    would move the start (a requested 0.5 to 0.75 with a shift of 3); `pipe` itself is left as it is. That it starts from the
    source, and goes over these levels, is checked in every step.

    Args:
        pipe (`DiffusionPipeline`):
            A flow pipeline whose call takes `latents` and `sigmas`: Stable Diffusion 3, FLUX, SANA, Lumina 2 and others, or
            a [`LowFreqPipeline`] of noise ratio 1.
        scheduler ([`LowFreqFlowMatchScheduler`], *optional*):
            What the source is: its `projection`, `factor` and `noise_ratio`. Omitted, that of the LoRA in use.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
            Images to take the coarse latents of, of any size: PIL images of any mode, arrays `(height, width, channels)` and
            tensors `(channels, height, width)` in [0, 1] or of bytes.
        prior_latents (`torch.Tensor` of shape `(batch, channels, latent_height / factor, latent_width / factor)`, *optional*):
            Coarse latents of unit scale, from a prior model. A batch of one, of the prompts, or of all images.
        coarse_num_inference_steps (`int`, *optional*):
            Have the pipeline itself make the coarse latents first, in its ordinary way in so many steps, at `1 / factor` of
            the height and width.
        upsample (`str`, defaults to `"pixels"`):
            How what `coarse_num_inference_steps` makes is brought up: `"pixels"` decodes it, resizes the picture and encodes
            it again; `"latents"` takes it for the coarse latent itself, which saves that but is right only for autoencoders
            whose latents look like small pictures. Many blur or break, because a small picture's latent is not the coarse
            version of a large one's.
        resize_mode (`str`, *optional*):
            What to do with an `image` of another aspect than `height` and `width`: `"crop"`, `"fill"` or `"default"`
            (squeeze), as in diffusers' image processors. Omitted, it is refused.
        num_inference_steps (`int`, defaults to `4`):
            Steps N from the source on.
        height (`int`, *optional*), width (`int`, *optional*):
            Size in pixels; by default that of `prior_latents`, or else the pipeline's own.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
            For the noise of the source, and passed on.
        call:
            Further arguments of the pipeline's call: `prompt`, `guidance_scale`, `num_images_per_prompt`, `output_type` ...

    Returns:
        What the pipeline's call returns.

    Raises:
        ValueError: If the pipeline cannot be started so, or an argument does not fit; it is named.
    """
    # 1. Check
    check_pipeline(pipe)
    scheduler = read_scheduler(pipe, scheduler)
    starts = {"image": image, "prior_latents": prior_latents, "coarse_num_inference_steps": coarse_num_inference_steps}
    check_call(pipe, num_inference_steps, starts, upsample, call)
    if "use_resolution_binning" in call_parameters(pipe):  # SANA would go to another size than the source has
        call.setdefault("use_resolution_binning", False)
    height, width = read_size(pipe, scheduler, prior_latents, height, width)
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

    # 4. The call of the pipeline, over the levels from the source on
    noise_ratio = scheduler.config.noise_ratio
    levels = np.linspace(noise_ratio, noise_ratio / num_inference_steps, num_inference_steps).tolist()
    started = copy.copy(pipe)  # shares the components; its own scheduler
    cast_given_latents(started)
    started.scheduler = checked_scheduler(plain_scheduler(pipe.scheduler), source, levels)
    options = {"num_inference_steps": num_inference_steps, "generator": generator}
    return started(height=height, width=width, sigmas=levels, latents=source, **options, **call)


def _generate_low(
    pipe: DiffusionPipeline, scheduler: LowFreqFlowMatchScheduler, upsample: str, height: int, width: int, call: dict
) -> torch.Tensor:
    """Have the pipeline make coarse latents in its ordinary way, at `1 / factor` of the size."""
    height_low, width_low = height // scheduler.config.factor, width // scheduler.config.factor
    latent_size(pipe, height_low, width_low)
    dropped = ("output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
    call = {k: v for k, v in call.items() if k not in dropped}
    with adapters_left_out(pipe):  # what was trained on blurred images and low levels
        latents = pipe(height=height_low, width=width_low, output_type="latent", return_dict=False, **call)[0]
    latents = unpack_latents(pipe, latents, height_low, width_low)
    if upsample == "latents":
        return latents
    pixels = decode_latents(pipe.vae, latents).float()
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    return scheduler.projection.downsample(encode_images(pipe.vae, pixels).float())
