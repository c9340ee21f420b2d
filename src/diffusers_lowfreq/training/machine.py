# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The machine that a figure was measured on, and this process among those of a run."""

import os
import platform

import torch


def machine_kind() -> str:
    """Describe this machine, for the line beside a figure."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}"


def is_main_process() -> bool:
    """Whether this is the only process of a run, or the first: the one that says what all of them find."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
