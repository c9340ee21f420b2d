# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""From images of any kind to the tensors that networks take."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from .guards.values import check_choice


# How to turn an image with this EXIF orientation, so that it is shown upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
METADATA = (
    "exif",
    "Raw profile type exif",
    "xmp",
    "XML:com.adobe.xmp",
)  # keys of `Image.info`; all may hold an orientation


def check_pixels(height: int, width: int, names: str = "`height` and `width`"):
    """
    Refuse a size that Pillow would not read (`PIL.Image.MAX_IMAGE_PIXELS`), before memory is allocated for it.

    Raises:
        ValueError: If the image would have more pixels than that.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > most:
        raise ValueError(
            f"{names} must give at most {most} pixels (`PIL.Image.MAX_IMAGE_PIXELS`), got {height}x{width}."
        )


def to_upright(image: Image.Image) -> Image.Image:
    """
    Turn a PIL image as the orientation in its EXIF data says.

    Nothing else in the EXIF data matters. If they are broken, the image is taken as it is stored, as viewers do.
    """
    image.load()  # a damaged image must fail here, and not while its EXIF data are read
    try:
        method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # what Pillow raises depends on what is broken
        method = None
    if method is None:
        return image
    image = image.transpose(method)
    image.info = {key: value for key, value in image.info.items() if key not in METADATA}
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Convert a PIL image of any mode to RGB.

    Deeper greyscale is scaled to 8 bits, transparency becomes white, and the EXIF rotation is applied, see [`to_upright`].
    """
    image = to_upright(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # the file does not say which value is white: take the smallest usual one that fits
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        usual = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
        white = next((value for value in usual if values.max() <= value), values.max())
        image = Image.fromarray((values / white * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_tensor(image: Image.Image | np.ndarray | torch.Tensor, channels: int) -> torch.Tensor:
    """
    Convert one image to a float32 tensor of shape `(channels, height, width)` in [0, 1], on the CPU.

    Raises:
        ValueError: If `image` is not an image with this number of `channels`.
    """
    if isinstance(image, Image.Image):
        image = _to_array(image, channels)
    if isinstance(image, torch.Tensor):
        layout = "(channels, height, width)"
        tensor = image.detach().cpu()
        tensor = tensor / 255 if image.dtype == torch.uint8 else tensor
    elif isinstance(image, np.ndarray):
        layout = "(height, width, channels)"
        scaled = image / np.iinfo(image.dtype).max if image.dtype.kind == "u" else image
        tensor = torch.from_numpy(scaled.astype(np.float32)) if scaled.dtype.kind == "f" else torch.tensor(0)
        tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
    else:
        raise ValueError(
            f"`image` must be a PIL image, an array, a tensor or a list of them, got {type(image)} in it."
        )
    if not tensor.is_floating_point():
        raise ValueError(f"`image` must hold numbers in [0, 1], or bytes, got {image.dtype}.")
    if tensor.ndim != 3 or tensor.shape[0] != channels or tensor.numel() == 0:
        raise ValueError(
            f"`image` must have pixels and the shape {layout}, or a batch of it, of {channels} "
            f"channel{'s' * (channels > 1)}, got {tuple(image.shape)}."
        )
    return _check_range(tensor.float())


def _to_array(image: Image.Image, channels: int) -> np.ndarray:
    """Convert a PIL image to an array `(height, width, channels)`, grey or RGB."""
    if channels not in (1, 3):
        raise ValueError(f"`image` must be a tensor of the {channels} channels of this model, got a PIL image.")
    try:
        has_pixels = min(image.size) > 0 and (image.mode != "F" or np.isfinite(np.asarray(image)).all())
        rgb = to_rgb(image) if has_pixels else image
    except Exception as error:  # what Pillow raises on a damaged or closed file depends on its format
        raise ValueError(f"`image` cannot be read: {error}") from error
    if not has_pixels:
        raise ValueError(f"`image` must have pixels, all of them finite, got a PIL image of {image.size}.")
    return np.asarray(rgb) if channels == 3 else np.asarray(rgb.convert("L"))[..., None]


def _check_range(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers of an image, all finite and in [0, 1]."""
    if not tensor.isfinite().all():
        raise ValueError(f"`image` must be finite, got {int((~tensor.isfinite()).sum())} values that are not.")
    if tensor.min() < 0 or tensor.max() > 1:
        raise ValueError(
            f"`image` must hold numbers in [0, 1], or bytes, got {tensor.min():.4g} to {tensor.max():.4g}."
        )
    return tensor


def _to_aspect(image: torch.Tensor, height: int, width: int, resize_mode: str | None) -> torch.Tensor:
    """Crop or pad an image `(channels, height, width)` to the aspect ratio of `height` and `width`."""
    h, w = image.shape[1:]
    if resize_mode == "crop":
        new_h, new_w = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
        top, left = (h - new_h) // 2, (w - new_w) // 2
        return image[:, top : top + new_h, left : left + new_w]
    if resize_mode == "fill":
        new_h, new_w = max(h, round(w * height / width)), max(w, round(h * width / height))
        top, left = (new_h - h) // 2, (new_w - w) // 2
        borders = (left, new_w - w - left, top, new_h - h - top)
        return F.pad(image[None], borders, mode="replicate")[0]
    # The same ratio up to rounding: the sides of one image are those of the other, scaled and rounded
    if resize_mode is None and 2 * abs(h * width - w * height) >= max(height + width, h + w):
        raise ValueError(
            f"`image` must have the aspect of `height` and `width`, {height}x{width}, got {h}x{w}. `resize_mode` "
            "'crop' cuts off the excess, 'fill' repeats the border, 'default' stretches."
        )
    return image


def prepare_images(
    image: Image.Image | np.ndarray | torch.Tensor | list,
    height: int,
    width: int,
    channels: int = 3,
    resize_mode: str | None = None,
) -> torch.Tensor:
    """
    Bring images of any size to the size and the range of an autoencoder.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            PIL images of any mode and size, arrays `(height, width, channels)` or tensors `(channels, height, width)`, or
            batches of them, in [0, 1] or as bytes.
        height (`int`), width (`int`):
            Size in pixels.
        channels (`int`, defaults to `3`):
            Number of channels of the autoencoder's images.
        resize_mode (`str`, *optional*):
            What to do with an image of another aspect ratio, as in diffusers' image processors: `"default"` stretches,
            `"crop"` cuts off the excess, `"fill"` repeats the border. By default such an image is refused.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`, float32: The images in [-1, 1].

    Raises:
        ValueError: If `image` is not an image, or has another aspect ratio than `height` and `width` and there is no
            `resize_mode`.
    """
    check_choice("resize_mode", resize_mode, ("default", "crop", "fill"), optional=True)
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        image = list(image)
    if not isinstance(image, (list, tuple)):
        image = [image]
    if not len(image):
        raise ValueError("`image` must hold at least one picture, got none.")
    images = []
    for one in image:
        one = _to_aspect(to_tensor(one, channels), height, width, resize_mode)
        if one.shape[1:] != (height, width):
            one = F.interpolate(one[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
        images.append(one)
    return torch.stack(images) * 2 - 1
