# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Detail for a coarse picture: a thumbnail, a sketch in colours, a blurred photo."""

from collections.abc import Callable

import torch

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import PipelineImageInput
from diffusers.models import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging, replace_example_docstring

from ..autoencoding import encode_images, image_channels
from ..guards.values import check_count
from ..images import prepare_images
from ..models import LowFreqTransformer2DModel
from ..schedulers import LowFreqFlowMatchScheduler
from .base import LowFreqBasePipeline
from .class_labels import ClassLabelsMixin
from .inputs import Call, check_call, check_complete, check_size, check_solvers
from .pipeline_output import LowFreqPipelineOutput


logger = logging.get_logger(__name__)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from PIL import Image
        >>> from diffusers_lowfreq import LowFreqUpscalePipeline

        >>> pipe = LowFreqUpscalePipeline.from_pretrained("checkpoints/cifar10-32")
        >>> pipe.load_lora_weights("checkpoints/cifar10-32-upscale")  # trained on thumbnails and blur
        >>> thumbnail = Image.open("thumbnail.png")
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = pipe(thumbnail, "horse", strength=0.4, num_images_per_prompt=4, generator=generator).images
        ```
"""


class LowFreqUpscalePipeline(ClassLabelsMixin, LowFreqBasePipeline):
    r"""
    Add detail to a coarse picture, with the flow of a low-frequency pipeline (arXiv 2606.04092).

    The picture, of any size, is resized to full size, encoded, and projected to a coarse latent. No prior model runs. The
    scheduler upsamples the coarse latent and mixes it with Gaussian noise, which makes the source, and the flow refines it.
    Each draw of the noise adds different detail to the same layout.

    It loads from every saved low-frequency pipeline, without its prior model.

    Args:
        transformer ([`LowFreqTransformer2DModel`]):
            The flow.
        scheduler ([`LowFreqFlowMatchScheduler`]):
            Makes the source, by the projection, factor and noise ratio of its configuration, and steps the flow.
        vae (`AutoencoderKL`, `AutoencoderDC`, `AutoencoderTiny`, *optional*):
            The autoencoder. Without one, the flow works on pixels in [-1, 1].
        id2label (`dict[int, str]`, *optional*):
            Class names.
        guider (`BaseGuidance`, *optional*):
            A guider of diffusers, instead of `guidance_scale`.

    Raises:
        ValueError: If `scheduler` cannot make the source.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae", "guider"]
    prior = prior_scheduler = None  # the coarse latent comes from the picture

    def __init__(
        self,
        # `from_pipe` passes a model on only if its exact class is listed here; `ModelMixin` alone is not enough
        transformer: LowFreqTransformer2DModel | ModelMixin,
        scheduler: LowFreqFlowMatchScheduler,
        vae: AutoencoderKL | AutoencoderDC | AutoencoderTiny | ModelMixin | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,
        guider: BaseGuidance | None = None,
    ):
        super().__init__()
        self._register_components(transformer=transformer, scheduler=scheduler, vae=vae, guider=guider)
        self._register_labels(id2label)

    # ------------------------------------------------------------------------------------------------ the picture

    def prepare_image(
        self, image: PipelineImageInput, height: int, width: int, resize_mode: str | None = None
    ) -> torch.Tensor:
        """Resize pictures of any size to the size and the range of the autoencoder, see [`images.prepare_images`]."""
        return prepare_images(image, height, width, image_channels(self.vae, self.transformer), resize_mode)

    # ------------------------------------------------------------------------------------------------ the call

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: PipelineImageInput,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        output_prior_images: bool = False,
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        resize_mode: str | None = None,
    ) -> LowFreqPipelineOutput | tuple:
        r"""
        Add detail to pictures.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
                The pictures, of any size; those of a list may differ in size. PIL images may have any mode, and transparency
                becomes white. Arrays have the shape `(height, width, channels)` and tensors `(channels, height, width)`,
                with or without a batch dimension, and hold numbers in [0, 1], or bytes.
            class_labels (`int`, `str`, a list of them, or `torch.Tensor` of shape `(batch,)`, *optional*):
                The classes of the pictures, by number or by name: one for all, or one for each. Omitted: no particular class.
            height (`int`, *optional*), width (`int`, *optional*):
                Size in pixels; by default the size that the model was trained on.
            strength (`float`, *optional*):
                The share of noise in the source, within the range that the model was trained for. More noise gives more
                freedom to the detail. The `noise_ratio` of the scheduler when omitted.
            num_inference_steps (`int`, defaults to `4`):
                Steps of the flow.
            guidance_scale (`float`, *optional*):
                Classifier-free guidance, `uncond + scale * (cond - uncond)`. When omitted it is 1, which is no guidance. A
                one-step model has guidance folded in, without a second pass, and its scale is then the default.
            num_images_per_prompt (`int`, defaults to `1`):
                Variations of each picture.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator, or one per generated image. With one per image, an image does not depend on the rest of the
                batch.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"` or `"latent"`.
            output_prior_images (`bool`, defaults to `False`):
                Whether to decode the upsampled coarse latent too: the picture without detail.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LowFreqPipelineOutput`] rather than a tuple.
            callback_on_step_end (`Callable`, *optional*), callback_on_step_end_tensor_inputs (`list[str]`, defaults to `("latents",)`):
                Called as `callback(pipe, step, timestep, {name: tensor})` after every step.
            resize_mode (`str`, *optional*):
                What to do with a picture whose aspect ratio is not that of `height` and `width`: `"crop"` cuts it, `"fill"`
                repeats its border, `"default"` squeezes it, as in diffusers' image processors. Omitted, it is refused.

        Examples:

        Returns:
            [`LowFreqPipelineOutput`] or `tuple`:
                The images, with all variations of the first picture first; as a tuple `(images,)`, or
                `(images, prior_images)` with `output_prior_images`.

        Raises:
            ValueError: If an argument is not allowed. The error names it, and says what is allowed.
        """
        # 1. Inputs
        check_complete(self)
        check_count("num_images_per_prompt", num_images_per_prompt)
        check_solvers(self)
        if strength is not None:
            self.scheduler.alpha(strength, "strength")
        height = self.default_size[0] if height is None else height
        width = self.default_size[1] if width is None else width
        check_size(self, height, width)
        ids = self.get_label_ids(class_labels) if class_labels is not None else None
        image = self.prepare_image(image, height, width, resize_mode)
        if ids is not None and len(ids) not in (1, len(image)):
            raise ValueError(
                f"`class_labels` must be one, or one for each of the {len(image)} pictures, got {len(ids)}."
            )

        # 2. The coarse latents of the pictures
        sample = encode_images(self.vae, image.to(self._flow_device))
        prior_latents = self.scheduler.projection.downsample(sample.to(self.transformer.dtype))
        call = Call(
            len(image) * num_images_per_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            noise_ratio=strength,
            generator=generator,
            prior_latents=prior_latents.repeat_interleave(num_images_per_prompt, dim=0),
            output_type=output_type,
            output_prior_images=output_prior_images,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        ).complete(self)
        check_call(self, call)
        if ids is None and call.asks_for_guidance(self):
            logger.warning("`guidance_scale` is ignored: there are no `class_labels`.")

        # 3. The inputs of the flow, with the labels and without them
        if ids is not None and len(ids) == 1:
            ids = ids * len(image)
        condition, unconditional = self.encode_labels(ids, num_images_per_prompt, self._flow_device)

        # 4. Source, flow, image
        return self.generate(call, condition, unconditional)
