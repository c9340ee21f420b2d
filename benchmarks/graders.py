# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The classifier that grades images: its logits name the class, and its last features go into the distances."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class Grader(ModelMixin, ConfigMixin):
    """
    A small convolutional classifier of about 1 M parameters.

    Args:
        num_classes (`int`, defaults to `10`):
            Classes.
        width (`int`, defaults to `64`):
            Channels of the first stage; the second and third have twice and four times as many.
        patch_size (`int`, defaults to `2`):
            Side of the patches of pixels that the first stage takes: with a 16th of the side of the images it has 16 by 16
            positions.
    """

    @register_to_config
    def __init__(self, num_classes: int = 10, width: int = 64, patch_size: int = 2):
        super().__init__()

        def conv(channels_in, channels_out, stride=1):
            return nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out)
            )

        self.stem = conv(3 * patch_size**2, width)
        self.down_1 = conv(width, 2 * width, 2)
        self.residual_1 = conv(2 * width, 2 * width)
        self.down_2 = conv(2 * width, 4 * width, 2)
        self.residual_2 = conv(4 * width, 4 * width)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map images in [0, 1], `(batch, 3, height, width)`, to logits `(batch, classes)` and features `(batch, 4 * width)`."""
        x = F.pixel_unshuffle(images * 2 - 1, self.config.patch_size)
        x = F.relu(self.stem(x))
        x = F.relu(self.down_1(x))
        x = x + F.relu(self.residual_1(x))
        x = F.relu(self.down_2(x))
        x = x + F.relu(self.residual_2(x))
        features = x.mean((2, 3))
        return self.head(features), features
