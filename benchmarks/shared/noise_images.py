# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Images for benchmarks whose figures do not depend on what the images show."""

import os

import numpy as np
from PIL import Image


def make_noise_images(folder: str, number: int, resolution: int = 32, num_classes: int | None = None):
    """Write noise as PNG files, with a subfolder for each class if there are any."""
    random = np.random.default_rng(0)
    for i in range(number):
        subfolder = folder if num_classes is None else os.path.join(folder, str(i % num_classes))
        os.makedirs(subfolder, exist_ok=True)
        pixels = random.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(os.path.join(subfolder, f"{i:05d}.png"))
