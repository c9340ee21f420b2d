# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Every check before a stock pipeline starts from a coarse latent: of pipelines, schedulers and calls."""

import inspect

import torch

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..adapters import LORA_SOURCE, adapter_source
from ..autoencoding import latent_channels
from ..guards.values import check_choice, check_count, check_generators
from ..schedulers import LowFreqFlowMatchScheduler, is_flow_sampler, redraws_noise
from .latents import latent_size


RESERVED = ("latents", "sigmas", "timesteps", "mu")  # arguments that the start sets itself, or overrides


def call_parameters(pipe: DiffusionPipeline) -> dict[str, inspect.Parameter]:
    """Return the arguments of the call of a pipeline."""
    return inspect.signature(type(pipe).__call__).parameters


def check_pipeline(pipe: DiffusionPipeline):
    """Raise a `ValueError` if a pipeline cannot start from given latents at a given level."""
    if not isinstance(pipe, DiffusionPipeline):
        raise ValueError(f"`pipe` must be a pipeline of diffusers, got {type(pipe).__name__}.")
    name, parameters = type(pipe).__name__, call_parameters(pipe)
    if "image" in parameters:
        raise ValueError(f"`pipe` must make images from prompts or labels alone, a {name} takes an `image` itself.")
    for argument in ("latents", "sigmas"):
        if argument not in parameters:
            raise ValueError(f"`pipe` must take `{argument}` in its call to be started elsewhere, a {name} does not.")


def _check_stock_scheduler(pipe: DiffusionPipeline):
    """Raise a `ValueError` if the scheduler of a pipeline draws noise, samples no flow, or has a low-frequency source."""
    stock = pipe.scheduler
    name, draws_noise = type(stock).__name__, redraws_noise(stock)
    if draws_noise or not is_flow_sampler(stock):
        raise ValueError(
            f"`pipe` must be a flow pipeline with a deterministic sampler, its scheduler is a {name}"
            + (", which draws new noise." if draws_noise else ", of another kind of model.")
        )
    if isinstance(stock, LowFreqFlowMatchScheduler) and stock.config.noise_ratio != 1:
        raise ValueError(
            f"`pipe` must start from Gaussian noise, this one is low-frequency (noise ratio {stock.config.noise_ratio}): pass "
            "`prior_latents` to its own call."
        )


def read_scheduler(pipe: DiffusionPipeline, scheduler: LowFreqFlowMatchScheduler | None) -> LowFreqFlowMatchScheduler:
    """
    Return the scheduler that makes the source: `scheduler`, or that of the active LoRA when omitted.

    Raises:
        ValueError: If there is neither, both differ, or the source has no noise.
    """
    trained_for = adapter_source(pipe)
    if scheduler is None and trained_for is None:
        raise ValueError("`scheduler` must be given: a LowFreqFlowMatchScheduler says what the source is.")
    scheduler = trained_for if scheduler is None else scheduler
    if not isinstance(scheduler, LowFreqFlowMatchScheduler):
        raise ValueError(f"`scheduler` must be a LowFreqFlowMatchScheduler, got {type(scheduler).__name__}.")
    for setting in LORA_SOURCE if trained_for is not None else ():
        if scheduler.config[setting] != trained_for.config[setting]:
            raise ValueError(
                f"`scheduler` must have the {setting} of the LoRA in use, {trained_for.config[setting]!r}, got "
                f"{scheduler.config[setting]!r}."
            )
    if not scheduler.config.noise_ratio > 0:
        raise ValueError(
            "`scheduler` must have a `noise_ratio` above 0: a stock model has no state without noise but data."
        )
    return scheduler


def check_call(pipe: DiffusionPipeline, num_inference_steps: int, starts: dict, upsample: str, call: dict):
    """
    Raise a `ValueError` that names the first argument that is not allowed.

    Args:
        pipe (`DiffusionPipeline`):
            A pipeline that has passed [`check_pipeline`].
        num_inference_steps (`int`):
            The number of steps from the source.
        starts (`dict`):
            `image`, `prior_latents` and `coarse_num_inference_steps`. Exactly one must be given.
        upsample (`str`):
            How coarse latents made by the pipeline are upsampled.
        call (`dict`):
            The other arguments, which go to the pipeline.
    """
    parameters = call_parameters(pipe)
    for argument in RESERVED:
        if call.get(argument) is not None:
            raise ValueError(f"`{argument}` must not be given: the start from a coarse latent sets it.")
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [argument for argument in call if argument not in parameters and not takes_all]
    if unknown:
        raise ValueError(f"`{unknown[0]}` is not an argument of the call of a {type(pipe).__name__}.")
    check_count("num_inference_steps", num_inference_steps)
    check_count("num_images_per_prompt", call.get("num_images_per_prompt", 1))
    if starts["coarse_num_inference_steps"] is not None:
        check_count("coarse_num_inference_steps", starts["coarse_num_inference_steps"])
    _check_stock_scheduler(pipe)
    if [value is not None for value in starts.values()].count(True) != 1:
        raise ValueError(
            "Pass one of `image`, `prior_latents` and `coarse_num_inference_steps`: what the start is coarse of."
        )
    check_choice("upsample", upsample, ("pixels", "latents"))


