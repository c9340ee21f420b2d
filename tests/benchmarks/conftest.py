# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the tests of all benchmarks share."""

import sys
from pathlib import Path

import pytest
import torch
from scripts import workplace
from tiny import randomize


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from graders import Grader  # noqa: E402


__all__ = ["grader", "workplace"]


@pytest.fixture
def grader(workplace):
    """A tiny grader with random weights."""
    torch.manual_seed(0)
    randomize(Grader(num_classes=3, width=2)).save_pretrained(workplace / "tiny-grader")
    return workplace / "tiny-grader"
