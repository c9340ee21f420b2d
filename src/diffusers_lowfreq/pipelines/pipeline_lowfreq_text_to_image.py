# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Text to image from a low-frequency prior."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.models import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import is_transformers_available, logging, replace_example_docstring

from ..guards.values import check_flag
from ..models import LowFreqTransformer2DModel
from ..schedulers import LowFreqFlowMatchScheduler
from ..text_encoding import encode_text
from .base import LowFreqBasePipeline
from .inputs import Call, check_call, check_complete, check_prompts, check_text_encoder
from .pipeline_output import LowFreqPipelineOutput


if is_transformers_available():
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:  # for the annotations below; without transformers there are no text encoders
    PreTrainedModel = PreTrainedTokenizerBase = object

logger = logging.get_logger(__name__)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from diffusers_lowfreq import LowFreqTextToImagePipeline

        >>> pipe = LowFreqTextToImagePipeline.from_pretrained("out/text-to-image")  # of examples/train_lowfreq.py
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = pipe("a photo of a horse", guidance_scale=3.0, prior_guidance_scale=3.0, generator=generator).images
        ```
"""


class LowFreqTextToImagePipeline(LowFreqBasePipeline):
    r"""
    Generate images from text with a flow that starts from a low-frequency prior (arXiv 2606.04092).

    The text is encoded once, for both networks. The prior model samples a coarse latent from noise. The scheduler upsamples it
    and mixes it with Gaussian noise, which makes the source. The flow refines the source to a latent in few steps, and the
    autoencoder decodes it.

    Args:
        transformer ([`LowFreqTransformer2DModel`]):
            The flow, with `caption_channels`.
        scheduler ([`LowFreqFlowMatchScheduler`]):
            Makes the source, by the projection, factor and noise ratio of its configuration, and steps the flow.
        text_encoder (`CLIPTextModel` or `T5EncoderModel`):
            A frozen text encoder of transformers, whose last hidden states are `caption_channels` wide.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        vae (`AutoencoderKL`, `AutoencoderDC`, `AutoencoderTiny`, *optional*):
            The autoencoder. Without one, the flow works on pixels in [-1, 1].
        prior ([`LowFreqTransformer2DModel`], *optional*):
            The prior model of coarse latents, with the same `caption_channels`. Without one, calls need `prior_latents` or
            `latents`, unless the noise ratio is 1.
        prior_scheduler (`SchedulerMixin`, *optional*):
            A deterministic flow-matching scheduler that takes explicit sigmas. If a `prior` is given without one, a
            `FlowMatchEulerDiscreteScheduler`.
        truncate_prior (`bool`, defaults to `False`):
            Whether the prior model stops early, see [`~LowFreqPipeline.__call__`].
        guider (`BaseGuidance`, *optional*):
            A guider of diffusers for the flow, instead of `guidance_scale`.

    Raises:
        ValueError: If the networks and the text encoder do not fit together, `scheduler` cannot make the source, or
            `prior_scheduler` draws new noise.
    """

    model_cpu_offload_seq = "text_encoder->prior->transformer->vae"

    def __init__(
        self,
        # `from_pipe` passes a model on only if its exact class is listed here; `ModelMixin` alone is not enough
        transformer: LowFreqTransformer2DModel | ModelMixin,
        scheduler: LowFreqFlowMatchScheduler,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vae: AutoencoderKL | AutoencoderDC | AutoencoderTiny | ModelMixin | None = None,
        prior: LowFreqTransformer2DModel | ModelMixin | None = None,
        prior_scheduler: SchedulerMixin | None = None,
        truncate_prior: bool = False,
        guider: BaseGuidance | None = None,
    ):
        super().__init__()
        check_flag("truncate_prior", truncate_prior)
        self._register_components(
            transformer=transformer,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            vae=vae,
            prior=prior,
            prior_scheduler=prior_scheduler,
            guider=guider,
        )
        self.register_to_config(truncate_prior=truncate_prior)
        check_text_encoder(self)

    # ------------------------------------------------------------------------------------------------ inputs

    def check_inputs(
        self,
        prompt,
        negative_prompt,
        num_images_per_prompt,
        prompt_embeds,
        prompt_attention_mask,
        negative_prompt_embeds,
        negative_prompt_attention_mask,
        max_sequence_length,
        **call,
    ) -> int:
        """
        Raise a `ValueError` that names the first argument that is not allowed; return the number of prompts.

        `call` holds the fields of a [`Call`].
        """
        check_text_encoder(self)
        number = check_prompts(
            self,
            prompt,
            negative_prompt,
            num_images_per_prompt,
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
            max_sequence_length,
        )
        super().check_inputs(number * num_images_per_prompt, **call)
        return number

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        r"""
        Encode prompts and negative prompts, with a row for each image.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                What to show.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from, for all prompts or for each; the empty string when omitted.
            num_images_per_prompt (`int`, defaults to `1`):
                How often each row of the output is repeated.
            do_classifier_free_guidance (`bool`, defaults to `True`):
                Whether to encode the negative prompt too.
            prompt_embeds (`torch.Tensor` of shape `(prompts, text_tokens, caption_channels)`, *optional*), prompt_attention_mask (`torch.Tensor` of shape `(prompts, text_tokens)`, *optional*):
                Embeddings instead of `prompt`, and a mask of the tokens that are not padding.
            negative_prompt_embeds (`torch.Tensor` of shape `(prompts or 1, text_tokens, caption_channels)`, *optional*), negative_prompt_attention_mask (`torch.Tensor` of shape `(prompts or 1, text_tokens)`, *optional*):
                The same instead of `negative_prompt`.
            max_sequence_length (`int`, *optional*):
                The largest number of tokens of a prompt; by default as many as the encoder takes, or 256 if it has no
                limit. Longer prompts are cut, with a warning.

        Returns:
            `tuple`: `prompt_embeds`, `prompt_attention_mask`, `negative_prompt_embeds` and `negative_prompt_attention_mask`,
            all padded to the same length. The last two are `None` without guidance.
        """

        def encode(text):
            device = self._execution_device if hasattr(self.text_encoder, "_hf_hook") else self.text_encoder.device
            texts = [text] if isinstance(text, str) else list(text)
            return encode_text(self.text_encoder, self.tokenizer, texts, max_sequence_length, device)

        conditional = prompt_embeds, prompt_attention_mask
        if prompt_embeds is None:
            conditional = encode(prompt)
        both = [conditional]
        if do_classifier_free_guidance:
            unconditional = negative_prompt_embeds, negative_prompt_attention_mask
            if negative_prompt_embeds is None:
                unconditional = encode("" if negative_prompt is None else negative_prompt)
            both.append([x.expand(len(conditional[0]), *x.shape[1:]) for x in unconditional])
        tokens = max(embeds.shape[1] for embeds, _ in both)
        output = []
        for embeds, mask in both:
            padding = tokens - embeds.shape[1]
            output.append(F.pad(embeds, (0, 0, 0, padding)).repeat_interleave(num_images_per_prompt, 0))
            output.append(F.pad(mask.bool(), (0, padding)).repeat_interleave(num_images_per_prompt, 0))
        return (*output, None, None)[:4]

    # ------------------------------------------------------------------------------------------------ the call

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
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
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        output_prior_images: bool = False,
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        prior_callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        prior_callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("prior_latents",),
        max_sequence_length: int | None = None,
    ) -> LowFreqPipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                What to show; this or `prompt_embeds`.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from, for all prompts or for each; the empty string when omitted. It has no effect without
                guidance, nor on a one-step model, whose guidance is folded in.
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
                Classifier-free guidance of the flow, `negative + scale * (prompt - negative)`. When omitted it is 1, which is
                no guidance. A one-step model has guidance folded in, without a second pass. Its scale is then the default,
                and others are allowed only within its `guidance_scale_range`.
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
                Images per prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator, or one per image. With one per image, an image does not depend on the rest of the batch.
            latents (`torch.Tensor` of shape `(batch, channels, latent_height, latent_width)`, *optional*):
                Your own source. No noise is drawn, and the prior model does not run.
            prior_latents (`torch.Tensor` of shape `(batch, channels, latent_height / factor, latent_width / factor)`, *optional*):
                Your own coarse latent. The prior model does not run.
            prompt_embeds (`torch.Tensor` of shape `(prompts, text_tokens, caption_channels)`, *optional*), prompt_attention_mask (`torch.Tensor` of shape `(prompts, text_tokens)`, *optional*):
                The output of [`~LowFreqTextToImagePipeline.encode_prompt`], instead of `prompt`.
            negative_prompt_embeds (`torch.Tensor` of shape `(prompts or 1, text_tokens, caption_channels)`, *optional*), negative_prompt_attention_mask (`torch.Tensor` of shape `(prompts or 1, text_tokens)`, *optional*):
                The same, instead of `negative_prompt`.
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
            max_sequence_length (`int`, *optional*):
                The largest number of tokens of a prompt; by default as many as the encoder takes, or 256 if it has no
                limit. Longer prompts are cut, with a warning.

        Examples:

        Returns:
            [`LowFreqPipelineOutput`] or `tuple`:
                The images; as a tuple `(images,)`, or `(images, prior_images)` with `output_prior_images`.

        Raises:
            ValueError: If an argument is not allowed. The error names it, and says what is allowed.
        """
        # 1. Inputs
        check_complete(self)
        text = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "num_images_per_prompt": num_images_per_prompt,
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "max_sequence_length": max_sequence_length,
        }
        check_text_encoder(self)
        call = Call(
            check_prompts(self, **text) * num_images_per_prompt,
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
        is_guided = self._is_guided(call)
        if not is_guided and (negative_prompt or negative_prompt_embeds is not None):
            logger.warning(
                "`negative_prompt` is ignored: it needs guidance, a `guidance_scale` or `prior_guidance_scale` other than 1, of a "
                "model of many steps."
            )

        # 2. The inputs of the networks, with the prompt and with the negative prompt
        text = self.encode_prompt(do_classifier_free_guidance=is_guided, **text)
        text = [x if x is None else x.to(self._flow_device) for x in text]
        names = ("encoder_hidden_states", "encoder_attention_mask")
        condition, unconditional = dict(zip(names, text[:2])), dict(zip(names, text[2:]))

        # 3. Coarse latent, source, flow, image
        return self.generate(call, condition, unconditional if is_guided else None)

    def _is_guided(self, call: Call) -> bool:
        """Whether the negative prompt guides a network: one of many steps, since a one-step model has guidance folded in."""
        scales = ((self.transformer, call.guidance_scale), (self.prior, call.prior_guidance_scale))
        return self.guider is not None or any(
            scale != 1 and model is not None and not getattr(model.config, "use_meanflow", False)
            for model, scale in scales
        )