def resolve_size(
    pipe: DiffusionPipeline,
    scheduler: LowFreqFlowMatchScheduler,
    prior_latents: torch.Tensor | None,
    height: int | None,
    width: int | None,
) -> tuple[int, int]:
    """
    Return the size in pixels: as given, or that of the coarse latents, or the default of the pipeline.

    Raises:
        ValueError: If the coarse latents have another size, or the factor does not divide the latents.
    """
    factor = scheduler.config.factor
    if isinstance(prior_latents, torch.Tensor) and prior_latents.ndim == 4:
        sides = [side * factor * pipe.vae_scale_factor for side in prior_latents.shape[-2:]]
    else:
        sides = _default_sides(pipe)
    height, width = (own if given is None else given for given, own in zip((height, width), sides))
    if prior_latents is not None:
        _check_prior_latents(pipe, prior_latents, factor, (height, width), sides)
    for name, value in zip(("height", "width"), latent_size(pipe, height, width)):
        if value % factor:
            raise ValueError(f"`{name}` must give latents that `factor` {factor} divides, got latents of {value}.")
    return height, width


def _default_sides(pipe: DiffusionPipeline) -> list[int | None]:
    """Return the default height and width of a pipeline, `None` if it has none."""
    sides = [call_parameters(pipe)[name].default for name in ("height", "width")]
    size = getattr(pipe, "default_sample_size", None) or pipe.transformer.config.get("sample_size")
    if None in sides and size is not None:
        sides = [side * pipe.vae_scale_factor for side in ((size, size) if isinstance(size, int) else size)]
    return sides


def _check_prior_latents(pipe: DiffusionPipeline, prior_latents, factor: int, size: tuple, sides: list):
    is_tensor = isinstance(prior_latents, torch.Tensor) and prior_latents.is_floating_point()
    if is_tensor and not prior_latents.float().isfinite().all():
        raise ValueError("`prior_latents` must be finite, some are not.")
    channels, (height, width) = latent_channels(pipe.vae, pipe.transformer), size
    if not is_tensor or prior_latents.ndim != 4 or [channels, *size] != [prior_latents.shape[1], *sides]:
        got = tuple(prior_latents.shape) if isinstance(prior_latents, torch.Tensor) else type(prior_latents).__name__
        raise ValueError(
            f"`prior_latents` must be a floating point tensor of shape (batch, {channels}, height, width), of `height` and "
            f"`width` over {factor * pipe.vae_scale_factor}, got {got} for {height}x{width}."
        )


def repeat_low(
    low: torch.Tensor, call: dict, generator: torch.Generator | list[torch.Generator] | None
) -> torch.Tensor:
    """
    Repeat the coarse latents for all images of a call: there may be one for all, one per prompt, or one per image.

    Raises:
        ValueError: If there are more or fewer, or a list of generators has not one per image.
    """
    prompts = call.get("prompt", call.get("prompt_embeds", call.get("class_labels")))
    if prompts is None:
        prompts = call.get("prompt_embeds")
    is_one = isinstance(prompts, str) or not hasattr(prompts, "__len__") or getattr(prompts, "ndim", 1) == 0
    count = None if prompts is None else 1 if is_one else len(prompts)
    per_prompt = call.get("num_images_per_prompt", 1)
    if count is None:  # without prompts or labels: the number of images that the call gives, or else of coarse latents
        count, per_prompt = (len(low), 1) if per_prompt == 1 else (1, per_prompt)
    total = count * per_prompt
    if len(low) not in (total, count, 1):
        raise ValueError(
            f"`image` or `prior_latents` must be one for all, one a prompt ({count}) or one an image ({total}), got {len(low)}."
        )
    check_generators("generator", generator, total)
    if len(low) == total:
        return low
    return low.repeat_interleave(per_prompt, 0) if len(low) == count else low.expand(total, -1, -1, -1)
