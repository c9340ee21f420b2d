# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Power of images by radial frequency."""

import torch

from .distances import refuse_non_finite


def spectrum_frequencies(height: int, width: int) -> torch.Tensor:
    """
    List the frequencies of the bins of [`radial_power_spectrum`].

    Args:
        height (`int`):
            Of the images, in pixels.
        width (`int`):
            Of the images, in pixels.

    Returns:
        `torch.Tensor` of shape `(bins,)`, float64: From 0 to Nyquist, 0.5 for an even side, in cycles per pixel.
    """
    side = min(height, width)
    return torch.arange(side // 2 + 1, dtype=torch.float64) / side


@torch.no_grad()
def radial_power_spectrum(images: torch.Tensor) -> torch.Tensor:
    """
    Average the power of each image over rings of equal radial frequency, and over its channels.

    The power of a frequency is `|F|^2 / (height * width)^2`, with `F` the unnormalised discrete Fourier transform, so
    that all frequencies sum to the mean square of the image (Parseval). A ring gathers the frequencies whose radius in
    cycles per pixel is nearest to that of its bin; the corners beyond Nyquist are left out.

    Args:
        images (`torch.Tensor` of shape `(batch, channels, height, width)`):
            Images or latents.

    Returns:
        `torch.Tensor` of shape `(batch, bins)`, float64: Mean power of one frequency in each ring, in squared units of
        the images; the frequencies are those of [`spectrum_frequencies`].

    Raises:
        ValueError: If the shape is another, or values are not finite.
    """
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"`images` must have shape (batch, channels, height, width), got {tuple(images.shape)}.")
    refuse_non_finite("images", images)
    height, width = images.shape[-2:]
    power = torch.fft.fft2(images.double(), norm="forward").abs().square().mean(1).flatten(1)
    vertical, horizontal = (torch.fft.fftfreq(n, dtype=torch.float64, device=images.device) for n in (height, width))
    radius = torch.hypot(vertical[:, None], horizontal).flatten()
    ring = (radius * min(height, width)).round().long()
    sums = power.new_zeros(len(power), int(ring.max()) + 1).index_add_(1, ring, power)
    return (sums / ring.bincount())[:, : len(spectrum_frequencies(height, width))]
