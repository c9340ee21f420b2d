# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Latent flow models that start from a low-frequency prior, as pipelines and schedulers of diffusers."""

import diffusers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .models import LowFreqTransformer2DModel
from .pipelines import (
    LowFreqPipeline,
    LowFreqPipelineOutput,
    LowFreqTextToImagePipeline,
    LowFreqUpscalePipeline,
)
from .projections import LowFrequencyProjection, fit_projection_basis
from .schedulers import LowFreqFlowMatchScheduler
from .stock import generate_from_coarse
from .version import __version__ as __version__


HUB_ID = "diffusers-lowfreq/cifar10-32"  # where the shipped checkpoint will be published

__all__ = [
    "LowFreqFlowMatchScheduler",
    "LowFreqPipeline",
    "LowFreqPipelineOutput",
    "LowFreqTextToImagePipeline",
    "LowFreqTransformer2DModel",
    "LowFreqUpscalePipeline",
    "LowFrequencyProjection",
    "fit_projection_basis",
    "generate_from_coarse",
]


def _register():
    """
    Make diffusers' loader know this library, so that saved pipelines name it and load from a folder and from the Hub.

    `LOADABLE_CLASSES` is half private; a diffusers without it still loads our pipelines from a folder by their class.
    """
    try:
        from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
    except ImportError:
        return
    bases = (ModelMixin, SchedulerMixin, DiffusionPipeline)
    LOADABLE_CLASSES[__name__] = {base.__name__: ["save_pretrained", "from_pretrained"] for base in bases}
    for pipeline_class in (LowFreqPipeline, LowFreqTextToImagePipeline, LowFreqUpscalePipeline):
        setattr(diffusers, pipeline_class.__name__, pipeline_class)


_register()
