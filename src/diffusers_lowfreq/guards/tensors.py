# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Checks of batches: tensors whose shape is known only in part, and whose samples an error names."""

from types import EllipsisType

import torch


def check_shape(
    name: str, value: torch.Tensor, *shape: int | str | EllipsisType, least: int = 1, is_floating: bool = False
):
    """
    Refuse what is not a tensor of this shape.

    Args:
        name (`str`), value (`torch.Tensor`):
            The argument.
        shape (`int`, `str` or `...`):
            The dimensions: a size, a name for any positive size, or `...` for any number of dimensions of any size.
        least (`int`, defaults to `1`):
            The smallest size of the first dimension, if that is a name; 0 accepts an empty batch.
        is_floating (`bool`, defaults to `False`):
            Whether to refuse what is not floating point.
    """
    sizes = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    expected = list(shape)
    if ... in shape:
        i = shape.index(...)
        expected[i : i + 1] = [None] * (len(sizes) - len(shape) + 1)
    fits = isinstance(value, torch.Tensor) and (value.is_floating_point() or not is_floating)
    fits = fits and len(sizes) == len(expected)
    for i, (size, allowed) in enumerate(zip(sizes, expected)):
        if isinstance(allowed, str):
            fits = fits and size >= (1 if i else least)
        else:
            fits = fits and allowed in (None, size)
    if not fits:
        names = ["..." if size is ... else str(size) for size in shape]
        if least > 1:
            names[0] = f"{names[0]} >= {least}"
        got = type(value).__name__
        if isinstance(value, torch.Tensor):
            got = f"{value.dtype} of {sizes}" if is_floating else sizes
        must = "be a floating point tensor of" if is_floating else "have"
        raise ValueError(f"`{name}` must {must} shape ({', '.join(names)}), got {got}.")


def check_finite(name: str, value: torch.Tensor, first: int = 0):
    """Refuse a batch with samples that are not finite, and name them by their numbers, counted from `first`."""
    bad = (~value.isfinite()).flatten(1).any(1).nonzero()[:, 0]
    if len(bad):
        rows = ", ".join(str(first + i) for i in bad[:10].tolist()) + (", ..." if len(bad) > 10 else "")
        raise ValueError(f"`{name}` must be finite, but {len(bad)} of {len(value)} samples are not: {rows}.")
