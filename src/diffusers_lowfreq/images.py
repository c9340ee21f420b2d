# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Pictures of any kind, as what networks are given."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps


def check_pixels(height: int, width: int, names: str = "`height` and `width`"):
    """
    Refuse sizes that Pillow would not read, `PIL.Image.MAX_IMAGE_PIXELS`, before anything of them is allocated.

    Raises:
        ValueError: If there are more pixels than that.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > most:
        raise ValueError(
            f"{names} must give at most {most} pixels (`PIL.Image.MAX_IMAGE_PIXELS`), got {height}x{width}."
        )


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


def to_tensor(image: Image.Image | np.ndarray | torch.Tensor, channels: int) -> torch.Tensor:
    """
    Turn one picture into a float32 tensor of shape `(channels, height, width)` in [0, 1], on the CPU.

    Raises:
        ValueError: If `image` is no picture of so many `channels`.
    """
    if isinstance(image, Image.Image):
        if channels not in (1, 3):
            raise ValueError(f"`image` must be a tensor of the {channels} channels of this model, got a PIL image.")
        if min(image.size) < 1 or (image.mode == "F" and not np.isfinite(np.asarray(image)).all()):
            raise ValueError(f"`image` must have pixels, all of them finite, got a PIL image of {image.size}.")
        try:
            image = np.asarray(to_rgb(image) if channels == 3 else to_rgb(image).convert("L"))
        except (OSError, SyntaxError, ValueError) as error:  # of a damaged or closed file
            raise ValueError(f"`image` cannot be read: {error}") from error
        image = image[..., None] if channels == 1 else image
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise ValueError(
            f"`image` must be a PIL image, an array, a tensor or a list of them, got {type(image)} in it."
        )
    shape, dtype = tuple(image.shape), image.dtype
    if isinstance(image, torch.Tensor):
        layout = "(channels, height, width)"
        tensor = image.detach().cpu()
        tensor = tensor / 255 if dtype == torch.uint8 else tensor
    else:
        layout = "(height, width, channels)"
        image = image / np.iinfo(dtype).max if dtype.kind == "u" else image
        tensor = torch.from_numpy(image.astype(np.float32)) if image.dtype.kind == "f" else torch.tensor(0)
        tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
    if not tensor.is_floating_point():
        raise ValueError(f"`image` must hold numbers in [0, 1], or bytes, got {dtype}.")
    if tensor.ndim != 3 or tensor.shape[0] != channels or tensor.numel() == 0:
        raise ValueError(
            f"`image` must have pixels and the shape {layout}, with a batch before it or not, of {channels} "
            f"channel{'s' * (channels > 1)}, got {shape}."
        )
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise ValueError(f"`image` must be finite, got {int((~tensor.isfinite()).sum())} values that are not.")
    if tensor.min() < 0 or tensor.max() > 1:
        raise ValueError(
            f"`image` must hold numbers in [0, 1], or bytes, got {tensor.min():.4g} to {tensor.max():.4g}."
        )
    return tensor


def prepare_images(
    image: Image.Image | np.ndarray | torch.Tensor | list,
    height: int,
    width: int,
    channels: int = 3,
    resize_mode: str | None = None,
) -> torch.Tensor:
    """
    Bring pictures of any size to the size and the range of an autoencoder.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            PIL images of any mode and size, arrays `(height, width, channels)` or tensors `(channels, height, width)`, with
            a batch before it or not, in [0, 1] or of bytes.
        height (`int`), width (`int`):
            Size in pixels.
        channels (`int`, defaults to `3`):
            Of the autoencoder's images.
        resize_mode (`str`, *optional*):
            For pictures of another aspect, as in diffusers' image processors: `"default"` squeezes, `"crop"` cuts off,
            `"fill"` repeats the border. Without it they are refused.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`, float32: The pictures in [-1, 1].

    Raises:
        ValueError: If `image` is no picture, or its aspect is not that of `height` and `width` and `resize_mode` does not
            say what to do.
    """
    if resize_mode is not None and (
        not isinstance(resize_mode, str) or resize_mode not in ("default", "crop", "fill")
    ):
        raise ValueError(f"`resize_mode` must be None, 'default', 'crop' or 'fill', got {resize_mode!r}.")
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        image = list(image)
    if not isinstance(image, (list, tuple)):
        image = [image]
    if not len(image):
        raise ValueError("`image` must hold at least one picture, got none.")
    pictures = []
    for picture in image:
        picture = to_tensor(picture, channels)
        h, w = picture.shape[1:]
        # The same aspect, up to rounding: the sides of one are those of the other, scaled and rounded
        if resize_mode is None and 2 * abs(h * width - w * height) >= max(height + width, h + w):
            raise ValueError(
                f"`image` must have the aspect of `height` and `width`, {height}x{width}, got {h}x{w}. `resize_mode` "
                "'crop' cuts off what is too much, 'fill' repeats the border, 'default' squeezes."
            )
        if resize_mode == "crop":
            new_h, new_w = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
            top, left = (h - new_h) // 2, (w - new_w) // 2
            picture = picture[:, top : top + new_h, left : left + new_w]
        elif resize_mode == "fill":
            new_h, new_w = max(h, round(w * height / width)), max(w, round(h * width / height))
            top, left = (new_h - h) // 2, (new_w - w) // 2
            borders = (left, new_w - w - left, top, new_h - h - top)
            picture = F.pad(picture[None], borders, mode="replicate")[0]
        if picture.shape[1:] != (height, width):
            picture = F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
        pictures.append(picture)
    return torch.stack(pictures) * 2 - 1
