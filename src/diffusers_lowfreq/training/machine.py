# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The machine that a figure was measured on."""

import os
import platform

import torch


def machine_kind() -> str:
    """Describe this machine, for the line beside a figure."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}"
