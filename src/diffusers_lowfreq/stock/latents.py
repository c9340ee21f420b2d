# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The latents of somebody else's pipeline: their size, and the form in which its call takes them."""

import torch

from diffusers.pipelines.pipeline_utils import DiffusionPipeline


def latent_size(pipe: DiffusionPipeline, height: int, width: int) -> tuple[int, int]:
    """
    Compute the height and width of the latents for images of `height` times `width` pixels.

    Raises:
        ValueError: If the autoencoder's factor (twice that, where latents are packed two by two) does not divide them.
    """
    step = pipe.vae_scale_factor * (2 if hasattr(pipe, "_pack_latents") else 1)
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % step:
            raise ValueError(f"`{name}` must be a positive multiple of {step} for a {_name(pipe)}, got {value!r}.")
    return height // pipe.vae_scale_factor, width // pipe.vae_scale_factor


def pack_latents(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Bring latents `(batch, channels, height, width)` into the form of the pipeline's `latents`, as FLUX packs them."""
    return pipe._pack_latents(latents, *latents.shape) if hasattr(pipe, "_pack_latents") else latents


def unpack_latents(pipe: DiffusionPipeline, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Undo [`pack_latents`]; `height` and `width` are those of the image, in pixels."""
    if not hasattr(pipe, "_pack_latents"):
        return latents
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)


def _name(pipe) -> str:
    return type(pipe).__name__
