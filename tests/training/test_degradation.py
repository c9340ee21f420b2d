# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Degraded copies of images, for upscalers."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scripts import make_folder, workplace

from diffusers_lowfreq.training import DEGRADATIONS, DegradedImages, DegradedPairs, LatentCache, degrade, load_images


pytestmark = pytest.mark.usefixtures(workplace.__name__)


def pixels(*shape, low=0, high=256, seed=0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("factor, small", [(2, (10, 8)), (4, (5, 4)), (2.7, (7, 6))])
def test_a_thumbnail_is_what_pil_makes(factor, small):
    images = pixels(2, 3, 20, 16, low=64, high=192)
    for image, actual in zip(images, degrade(images, "thumbnail", factor)):
        thumbnail = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(small[::-1], Image.Resampling.BICUBIC)
        expected = np.array(thumbnail.resize((16, 20), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(actual.permute(1, 2, 0).numpy() - expected).max() <= 3  # PIL rounds after each axis


@pytest.mark.parametrize("factor", [1, 2.5, 8])
def test_a_blur_is_a_gaussian_of_half_the_factor(factor):
    images = pixels(3, 24, 32)
    radius = min(int(1.5 * factor) + 1, 23)
    expected = [gaussian_filter(c.double().numpy(), factor / 2, mode="mirror", radius=radius) for c in images]
    assert np.abs(degrade(images, "blur", factor).numpy() - np.stack(expected)).max() <= 0.51


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_what_a_degradation_keeps_and_removes(degradation):
    flat = torch.full((3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(degrade(flat, degradation, 5), flat)
    images = pixels(4, 3, 32, 32)
    mirrored = degrade(images.flip(-1), degradation, 4).int() - degrade(images, degradation, 4).flip(-1)
    assert mirrored.abs().max() <= 1
    detail = [degrade(images, degradation, factor).float().var().item() for factor in (2, 4, 8)]
    assert images.float().var() > detail[0] > detail[1] > detail[2] > 0
    assert torch.equal(degrade(images, degradation, 3)[2], degrade(images[2], degradation, 3))
    assert torch.equal(degrade(images, "thumbnail", 1), images)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`degradation` must be among .*got 'noise'"):
        degrade(pixels(3, 8, 8), "noise", 2)
    for factor in (0.5, float("nan")):
        with pytest.raises(ValueError, match=f"`factor` must be at least 1, got {factor}"):
            degrade(pixels(3, 8, 8), "blur", factor)


def test_every_image_has_its_own_fixed_degradation(workplace):
    images = load_images(train_data_dir=str(make_folder(workplace / "images", 16)), resolution=16)
    degraded = DegradedImages(images)
    again = DegradedImages(load_images(train_data_dir=str(workplace / "images"), resolution=16))
    assert len(degraded) == 16 and degraded.id2label == images.id2label
    assert degraded.fingerprint == again.fingerprint != images.fingerprint
    nearest = []
    factors = (2 * 4 ** torch.linspace(0, 1, 25)).tolist()
    for i in range(16):
        assert torch.equal(degraded[i], again[i])
        distances = {
            degradation: min(
                (degraded[i].int() - degrade(images[i], degradation, f).int()).abs().max().item() for f in factors
            )
            for degradation in DEGRADATIONS
        }
        nearest.append(min(distances, key=distances.get))
        assert distances[nearest[-1]] <= 6  # of this degradation, by a factor from 2 to 8
    assert min(nearest.count(degradation) for degradation in DEGRADATIONS) >= 4


def test_pairs_are_of_the_same_images(workplace):
    images = load_images(train_data_dir=str(make_folder(workplace / "images", 12)), resolution=16)
    cache, degraded = (LatentCache.build(i, None, "cache") for i in (images, DegradedImages(images)))
    pairs = DegradedPairs(cache, degraded)
    batch = pairs.__getitems__([(3, False), (5, True), (3, True)])
    expected = torch.stack(
        [DegradedImages(images)[3], DegradedImages(images)[5].flip(-1), DegradedImages(images)[3].flip(-1)]
    )
    torch.testing.assert_close(batch["degraded"], expected / 127.5 - 1)
    assert torch.equal(batch["sample"], cache.__getitems__([(3, False), (5, True), (3, True)])["sample"])
    fewer = load_images(train_data_dir=str(make_folder(workplace / "fewer", 9)), resolution=16)
    with pytest.raises(ValueError, match="`degraded` must hold the same images as `cache`"):
        DegradedPairs(cache, LatentCache.build(fewer, None, "cache"))
