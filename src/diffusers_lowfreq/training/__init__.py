# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share. Needs the `training` extra; nothing at inference imports it."""

from .caption_cache import CaptionCache
from .degradation import DEGRADATIONS, DegradedImages, DegradedPairs, degrade
from .engines import (
    GradientGuard,
    autocast,
    averaged_weights,
    check_engine,
    check_processes,
    configure_engine,
    engine,
    finish,
    whole_text_encoder,
)
from .images import ImageDataset, load_images
from .keyed import KeyedBatchSampler, keyed_generator, uniform
from .latent_cache import LatentCache
from .machine import machine_kind
from .state import (
    LR_SCHEDULERS,
    Termination,
    check_numbers,
    get_lr_scheduler,
    parse_with_config,
    register_model_hooks,
    register_schedule,
    resume_checkpoint,
    save_checkpoint,
)
from .stream import ImageStream, LatentStream, StreamedCaptions


__all__ = [
    "CaptionCache",
    "DEGRADATIONS",
    "DegradedImages",
    "DegradedPairs",
    "GradientGuard",
    "ImageDataset",
    "ImageStream",
    "KeyedBatchSampler",
    "LR_SCHEDULERS",
    "LatentCache",
    "LatentStream",
    "StreamedCaptions",
    "Termination",
    "autocast",
    "averaged_weights",
    "check_engine",
    "check_numbers",
    "check_processes",
    "configure_engine",
    "degrade",
    "engine",
    "finish",
    "get_lr_scheduler",
    "keyed_generator",
    "load_images",
    "machine_kind",
    "parse_with_config",
    "register_model_hooks",
    "register_schedule",
    "resume_checkpoint",
    "save_checkpoint",
    "uniform",
    "whole_text_encoder",
]
