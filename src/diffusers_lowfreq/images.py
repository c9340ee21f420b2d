# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Pictures of any kind, as what networks are given."""

import numpy as np
from PIL import Image, ImageOps


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Convert a PIL image of any mode to RGB.

    Deeper greyscale is scaled to 8 bits, transparency is laid on white, EXIF rotation is applied.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # the file does not say what white is: the least usual value that holds all
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        usual = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
        white = next((value for value in usual if values.max() <= value), values.max())
        image = Image.fromarray((values / white * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
