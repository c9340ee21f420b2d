# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""
Four ways in which a network gives the velocity at a state, with one contract: `v = velocity(x, scheduler, i)`.

A sampler asks for the velocity of step `i` and takes the step. [`make_velocity`] chooses, once per call, how the velocity is
made: plain, guided, mean, or by a guider of diffusers.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from diffusers.guiders import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .inputs import check_folded_guidance


Condition = dict[str, torch.Tensor]  # inputs of a network other than the state and its time, with a row for each image


@dataclass
class Network:
    """
    A network that counts its forward passes, and gets the noise ratio as an input if it takes one.

    Args:
        model (`ModelMixin`):
            The flow or the prior model.
        stage (`str`, defaults to `"flow"`):
            `"flow"` or `"prior"`.
        calls (`Counter`, *optional*):
            The number of forward passes per image, by stage. A guided call counts as two.
        noise_ratio (`float`, *optional*):
            The noise ratio of the source, an input of networks that were trained over a range of it.
    """

    model: ModelMixin
    stage: str = "flow"
    calls: Counter = field(default_factory=Counter)
    noise_ratio: float | None = None

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: Condition, passes: int = 1) -> torch.Tensor:
        self.calls[self.stage] += passes
        if self.noise_ratio is not None and getattr(self.model.config, "use_noise_ratio", False):
            condition = condition | {"noise_ratio": torch.full((len(x),), self.noise_ratio, device=x.device)}
        return self.model(x, t.expand(len(x)), return_dict=False, **condition)[0]


@dataclass
class PlainVelocity:
    """The prediction of the network."""

    network: Network
    condition: Condition

    def __call__(self, x: torch.Tensor, scheduler: SchedulerMixin, i: int) -> torch.Tensor:
        return self.network(x, scheduler.timesteps[i], self.condition)


@dataclass
class GuidedVelocity:
    """
    Classifier-free guidance (arXiv 2207.12598): `unconditional + scale * (conditional - unconditional)`.

    Args:
        network (`Network`):
            The network. Both conditions go through it as one batch.
        condition (`Condition`), unconditional (`Condition`):
            The conditional and the unconditional input. Inputs missing from `unconditional` are the same in both.
        scale (`Callable[[], float]`):
            Returns the guidance scale. It is called in every step, since a callback may change the scale. A scale of 1 takes
            one pass instead of two.
        interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
            The flow is guided at levels sigma from the first to the second, both included (arXiv 2404.07724); elsewhere the
            scale is 1.
    """

    network: Network
    condition: Condition
    unconditional: Condition
    scale: Callable[[], float]
    interval: tuple[float, float] = (0.0, 1.0)

    def __call__(self, x: torch.Tensor, scheduler: SchedulerMixin, i: int) -> torch.Tensor:
        t, scale = scheduler.timesteps[i], self._scale_at(scheduler, i)
        if scale == 1.0:
            return self.network(x, t, self.condition)
        conditional, unconditional = self.network(torch.cat([x, x]), t, self._both, passes=2).chunk(2)
        return torch.add(unconditional, conditional - unconditional, alpha=scale)

    @cached_property
    def _both(self) -> Condition:
        return {k: torch.cat([v, self.unconditional.get(k, v)]) for k, v in self.condition.items()}

    def _scale_at(self, scheduler: SchedulerMixin, i: int) -> float:
        if tuple(self.interval) == (0.0, 1.0):
            return self.scale()  # reading the level would wait for an accelerator
        lowest, highest = torch.tensor(self.interval).tolist()  # rounded to float32, as the levels are
        return self.scale() if lowest <= float(scheduler.sigmas[i]) <= highest else 1.0


@dataclass
class MeanVelocity:
    """
    The mean velocity of a one-step model over a step from `t` down to `r`: `u(x, r, t)` (arXiv 2505.13447).

    Guidance is folded in. The scale is fixed, unless the network was trained over a range of scales; then it is an input.

    Args:
        network (`Network`), condition (`Condition`), scale (`Callable[[], float]`):
            As for [`GuidedVelocity`].
        is_guided (`bool`, defaults to `False`):
            Whether there is a condition to guide towards. If so, the scale is checked in every step.
    """

    network: Network
    condition: Condition
    scale: Callable[[], float]
    is_guided: bool = False

    def __call__(self, x: torch.Tensor, scheduler: SchedulerMixin, i: int) -> torch.Tensor:
        t, scale, model = scheduler.timesteps[i], self.scale(), self.network.model
        if self.is_guided:
            name = "guidance_scale" if self.network.stage == "flow" else "prior_guidance_scale"
            check_folded_guidance(name, scale, model)  # a callback may have changed it
        r = scheduler.sigmas[i + 1].to(t) * scheduler.config.num_train_timesteps
        inputs = {"timestep_r": r.expand(len(x)), **self.condition}
        if model.config.guidance_scale_range is not None:
            inputs["guidance"] = torch.full((len(x),), scale, device=x.device)
        return self.network(x, t, inputs)


@dataclass
class GuiderVelocity:
    """Guidance by a guider of diffusers, which chooses the inputs and combines the predictions."""

    network: Network
    condition: Condition
    unconditional: Condition
    guider: BaseGuidance

    def __call__(self, x: torch.Tensor, scheduler: SchedulerMixin, i: int) -> torch.Tensor:
        t, guider, model = scheduler.timesteps[i], self.guider, self.network.model
        guider.set_state(step=i, num_inference_steps=len(scheduler.timesteps), timestep=t)
        inputs = {k: (v, self.unconditional[k]) if k in self.unconditional else v for k, v in self.condition.items()}
        batches = guider.prepare_inputs(inputs)  # a tuple is a conditional and an unconditional input
        for batch in batches:
            guider.prepare_models(model)
            batch.noise_pred = self.network(x, t, {k: getattr(batch, k) for k in inputs})
            guider.cleanup_models(model)
        return guider(batches)[0]


Velocity = PlainVelocity | GuidedVelocity | MeanVelocity | GuiderVelocity


def make_velocity(
    network: Network,
    condition: Condition,
    unconditional: Condition | None = None,
    scale: Callable[[], float] = lambda: 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    guider: BaseGuidance | None = None,
) -> Velocity:
    """
    Choose how the velocity of a network is made.

    Args:
        network (`Network`):
            The network.
        condition (`Condition`), unconditional (`Condition`, *optional*):
            The conditional and the unconditional input. Without the unconditional input there is no guidance.
        scale (`Callable[[], float]`), interval (`tuple[float, float]`):
            As for [`GuidedVelocity`].
        guider (`BaseGuidance`, *optional*):
            A guider of diffusers that replaces `scale` and `interval`.
    """
    if getattr(network.model.config, "use_meanflow", False):
        return MeanVelocity(network, condition, scale, is_guided=unconditional is not None)
    if unconditional is None:
        return PlainVelocity(network, condition)
    if guider is not None:
        return GuiderVelocity(network, condition, unconditional, guider)
    return GuidedVelocity(network, condition, unconditional, scale, interval)
