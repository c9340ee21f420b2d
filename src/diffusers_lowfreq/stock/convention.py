# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""How somebody else's pipeline calls its network: read off its own call, not written down for each family."""

import copy
import functools
import inspect
from dataclasses import dataclass

import torch

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .latents import latent_size, pack_latents
from .start import plain_scheduler


class _Seen(Exception):
    """Ends a call of a pipeline once its network has been asked."""


@dataclass
class CallingConvention:
    """
    How a flow pipeline calls its transformer.

    A model of level `s` in (0, 1] predicts the velocity `noise - data` as `sign * transformer(x, offset + scale * s)`; stock
    models differ in the unit of time (1000, 1, or another), Lumina 2 counts from data and turns the sign.

    Args:
        sample_name (`str`), time_name (`str`):
            What the transformer calls its sample and its time.
        scale (`float`), offset (`float`):
            Its time at the level `s`.
        sign (`int`):
            Whether its output is the velocity (1) or its negative (-1).
        per_sample (`tuple[str, ...]`):
            The further inputs that have a row for each image; the others are shared by all of one size.
    """

    sample_name: str
    time_name: str
    scale: float
    offset: float
    sign: int
    per_sample: tuple[str, ...]

    def velocity(
        self, transformer: torch.nn.Module, sample: torch.Tensor, level: torch.Tensor, condition: dict
    ) -> torch.Tensor:
        """
        Predict the velocity `noise - data`.

        Args:
            transformer (`torch.nn.Module`):
                The pipeline's, bare or wrapped.
            sample (`torch.Tensor` of shape `(batch, ...)`):
                The state, packed as the pipeline has it.
            level (`torch.Tensor` of shape `(batch,)`):
                The level `s` of each sample.
            condition (`dict`):
                What [`read_condition`] gives, with `batch` rows.
        """
        inputs = {self.sample_name: sample, self.time_name: self.offset + self.scale * level}
        return self.sign * transformer(**inputs, **condition, return_dict=False)[0]


def read_condition(pipe: DiffusionPipeline, height: int, width: int, **call) -> dict:
    """
    Have a pipeline encode its prompts, and return what its transformer is told beside sample and time.

    Args:
        pipe (`DiffusionPipeline`):
            A flow pipeline; its guidance is off here.
        height (`int`), width (`int`):
            Size of the images in pixels.
        call:
            `prompt`, `class_labels` or embeddings, and other arguments of the call.

    Raises:
        ValueError: If the transformer is not called in a way that can be repeated.
    """
    condition = {}

    def watch(transformer, args, kwargs):
        _, _, inputs = _arguments(transformer, args, kwargs)
        condition.update(inputs)
        raise _Seen

    hook = pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        _call(pipe, height, width, [0.5], call)
    except _Seen:
        return condition
    finally:
        hook.remove()
    raise ValueError(f"`pipe` must call its `transformer` to be trained, a {type(pipe).__name__} does not.")


def read_convention(pipe: DiffusionPipeline, height: int, width: int, **call) -> CallingConvention:
    """
    Find out how a pipeline calls its transformer, by three steps of its own call at known levels.

    Args:
        pipe (`DiffusionPipeline`), height (`int`), width (`int`), call:
            As in [`read_condition`]; a prompt, a label or embeddings of one image.

    Raises:
        ValueError: If the call is none of a plain flow model: another number of network calls than steps, a time that is
            no straight line in the level, an output that is neither the velocity nor its negative.
    """
    levels, times, outputs, steps = [0.9, 0.5, 0.2], [], [], []
    names = {}
    name = type(pipe).__name__

    def watch(transformer, args, kwargs, output):
        sample_name, time_name, inputs = _arguments(transformer, args, kwargs)
        names.update(sample=sample_name, time=time_name)
        times.append(float(inputs.pop(time_name, None) if time_name in inputs else _time(transformer, args, kwargs)))
        outputs.append((output[0] if isinstance(output, tuple) else output.sample).detach())

    hook = pipe.transformer.register_forward_hook(watch, with_kwargs=True)
    try:
        _call(pipe, height, width, levels, call, steps)
    finally:
        hook.remove()
    if len(times) != 3 or len(steps) != 3:
        raise ValueError(
            f"`pipe` must call its `transformer` once a step without guidance, a {name} calls it {len(times)} times in 3."
        )
    scale = (times[0] - times[2]) / (levels[0] - levels[2])
    offset = times[0] - scale * levels[0]
    if abs(offset + scale * levels[1] - times[1]) > 1e-2 * abs(scale) or not scale:  # half precision rounds times
        raise ValueError(f"`pipe` must tell its `transformer` a time that is a straight line in the level, got {times}.")
    for sign in (1, -1):
        if all(o.shape == s.shape and torch.allclose(sign * o.float(), s.float(), atol=1e-4) for o, s in zip(outputs, steps)):
            break
    else:
        raise ValueError(f"`pipe` must step by what its `transformer` predicts, or its negative; a {name} does something else.")
    rows = [_rows(read_condition(pipe, height, width, **_repeat(call, count))) for count in (1, 2)]
    per_sample = tuple(k for k, v in rows[0].items() if v == 1 and rows[1][k] == 2)
    return CallingConvention(names["sample"], names["time"], scale, offset, sign, per_sample)


