# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the pipelines return."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput

from ..autoencoding import decode_latents
from ..guards.values import check_choice
from .inputs import OUTPUT_TYPES, check_images


@dataclass
class LowFreqPipelineOutput(BaseOutput):
    """
    Output of the low-frequency pipelines.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The images: a list, `(batch, height, width, channels)` or `(batch, channels, height, width)`.
        prior_images (same types, *optional*):
            With `output_prior_images=True`, the decoded upsampled coarse latents `U(low)`. With an autoencoder they are not
            simply blurred images.
        prior_latents (`torch.Tensor` of shape `(batch, channels, height / factor, width / factor)`, *optional*):
            The coarse latents, generated or given, which another call takes as `prior_latents`; `None` if the call was given
            `latents`.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    prior_images: list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None
    prior_latents: torch.Tensor | None = None


def decode(vae, latents: torch.Tensor, output_type: str, image_processor: VaeImageProcessor):
    """
    Decode latents of unit scale, `(batch, channels, height, width)`. `"latent"` returns them as they are.

    Raises:
        ValueError: If the output type is unknown, or the images are not finite: they would be black.
    """
    check_choice("output_type", output_type, OUTPUT_TYPES)
    images = latents if output_type == "latent" else decode_latents(vae, latents)
    check_images(images)
    return images if output_type == "latent" else image_processor.postprocess(images, output_type=output_type)
