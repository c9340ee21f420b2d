# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from diffusers.utils import BaseOutput


@dataclass
class LowFreqPipelineOutput(BaseOutput):
    """
    Output of the low-frequency pipelines.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The images: a list, `(batch, height, width, channels)` or `(batch, channels, height, width)`.
        prior_images (same types, *optional*):
            With `output_prior_images=True`, the decoded upsampled coarse latents `U(low)`. Through an autoencoder this
            is not simply a blurred image.
        prior_latents (`torch.Tensor` of shape `(batch, channels, height / factor, width / factor)`, *optional*):
            The coarse latents, generated or given, fit to be passed as `prior_latents`; `None` where the call was
            given `latents`.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    prior_images: list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None
    prior_latents: torch.Tensor | None = None
