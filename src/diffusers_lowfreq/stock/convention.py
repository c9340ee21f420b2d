# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""How a stock pipeline calls its transformer: observed in a call of the pipeline, not written down for each family."""

import copy
import functools
import inspect
from dataclasses import dataclass

import torch

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..autoencoding import latent_channels
from .latents import cast_given_latents, latent_size, pack_latents
from .plain_scheduler import plain_scheduler


class _ConditionFound(Exception):
    """Ends the call of a pipeline after the first call of its transformer."""


@dataclass
class CallingConvention:
    """
    How a flow pipeline calls its transformer.

    The velocity `noise - data` at the level `s` in (0, 1] is `sign * transformer(x, offset + scale * s)`. Stock models differ
    in the unit of time (1000, 1, or another). Lumina 2 counts time from the data, and its sign is negative.

    Args:
        sample_name (`str`), time_name (`str`):
            The names of the sample and the time among the inputs of the transformer.
        scale (`float`), offset (`float`):
            The time at the level `s` is `offset + scale * s`.
        sign (`int`):
            1 if the output is the velocity, -1 if it is its negative.
        per_sample (`tuple[str, ...]`):
            The further inputs that have a row for each image. All images of one size share the others.
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
                The transformer of the pipeline, wrapped or not.
            sample (`torch.Tensor` of shape `(batch, ...)`):
                The state, packed as by the pipeline.
            level (`torch.Tensor` of shape `(batch,)`):
                The level `s` of each sample.
            condition (`dict`):
                The output of [`read_condition`], with `batch` rows.
        """
        inputs = {self.sample_name: sample, self.time_name: self.offset + self.scale * level}
        return self.sign * transformer(**inputs, **condition, return_dict=False)[0]

    def low_frequency_flow(self, transformer: torch.nn.Module, noise_ratio: float):
        """
        Turn the transformer into the flow from a low-frequency source, in the units of our objectives.

        The state of that flow at `sigma` has the noise level `s = noise_ratio * sigma`, and `dx/dsigma` is
        `noise_ratio * dx/ds`.

        Returns:
            callable: `model(x_t, timestep, **condition).sample`, with `timestep = 1000 * sigma`.
        """

        def model(x_t, timestep, **condition):
            v = self.velocity(transformer, x_t, noise_ratio * timestep / 1000, condition)
            return Transformer2DModelOutput(sample=noise_ratio * v)

        return model


def read_condition(pipe: DiffusionPipeline, height: int, width: int, **call) -> dict:
    """
    Let a pipeline encode its prompts, and return the inputs of its transformer other than sample and time.

    Args:
        pipe (`DiffusionPipeline`):
            A flow pipeline. Its guidance is switched off.
        height (`int`), width (`int`):
            Size of the images in pixels.
        call:
            `prompt` or `class_labels`, and other arguments of the call.

    Raises:
        ValueError: If the transformer is not called in a way that can be repeated.
    """
    condition = {}

    def watch(transformer, args, kwargs):
        condition.update(_arguments(transformer, args, kwargs)[-1])
        raise _ConditionFound

    hook = pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        _call(pipe, height, width, [0.5], call)
    except _ConditionFound:
        return condition
    finally:
        hook.remove()
    raise ValueError(f"`pipe` must call its `transformer` to be trained, a {type(pipe).__name__} does not.")


