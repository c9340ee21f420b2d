# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The power of images as a function of radial frequency."""

import torch

from ..guards.tensors import check_finite, check_shape


def spectrum_frequencies(height: int, width: int) -> torch.Tensor:
    """
    List the frequencies of the bins of [`radial_power_spectrum`].

    Args:
        height (`int`), width (`int`):
            Size of the images in pixels.

    Returns:
        `torch.Tensor` of shape `(bins,)`, float64: From 0 to Nyquist (0.5 for an even side), in cycles per pixel.
    """
    side = min(height, width)
    return torch.arange(side // 2 + 1, dtype=torch.float64) / side


@torch.no_grad()
def radial_power_spectrum(images: torch.Tensor) -> torch.Tensor:
    """
    Average the power of each image over rings of equal radial frequency, and over its channels.

    The power of a frequency is `|F|^2 / (height * width)^2`, where `F` is the unnormalised discrete Fourier transform, so
    that all frequencies sum to the mean square of the image (Parseval). A ring holds the frequencies whose radius in cycles
    per pixel is nearest to that of its bin. The corners beyond Nyquist are left out.

    Args:
        images (`torch.Tensor` of shape `(batch, channels, height, width)`):
            Images or latents.

    Returns:
        `torch.Tensor` of shape `(batch, bins)`, float64: Mean power of one frequency in each ring, in squared units of
        the images. The frequencies are those of [`spectrum_frequencies`].

    Raises:
        ValueError: If the shape does not fit, or a value is not finite.
    """
    check_shape("images", images, "batch", "channels", "height", "width")
    check_finite("images", images)
    height, width = images.shape[-2:]
    power = torch.fft.fft2(images.double(), norm="forward").abs().square().mean(1).flatten(1)
    vertical, horizontal = (torch.fft.fftfreq(n, dtype=torch.float64, device=images.device) for n in (height, width))
    radius = torch.hypot(vertical[:, None], horizontal).flatten()
    ring = (radius * min(height, width)).round().long()
    sums = power.new_zeros(len(power), int(ring.max()) + 1).index_add_(1, ring, power)
    return (sums / ring.bincount())[:, : len(spectrum_frequencies(height, width))]
