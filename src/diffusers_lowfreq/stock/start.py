# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Start somebody else's flow model from a coarse latent, without training and without a copy of its pipeline."""

import copy
import functools
import inspect
import itertools

import numpy as np
import torch
from PIL import Image

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor

from ..adapters import SOURCE, adapter_source, adapters_left_out
from ..autoencoding import decode_latents, encode_images
from ..images import prepare_images
from ..schedulers import MAX_COUNT, LowFreqFlowMatchScheduler, is_flow_sampler, redraws_noise
from .latents import cast_given_latents, latent_size, pack_latents, unpack_latents


# What a stock scheduler's configuration must not ask of a plain, deterministic walk over the levels that are given
PLAIN = {
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
RESERVED = ("latents", "sigmas", "timesteps", "mu")  # what the start itself passes to the call, or undoes


def generate_from_coarse(
    pipe: DiffusionPipeline,
    scheduler: LowFreqFlowMatchScheduler | None = None,
    *,
    image: Image.Image | np.ndarray | torch.Tensor | list | None = None,
    prior_latents: torch.Tensor | None = None,
    coarse_num_inference_steps: int | None = None,
    upsample: str = "pixels",
    resize_mode: str | None = None,
    num_inference_steps: int = 4,
    height: int | None = None,
    width: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    **call,
):
    r"""
    Call a stock flow pipeline from a coarse latent, and skip the part of its schedule that would have found it.

    The source of a low-frequency flow, `(1 - noise_ratio) * U(low) + noise_ratio * noise`, is a state that a model trained
    from Gaussian noise nearly knows, at its own level `sigma = noise_ratio`, with a partly blurred image under the noise. So the
    pipeline's own call starts there, with `latents=source` over `sigmas = linspace(noise_ratio, noise_ratio / N, N)`, then 0.
    That is SDEdit (Meng et al. 2021, arXiv 2108.01073) on `U(low)`; a LoRA trained on the true pairs learns the rest.

    The call runs on a shallow copy of `pipe` whose scheduler is the stock Euler scheduler *without the model's shift*, which
    would move the start (a requested 0.5 to 0.75 with a shift of 3); `pipe` itself is left as it is. That it starts from the
    source, and goes over these levels, is checked in every step.

    Args:
        pipe (`DiffusionPipeline`):
            A flow pipeline whose call takes `latents` and `sigmas`: Stable Diffusion 3, FLUX, SANA, Lumina 2 and others, or
            a [`LowFreqPipeline`] of noise ratio 1.
        scheduler ([`LowFreqFlowMatchScheduler`], *optional*):
            What the source is: its `projection`, `factor` and `noise_ratio`. Omitted, that of the LoRA in use.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
            Images to take the coarse latents of, of any size: PIL images of any mode, arrays `(height, width, channels)` and
            tensors `(channels, height, width)` in [0, 1] or of bytes.
        prior_latents (`torch.Tensor` of shape `(batch, channels, latent_height / factor, latent_width / factor)`, *optional*):
            Coarse latents of unit scale, from a prior model. A batch of one, of the prompts, or of all images.
        coarse_num_inference_steps (`int`, *optional*):
            Have the pipeline itself make the coarse latents first, in its ordinary way in so many steps, at `1 / factor` of
            the height and width.
        upsample (`str`, defaults to `"pixels"`):
            How what `coarse_num_inference_steps` makes is brought up: `"pixels"` decodes it, resizes the picture and encodes
            it again; `"latents"` takes it for the coarse latent itself, which saves that but is right only for autoencoders
            whose latents look like small pictures. Many blur or break, because a small picture's latent is not the coarse
            version of a large one's.
        resize_mode (`str`, *optional*):
            What to do with an `image` of another aspect than `height` and `width`: `"crop"`, `"fill"` or `"default"`
            (squeeze), as in diffusers' image processors. Omitted, it is refused.
        num_inference_steps (`int`, defaults to `4`):
            Steps N from the source on.
        height (`int`, *optional*), width (`int`, *optional*):
            Size in pixels; by default that of `prior_latents`, or else the pipeline's own.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
            For the noise of the source, and passed on.
        call:
            Further arguments of the pipeline's call: `prompt`, `guidance_scale`, `num_images_per_prompt`, `output_type` ...

    Returns:
        What the pipeline's call returns.

    Raises:
        ValueError: If the pipeline cannot be started so, or an argument does not fit; it is named.
    """
    takes = inspect.signature(type(pipe).__call__).parameters
    counts = {
        "num_inference_steps": num_inference_steps,
        "num_images_per_prompt": call.get("num_images_per_prompt", 1),
    }
    if coarse_num_inference_steps is not None:
        counts["coarse_num_inference_steps"] = coarse_num_inference_steps
    scheduler = _check(pipe, scheduler, takes, call, counts)
    if [image is not None, prior_latents is not None, coarse_num_inference_steps is not None].count(True) != 1:
        raise ValueError(
            "Pass one of `image`, `prior_latents` and `coarse_num_inference_steps`: what the start is coarse of."
        )
    if not isinstance(upsample, str) or upsample not in ("pixels", "latents"):
        raise ValueError(f"`upsample` must be 'pixels' or 'latents', got {upsample!r}.")
    noise_ratio, factor = scheduler.config.noise_ratio, scheduler.config.factor
    if "use_resolution_binning" in takes:  # SANA would go to another size than the source has
        call.setdefault("use_resolution_binning", False)
    height, width = _size(pipe, takes, prior_latents, factor, height, width)
    latent_height, latent_width = latent_size(pipe, height, width)
    for name, value in (("height", latent_height), ("width", latent_width)):
        if value % factor:
            raise ValueError(f"`{name}` must give latents that `factor` {factor} divides, got latents of {value}.")

    with torch.no_grad():
        if coarse_num_inference_steps is not None:
            options = {"num_inference_steps": coarse_num_inference_steps, "generator": generator}
            low = _run_coarse(pipe, scheduler, upsample, height, width, call | options)
        elif image is not None:
            channels = pipe.transformer.config.in_channels if pipe.vae is None else pipe.vae.config.in_channels
            pixels = prepare_images(image, height, width, channels, resize_mode).to(pipe._execution_device)
            latents = encode_images(pipe.vae, pixels) if pipe.vae is not None else pixels
            low = scheduler.projection.downsample(latents.float())
        else:
            low = prior_latents
        device = pipe._execution_device
        low = _expand(low.to(device, torch.float32), pipe, call, generator)
        noise = randn_tensor(
            (*low.shape[:2], latent_height, latent_width), generator=generator, device=device, dtype=low.dtype
        )
        source = pack_latents(pipe, scheduler.make_source(low, noise))

    started = copy.copy(pipe)  # shares the components; its own scheduler
    cast_given_latents(started)
    levels = np.linspace(noise_ratio, noise_ratio / num_inference_steps, num_inference_steps).tolist()
    started.scheduler = _checked(plain_scheduler(pipe.scheduler), source, levels)
    return started(
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        sigmas=levels,
        latents=source,
        generator=generator,
        **call,
    )


def _check(pipe, scheduler, takes, call, counts) -> LowFreqFlowMatchScheduler:
    """Return the scheduler that makes the source, or say why this pipeline cannot be started from it."""
    if not isinstance(pipe, DiffusionPipeline):
        raise ValueError(f"`pipe` must be a pipeline of diffusers, got {type(pipe).__name__}.")
    name = type(pipe).__name__
    if "image" in takes:
        raise ValueError(f"`pipe` must make images from prompts or labels alone, a {name} takes an `image` itself.")
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    for argument in ("latents", "sigmas"):
        if argument not in takes:
            raise ValueError(f"`pipe` must take `{argument}` in its call to be started elsewhere, a {name} does not.")
    trained_for = adapter_source(pipe)
    if scheduler is None and trained_for is None:
        raise ValueError("`scheduler` must be given: a LowFreqFlowMatchScheduler says what the source is.")
    scheduler = trained_for if scheduler is None else scheduler
    if not isinstance(scheduler, LowFreqFlowMatchScheduler):
        raise ValueError(f"`scheduler` must be a LowFreqFlowMatchScheduler, got {type(scheduler).__name__}.")
    for setting in SOURCE if trained_for is not None else ():
        if scheduler.config[setting] != trained_for.config[setting]:
            raise ValueError(
                f"`scheduler` must have the {setting} of the LoRA in use, {trained_for.config[setting]!r}, got "
                f"{scheduler.config[setting]!r}."
            )
    if not scheduler.config.noise_ratio > 0:
        raise ValueError(
            "`scheduler` must have a `noise_ratio` above 0: a stock model has no state without noise but data."
        )
    for argument in RESERVED:
        if call.get(argument) is not None:
            raise ValueError(f"`{argument}` must not be given: the start from a coarse latent sets it.")
    unknown = [argument for argument in call if argument not in takes and not takes_all]
    if unknown:
        raise ValueError(f"`{unknown[0]}` is not an argument of the call of a {name}.")
    for argument, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
            raise ValueError(f"`{argument}` must be a positive integer, got {value!r}; the most is {MAX_COUNT}.")
    stock, config = pipe.scheduler, pipe.scheduler.config
    kind = type(stock).__name__
    redraws = redraws_noise(stock)
    if redraws or not is_flow_sampler(stock):
        raise ValueError(
            f"`pipe` must be a flow pipeline with a deterministic sampler, its scheduler is a {kind}"
            + (", which draws new noise." if redraws else ", of another kind of model.")
        )
    if isinstance(stock, LowFreqFlowMatchScheduler) and config.noise_ratio != 1:
        raise ValueError(
            f"`pipe` must start from Gaussian noise, this one is low-frequency (noise ratio {config.noise_ratio}): pass "
            "`prior_latents` to its own call."
        )
    return scheduler


def plain_scheduler(stock):
    """A scheduler over the very levels that are given: Euler, without the shift of the stock one."""
    cls = (
        LowFreqFlowMatchScheduler if isinstance(stock, LowFreqFlowMatchScheduler) else FlowMatchEulerDiscreteScheduler
    )
    known = inspect.signature(cls.__init__).parameters
    kept = {k: v for k, v in stock.config.items() if k in known}
    return cls(**kept | {k: v for k, v in PLAIN.items() if k in known})


def _checked(scheduler, source: torch.Tensor, levels: list[float]):
    """Have `scheduler` refuse to start from anything but `source`, or to go over other levels than `levels`."""
    step, count = scheduler.step, itertools.count()

    @functools.wraps(step)
    def checked_step(model_output, timestep, sample, *args, **kwargs):
        i = next(count)
        going = (float(scheduler.sigmas[i]), float(timestep) / scheduler.config.num_train_timesteps)
        if i >= len(levels) or max(abs(level - levels[i]) for level in going) > 1e-4:
            raise ValueError(
                f"`pipe` must start at the level {levels[0]} and go over those that its call is given; in step {i + 1} it went to "
                f"{going[0]:.4g} and told its model {going[1]:.4g}."
            )
        expected = source.to(sample.device, sample.dtype) if i == 0 else sample
        if sample.shape != expected.shape or not torch.equal(sample, expected):
            raise ValueError("`pipe` must start from the `latents` that its call is given, this one starts elsewhere.")
        return step(model_output, timestep, sample, *args, **kwargs)

    scheduler.step = checked_step
    return scheduler


def _size(pipe, takes, prior_latents, factor, height, width) -> tuple[int, int]:
    """The size in pixels: as given, of the coarse latents, or the pipeline's own."""
    if isinstance(prior_latents, torch.Tensor) and prior_latents.ndim == 4:
        sides = [side * factor * pipe.vae_scale_factor for side in prior_latents.shape[-2:]]
    else:
        sides = [takes[name].default for name in ("height", "width")]
        size = getattr(pipe, "default_sample_size", None) or pipe.transformer.config.get("sample_size")
        if None in sides and size is not None:
            sides = [s * pipe.vae_scale_factor for s in ((size, size) if isinstance(size, int) else size)]
    height, width = (own if given is None else given for given, own in zip((height, width), sides))
    if prior_latents is not None:
        shape = tuple(prior_latents.shape) if isinstance(prior_latents, torch.Tensor) else type(prior_latents).__name__
        is_tensor = isinstance(prior_latents, torch.Tensor) and prior_latents.is_floating_point()
        channels = pipe.transformer.config.in_channels if pipe.vae is None else pipe.vae.config.latent_channels
        if is_tensor and not prior_latents.float().isfinite().all():
            raise ValueError("`prior_latents` must be finite, some are not.")
        if not is_tensor or prior_latents.ndim != 4 or [channels, height, width] != [prior_latents.shape[1], *sides]:
            raise ValueError(
                f"`prior_latents` must be a floating point tensor of shape (batch, {channels}, height, width), of `height` and "
                f"`width` over {factor * pipe.vae_scale_factor}, got {shape} for {height}x{width}."
            )
    return height, width


def _run_coarse(pipe, scheduler, upsample: str, height: int, width: int, call: dict) -> torch.Tensor:
    """Have the pipeline make coarse latents in its ordinary way, at `1 / factor` of the size."""
    factor = scheduler.config.factor
    small_height, small_width = height // factor, width // factor
    latent_size(pipe, small_height, small_width)
    dropped = ("output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
    call = {k: v for k, v in call.items() if k not in dropped}
    with adapters_left_out(pipe):  # what was trained on blurred images and low levels
        latents = pipe(height=small_height, width=small_width, output_type="latent", return_dict=False, **call)[0]
    latents = unpack_latents(pipe, latents, small_height, small_width)
    if upsample == "latents":
        return latents
    pixels = decode_latents(pipe.vae, latents).float() if pipe.vae is not None else latents.float()
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    if pipe.vae is not None:
        pixels = encode_images(pipe.vae, pixels).float()
    return scheduler.projection.downsample(pixels)


def _expand(low: torch.Tensor, pipe, call: dict, generator) -> torch.Tensor:
    """Give every image its coarse latent: one for all, one a prompt, or one each."""
    prompts = call.get("prompt", call.get("prompt_embeds", call.get("class_labels")))
    if prompts is None:
        prompts = call.get("prompt_embeds")
    is_one = isinstance(prompts, str) or not hasattr(prompts, "__len__") or getattr(prompts, "ndim", 1) == 0
    count = None if prompts is None else 1 if is_one else len(prompts)
    per_prompt = call.get("num_images_per_prompt", 1)
    if count is None:  # neither prompts nor labels: so many images as were asked for, or as there are coarse latents
        count, per_prompt = (len(low), 1) if per_prompt == 1 else (1, per_prompt)
    total = count * per_prompt
    if len(low) == total:
        pass
    elif len(low) == count:
        low = low.repeat_interleave(per_prompt, 0)
    elif len(low) == 1:
        low = low.expand(total, -1, -1, -1)
    else:
        raise ValueError(
            f"`image` or `prior_latents` must be one for all, one a prompt ({count}) or one an image ({total}), got {len(low)}."
        )
    generators = generator if isinstance(generator, list) else [generator] * total
    is_generator = generator is None or all(isinstance(g, torch.Generator) for g in generators)
    if not is_generator or len(generators) != total:
        raise ValueError(
            f"`generator` must be one `torch.Generator` or a list of {total}, one an image, got {generator!r}."
        )
    return low