def read_convention(pipe: DiffusionPipeline, height: int, width: int, **call) -> CallingConvention:
    """
    Find out how a pipeline calls its transformer, from three steps at known levels.

    Args:
        pipe (`DiffusionPipeline`), height (`int`), width (`int`), call:
            As in [`read_condition`], with the prompt or label of one image.

    Raises:
        ValueError: If it is not the call of a plain flow model: the number of network calls differs from that of the steps,
            the time is not linear in the level, the sample is not the state, other inputs change with the level, or the
            output is neither the velocity nor its negative.
    """
    levels = [1.0, 0.5, 0.25]  # exact in bfloat16
    names, times, samples, conditions, outputs, steps = [], [], [], [], [], []
    name = type(pipe).__name__

    def watch(transformer, args, kwargs, output):
        sample_name, time_name, sample, time, others = _arguments(transformer, args, kwargs)
        names.append((sample_name, time_name))
        times.append(float(time.flatten()[0]))
        samples.append(sample.detach())
        conditions.append(others)
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
    slope = (times[0] - times[2]) / (levels[0] - levels[2])
    scale = float(f"{slope:.5g}")  # the pipelines count in float32
    offset = round((times[0] - scale * levels[0]) / abs(scale or 1), 4) * abs(scale)
    if abs(offset + scale * levels[1] - times[1]) > 1e-2 * abs(scale) or not scale:  # half precision rounds times
        raise ValueError(f"`pipe` must give its `transformer` a time that is linear in the level, got {times}.")
    if not any(output.any() for output in outputs):
        raise ValueError(f"`pipe` must have a trained `transformer`, that of this {name} predicts zero everywhere.")
    for sample, (_, state) in zip(samples, steps):
        if sample.shape != state.shape or not torch.equal(sample, state.to(sample.dtype)):
            raise ValueError(
                f"`pipe` must give its `transformer` the state of its scheduler, a {name} gives it another."
            )
    for key in {key for condition in conditions for key in condition}:
        values = [condition.get(key) for condition in conditions]
        is_tensor = all(isinstance(value, torch.Tensor) for value in values)
        if not all(torch.equal(v, values[0]) if is_tensor else v == values[0] for v in values):
            raise ValueError(
                f"`pipe` must give its `transformer` the same inputs at all levels, the `{key}` of a {name} changes."
            )
    for sign in (1, -1):
        if all(
            o.shape == v.shape and torch.allclose(sign * o.float(), v.float(), atol=1e-4)
            for o, (v, _) in zip(outputs, steps)
        ):
            break
    else:
        raise ValueError(
            f"`pipe` must step by what its `transformer` predicts, or its negative; a {name} does something else."
        )
    one, two = (_rows(read_condition(pipe, height, width, **call | {"num_images_per_prompt": n})) for n in (1, 2))
    per_sample = tuple(k for k, n in one.items() if n == 1 and two[k] == 2)
    return CallingConvention(*names[0], scale, offset, sign, per_sample)


def _rows(condition: dict) -> dict[str, int]:
    return {k: len(v) for k, v in condition.items() if isinstance(v, torch.Tensor) and v.ndim}


def _arguments(transformer, args, kwargs) -> tuple[str, str, torch.Tensor, torch.Tensor, dict]:
    """Return the names of the sample and the time, the sample, the time, and the other inputs."""
    forward = inspect.signature(inspect.unwrap(type(transformer).forward))
    _, (sample_name, sample), *others = forward.bind(transformer, *args, **kwargs).arguments.items()
    inputs = {k: v for k, v in others if k != "return_dict" and v is not None and not (isinstance(v, dict) and not v)}
    time_name = "timestep" if "timestep" in inputs else "t"
    if not isinstance(sample, torch.Tensor) or time_name not in inputs:
        raise ValueError(
            f"`pipe` must give its `transformer` the samples in one tensor, with a time: a {type(transformer).__name__} takes "
            "them in another way."
        )
    return sample_name, time_name, sample, inputs.pop(time_name), inputs


def _call(pipe, height, width, levels, call, steps=None):
    """Call the pipeline over `levels`, without guidance; append the velocity and the state of each step to `steps`."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    if "guidance_scale" in parameters and not pipe.transformer.config.get("guidance_embeds"):
        call = {"guidance_scale": 1.0} | call
    if "use_resolution_binning" in parameters:
        call = {"use_resolution_binning": False} | call
    count = call.get("num_images_per_prompt", 1)
    channels = latent_channels(pipe.vae, pipe.transformer)
    prompts = call.get("prompt", call.get("class_labels"))
    if isinstance(prompts, (list, tuple, torch.Tensor)):
        count *= len(prompts)
    # Not zeros, for which many networks predict zero
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, channels, *latent_size(pipe, height, width)), generator=generator)
    latents = pack_latents(pipe, latents.expand(count, -1, -1, -1).to(pipe._execution_device).contiguous())
    watched = copy.copy(pipe)
    cast_given_latents(watched)
    scheduler = plain_scheduler(pipe.scheduler)
    watched.scheduler = scheduler
    step = scheduler.step

    @functools.wraps(step)
    def watch(model_output, timestep, sample, *args, **kwargs):
        if steps is not None:
            steps.append((model_output.detach(), sample.detach()))
        return step(model_output, timestep, sample, *args, **kwargs)

    scheduler.step = watch
    options = {"num_inference_steps": len(levels), "sigmas": levels, "latents": latents, "output_type": "latent"}
    with torch.no_grad():
        watched(height=height, width=width, **options, **call)
