# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a call, and every check: of those arguments, and of components that must fit together."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..guards.values import (
    MAX_FLOAT,
    check_choice,
    check_count,
    check_flag,
    check_generators,
    check_number,
    check_rising_pair,
    check_tensor,
    is_integer,
)
from ..images import check_pixels
from ..schedulers import LowFreqFlowMatchScheduler, is_flow_sampler, redraws_noise


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


# ---------------------------------------------------------------------------------------------------------- the call


@dataclass
class StepCallback:
    """
    A callback after each step of a loop, which may change the state.

    Args:
        name (`str`):
            The name of the state: `"latents"` or `"prior_latents"`.
        function (`Callable`, *optional*):
            Called as `function(pipe, step, timestep, {name: state})`. Without one, the state does not change.
        tensor_inputs (`Sequence[str]`, defaults to `()`):
            The tensors passed to it: `[name]`, or none.
    """

    name: str
    function: Callable | None = None
    tensor_inputs: Sequence[str] = ()

    @property
    def argument(self) -> str:
        """The argument of the call that gave it."""
        return "prior_callback_on_step_end" if self.name == "prior_latents" else "callback_on_step_end"

    def check(self):
        """Raise a `ValueError` if it is not callable, or needs tensors that the loop does not have."""
        if self.function is not None and not callable(self.function):
            raise ValueError(f"`{self.argument}` must be callable, got {self.function!r}.")
        names = self.tensor_inputs
        if not isinstance(names, (list, tuple)) or not all(name == self.name for name in names):
            raise ValueError(f"`{self.argument}_tensor_inputs` must be among {[self.name]}, got {names!r}.")

    def __call__(self, pipe, step: int, timestep: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """
        Call it, and return the state to continue from.

        Raises:
            ValueError: If it does not return a dict, or the state in the dict has another shape.
        """
        if self.function is None:
            return state
        returned = self.function(pipe, step, timestep, dict.fromkeys(self.tensor_inputs, state))
        changed = returned.pop(self.name, state) if isinstance(returned, dict) else None
        if not isinstance(changed, torch.Tensor) or changed.shape != state.shape:
            raise ValueError(
                f"`{self.argument}` must return a dict in which {self.name!r}, if present, has shape {tuple(state.shape)}; got "
                f"{type(returned).__name__}."
            )
        return changed


@dataclass
class Call:
    """
    The arguments shared by the calls of all our pipelines, see [`LowFreqPipeline.__call__`].

    `batch_size` is the number of images. [`~Call.complete`] replaces a size or a guidance scale that is `None`.
    """

    batch_size: int
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 4
    prior_num_inference_steps: int = 8
    sigmas: list[float] | None = None
    guidance_scale: float | None = None
    prior_guidance_scale: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    noise_ratio: float | None = None
    truncate_prior: bool | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: torch.Tensor | None = None
    prior_latents: torch.Tensor | None = None
    output_type: str = "pil"
    output_prior_images: bool = False
    return_dict: bool = True
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None
    callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",)
    prior_callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None
    prior_callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("prior_latents",)

    def complete(self, pipe) -> "Call":
        """Fill in the defaults of a pipeline: the size and the guidance that its models were trained for."""
        height, width = pipe.default_size
        self.height = height if self.height is None else self.height
        self.width = width if self.width is None else self.width
        if self.guidance_scale is None:
            self.guidance_scale = default_guidance_scale(pipe.transformer)
        if self.prior_guidance_scale is None:
            self.prior_guidance_scale = default_guidance_scale(pipe.prior)
        return self

    def asks_for_guidance(self, pipe) -> bool:
        """Whether a guidance scale differs from the default of its model."""
        scales = (self.guidance_scale, self.prior_guidance_scale)
        return scales != tuple(default_guidance_scale(model) for model in (pipe.transformer, pipe.prior))

    @property
    def callback(self) -> StepCallback:
        """The callback after each step of the flow."""
        return self._callback("latents", self.callback_on_step_end, self.callback_on_step_end_tensor_inputs)

    @property
    def prior_callback(self) -> StepCallback:
        """The callback after each step of the prior model."""
        names = self.prior_callback_on_step_end_tensor_inputs
        return self._callback("prior_latents", self.prior_callback_on_step_end, names)

    @staticmethod
    def _callback(name: str, function, tensor_inputs) -> StepCallback:
        if isinstance(function, (PipelineCallback, MultiPipelineCallbacks)):  # they name the tensors they need
            tensor_inputs = function.tensor_inputs
        return StepCallback(name, function, tensor_inputs)


def default_guidance_scale(model: ModelMixin | None) -> float:
    """Return the guidance scale of a call that gives none: that of a one-step model, or else 1."""
    if model is None:
        return 1.0
    return getattr(model.config, "guidance_scale", None) or 1.0


# ---------------------------------------------------------------------------------------------------- the components


def check_components(components: dict):
    """Raise a `ValueError` if a component has the wrong class."""
    guider = components.get("guider")
    if guider is not None and not isinstance(guider, BaseGuidance):
        raise ValueError(f"`guider` must be one of diffusers' guiders, got {type(guider).__name__}.")
    if guider is not None and (
        type(guider).prepare_models is not BaseGuidance.prepare_models
        or guider._input_predictions != ["pred_cond", "pred_uncond"]
    ):
        raise ValueError(
            "`guider` must combine one prediction with the condition and one without it, got "
            f"{type(guider).__name__}, which needs more of the network than that."
        )
    expected = dict.fromkeys(("transformer", "prior", "vae", "text_encoder"), torch.nn.Module)
    expected |= dict.fromkeys(("scheduler", "prior_scheduler"), SchedulerMixin)
    for name, base in expected.items():
        if not isinstance(components.get(name), (base, type(None))):
            raise ValueError(f"`{name}` must be a {base.__name__} or None, got {components[name]!r}.")


def check_complete(pipe):
    """Raise a `ValueError` if a component is missing that generation needs."""
    needed = ["transformer", "scheduler"]
    if pipe.prior is not None:
        needed.append("prior_scheduler")
    for name in needed:
        if getattr(pipe, name) is None:
            raise ValueError(f"`{name}` must be given: the pipeline needs it to generate, got None.")


def check_schedulers(scheduler: SchedulerMixin | None, prior_scheduler: SchedulerMixin | None):
    """Raise a `ValueError` if `scheduler` cannot make the source, or `prior_scheduler` cannot sample from the prior model."""
    if scheduler is not None and not isinstance(scheduler, LowFreqFlowMatchScheduler):
        raise ValueError(
            "`scheduler` must be a LowFreqFlowMatchScheduler, which makes the source of the flow, got "
            f"{type(scheduler).__name__}. `LowFreqFlowMatchScheduler.from_config(scheduler.config, "
            "projection=..., factor=..., noise_ratio=...)` takes over the rest of a configuration."
        )
    if prior_scheduler is None:
        return
    name = type(prior_scheduler).__name__
    is_flow = is_flow_sampler(prior_scheduler) or name.startswith(
        "FlowMap"
    )  # diffusers' FlowMapEulerDiscreteScheduler
    takes_sigmas = "sigmas" in inspect.signature(prior_scheduler.set_timesteps).parameters
    if not is_flow or redraws_noise(prior_scheduler) or not takes_sigmas:
        raise ValueError(
            "`prior_scheduler` must be a deterministic flow-matching scheduler that takes `sigmas` (for example "
            f"FlowMatchEulerDiscreteScheduler without `stochastic_sampling`), got {name}."
        )


def check_solver(
    model: ModelMixin | None,
    scheduler: SchedulerMixin | None,
    model_name: str = "transformer",
    scheduler_name: str = "scheduler",
):
    """Refuse a solver that does not match what its model predicts: a velocity, or a mean velocity."""
    if model is None or scheduler is None:
        return
    name, is_mean_flow = type(scheduler).__name__, getattr(model.config, "use_meanflow", False)
    if name.startswith("FlowMap") and not is_mean_flow:
        raise ValueError(
            f"`{scheduler_name}` must not be a {name}: it steps by a mean velocity, but the `{model_name}` predicts "
            "the velocity at an instant (its `use_meanflow` is False). Use a FlowMatchEulerDiscreteScheduler."
        )
    first_order = "Euler" in name or name == "LowFreqFlowMatchScheduler"
    if is_mean_flow and (not first_order or scheduler.config.get("solver_order", 1) != 1):
        raise ValueError(
            f"`{scheduler_name}` must step by `x + (sigma_next - sigma) * u`, since the `{model_name}` predicts a mean "
            f"velocity: an Euler scheduler, or `solver_order=1`, got {name} of order "
            f"{scheduler.config.get('solver_order', getattr(scheduler, 'order', 1))}."
        )


def check_solvers(pipe):
    """Raise a `ValueError` if the schedulers of a pipeline do not match its models."""
    check_schedulers(pipe.scheduler, pipe.prior_scheduler)
    check_solver(pipe.transformer, pipe.scheduler)
    check_solver(pipe.prior, pipe.prior_scheduler, "prior", "prior_scheduler")


def check_prior(transformer: ModelMixin, prior: ModelMixin | None):
    """Raise a `ValueError` if the prior model and the flow differ in their channels."""
    channels = transformer.config.in_channels
    if prior is not None and prior.config.in_channels != channels:
        raise ValueError(
            f"`prior` must make coarse latents of the {channels} channels of the `transformer`, got "
            f"{prior.config.in_channels}."
        )


def check_prior_classes(pipe):
    """Raise a `ValueError` if the prior model and the flow differ in their classes."""
    num_classes = pipe.transformer.config.num_classes
    if pipe.prior is not None and pipe.prior.config.num_classes != num_classes:
        raise ValueError(
            f"`prior` must know the {num_classes} classes of the `transformer`, got {pipe.prior.config.num_classes}."
        )


def check_no_text(transformer: ModelMixin | None):
    """Raise a `ValueError` if the flow of a pipeline for class labels takes text."""
    if getattr(getattr(transformer, "config", None), "caption_channels", None) is not None:
        raise ValueError("`transformer` must not have `caption_channels`: use a LowFreqTextToImagePipeline for text.")


def check_text_encoder(pipe):
    """Raise a `ValueError` if a network takes no text, or the text encoder has another width."""
    widths = {
        name: getattr(getattr(pipe, name).config, "caption_channels", None)
        for name in ("transformer", "prior")
        if getattr(pipe, name) is not None
    }
    for name, width in widths.items():
        if width is None:
            raise ValueError(
                f"`{name}` must have `caption_channels`, the width of the text embeddings that it takes; got None."
            )
        if width != next(iter(widths.values())):
            raise ValueError(
                f"`prior` must take text of the {widths['transformer']} channels that the `transformer` takes, got {width}."
            )
    if pipe.text_encoder is not None and widths:
        name, width = next(iter(widths.items()))
        if pipe.text_encoder.config.hidden_size != width:
            raise ValueError(
                f"`text_encoder` must be of the width that the `{name}` takes, {width}, got "
                f"{pipe.text_encoder.config.hidden_size}."
            )


# ---------------------------------------------------------------------------------------------- arguments of a call


def check_call(pipe, call: Call):
    """
    Raise a `ValueError` that names the first argument of a call that is not allowed.

    Args:
        pipe (`LowFreqBasePipeline`):
            The pipeline. Only its `transformer`, `scheduler`, `prior`, `prior_scheduler`, `guider` and `vae_scale_factor`
            are read.
        call ([`Call`]):
            The completed call.
    """
    call.callback.check()
    call.prior_callback.check()
    check_solvers(pipe)
    check_count("num_inference_steps", call.num_inference_steps)
    check_count("prior_num_inference_steps", call.prior_num_inference_steps)
    _check_guidance(pipe, call)
    alpha = pipe.scheduler.alpha(call.noise_ratio)
    check_choice("output_type", call.output_type, OUTPUT_TYPES)
    check_flag("output_prior_images", call.output_prior_images)
    check_flag("return_dict", call.return_dict)
    check_size(pipe, call.height, call.width)
    check_prior(pipe.transformer, pipe.prior)
    _check_latents(pipe, call, alpha)
    check_generators("generator", call.generator, call.batch_size)
    if call.truncate_prior is not None:
        check_flag("truncate_prior", call.truncate_prior)
    if call.truncate_prior and (call.latents is not None or call.prior_latents is not None):
        raise ValueError("`truncate_prior` must not be set with `latents` or `prior_latents`: the prior does not run.")


def check_size(pipe, height: int, width: int):
    """Raise a `ValueError` if a size in pixels is too large, or not a multiple of what autoencoder, patches and factor need."""
    prior_patch = pipe.prior.config.patch_size if pipe.prior is not None else 1
    step = math.lcm(pipe.transformer.config.patch_size, pipe.scheduler.config.factor * prior_patch)
    step *= pipe.vae_scale_factor
    for name, value in (("height", height), ("width", width)):
        if not is_integer(value) or value < 1 or value % step:
            raise ValueError(
                f"`{name}` must be a positive multiple of {step} (autoencoder, patches and factor), got {value!r}."
            )
    check_pixels(height, width)


def check_folded_guidance(name: str, value: float, model: ModelMixin | None):
    """Raise a `ValueError` if a one-step model was not trained for a guidance scale."""
    if not getattr(getattr(model, "config", None), "use_meanflow", False):
        return
    folded, allowed = default_guidance_scale(model), model.config.guidance_scale_range
    if allowed is None and value != folded:
        raise ValueError(
            f"`{name}` must be left out, or be {folded:g}: this one-step model has its guidance folded in, got {value!r}."
        )
    if allowed is not None and not allowed[0] <= value <= allowed[1]:
        raise ValueError(f"`{name}` must be in the trained range {list(allowed)}, got {value!r}.")


def _check_guidance(pipe, call: Call):
    for name in ("guidance_scale", "prior_guidance_scale"):
        check_number(name, getattr(call, name), 0, MAX_FLOAT)
    check_folded_guidance("guidance_scale", call.guidance_scale, pipe.transformer)
    check_folded_guidance("prior_guidance_scale", call.prior_guidance_scale, pipe.prior)
    check_rising_pair("guidance_interval", call.guidance_interval, strictly=False)
    is_whole = tuple(call.guidance_interval) == (0.0, 1.0)
    is_mean_flow = getattr(pipe.transformer.config, "use_meanflow", False)
    if is_mean_flow and not is_whole:
        raise ValueError(
            "`guidance_interval` must be left out: this one-step model has its guidance folded in, got "
            f"{call.guidance_interval!r}."
        )
    if pipe.guider is None:
        return
    if is_mean_flow:
        raise ValueError("`guider` must be None with a one-step `transformer`, whose guidance is folded in.")
    for name, is_given in (("guidance_scale", call.guidance_scale != 1), ("guidance_interval", not is_whole)):
        if is_given:
            raise ValueError(f"`{name}` must be left out: the `guider` of this pipeline guides the flow.")


def _check_latents(pipe, call: Call, alpha: float):
    if call.latents is not None and call.prior_latents is not None:
        raise ValueError("Pass `latents` (the source) or `prior_latents` (the coarse latent), not both.")
    if call.latents is None and call.prior_latents is None and pipe.prior is None and alpha < 1:
        raise ValueError("`prior_latents` or `latents` must be given: this pipeline has no `prior`.")
    factor = pipe.scheduler.config.factor
    height, width = call.height // pipe.vae_scale_factor, call.width // pipe.vae_scale_factor
    shape = (call.batch_size, pipe.transformer.config.in_channels)
    if call.latents is not None:
        check_tensor("latents", call.latents, (*shape, height, width), pipe.transformer.dtype)
    if call.prior_latents is not None:
        shape = (*shape, height // factor, width // factor)
        check_tensor("prior_latents", call.prior_latents, shape, pipe.transformer.dtype)


# --------------------------------------------------------------------------------------------- text of a call


def check_prompts(
    pipe,
    prompt,
    negative_prompt,
    num_images_per_prompt,
    prompt_embeds,
    prompt_attention_mask,
    negative_prompt_embeds,
    negative_prompt_attention_mask,
    max_sequence_length,
) -> int:
    """Raise a `ValueError` that names the first text argument that is not allowed; return the number of prompts."""
    check_count("num_images_per_prompt", num_images_per_prompt)
    if max_sequence_length is not None:
        check_count("max_sequence_length", max_sequence_length)
    if (prompt is None) == (prompt_embeds is None):
        got = "both" if prompt is not None else "neither"
        raise ValueError(f"Exactly one of `prompt` and `prompt_embeds` must be given, got {got}.")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("At most one of `negative_prompt` and `negative_prompt_embeds` may be given, got both.")
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if text is not None:
            _check_texts(pipe, name, text)
    for name, embeds, mask in (
        ("prompt", prompt_embeds, prompt_attention_mask),
        ("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask),
    ):
        if (embeds is None) != (mask is None):
            raise ValueError(f"`{name}_embeds` and `{name}_attention_mask` must be given together.")
        if embeds is not None:
            _check_embeds(pipe, name, embeds, mask)
    given = prompt if prompt is not None else prompt_embeds
    number = 1 if isinstance(given, str) else len(given)
    negative = negative_prompt_embeds if negative_prompt is None else negative_prompt
    if negative is not None and not isinstance(negative, str) and len(negative) not in (1, number):
        name = "negative_prompt_embeds" if negative_prompt is None else "negative_prompt"
        raise ValueError(
            f"`{name}` must hold as many texts as there are prompts, {number}, or one, got {len(negative)}."
        )
    return number


def _check_texts(pipe, name: str, text: str | list[str]):
    texts = [text] if isinstance(text, str) else text
    is_list = isinstance(texts, (list, tuple)) and len(texts) > 0
    if not is_list or not all(isinstance(t, str) and t == t.encode(errors="ignore").decode() for t in texts):
        raise ValueError(f"`{name}` must be a string or a list of strings, of valid Unicode, got {text!r}.")
    if pipe.text_encoder is None or pipe.tokenizer is None:
        raise ValueError(
            f"`{name}` needs a `text_encoder` and a `tokenizer`, which this pipeline lacks; give `{name}_embeds`."
        )


def _check_embeds(pipe, name: str, embeds: torch.Tensor, mask: torch.Tensor):
    width = pipe.transformer.config.caption_channels
    is_tensor = torch.is_tensor(embeds) and embeds.is_floating_point()
    if not is_tensor or embeds.ndim != 3 or embeds.shape[2] != width or len(embeds) < 1:
        got = tuple(embeds.shape) if torch.is_tensor(embeds) else type(embeds)
        raise ValueError(
            f"`{name}_embeds` must be a floating point tensor of shape (prompts, text_tokens, {width}), got {got}."
        )
    if not embeds.to(pipe.transformer.dtype).isfinite().all():
        raise ValueError(f"`{name}_embeds` must be finite in {pipe.transformer.dtype}, some numbers are not.")
    fits = torch.is_tensor(mask) and mask.shape == embeds.shape[:2] and bool(mask.isfinite().all())
    if not fits or not mask.bool().any(1).all():
        got = tuple(mask.shape) if torch.is_tensor(mask) else type(mask)
        raise ValueError(
            f"`{name}_attention_mask` must be of shape {tuple(embeds.shape[:2])}, with a token that counts in every row, got "
            f"{got}."
        )


def check_images(images: torch.Tensor):
    """Raise a `ValueError` if images are not finite: they would be black."""
    if not images.isfinite().all():
        raise ValueError(
            "`latents` must give finite images, these do not. Possible causes: a `guidance_scale` or `prior_guidance_scale` "
            "that is too large, latents of yours far from unit scale, or numbers of a network or of the autoencoder that are "
            "too large for its type."
        )
