# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A second front end: prior model, flow and decoder as modular blocks of diffusers, to exchange or combine with others."""

from types import SimpleNamespace

import torch

from diffusers import AutoencoderKL
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .guards.values import check_count
from .models import LowFreqTransformer2DModel
from .pipelines.class_labels import condition_on_labels, read_label_ids
from .pipelines.grid import prior_sigmas, set_grid
from .pipelines.inputs import (
    Call,
    check_call,
    check_components,
    check_images,
    check_no_text,
    check_schedulers,
    check_solver,
    default_guidance_scale,
)
from .pipelines.pipeline_output import decode
from .pipelines.source import draw_source
from .pipelines.velocity import Network, Velocity, make_velocity
from .schedulers import LowFreqFlowMatchScheduler


LABELS = InputParam(
    "class_labels", description="Class numbers, one per image. Omitted: images of no particular class."
)
GENERATOR = InputParam("generator", description="A `torch.Generator`, or a list with one per image.")


def _integrate(velocity: Velocity, scheduler: SchedulerMixin, x: torch.Tensor) -> torch.Tensor:
    """Integrate a velocity over the grid of `scheduler`."""
    for i, t in enumerate(scheduler.timesteps):
        v = velocity(x, scheduler, i)
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return x


class LowFreqPriorStep(ModularPipelineBlocks):
    """Sample coarse latents from the prior model. It does not stop early, as `truncate_prior` of [`LowFreqPipeline`] allows."""

    model_name = "lowfreq"
    description = "Samples coarse latents from the prior model. Leave it out if another block makes them."

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
            InputParam("num_images", default=1, type_hint=int, description="Number of images, without labels."),
            InputParam("prior_num_inference_steps", default=8, type_hint=int, description="Steps of the prior model."),
            InputParam(
                "prior_guidance_scale",
                type_hint=float,
                description="Its guidance scale; that of a one-step model, or else 1, by default.",
            ),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("prior_latents", type_hint=torch.Tensor, description="At the scale of the latents.")]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        prior, scheduler, steps = components.prior, components.prior_scheduler, block.prior_num_inference_steps
        check_count("prior_num_inference_steps", steps)
        check_count("num_images", block.num_images)
        check_components({"prior": prior, "prior_scheduler": scheduler})
        check_schedulers(None, scheduler)
        check_solver(prior, scheduler, "prior", "prior_scheduler")
        channels, height, width = prior.sample_shape
        num_classes, device = prior.config.num_classes, prior.device
        ids = None if block.class_labels is None else read_label_ids(block.class_labels, num_classes)
        scale = block.prior_guidance_scale
        scale = default_guidance_scale(prior) if scale is None else scale

        condition, unconditional = condition_on_labels(ids, num_classes, 1, device)
        velocity = make_velocity(Network(prior, "prior"), condition, unconditional, lambda: scale)
        shape = (block.num_images if ids is None else len(ids), channels, height, width)
        noise = randn_tensor(shape, generator=block.generator, device=device, dtype=prior.dtype)
        set_grid(scheduler, prior, height, width, device, sigmas=prior_sigmas(steps))
        block.prior_latents = prior.denormalize(_integrate(velocity, scheduler, noise))
        self.set_block_state(state, block)
        return components, state


class LowFreqFlowStep(ModularPipelineBlocks):
    """Make the source of coarse latents, and run the flow from it. The `guider` guides the flow."""

    model_name = "lowfreq"
    description = "Upsamples the coarse latents, mixes them with noise, and runs the flow from there."

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
        return [OutputParam("latents", type_hint=torch.Tensor, description="Latents of unit scale.")]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        transformer, scheduler, low = components.transformer, components.scheduler, block.prior_latents
        is_one_step = transformer.config.use_meanflow  # then guidance is folded in
        guider = None if is_one_step else components.guider
        height, width = (side * scheduler.config.factor for side in low.shape[-2:])
        num_classes = transformer.config.num_classes
        ids = None if block.class_labels is None else read_label_ids(block.class_labels, num_classes)
        call = Call(
            len(low) if ids is None else len(ids),
            height,
            width,
            num_inference_steps=block.num_inference_steps,
            guidance_scale=default_guidance_scale(transformer),
            prior_guidance_scale=1.0,
            noise_ratio=block.noise_ratio,
            generator=block.generator,
            prior_latents=low,
        )
        parts = {"transformer": transformer, "scheduler": scheduler, "guider": guider}
        check_no_text(transformer)
        check_components(parts)
        check_call(SimpleNamespace(**parts, prior=None, prior_scheduler=None, vae_scale_factor=1), call)

        device = components._execution_device if hasattr(transformer, "_hf_hook") else transformer.device
        condition, unconditional = condition_on_labels(ids, num_classes, 1, device)
        network = Network(transformer, noise_ratio=scheduler.alpha(block.noise_ratio))
        velocity = make_velocity(network, condition, unconditional, lambda: call.guidance_scale, guider=guider)
        set_grid(scheduler, transformer, height, width, device, block.num_inference_steps)
        source = draw_source(scheduler, low.to(device, transformer.dtype), block.noise_ratio, block.generator)
        block.latents = _integrate(velocity, scheduler, source)
        check_images(block.latents)
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
        check_components({"vae": components.vae})
        block.images = decode(components.vae, block.latents, block.output_type, VaeImageProcessor())
        self.set_block_state(state, block)
        return components, state


class LowFreqBlocks(SequentialPipelineBlocks):
    """
    Prior model, flow and decoder: [`LowFreqPipeline`] with `truncate_prior=False`, in blocks.

    Classes are given by number, and the `guider` component guides the flow.
    """

    model_name = "lowfreq"
    block_classes = [LowFreqPriorStep, LowFreqFlowStep, LowFreqDecodeStep]
    block_names = ["prior", "flow", "decode"]

    @property
    def description(self) -> str:
        return "Generates images from a low-frequency prior."
