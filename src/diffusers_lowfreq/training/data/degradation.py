# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Degraded copies of images, such as people give to an upscaler: thumbnails and blurred pictures."""

import torch
import torch.nn.functional as F

from ..keyed import keyed_generator
from .images import ImageDataset
from .latent_cache import LatentCache


DEGRADATIONS = ("thumbnail", "blur")


def degrade(images: torch.Tensor, degradation: str, factor: float) -> torch.Tensor:
    """
    Remove the detail that a thumbnail by `factor` loses, and keep the size.

    Args:
        images (`torch.Tensor` of shape `(..., channels, height, width)`):
            `uint8` pixels.
        degradation (`str`):
            `"thumbnail"`: scale down by `factor`, round to 8 bits, and scale up again, by antialiased bicubic interpolation.
            `"blur"`: convolve with a Gaussian with a standard deviation of `factor / 2` pixels, mirroring at the borders.
        factor (`float`):
            At least 1. A thumbnail by 1 is the image itself.

    Returns:
        `torch.Tensor` of the shape of `images`, `uint8`.

    Raises:
        ValueError: If `degradation` is unknown or `factor` is below 1.
    """
    if degradation not in DEGRADATIONS:
        raise ValueError(f"`degradation` must be among {list(DEGRADATIONS)}, got {degradation!r}.")
    if not factor >= 1:
        raise ValueError(f"`factor` must be at least 1, got {factor!r}.")
    height, width = images.shape[-2:]
    pixels = images.reshape(-1, 1, height, width).float()
    if degradation == "thumbnail":
        for size in ((max(1, round(height / factor)), max(1, round(width / factor))), (height, width)):
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    else:
        radius = min(int(3 * factor / 2) + 1, height - 1, width - 1)
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / (factor / 2)) ** 2)
        weights = (weights / weights.sum()).view(1, 1, -1, 1)
        pixels = F.pad(pixels, [radius] * 4, mode="reflect")
        pixels = F.conv2d(F.conv2d(pixels, weights), weights.mT).round().clamp(0, 255)
    return pixels.to(torch.uint8).reshape(images.shape)


class DegradedImages(ImageDataset):
    """
    The images of a set, each degraded in its own way: a thumbnail or a blur, by a factor between 2 and 8.

    Degradation and factor depend on the number of the image alone. The logarithm of the factor is uniform.

    Args:
        images ([`ImageDataset`]):
            The set.
    """

    def __init__(self, images: ImageDataset):
        vars(self).update(vars(images))

    @property
    def fingerprint(self) -> str:
        """A hash that changes with that of the images."""
        return f"{super().fingerprint}-degraded"

    def __getitem__(self, index: int) -> torch.Tensor:
        """Decode and degrade one image to a `uint8` tensor of shape `(3, resolution, resolution)`."""
        generator = keyed_generator("degradation", index)
        degradation = DEGRADATIONS[int(torch.randint(len(DEGRADATIONS), (), generator=generator))]
        return degrade(super().__getitem__(index), degradation, 2 * 4 ** float(torch.rand((), generator=generator)))


class DegradedPairs(torch.utils.data.Dataset):
    """
    Serve the batches of a cache, with the latents of the degraded copies of the same images as `"degraded"`.

    Args:
        cache ([`LatentCache`]), degraded ([`LatentCache`]):
            The caches of a set and of its [`DegradedImages`].

    Raises:
        ValueError: If they do not hold the same images.
    """

    def __init__(self, cache: LatentCache, degraded: LatentCache):
        if not torch.equal(cache.positions, degraded.positions):
            raise ValueError("`degraded` must hold the same images as `cache`; another choice of them was readable.")
        self.cache, self.degraded, self.positions = cache, degraded, cache.positions

    def __len__(self) -> int:
        return len(self.cache)

    def __getitems__(self, entries: list[tuple[int, bool]]) -> dict[str, torch.Tensor]:
        return self.cache.__getitems__(entries) | {"degraded": self.degraded.__getitems__(entries)["sample"]}
