# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""One check for each kind of value. Each raises a `ValueError` with the argument, what is allowed, and what was given."""

import math
from collections.abc import Iterable

import numpy as np
import torch


MAX_COUNT = 1_000_000  # of steps, and of images per prompt: float32 can hardly tell more levels apart
MAX_SIZE = 2**16  # of the parts of a network: widths, patches, sides
MAX_FLOAT = torch.finfo(torch.float32).max


def is_integer(value) -> bool:
    """Whether a value is an integer of Python or numpy, but not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value is an integer or a float, but not a bool. It may be NaN or infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_count(name: str, value: int, most: int | float = MAX_COUNT, least: int = 1):
    """Refuse anything but an integer from `least` to `most`, which may be infinite."""
    if not is_integer(value) or not least <= value <= most:
        allowed = "a positive integer" if least == 1 else f"an integer from {least} on"
        limit = "" if most == math.inf else f"; the most is {most}"
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}{limit}.")


def check_setting(name: str, value: int, most: int = MAX_SIZE, optional: bool = False):
    """Refuse anything but a Python integer from 1 to `most`. Configurations are JSON, which has no numpy integers."""
    if optional and value is None:
        return
    if type(value) is not int or not 1 <= value <= most:
        allowed = "a positive integer or None" if optional else "a positive integer"
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}; the most is {most:.10g}.")


def check_number(name: str, value: float, least: float = -math.inf, most: float = math.inf, open: str = ""):
    """
    Refuse anything but a finite number from `least` to `most`.

    Args:
        name (`str`), value (`float`):
            The argument.
        least (`float`), most (`float`):
            The ends of the interval. Infinite ends are not part of it.
        open (`str`, defaults to `""`):
            The finite ends that are not part of it: `"("`, `")"` or `"()"`.
    """
    low = "(" if "(" in open or least == -math.inf else "["
    high = ")" if ")" in open or most == math.inf else "]"
    if is_number(value):
        above = least < value if low == "(" else least <= value
        if above and (value < most if high == ")" else value <= most):
            return
    if (least, most) == (-math.inf, math.inf):
        allowed = "a finite number"
    elif most >= MAX_FLOAT:
        allowed = "a positive number" if low == "(" and not least else f"a finite number from {least:g} on"
    else:
        allowed = f"a number in {low}{least:g}, {most:g}{high}"
    raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")


def check_flag(name: str, value: bool):
    """Refuse anything but True and False."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")


def check_choice(name: str, value: str | int, choices: Iterable[str | int], optional: bool = False):
    """Refuse anything but one of `choices`, or None if it is `optional`."""
    choices = tuple(choices)
    if optional and value is None:
        return
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value not in choices:
        *first, last = ["None"] * optional + [repr(choice) for choice in choices]
        allowed = f"{', '.join(first)} or {last}" if first else last
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")


def check_rising_pair(
    name: str, value: tuple[float, float], least: float = 0.0, most: float = 1.0, strictly: bool = True
):
    """Refuse anything but two rising numbers from `least` to `most`; they may be equal if not `strictly`."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(is_number(bound) for bound in value)
    if not is_pair or not least <= value[0] <= value[1] <= most or (strictly and value[0] == value[1]):
        within = f"in [{least:g}, {most:g}]" if most < math.inf else f"from {least:g} on"
        raise ValueError(f"`{name}` must be two rising numbers {within}, got {value!r}.")
    if value[1] == math.inf:
        raise ValueError(f"`{name}` must be two finite numbers, got {value!r}.")


def check_tensor(name: str, value: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None):
    """Refuse anything but a floating point tensor of this shape, finite in `dtype` (its own by default)."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or tuple(value.shape) != tuple(shape):
        got = f"{value.dtype} of {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value)
        raise ValueError(f"`{name}` must be a floating point tensor of shape {tuple(shape)}, got {got}.")
    if not value.to(dtype or value.dtype).isfinite().all():
        raise ValueError(f"`{name}` must be finite in {dtype or value.dtype}, some numbers are not.")


def check_generators(name: str, value: torch.Generator | list[torch.Generator] | None, batch_size: int):
    """Refuse anything but None, a generator, or a list with a generator for each image."""
    generators = value if isinstance(value, (list, tuple)) else [value] * batch_size
    are_generators = value is None or all(isinstance(g, torch.Generator) for g in generators)
    if not are_generators or len(generators) != batch_size:
        got = len(generators) if are_generators else repr(value)
        raise ValueError(
            f"`{name}` must be one `torch.Generator` or a list of {batch_size}, one per image, got {got}."
        )
