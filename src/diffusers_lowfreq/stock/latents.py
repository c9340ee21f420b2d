# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The latents of a stock pipeline: their size, and the form in which its call takes them."""

import functools
import inspect

import torch

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..guards.values import is_integer
from ..images import check_pixels


PACKS = ("latents", "batch_size", "num_channels_latents", "height", "width")  # the arguments of FLUX's `_pack_latents`


def latent_size(pipe: DiffusionPipeline, height: int, width: int) -> tuple[int, int]:
    """
    Compute the height and width of the latents for images of `height` times `width` pixels.

    Raises:
        ValueError: If the factor of the autoencoder does not divide them, or twice the factor if latents are packed.
    """
    step = pipe.vae_scale_factor * (2 if hasattr(pipe, "_pack_latents") else 1)
    for name, value in (("height", height), ("width", width)):
        if not is_integer(value) or value < 1 or value % step:
            raise ValueError(f"`{name}` must be a positive multiple of {step} for a {_name(pipe)}, got {value!r}.")
    check_pixels(height, width)
    return height // pipe.vae_scale_factor, width // pipe.vae_scale_factor


def pack_latents(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Pack latents `(batch, channels, height, width)` as the `latents` of a pipeline such as FLUX."""
    if not hasattr(pipe, "_pack_latents"):
        return latents
    if tuple(inspect.signature(pipe._pack_latents).parameters) != PACKS:
        raise ValueError(f"`pipe` must pack its latents as FLUX does, or not at all, a {_name(pipe)} has another way.")
    return pipe._pack_latents(latents, *latents.shape)


def unpack_latents(pipe: DiffusionPipeline, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Undo [`pack_latents`] for images of `height` times `width` pixels."""
    if not hasattr(pipe, "_pack_latents"):
        return latents
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)


def cast_given_latents(pipe: DiffusionPipeline):
    """Make `prepare_latents` cast given latents to the type in which it draws them; not every pipeline does."""
    prepare = getattr(pipe, "prepare_latents", None)
    parameters = inspect.signature(prepare).parameters if prepare is not None else {}
    if not {"latents", "dtype"} <= set(parameters):
        return

    @functools.wraps(prepare)
    def cast(*args, **kwargs):
        given = inspect.signature(prepare).bind(*args, **kwargs)
        if given.arguments.get("latents") is not None:
            given.arguments["latents"] = given.arguments["latents"].to(given.arguments["dtype"])
        return prepare(*given.args, **given.kwargs)

    pipe.prepare_latents = cast


def _name(pipe) -> str:
    return type(pipe).__name__
