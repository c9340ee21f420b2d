# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Each check of a kind of value refuses everything that is not of that kind, however strange it is."""

import datetime
import fractions
import math
import re

import numpy as np
import pytest
import torch
from tiny import randn, seeded

from diffusers_lowfreq.guards import values
from diffusers_lowfreq.guards.values import (
    MAX_COUNT,
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
STRANGE = [object(), b"\0", 1j, {"a"}, Ellipsis, {"": 0}, fractions.Fraction(1, 2), datetime.date(2026, 1, 1), len]
STRANGE += [np.array([[1, 2]]), np.array([2, 2]), NotImplemented, frozenset(), ValueError("\u202e"), slice(1, 2)]
STRANGE += [[], (), {}, "", "text", "２", b"2", [None], [[1]], torch.zeros(2), torch.float32]
NOT_AN_INTEGER = [
    *STRANGE,
    None,
    True,
    False,
    1.0,
    2.5,
    NAN,
    INF,
    "2",
    [2],
    torch.tensor(2),
    np.float64(2),
    np.bool_(1),
]
NOT_A_NUMBER = [*STRANGE, None, True, NAN, INF, -INF, "0.5", [0.5], torch.tensor(0.5)]
NOT_A_FLAG = [*STRANGE, None, 0, 1, 0.0, NAN, "True", [True], torch.tensor(True), np.bool_(1)]
NOT_A_CHOICE = [
    *STRANGE,
    0,
    True,
    "Pil",
    "p\u0456l",
    "pil\u202e",
    "pil ",
    ("pil",),
    ["pil"],
]  # one with a Cyrillic letter
NOT_A_PAIR = [*STRANGE, 0.5, [0.5], (0.2, 0.3, 0.4), [NAN, 0.5], [0.5, NAN], [0.5, INF], [True, False], ["0", "1"]]
NOT_A_PAIR += ["01", {0.1: 1, 0.9: 1}, {0.1, 0.9}, [0.8, 0.2], [-0.1, 0.5], [0.5, 1.1], np.array([0.1, 0.9])]
NOT_A_TENSOR = [*STRANGE, None, 0.5, randn(2, 3).numpy(), randn(2, 3).tolist(), randn(3, 2), randn(2, 3)[None]]
NOT_A_TENSOR += [randn(2, 3).long(), randn(2, 3) + 1j, randn(2, 3).bool(), torch.full((2, 3), NAN)]
NOT_A_TENSOR += [torch.tensor([[0, 0, 0], [0, 0, -INF]])]
NOT_GENERATORS = [value for value in STRANGE if value is not None] + [0, "cpu", [seeded()], [seeded()] * 3]
NOT_GENERATORS += [[seeded(), None], [None, None], (seeded(), 1)]

# Each check with its options and the values that it must refuse
CHECKS = {
    "count": (check_count, {}, [*NOT_AN_INTEGER, 0, -1, MAX_COUNT + 1, 10**30]),
    "count up to 4": (check_count, {"most": 4}, [*NOT_AN_INTEGER, 0, 5]),
    "setting": (check_setting, {}, [*NOT_AN_INTEGER, 0, -1, np.int64(3), MAX_SIZE + 1]),
    "optional setting": (check_setting, {"optional": True}, [v for v in NOT_AN_INTEGER if v is not None]),
    "number": (check_number, {}, NOT_A_NUMBER),
    "number from 0": (check_number, {"least": 0.0}, [*NOT_A_NUMBER, -1e-9]),
    "positive number": (check_number, {"least": 0.0, "open": "("}, [*NOT_A_NUMBER, 0, -1]),
    "share": (check_number, {"least": 0.0, "most": 1.0}, [*NOT_A_NUMBER, -0.1, 1.1]),
    "open share": (check_number, {"least": 0.0, "most": 1.0, "open": "()"}, [*NOT_A_NUMBER, 0, 1]),
    "flag": (check_flag, {}, NOT_A_FLAG),
    "choice": (check_choice, {"choices": ("pil", "np")}, [*NOT_A_CHOICE, None]),
    "optional choice": (check_choice, {"choices": ("pil",), "optional": True}, NOT_A_CHOICE),
    "pair": (check_rising_pair, {}, [*NOT_A_PAIR, None, (0.5, 0.5)]),
    "pair that may be equal": (check_rising_pair, {"strictly": False}, [*NOT_A_PAIR, None]),
    "tensor": (check_tensor, {"shape": (2, 3)}, NOT_A_TENSOR),
    "tensor in half": (check_tensor, {"shape": (2, 3), "dtype": torch.float16}, [*NOT_A_TENSOR, 1e5 * randn(2, 3)]),
    "generators": (check_generators, {"batch_size": 2}, NOT_GENERATORS),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_bad_values_are_refused_and_the_error_names_the_argument(kind):
    check, options, bad = CHECKS[kind]
    for value in bad:
        with pytest.raises(ValueError) as error:
            check("the_argument", value, **options)
        assert re.match(r"`the_argument` must be .+", str(error.value), re.DOTALL)


def test_every_check_is_in_the_table():
    checks = {name for name in vars(values) if name.startswith("check_")}
    assert checks == {check.__name__ for check, *_ in CHECKS.values()}
