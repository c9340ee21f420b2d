# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The checks of batches: which shapes fit, and what the error says of those that do not."""

import re

import pytest
import torch

from diffusers_lowfreq.guards.tensors import check_finite, check_shape


FITS = [
    (("batch", 3), {}, (5, 3)),
    (("batch", "size"), {"least": 2}, (2, 1)),
    (("batch", 3), {"least": 0}, (0, 3)),
    ((..., "height", 3), {}, (1, 3)),
    ((..., "height", 3), {}, (0, 7, 1, 3)),
    (("batch", "size", ...), {}, (2, 1)),
    (("batch", "size", ...), {}, (2, 1, 0, 4)),
    ((2, ..., 3), {"is_floating": True}, (2, 8, 8, 3)),
]
DIFFERS = [
    (("batch", 3), {}, (5, 4), "have shape (batch, 3), got (5, 4)."),
    (("batch", 3), {}, (3,), "have shape (batch, 3), got (3,)."),
    (("batch", 3), {}, (0, 3), "have shape (batch, 3), got (0, 3)."),
    (("batch", 3), {}, (1, 1, 3), "have shape (batch, 3), got (1, 1, 3)."),
    (("batch", "size"), {"least": 2}, (1, 3), "have shape (batch >= 2, size), got (1, 3)."),
    (("batch", "size"), {"least": 0}, (1, 0), "have shape (batch, size), got (1, 0)."),
    ((..., "height", 3), {}, (0, 3), "have shape (..., height, 3), got (0, 3)."),
    ((..., "height", 3), {}, (3,), "have shape (..., height, 3), got (3,)."),
    (("batch", "size", ...), {}, (2,), "have shape (batch, size, ...), got (2,)."),
    ((2, ..., 3), {}, (2, 8, 8), "have shape (2, ..., 3), got (2, 8, 8)."),
]


@pytest.mark.parametrize("shape, options, sizes", FITS)
def test_shapes_that_fit(shape, options, sizes):
    check_shape("x", torch.zeros(sizes), *shape, **options)


@pytest.mark.parametrize("shape, options, sizes, message", DIFFERS)
def test_shapes_that_differ_are_named(shape, options, sizes, message):
    with pytest.raises(ValueError, match=re.escape(f"`x` must {message}")):
        check_shape("x", torch.zeros(sizes), *shape, **options)


def test_only_floating_point_tensors_may_be_asked_for():
    integers = torch.zeros(2, 3, dtype=torch.long)
    check_shape("x", integers, "batch", 3)
    must = "`x` must be a floating point tensor of shape (batch, 3), got"
    for value, got in ((integers, "torch.int64 of (2, 3)."), ([[0.0] * 3], "list."), (None, "NoneType.")):
        with pytest.raises(ValueError, match=re.escape(f"{must} {got}")):
            check_shape("x", value, "batch", 3, is_floating=True)


def test_samples_that_are_not_finite_are_named():
    x = torch.zeros(20, 2, 2)
    check_finite("x", x)
    x[3, 1, 0], x[7, 0, 1] = torch.nan, -torch.inf
    with pytest.raises(ValueError, match=r"`x` must be finite, but 2 of 20 samples are not: 103, 107\."):
        check_finite("x", x, first=100)
    x[8:] = torch.inf
    with pytest.raises(ValueError, match=r"14 of 20 samples are not: 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, \.\.\.\."):
        check_finite("x", x)