def _rows(condition: dict) -> dict:
    return {k: len(v) for k, v in condition.items() if isinstance(v, torch.Tensor) and v.ndim}


def _repeat(call: dict, count: int) -> dict:
    """The call for several images of what it is one of."""
    return call | {"num_images_per_prompt": count}


def _bind(transformer, args, kwargs) -> dict:
    forward = inspect.signature(inspect.unwrap(type(transformer).forward))
    return dict(forward.bind(transformer, *args, **kwargs).arguments)


def _time(transformer, args, kwargs) -> torch.Tensor:
    bound = _bind(transformer, args, kwargs)
    return bound["timestep" if "timestep" in bound else "t"].flatten()[0]


def _arguments(transformer, args, kwargs) -> tuple[str, str, dict]:
    """Return what the sample and the time are called, and the other inputs that are given."""
    bound = _bind(transformer, args, kwargs)
    sample_name = list(bound)[1]  # after `self`
    time_name = "timestep" if "timestep" in bound else "t"
    if not isinstance(bound[sample_name], torch.Tensor) or time_name not in bound:
        raise ValueError(
            f"`pipe` must give its `transformer` the samples in one tensor, with a time: a {type(transformer).__name__} has "
            "them otherwise."
        )
    inputs = {k: v for k, v in list(bound.items())[2:] if k not in (time_name, "return_dict") and v is not None}
    return sample_name, time_name, {k: v for k, v in inputs.items() if not (isinstance(v, dict) and not v)}


def _call(pipe, height, width, levels, call, steps=None):
    """Run the pipeline's own call without guidance over `levels`, from zeros; keep what its scheduler steps by."""
    takes = inspect.signature(type(pipe).__call__).parameters
    if "guidance_scale" in takes and not pipe.transformer.config.get("guidance_embeds"):
        call = {"guidance_scale": 1.0} | call
    if "use_resolution_binning" in takes:
        call = {"use_resolution_binning": False} | call
    count = call.get("num_images_per_prompt", 1)
    channels = pipe.transformer.config.in_channels if pipe.vae is None else pipe.vae.config.latent_channels
    prompts = call.get("prompt", call.get("class_labels"))
    if isinstance(prompts, (list, tuple, torch.Tensor)):
        count *= len(prompts)
    # Not zeros, where many a network has an output of zero too
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, channels, *latent_size(pipe, height, width)), generator=generator)
    latents = pack_latents(pipe, latents.expand(count, -1, -1, -1).to(pipe._execution_device).contiguous())
    watched = copy.copy(pipe)
    scheduler = plain_scheduler(pipe.scheduler)
    watched.scheduler = scheduler
    step = scheduler.step

    @functools.wraps(step)
    def watch(model_output, *args, **kwargs):
        if steps is not None:
            steps.append(model_output.detach())
        return step(model_output, *args, **kwargs)

    scheduler.step = watch
    options = {"num_inference_steps": len(levels), "sigmas": levels, "latents": latents, "output_type": "latent"}
    with torch.no_grad():
        watched(height=height, width=width, **options, **call)
