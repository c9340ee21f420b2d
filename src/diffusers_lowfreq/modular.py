# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A second front end: prior model, flow and decoder as modular blocks of diffusers, to be exchanged or put between others."""

import torch

from diffusers import AutoencoderKL
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

from .models import LowFreqTransformer2DModel
from .pipelines import LowFreqPipeline
from .schedulers import LowFreqFlowMatchScheduler


LABELS = InputParam("class_labels", description="Class numbers, one an image; omitted, images of no particular class.")
GENERATOR = InputParam("generator", description="A `torch.Generator`, or a list of them, one an image.")


class LowFreqPriorStep(ModularPipelineBlocks):
    """Sample coarse latents from the prior model, to the end: what `truncate_prior` is in [`LowFreqPipeline`] blocks do not have."""

    model_name = "lowfreq"
    description = "Samples coarse latents from the prior model. Leave it out where they come from elsewhere."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [
            ComponentSpec("prior", LowFreqTransformer2DModel),
            ComponentSpec("prior_scheduler", FlowMatchEulerDiscreteScheduler),
        ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            LABELS,
            GENERATOR,
            InputParam("num_images", default=1, type_hint=int, description="Without labels: how many."),
            InputParam("prior_num_inference_steps", default=8, type_hint=int, description="Steps of the prior model."),
            InputParam(
                "prior_guidance_scale", type_hint=float, description="Its guidance, by default 1 or what is folded in."
            ),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("prior_latents", type_hint=torch.Tensor, description="At the scale of the latents.")]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        prior = components.prior
        LowFreqPipeline._check_count("prior_num_inference_steps", block.prior_num_inference_steps)
        LowFreqPipeline._check_count("num_images", block.num_images)
        pipe = LowFreqPipeline(None, None, prior=prior, prior_scheduler=components.prior_scheduler)
        condition, unconditional = pipe.encode_labels(block.class_labels, 1, prior.device)
        size = prior.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        batch_size = len(condition["class_labels"]) if condition else block.num_images
        scale = block.prior_guidance_scale
        scale = pipe._default_guidance_scale(prior) if scale is None else scale
        _, block.prior_latents = pipe.prepare_prior_latents(
            batch_size,
            height,
            width,
            block.prior_num_inference_steps,
            condition,
            unconditional,
            block.generator,
            prior.device,
            scale,
        )
        self.set_block_state(state, block)
        return components, state


class LowFreqFlowStep(ModularPipelineBlocks):
    """Make the source of coarse latents and run the flow from it; the guidance is that of the `guider`."""

    model_name = "lowfreq"
    description = "Makes the source, the upsampled coarse latents mixed with noise, and runs the flow from it."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        guidance = FrozenDict({"guidance_scale": 1.0})
        return [
            ComponentSpec("transformer", LowFreqTransformer2DModel),
            ComponentSpec("scheduler", LowFreqFlowMatchScheduler),
            ComponentSpec("guider", ClassifierFreeGuidance, config=guidance, default_creation_method="from_config"),
        ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            LABELS,
            GENERATOR,
            InputParam("prior_latents", required=True, type_hint=torch.Tensor, description="Coarse latents."),
            InputParam("num_inference_steps", default=4, type_hint=int, description="Steps of the flow."),
            InputParam("noise_ratio", type_hint=float, description="The share of noise in the source."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("latents", type_hint=torch.Tensor, description="What the flow makes of the source.")]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        one_step = components.transformer.config.use_meanflow  # has its guidance folded in
        guider = None if one_step else components.guider
        pipe = LowFreqPipeline(components.transformer, components.scheduler, guider=guider)
        factor = components.scheduler.config.factor
        block.latents = pipe(
            block.class_labels,
            height=block.prior_latents.shape[-2] * factor,  # without an autoencoder: of the latents
            width=block.prior_latents.shape[-1] * factor,
            num_inference_steps=block.num_inference_steps,
            noise_ratio=block.noise_ratio,
            generator=block.generator,
            prior_latents=block.prior_latents,
            output_type="latent",
        ).images
        self.set_block_state(state, block)
        return components, state


class LowFreqDecodeStep(ModularPipelineBlocks):
    """Decode latents to images."""

    model_name = "lowfreq"
    description = "Decodes latents to images."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("vae", AutoencoderKL)]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("latents", required=True, type_hint=torch.Tensor, description="Latents of unit scale."),
            InputParam("output_type", default="pil", type_hint=str, description="'pil', 'np', 'pt' or 'latent'."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("images", description="The images.")]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        block.images = LowFreqPipeline(None, None, components.vae).decode_latents(block.latents, block.output_type)
        self.set_block_state(state, block)
        return components, state


class LowFreqBlocks(SequentialPipelineBlocks):
    """
    Prior model, flow, decoder: what [`LowFreqPipeline`] does with `truncate_prior=False`, in blocks.

    Classes are told by number; the guidance of the flow is that of its `guider` component.
    """

    model_name = "lowfreq"
    block_classes = [LowFreqPriorStep, LowFreqFlowStep, LowFreqDecodeStep]
    block_names = ["prior", "flow", "decode"]

    @property
    def description(self) -> str:
        return "Generates images from a low-frequency prior."
