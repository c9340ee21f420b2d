# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Between images and latents of unit scale, for any autoencoder of diffusers.

Every function takes `None` for `vae` where a model works on pixels: then the images in [-1, 1] are the latents.
"""

import os
from pathlib import Path

import torch

from diffusers import AutoModel

from .guards.weights import check_weights, refuse_missing


def load_autoencoder(name_or_path: str | None, subfolder: str | None = None, **kwargs):
    """
    Load any autoencoder of diffusers, from safetensors files only.

    Args:
        name_or_path (`str`, *optional*):
            A folder or a name on the Hub. `None` stands for pixels.
        subfolder (`str`, *optional*):
            The subfolder that holds the autoencoder, such as `"vae"` in a pipeline.
        kwargs:
            Further arguments of `AutoModel.from_pretrained`, such as `revision` and `variant`.

    Returns:
        `ModelMixin`: The autoencoder, or `None` if `name_or_path` is `None`.

    Raises:
        ValueError: If there is no autoencoder at this place, or its weights lack a tensor.
    """
    if name_or_path is None:
        return None
    location = f"{name_or_path!r}" + (f" with `vae_subfolder` {subfolder!r}" if subfolder else "")
    message = (
        "`pretrained_vae_model_name_or_path` must be the folder or the Hub name of an autoencoder of diffusers in "
    )
    message += f"safetensors (`vae_subfolder` vae for the one inside a pipeline), got {location}"
    if subfolder and os.path.isdir(name_or_path) and not os.path.isdir(os.path.join(name_or_path, subfolder)):
        raise ValueError(f"{message}, which is not there.")  # diffusers would load the folder itself instead
    try:
        vae = AutoModel.from_pretrained(name_or_path, subfolder=subfolder, use_safetensors=True, **kwargs)
        folder = Path(name_or_path, subfolder or "")
        if (folder / "config.json").is_file():
            check_weights(type(vae), folder, kwargs.get("variant"))
        refuse_missing(str(folder), [name for name, weight in vae.named_parameters() if weight.is_meta])
    except (OSError, ValueError) as error:
        raise ValueError(f"{message}: {error}") from error
    if not hasattr(vae, "encode"):
        raise ValueError(f"{message}, a {type(vae).__name__}.")
    return vae


def vae_scale_factor(vae) -> int:
    """Return how many pixels one latent spans along a side; 1 if `vae` is `None`."""
    if vae is None:
        return 1
    ratio = getattr(vae, "spatial_compression_ratio", None)  # AutoencoderDC
    if ratio is not None:
        return ratio
    channels = getattr(vae.config, "block_out_channels", None) or vae.config.encoder_block_out_channels
    return 2 ** (len(channels) - 1)


def image_channels(vae, model) -> int:
    """Return the number of channels of the images: those `vae` takes, or those of `model` if `vae` is `None`."""
    return model.config.in_channels if vae is None else vae.config.in_channels


def latent_channels(vae, model) -> int:
    """
    Return the number of channels of the latents: those `vae` makes, or those of `model` if `vae` is `None`.

    A model that packs patches of latents into tokens has more channels than its latents.
    """
    return model.config.in_channels if vae is None else vae.config.latent_channels


def _shift_and_scale(vae, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Read (shift, scale) of `normalized = (raw - shift) * scale` from the configuration keys of diffusers."""
    scale = getattr(vae.config, "scaling_factor", None) or 1.0
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is None or std is None:
        return getattr(vae.config, "shift_factor", None) or 0.0, scale
    mean, std = (torch.tensor(value, device=like.device, dtype=like.dtype).view(-1, 1, 1) for value in (mean, std))
    return mean, scale / std


def encode_images(vae, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
    """
    Encode images, taking the mode if the autoencoder returns a distribution.

    Args:
        vae (`ModelMixin`, *optional*):
            An `AutoencoderKL`, `AutoencoderDC`, `AutoencoderTiny` or another with the same outputs. `None` returns the
            images as they are.
        images (`torch.Tensor` of shape `(batch, channels, height, width)`):
            Images in [-1, 1].
        normalize (`bool`, defaults to `True`):
            Whether to bring the latents to unit scale. The configuration gives the scale: `scaling_factor`, and
            `latents_mean` and `latents_std` per channel, or else `shift_factor`.

    Returns:
        `torch.Tensor` of shape `(batch, latent_channels, latent_height, latent_width)`.

    Raises:
        ValueError: If the output of `vae.encode` has none of the known forms.
    """
    if vae is None:
        return images
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
    if vae is None:
        return latents
    shift, scale = _shift_and_scale(vae, latents)
    return (latents - shift) * scale


def set_latent_statistics(vae, mean: list[float], std: list[float]):
    """
    Store the measured mean and standard deviation of the raw latents, per channel, in the configuration of `vae`.

    Raises:
        ValueError: If `vae` is `None`: pixels keep their range.
    """
    if vae is None:
        raise ValueError("`vae` must be an autoencoder to store latent statistics in, got None.")
    scale = getattr(vae.config, "scaling_factor", None) or 1.0  # diffusers multiplies by it whatever the statistics
    vae.register_to_config(latents_mean=list(mean), latents_std=[s * scale for s in std])


def decode_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """
    Decode latents of unit scale to images in about [-1, 1]; the inverse of [`encode_images`].

    Args:
        vae (`ModelMixin`, *optional*):
            The autoencoder that encoded the latents. `None` returns the latents as they are.
        latents (`torch.Tensor` of shape `(batch, latent_channels, latent_height, latent_width)`):
            Latents of unit scale.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`.
    """
    if vae is None:
        return latents
    latents = latents.to(vae.dtype)
    shift, scale = _shift_and_scale(vae, latents)
    return vae.decode(latents / scale + shift, return_dict=False)[0]
