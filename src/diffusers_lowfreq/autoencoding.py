# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Between pixels and latents of unit scale, for any autoencoder of diffusers."""

import os

import torch

from diffusers import AutoModel


def load_autoencoder(name_or_path: str, subfolder: str | None = None, **kwargs):
    """
    Load any autoencoder of diffusers, from safetensors files only.

    Args:
        name_or_path (`str`):
            A folder or a name on the Hub.
        subfolder (`str`, *optional*):
            Where it lies in there, `"vae"` for the one of a pipeline.
        kwargs:
            Further arguments of `AutoModel.from_pretrained`, such as `revision` and `variant`.

    Returns:
        `ModelMixin`: The autoencoder.

    Raises:
        ValueError: If there is none, or something else.
    """
    where = f"{name_or_path!r}" + (f" with `vae_subfolder` {subfolder!r}" if subfolder else "")
    must = "`pretrained_vae_model_name_or_path` must be the folder or the Hub name of an autoencoder of diffusers in "
    must += f"safetensors (`vae_subfolder` vae for the one inside a pipeline), got {where}"
    if subfolder and os.path.isdir(name_or_path) and not os.path.isdir(os.path.join(name_or_path, subfolder)):
        raise ValueError(f"{must}, which is not there.")  # diffusers would take the folder itself
    try:
        vae = AutoModel.from_pretrained(name_or_path, subfolder=subfolder, use_safetensors=True, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(f"{must}: {error}") from error
    if not hasattr(vae, "encode"):
        raise ValueError(f"{must}, a {type(vae).__name__}.")
    return vae


def _statistics(vae, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Return (shift, scale) such that `normalized = (raw - shift) * scale`, by diffusers' own configuration keys."""
    scale = getattr(vae.config, "scaling_factor", None) or 1.0
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is None or std is None:
        return getattr(vae.config, "shift_factor", None) or 0.0, scale
    mean, std = (torch.tensor(value, device=like.device, dtype=like.dtype).view(-1, 1, 1) for value in (mean, std))
    return mean, scale / std


def encode_images(vae, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
    """
    Encode images with any autoencoder of diffusers, taking the mode where it gives a distribution.

    Args:
        vae (`ModelMixin`):
            An `AutoencoderKL`, `AutoencoderDC`, `AutoencoderTiny` or one with the same outputs.
        images (`torch.Tensor` of shape `(batch, channels, height, width)`):
            Images in [-1, 1].
        normalize (`bool`, defaults to `True`):
            Bring the latents to unit scale with the configuration's `latents_mean` and `latents_std` per channel, or
            else its `shift_factor`, and its `scaling_factor`.

    Returns:
        `torch.Tensor` of shape `(batch, latent_channels, latent_height, latent_width)`.

    Raises:
        ValueError: If the output of `vae.encode` has none of the known forms.
    """
    output = vae.encode(images.to(vae.dtype))
    if hasattr(output, "latent_dist"):
        latents = output.latent_dist.mode()
    elif hasattr(output, "latents"):
        latents = output.latents
    elif hasattr(output, "latent"):
        latents = output.latent
    else:
        raise ValueError(f"`vae` of type {type(vae).__name__} gives neither `latent_dist` nor `latents` nor `latent`.")
    return normalize_latents(vae, latents) if normalize else latents


def normalize_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """Bring raw latents `(batch, channels, height, width)` to unit scale, as [`encode_images`] does."""
    shift, scale = _statistics(vae, latents)
    return (latents - shift) * scale


def set_latent_statistics(vae, mean: list[float], std: list[float]):
    """Store measured statistics of the raw latents per channel in the configuration of `vae`."""
    scale = getattr(vae.config, "scaling_factor", None) or 1.0  # diffusers multiplies by it whatever the statistics
    vae.register_to_config(latents_mean=list(mean), latents_std=[s * scale for s in std])


def decode_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """
    Decode latents of unit scale to images in about [-1, 1]; the inverse of [`encode_images`].

    Args:
        vae (`ModelMixin`):
            The autoencoder that made the latents.
        latents (`torch.Tensor` of shape `(batch, latent_channels, latent_height, latent_width)`):
            Normalised latents.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`.
    """
    latents = latents.to(vae.dtype)
    shift, scale = _statistics(vae, latents)
    return vae.decode(latents / scale + shift, return_dict=False)[0]
