# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What a measurement depends on beside its settings."""

import torch

import diffusers
from diffusers_lowfreq.training import machine_kind


def environment() -> dict:
    """Return the machine and the versions, for a results file."""
    return {"machine": machine_kind(), "torch": torch.__version__, "diffusers": diffusers.__version__}
