# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The radial power spectrum."""

import math

import pytest
import torch
from tiny import randn

from diffusers_lowfreq.evaluation import radial_power_spectrum, spectrum_frequencies


def ring_sizes(height, width):
    """Count the frequencies in each ring, one by one."""
    side = min(height, width)
    counts = [0] * (side // 2 + 1)
    for y in range(-(height // 2), (height + 1) // 2):
        for x in range(-(width // 2), (width + 1) // 2):
            ring = round(math.hypot(y / height, x / width) * side)
            if ring < len(counts):
                counts[ring] += 1
    return torch.tensor(counts, dtype=torch.float64)


@pytest.mark.parametrize("height, width", [(8, 8), (9, 9), (8, 12), (10, 6)])
def test_parseval(height, width):
    """Power times size, summed over the rings, is the mean square of an image without power in the corners."""
    vertical, horizontal = (torch.fft.fftfreq(n) for n in (height, width))
    inside = torch.hypot(vertical[:, None], horizontal) * min(height, width) < min(height, width) // 2 + 0.49
    image = torch.fft.ifft2(torch.fft.fft2(randn(2, 3, height, width, dtype=torch.float64)) * inside).real + 0.5
    spectrum = radial_power_spectrum(image)
    torch.testing.assert_close(spectrum @ ring_sizes(height, width), image.square().mean((1, 2, 3)))


@pytest.mark.parametrize("height, width", [(16, 16), (16, 24)])
@pytest.mark.parametrize("cycles", [0, 1, 5, 8])
def test_a_wave_sits_in_its_ring(height, width, cycles):
    """A wave of k cycles along a side of 16 has all its power, amplitude^2 / 2 (or its square at 0 and Nyquist), at k / 16."""
    wave = 3 * torch.cos(2 * math.pi * cycles * torch.arange(height) / 16)
    image = wave.view(1, 1, height, 1).expand(1, 2, height, width)
    expected = torch.zeros(1, 9, dtype=torch.float64)
    expected[0, cycles] = 9 / (1 if cycles in (0, 8) else 2)
    torch.testing.assert_close(
        radial_power_spectrum(image) * ring_sizes(height, width), expected, atol=1e-6, rtol=1e-6
    )
    assert spectrum_frequencies(height, width)[cycles] == cycles / 16


def test_white_noise_is_flat():
    """Unit white noise has the power 1 / (height width) at every frequency, shared by all rings."""
    spectrum = radial_power_spectrum(randn(400, 3, 16, 16)).mean(0) * 256
    torch.testing.assert_close(spectrum, torch.ones(9, dtype=torch.float64), rtol=0.15, atol=0)


def test_samples_apart_channels_averaged_and_squared_units():
    x = randn(3, 2, 8, 8)
    spectrum = radial_power_spectrum(x)
    torch.testing.assert_close(radial_power_spectrum(2 * x[1:2]), 4 * spectrum[1:2])
    torch.testing.assert_close((radial_power_spectrum(x[:, :1]) + radial_power_spectrum(x[:, 1:])) / 2, spectrum)
    torch.testing.assert_close(radial_power_spectrum(x.transpose(2, 3).roll(3, 2)), spectrum)


def test_bad_input():
    x = randn(3, 1, 4, 4)
    x[1, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match="`images` must be finite, but 1 of 3 samples are not: 1"):
        radial_power_spectrum(x)
    for shape in ((3, 4, 4), (0, 3, 4, 4)):
        with pytest.raises(ValueError, match=r"`images` must have shape \(batch, channels, height, width\)"):
            radial_power_spectrum(torch.zeros(shape))
