# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Class-conditional and unconditional generation from a low-frequency prior."""

from collections.abc import Callable

import torch

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.models import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging, replace_example_docstring

from ..guards.values import check_count, check_flag
from ..models import LowFreqTransformer2DModel
from ..schedulers import LowFreqFlowMatchScheduler
from .base import LowFreqBasePipeline
from .class_labels import ClassLabelsMixin
from .inputs import Call, check_call, check_complete, check_no_text, check_prior_classes
from .pipeline_output import LowFreqPipelineOutput


logger = logging.get_logger(__name__)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from diffusers_lowfreq import LowFreqPipeline

        >>> pipe = LowFreqPipeline.from_pretrained("checkpoints/cifar10-32")
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = pipe(["horse", "ship"], num_inference_steps=4, generator=generator).images
        ```
"""


class LowFreqPipeline(ClassLabelsMixin, LowFreqBasePipeline):
    r"""
    Generate images with a flow that starts from a low-frequency prior (arXiv 2606.04092).

    The prior model samples a coarse latent from noise. The scheduler upsamples it and mixes it with Gaussian noise, which
    makes the source. The flow refines the source to a latent in few steps, and the autoencoder decodes it.

    Args:
        transformer ([`LowFreqTransformer2DModel`]):
            The flow.
        scheduler ([`LowFreqFlowMatchScheduler`]):
            Makes the source, by the projection, factor and noise ratio of its configuration, and steps the flow.
        vae (`AutoencoderKL`, `AutoencoderDC`, `AutoencoderTiny`, *optional*):
            The autoencoder. Without one, the flow works on pixels in [-1, 1].
        prior ([`LowFreqTransformer2DModel`], *optional*):
            The prior model of coarse latents. Without one, calls need `prior_latents` or `latents`, unless the noise ratio
            is 1: the source is then Gaussian noise, as in ordinary flow matching.
        prior_scheduler (`SchedulerMixin`, *optional*):
            A deterministic flow-matching scheduler that takes explicit sigmas. If a `prior` is given without one, a
            `FlowMatchEulerDiscreteScheduler`.
        id2label (`dict[int, str]`, *optional*):
            Class names.
        truncate_prior (`bool`, defaults to `False`):
            Whether the prior model stops early, see [`~LowFreqPipeline.__call__`].
        guider (`BaseGuidance`, *optional*):
            A guider of diffusers for the flow, instead of `guidance_scale`: any that combines predictions with the label
            and without it, such as `AdaptiveProjectedGuidance`.

    Raises:
        ValueError: If `transformer` takes text, `scheduler` cannot make the source, or `prior_scheduler` draws new noise.
    """

    model_cpu_offload_seq = "prior->transformer->vae"

    def __init__(
        self,
        # `from_pipe` passes a model on only if its exact class is listed here; `ModelMixin` alone is not enough
        transformer: LowFreqTransformer2DModel | ModelMixin,
        scheduler: LowFreqFlowMatchScheduler,
        vae: AutoencoderKL | AutoencoderDC | AutoencoderTiny | ModelMixin | None = None,
        prior: LowFreqTransformer2DModel | ModelMixin | None = None,
        prior_scheduler: SchedulerMixin | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,
        truncate_prior: bool = False,
        guider: BaseGuidance | None = None,
    ):
        super().__init__()
        check_flag("truncate_prior", truncate_prior)
        check_no_text(transformer)
        self._register_components(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            prior=prior,
            prior_scheduler=prior_scheduler,
            guider=guider,
        )
        self._register_labels(id2label)
        self.register_to_config(truncate_prior=truncate_prior)

    # ------------------------------------------------------------------------------------------------ the call

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 4,
        prior_num_inference_steps: int = 8,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        prior_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        noise_ratio: float | None = None,
        truncate_prior: bool | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prior_latents: torch.Tensor | None = None,
        output_type: str = "pil",
        output_prior_images: bool = False,
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        prior_callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        prior_callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("prior_latents",),
    ) -> LowFreqPipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            class_labels (`int`, `str`, a list of them, or `torch.Tensor` of shape `(batch,)`, *optional*):
                Classes, by number or by name. Omitted: images of no particular class.
            height (`int`, *optional*), width (`int`, *optional*):
                Size in pixels; by default the size that the model was trained on.
            num_inference_steps (`int`, defaults to `4`):
                Steps of the flow.
            prior_num_inference_steps (`int`, defaults to `8`):
                Steps of the prior model. Each costs a small part of a flow step.
            sigmas (`list[float]`, *optional*):
                Levels of the flow, strictly decreasing in (0, 1], instead of the default grid. Start below 1 only with
                `latents` at that level.
            guidance_scale (`float`, *optional*):
                Classifier-free guidance of the flow, `uncond + scale * (cond - uncond)`. When omitted it is 1, which is no
                guidance. A one-step model has guidance folded in, without a second pass. Its scale is then the default, and
                others are allowed only within its `guidance_scale_range`.
            prior_guidance_scale (`float`, *optional*):
                The same for the prior model.
            guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
                The flow is guided between these levels sigma (arXiv 2404.07724).
            noise_ratio (`float`, *optional*):
                The share of noise in the source, within the range that the model was trained for.
            truncate_prior (`bool`, *optional*):
                Whether the prior model stops where its state is as noisy as the coarse part of the source. No step is then
                spent on noise that the source would add again. The setting of the pipeline when omitted. The last velocity
                removes that noise from the `prior_latents` of the output.
            num_images_per_prompt (`int`, defaults to `1`):
                Images per class label.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator, or one per image. With one per image, an image does not depend on the rest of the batch.
            latents (`torch.Tensor` of shape `(batch, channels, latent_height, latent_width)`, *optional*):
                Your own source. No noise is drawn, and the prior model does not run.
            prior_latents (`torch.Tensor` of shape `(batch, channels, latent_height / factor, latent_width / factor)`, *optional*):
                Your own coarse latent. The prior model does not run.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"` or `"latent"`.
            output_prior_images (`bool`, defaults to `False`):
                Whether to decode the upsampled coarse latent too. A one-step prior that stops early is called once more for
                it; only then are its `prior_latents` good for another call of the pipeline.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LowFreqPipelineOutput`] rather than a tuple.
            callback_on_step_end (`Callable`, *optional*), callback_on_step_end_tensor_inputs (`list[str]`, defaults to `("latents",)`):
                Called as `callback(pipe, step, timestep, {name: tensor})` after every step of the flow.
            prior_callback_on_step_end (`Callable`, *optional*), prior_callback_on_step_end_tensor_inputs (`list[str]`, defaults to `("prior_latents",)`):
                The same for the prior model.

        Examples:

        Returns:
            [`LowFreqPipelineOutput`] or `tuple`:
                The images; as a tuple `(images,)`, or `(images, prior_images)` with `output_prior_images`.

        Raises:
            ValueError: If an argument is not allowed. The error names it, and says what is allowed.
        """
        # 1. Inputs
        check_complete(self)
        check_count("num_images_per_prompt", num_images_per_prompt)
        ids = self.get_label_ids(class_labels) if class_labels is not None else None
        given = latents if latents is not None else prior_latents
        batch_size = num_images_per_prompt if ids is None else len(ids) * num_images_per_prompt
        if ids is None and isinstance(given, torch.Tensor) and given.ndim == 4 and num_images_per_prompt == 1:
            batch_size = len(given)
        call = Call(
            batch_size,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            prior_num_inference_steps=prior_num_inference_steps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            prior_guidance_scale=prior_guidance_scale,
            guidance_interval=guidance_interval,
            noise_ratio=noise_ratio,
            truncate_prior=truncate_prior,
            generator=generator,
            latents=latents,
            prior_latents=prior_latents,
            output_type=output_type,
            output_prior_images=output_prior_images,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            prior_callback_on_step_end=prior_callback_on_step_end,
            prior_callback_on_step_end_tensor_inputs=prior_callback_on_step_end_tensor_inputs,
        ).complete(self)
        check_call(self, call)
        if ids is not None and given is None:
            check_prior_classes(self)
        if ids is None and call.asks_for_guidance(self):
            logger.warning("`guidance_scale` and `prior_guidance_scale` are ignored: there are no `class_labels`.")

        # 2. The inputs of the networks, with the labels and without them
        condition, unconditional = self.encode_labels(ids, num_images_per_prompt, self._flow_device)

        # 3. Coarse latent, source, flow, image
        return self.generate(call, condition, unconditional)
