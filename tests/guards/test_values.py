# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""One check for each kind of value: what it lets through, what it refuses, and what its error says."""

import math

import numpy as np
import pytest
import torch
from tiny import randn, seeded

from diffusers_lowfreq.guards.values import (
    MAX_COUNT,
    MAX_FLOAT,
    MAX_SIZE,
    check_choice,
    check_count,
    check_flag,
    check_generators,
    check_number,
    check_rising_pair,
    check_setting,
    check_tensor,
)


NAN, INF = math.nan, math.inf
NOT_NUMBERS = [None, "1", b"1", [1], {1}, 1j, object(), np.array([1, 1]), torch.ones(2)]

# A check, what it allows, what it refuses, what its error says is allowed
CASES = {
    "count": (lambda x: check_count("x", x), [1, MAX_COUNT, np.int64(3)], [0, -1, 1.0, True, NAN, MAX_COUNT + 1, 10**30], f"a positive integer, got .*; the most is {MAX_COUNT}"),
    "count from 0 on": (lambda x: check_count("x", x, 9, least=0), [0, 9], [-1, 10, False, 0.0], "an integer from 0 on, got .*; the most is 9"),
    "count without an end": (lambda x: check_count("x", x, INF), [1, 10**30], [0, INF, NAN], r"a positive integer, got [^;]*$"),
    "setting": (lambda x: check_setting("x", x), [1, MAX_SIZE], [0, 1.0, True, MAX_SIZE + 1, np.int64(3)], f"a positive integer, got .*; the most is {MAX_SIZE}"),
    "optional setting": (lambda x: check_setting("x", x, 7, optional=True), [None, 7], [0, 8], "a positive integer or None, got"),
    "number": (lambda x: check_number("x", x), [0, -1.5, 10**30], [NAN, INF, -INF, True], "a finite number, got"),
    "positive number": (lambda x: check_number("x", x, 0, open="("), [1, 1e-300], [0, 0.0, -1, NAN, INF], "a positive number, got"),
    "number in float32": (lambda x: check_number("x", x, 0, MAX_FLOAT), [0, 3e38], [-1, 1e39, 10**400, INF], "a finite number from 0 on, got"),
    "number from 2 on": (lambda x: check_number("x", x, 2), [2, 3.5], [1.9, INF, NAN], "a finite number from 2 on, got"),
    "share": (lambda x: check_number("x", x, 0, 1), [0, 1, 0.5], [-0.1, 1.1, NAN, True], r"a number in \[0, 1\], got"),
    "open share": (lambda x: check_number("x", x, 0, 1, open="()"), [0.5], [0, 1, 0.0, 1.0], r"a number in \(0, 1\), got"),
    "half open": (lambda x: check_number("x", x, 0, 1, open=")"), [0, 0.5], [1, -1], r"a number in \[0, 1\), got"),
    "flag": (lambda x: check_flag("x", x), [True, False], [0, 1, "True", NAN, torch.tensor(True)], "True or False, got"),
    "choice": (lambda x: check_choice("x", x, ("a", "b", "c")), ["a", "c"], ["", "A", "d", "ab", True, 1], "'a', 'b' or 'c', got"),
    "choice of one": (lambda x: check_choice("x", x, ["a"]), ["a"], ["b"], "'a', got"),
    "optional choice": (lambda x: check_choice("x", x, ("a", "b"), optional=True), [None, "b"], ["d", 0], "None, 'a' or 'b', got"),
    "choice of integers": (lambda x: check_choice("x", x, (1, 2)), [1, 2], [0, 3, True, 1.0, "1"], "1 or 2, got"),
    "rising pair": (lambda x: check_rising_pair("x", x), [(0, 1), [0.2, 0.8]], [(1, 0), (0.5, 0.5), (0,), (0, 1, 1), (-0.1, 1), (0, 1.1), (NAN, 1), (0, NAN), (False, True), "ab", 0.5], r"two rising numbers in \[0, 1\], got"),
    "pair that may be equal": (lambda x: check_rising_pair("x", x, strictly=False), [(0.5, 0.5), (0, 1)], [(1, 0)], r"two rising numbers in \[0, 1\], got"),
    "pair without an end": (lambda x: check_rising_pair("x", x, 1, INF), [(1, 2), [1.5, 1e9]], [(0.5, 2), (2, 1)], "two rising numbers from 1 on, got"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_a_kind_of_value(kind):
    check, allowed, refused, said = CASES[kind]
    for value in allowed:
        check(value)
    for value in [*refused, *(value for value in NOT_NUMBERS if value is not None or None not in allowed)]:
        with pytest.raises(ValueError, match=f"^`x` must be {said}"):
            check(value)


def test_a_pair_without_an_end_is_finite():
    with pytest.raises(ValueError, match="`x` must be two finite numbers, got"):
        check_rising_pair("x", (1, INF), 1, INF)


def test_a_tensor():
    check_tensor("x", randn(2, 3), (2, 3))
    check_tensor("x", randn(2, 3).double() * 1e300, (2, 3))
    for value in (randn(3, 2), randn(2, 3).long(), randn(2, 3).numpy(), randn(2, 3).tolist(), None, randn(2, 3) + 1j):
        with pytest.raises(ValueError, match=r"`x` must be a floating point tensor of shape \(2, 3\), got"):
            check_tensor("x", value, (2, 3))
    for value, dtype in ((randn(2, 3) * NAN, None), (randn(2, 3) / 0, None), (randn(2, 3) * 1e30, torch.float16)):
        with pytest.raises(ValueError, match="`x` must be finite in torch.float"):
            check_tensor("x", value, (2, 3), dtype)


def test_generators():
    for value in (None, seeded(), [seeded(), seeded()], (seeded(), seeded())):
        check_generators("x", value, 2)
    for value in (0, "cpu", [seeded()], [seeded()] * 3, [seeded(), None], [], torch.Generator):
        with pytest.raises(ValueError, match="`x` must be one `torch.Generator` or a list of 2, one per image, got"):
            check_generators("x", value, 2)
