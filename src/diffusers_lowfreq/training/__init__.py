# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share. It needs the `training` extra; nothing at inference imports it."""

from .checkpoints import register_model_hooks, register_schedule, resume_checkpoint, save_checkpoint
from .data.captions import CaptionCache
from .data.degradation import DEGRADATIONS, DegradedImages, DegradedPairs, degrade
from .data.images import ImageDataset
from .data.latent_cache import LatentCache
from .data.load import load_images
from .data.stream import ImageStream, LatentStream, StreamedCaptions
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
from .keyed import Draws, KeyedBatchSampler, keyed_generator, uniform
from .machine import machine_kind
from .options import check_numbers, parse_with_config
from .resume import check_output_dir, describe_images
from .run import Run, Termination, make_accelerator, make_adamw, trainable
from .schedule import LR_SCHEDULERS, get_lr_scheduler


__all__ = [
    "CaptionCache",
    "DEGRADATIONS",
    "DegradedImages",
    "DegradedPairs",
    "Draws",
    "GradientGuard",
    "ImageDataset",
    "ImageStream",
    "KeyedBatchSampler",
    "LR_SCHEDULERS",
    "LatentCache",
    "LatentStream",
    "Run",
    "StreamedCaptions",
    "Termination",
    "autocast",
    "averaged_weights",
    "check_engine",
    "check_numbers",
    "check_output_dir",
    "check_processes",
    "configure_engine",
    "degrade",
    "describe_images",
    "engine",
    "finish",
    "get_lr_scheduler",
    "keyed_generator",
    "load_images",
    "machine_kind",
    "make_accelerator",
    "make_adamw",
    "parse_with_config",
    "register_model_hooks",
    "register_schedule",
    "resume_checkpoint",
    "save_checkpoint",
    "trainable",
    "uniform",
    "whole_text_encoder",
]
