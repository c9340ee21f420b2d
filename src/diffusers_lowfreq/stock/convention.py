# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""How somebody else's pipeline calls its network: read off its own call, not written down for each family."""

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

    def low_frequency_flow(self, transformer: torch.nn.Module, noise_ratio: float):
        """
        Turn the transformer into the flow from a low-frequency source, in the units of our objectives.

        At `sigma` of that flow the state holds noise of the level `s = noise_ratio * sigma`, and `dx/dsigma` is
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
    Have a pipeline encode its prompts, and return what its transformer is told beside sample and time.

    Args:
        pipe (`DiffusionPipeline`):
            A flow pipeline; its guidance is off here.
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
            As in [`read_condition`]; a prompt or a label of one image.

    Raises:
        ValueError: If the call is none of a plain flow model: another number of network calls than steps, a time that is
            no straight line in the level, a sample that is not the state, other inputs that change with the level, an output
            that is neither the velocity nor its negative.
    """
    levels, names, times, told, inputs, outputs, steps = [1.0, 0.5, 0.25], [], [], [], [], [], []  # exact in bfloat16
    name = type(pipe).__name__

    def watch(transformer, args, kwargs, output):
        sample_name, time_name, sample, time, others = _arguments(transformer, args, kwargs)
        names.append((sample_name, time_name))
        times.append(float(time.flatten()[0]))
        inputs.append(sample.detach())
        told.append(others)
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
        raise ValueError(
            f"`pipe` must tell its `transformer` a time that is a straight line in the level, got {times}."
        )
    if not any(output.any() for output in outputs):
        raise ValueError(f"`pipe` must have a trained `transformer`, that of this {name} predicts zero everywhere.")
    for sample, (_, state) in zip(inputs, steps):
        if sample.shape != state.shape or not torch.equal(sample, state.to(sample.dtype)):
            raise ValueError(
                f"`pipe` must give its `transformer` the state of its scheduler, a {name} gives it another."
            )
    for key in {key for others in told for key in others}:
        values = [others.get(key) for others in told]
        is_tensor = all(isinstance(value, torch.Tensor) for value in values)
        if not all(torch.equal(v, values[0]) if is_tensor else v == values[0] for v in values):
            raise ValueError(
                f"`pipe` must tell its `transformer` the same at all levels, the `{key}` of a {name} changes."
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
    """Return what the sample and the time are called, both, and the other inputs that are given."""
    forward = inspect.signature(inspect.unwrap(type(transformer).forward))
    _, (sample_name, sample), *others = forward.bind(transformer, *args, **kwargs).arguments.items()
    inputs = {k: v for k, v in others if k != "return_dict" and v is not None and not (isinstance(v, dict) and not v)}
    time_name = "timestep" if "timestep" in inputs else "t"
    if not isinstance(sample, torch.Tensor) or time_name not in inputs:
        raise ValueError(
            f"`pipe` must give its `transformer` the samples in one tensor, with a time: a {type(transformer).__name__} takes "
            "them otherwise."
        )
    return sample_name, time_name, sample, inputs.pop(time_name), inputs


def _call(pipe, height, width, levels, call, steps=None):
    """Run the pipeline's own call without guidance over `levels`, from zeros; keep what its scheduler steps by."""
    takes = inspect.signature(type(pipe).__call__).parameters
    if "guidance_scale" in takes and not pipe.transformer.config.get("guidance_embeds"):
        call = {"guidance_scale": 1.0} | call
    if "use_resolution_binning" in takes:
        call = {"use_resolution_binning": False} | call
    count = call.get("num_images_per_prompt", 1)
    channels = latent_channels(pipe.vae, pipe.transformer)
    prompts = call.get("prompt", call.get("class_labels"))
    if isinstance(prompts, (list, tuple, torch.Tensor)):
        count *= len(prompts)
    # Not zeros, where many a network has an output of zero too
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
