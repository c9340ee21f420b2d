# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""One-step training: the mean velocity between two times, from pairs or from a teacher."""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.utils.torch_utils import randn_tensor

from ..guards.values import check_choice, check_number, check_rising_pair
from .flow_matching import TIME_SAMPLINGS, interpolate, per_sample, sample_times


DERIVATIVES = ("forward", "central")


def sample_time_pairs(
    batch_size: int,
    time_sampling: str = "uniform",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    equal_share: float = 0.5,
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw pairs of times `r <= t` in (0, 1), float32: the smaller and the larger of two draws (MeanFlow, section 4.3).

    Args:
        batch_size (`int`):
            The number of pairs.
        time_sampling (`str`, defaults to `"uniform"`), logit_mean (`float`, defaults to `0.0`), logit_std (`float`, defaults to `1.0`):
            See [`sample_times`]. (A log-normal noise level `t / (1 - t)` is a logit-normal time.)
        equal_share (`float`, defaults to `0.5`):
            The probability of `r = t`, drawn for each sample.
        generator (`torch.Generator` or a list of one per sample, *optional*), device (`torch.device`, *optional*):
            Where the normal numbers come from.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(batch_size,)`: `r` and `t`.
    """
    times = [sample_times(batch_size, time_sampling, logit_mean, logit_std, generator, device) for _ in range(2)]
    t, r = torch.maximum(*times), torch.minimum(*times)
    normal = randn_tensor((batch_size,), generator=generator, device=device, dtype=torch.float32)
    return torch.where(torch.special.ndtr(normal) < equal_share, t, r), t


def check_derivative(model: nn.Module, derivative: str):
    """
    Refuse a derivative that cannot work for `model`, before training starts.

    Raises:
        ValueError: If `derivative` is unknown. If it is `"forward"`, and FSDP shards the parameters or the attention backend
            has no forward-mode derivative. If the parameters are not float32 or are not gathered in float32: in lower
            precision a difference is noise.
    """
    check_choice("derivative", derivative, DERIVATIVES)
    if any(parameter.dtype != torch.float32 for parameter in model.parameters() if parameter.is_floating_point()):
        dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
        raise ValueError(
            f"`model` must have parameters in float32 for the derivative along the path, got {dtypes}; use mixed precision "
            "instead."
        )
    sharded = [
        m
        for m in model.modules()
        if {"FSDPModule", "FullyShardedDataParallel"} & {c.__name__ for c in type(m).__mro__}
    ]
    for module in sharded:
        # FSDP2 keeps its policy in a state, FSDP1 in an attribute. Autocast cannot undo a gather in half precision.
        state = module._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None
        policy = getattr(state, "_mp_policy", None) or getattr(module, "mixed_precision", None)
        if getattr(policy, "param_dtype", None) not in (None, torch.float32):
            raise ValueError(
                f"`model` must be sharded in float32 for the derivative, got a policy of {policy.param_dtype}."
            )
    if derivative == "central":
        return
    if sharded:
        raise ValueError("`derivative` must be 'central' under FSDP: forward mode cannot gather sharded parameters.")
    processors = [module.processor for module in model.modules() if hasattr(module, "processor")]
    for processor in processors:
        # None stands for the global backend, which the environment may set
        backend = getattr(processor, "_attention_backend", None) or _AttentionBackendRegistry.get_active_backend()[0]
        if backend not in (AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH):
            raise ValueError(
                "`derivative` must be 'central' with the attention backend "
                f"{getattr(backend, 'value', backend)!r}: it has no forward-mode derivative. 'native' and '_native_math' do."
            )


@contextmanager
def _full_precision(model: nn.Module, device: torch.device):
    """Yield the bare network with autocast off, including the autocast that accelerate wraps around a model's forward."""
    inner = model
    while isinstance(inner, nn.Module) and (
        "_orig_mod" in inner._modules or isinstance(inner, nn.parallel.DistributedDataParallel)
    ):
        inner = inner._modules.get("_orig_mod") or inner.module
    # accelerate marks a wrapped forward with `_original_forward`
    attributes = vars(inner) if isinstance(inner, nn.Module) else {}
    wrapped = attributes.pop("forward", None) if "_original_forward" in attributes else None
    try:
        with torch.autocast(device.type, enabled=False):
            yield inner
    finally:
        if wrapped is not None:
            inner.forward = wrapped


@torch.no_grad()
def time_derivative(
    model: Callable,
    x_t: torch.Tensor,
    r: torch.Tensor,
    t: torch.Tensor,
    tangent: torch.Tensor,
    derivative: str = "forward",
    step: float = 0.005,
    **condition,
) -> torch.Tensor:
    """
    Differentiate the mean velocity along the path: `du/dt = tangent · ∂u/∂x + ∂u/∂t` at fixed `r` (MeanFlow, eq. 8).

    The tangents of (x, r, t) are (tangent, 0, 1). The derivative is in float32 whatever the autocast, and has no gradient.
    Gradient checkpointing does not apply.

    Args:
        model (`Callable`):
            The network, or its DDP, FSDP or compiled wrapper, called as `model(x_t, timestep, timestep_r=..., **condition).sample`
            with times from 0 to 1000.
        x_t (`torch.Tensor` of shape `(batch, channels, height, width)`):
            The states at `t`.
        r (`torch.Tensor` of shape `(batch,)`), t (`torch.Tensor` of shape `(batch,)`):
            The times, in [0, 1].
        tangent (`torch.Tensor` of the shape of `x_t`):
            dx/dt.
        derivative (`str`, defaults to `"forward"`):
            `"forward"` differentiates the bare network in forward mode (`torch.func.jvp`), with an attention that supports
            it. It is exact, and does not work under FSDP. `"central"` takes the difference between one `step` ahead and one
            behind: two ordinary calls in one batch, under DDP and FSDP alike, with an error of order `step²`.
        step (`float`, defaults to `0.005`):
            Step of the central difference, in units of `t`.
        condition:
            Further inputs of the model.

    Returns:
        `torch.Tensor` of the shape of `x_t`, float32.

    Raises:
        ValueError: If an `r` is above its `t`, `derivative` is unknown or `step` is not positive.
    """
    check_choice("derivative", derivative, DERIVATIVES)
    check_number("step", step, 0, open="(")
    if (r > t).any():
        raise ValueError(f"`r` must be at most `t`, got {r[r > t][0].item():g} and {t[r > t][0].item():g}.")

    x_t, tangent = x_t.float(), tangent.float()
    with _full_precision(model, x_t.device) as network:

        def u(x, t, r, condition):
            return network(x, t * 1000, timestep_r=r * 1000, **condition).sample.float()

        if derivative == "forward":
            with sdpa_kernel(SDPBackend.MATH):
                primals, tangents = (x_t, t), (tangent, torch.ones_like(t))
                return torch.func.jvp(lambda x, t: u(x, t, r, condition), primals, tangents)[1]
        x = torch.cat([x_t + step * tangent, x_t - step * tangent])
        doubled = {k: torch.cat([v, v]) if isinstance(v, torch.Tensor) else v for k, v in condition.items()}
        ahead, behind = u(x, torch.cat([t + step, t - step]), torch.cat([r, r]), doubled).chunk(2)
        return (ahead - behind) / (2 * step)


def _rows(condition: dict, rows) -> dict:
    """Select some samples of the tensors in a condition."""
    return {k: x[rows] if isinstance(x, torch.Tensor) else x for k, x in condition.items()}


@dataclass
class MeanFlow:
    r"""
    Learn the mean velocity `u(x_t, r, t)` between two times, which covers the interval in one step (arXiv 2505.13447).

    The loss is the error of the MeanFlow identity (eq. 6 and 9 there), `|u - sg(v - (t - r) du/dt)|²` with
    `x_t = (1 - t) x + t source` and `v = source - x`; at `r = t` it is flow matching. The derivative runs along the
    `tangent`: the pair's own `v`, as in MeanFlow, or the network's `u(x_t, t, t)`, which is free of the noise of the pair
    (improved MeanFlow, arXiv 2512.02012).

    Guidance is folded into the field with the network's own velocities, so that sampling needs one call:
    `v + (1 - 1 / w) (u(x_t, t, t | c) - u(x_t, t, t))`, MeanFlow's mixture of both velocities with `omega = 1` and
    `kappa = 1 - 1 / w`. At its fixed point this is the guided velocity `v(x_t) + w (v(x_t | c) - v(x_t))`. The scale `w` is
    fixed, or drawn for each sample and given to the network.

    Call it as `objective(model, source, sample, *, generator, **condition)`; the `model` has `use_meanflow`. Beside the call
    that is trained, it calls the network for the derivative, on samples with `r < t` (once in forward mode, on twice the rows
    for the central difference); for the network's tangent, once on samples with `r < t`; and for guidance, twice on all.

    Args:
        time_sampling (`str`, defaults to `"uniform"`), logit_mean (`float`, defaults to `0.0`), logit_std (`float`, defaults to `1.0`), equal_share (`float`, defaults to `0.5`):
            See [`sample_time_pairs`].
        tangent (`str`, defaults to `"pair"`):
            `"pair"` or `"network"`.
        guidance_scale (`float`, *optional*), guidance_scale_range (`tuple[float, float]`, *optional*):
            The scale `w` to fold in, or the range to draw it from, with density proportional to `1 / w²`. With a range,
            `guidance_scale` is the default of the model. Without either there is no guidance.
        guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
            The times between which the field is guided (arXiv 2404.07724).
        adaptive_power (`float`, defaults to `1.0`), adaptive_epsilon (`float`, defaults to `0.001`):
            The gradient of each sample is that of its squared error, divided by `(error + adaptive_epsilon)` to this power.
        derivative (`str`, defaults to `"forward"`), derivative_step (`float`, defaults to `0.005`):
            See [`time_derivative`].
        unconditional (`dict[str, torch.Tensor]`, *optional*):
            The inputs of the unconditional call of guidance, one row each: for a text model, the embedding of the empty
            string. By default that call gets no `class_labels`.

    Raises:
        ValueError: If a setting is not allowed.
    """

    time_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    equal_share: float = 0.5
    tangent: str = "pair"
    guidance_scale: float | None = None
    guidance_scale_range: tuple[float, float] | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    adaptive_power: float = 1.0
    adaptive_epsilon: float = 1e-3
    derivative: str = "forward"
    derivative_step: float = 0.005
    unconditional: dict[str, torch.Tensor] | None = field(default=None, repr=False)

    def __post_init__(self):
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        check_number("equal_share", self.equal_share, 0, 1)
        check_choice("tangent", self.tangent, ("pair", "network"))
        check_choice("derivative", self.derivative, DERIVATIVES)
        check_number("derivative_step", self.derivative_step, 0, open="(")
        check_number("adaptive_power", self.adaptive_power, 0)
        check_number("adaptive_epsilon", self.adaptive_epsilon, 0, open="(")
        if self.guidance_scale_range is not None:
            check_rising_pair("guidance_scale_range", self.guidance_scale_range, 1, math.inf)
        if self.guidance_scale is not None:
            if self.guidance_scale_range is None:
                check_number("guidance_scale", self.guidance_scale, 0, open="(")
            else:
                check_number("guidance_scale", self.guidance_scale, *self.guidance_scale_range)
        check_rising_pair("guidance_interval", self.guidance_interval, strictly=False)
        if not self._is_guided and tuple(self.guidance_interval) != (0.0, 1.0):
            raise ValueError(f"`guidance_interval` must be left out without guidance, got {self.guidance_interval!r}.")

    @property
    def _is_guided(self) -> bool:
        return self.guidance_scale is not None or self.guidance_scale_range is not None

    def __call__(
        self,
        model: Callable,
        source: torch.Tensor,
        sample: torch.Tensor,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **condition,
    ) -> torch.Tensor:
        """
        Draw a pair of times for each sample and compute the squared error of the MeanFlow identity.

        Args:
            model (`Callable`):
                Called as `model(x_t, timestep, timestep_r=..., **condition).sample`, with float32 times from 0 to 1000.
            source (`torch.Tensor` of shape `(batch, channels, height, width)`):
                The state at t = 1.
            sample (`torch.Tensor` of the shape of `source`):
                Data, the state at t = 0.
            generator (`torch.Generator` or a list of one per sample, *optional*):
                Draws the times and the guidance scales.
            condition:
                Further inputs of the model, such as `class_labels`.

        Returns:
            `torch.Tensor` of shape `(batch,)`, float32: Squared error, averaged over the elements of each sample. The
            adaptive weight changes the gradient and not the value.

        Raises:
            ValueError: If there is guidance, but neither `class_labels` nor `unconditional`.
        """
        r, t = sample_time_pairs(
            len(sample),
            self.time_sampling,
            self.logit_mean,
            self.logit_std,
            self.equal_share,
            generator,
            sample.device,
        )
        x_t = interpolate(source, sample, t)
        scale = self._draw_guidance(t, generator, condition)
        if self.guidance_scale_range is not None:
            condition = condition | {"guidance": scale}
        averaged = r < t  # samples with an interval to average over; the others are flow matching
        averaged[0] |= ~averaged.any()  # at least one row, if of length 0: the ranks of FSDP must make the same calls
        with torch.no_grad():
            target, tangent = self._field(model, x_t, t, averaged, (source - sample).float(), scale, condition)
            du_dt = time_derivative(
                model,
                x_t[averaged],
                r[averaged],
                t[averaged],
                tangent[averaged],
                self.derivative,
                self.derivative_step,
                **_rows(condition, averaged),
            )
            target = target.clone()
            target[averaged] -= per_sample((t - r)[averaged], sample) * du_dt
        prediction = model(x_t, t * 1000, timestep_r=r * 1000, **condition).sample
        error = (prediction.float() - target).square().flatten(1).mean(dim=1)
        weighted = error / (error.detach() + self.adaptive_epsilon) ** self.adaptive_power
        return error.detach() + (weighted - weighted.detach())

    def _draw_guidance(self, t: torch.Tensor, generator, condition: dict) -> torch.Tensor:
        """Draw the guidance scale of each sample, whatever its time; 1 without guidance."""
        if not self._is_guided:
            return torch.ones_like(t)
        if condition.get("class_labels") is None and self.unconditional is None:
            raise ValueError(
                "`guidance_scale` needs `class_labels`, or `unconditional` for text: otherwise there is nothing to guide to."
            )
        if self.guidance_scale_range is None:
            return torch.full_like(t, self.guidance_scale)
        lowest, highest = self.guidance_scale_range
        normal = randn_tensor(t.shape, generator=generator, device=t.device, dtype=torch.float32)
        return 1 / (1 / highest + (1 / lowest - 1 / highest) * torch.special.ndtr(normal))

    def _scale_at(self, t: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the scale of each sample if its time is in the guidance interval, otherwise 1."""
        lowest, highest = self.guidance_interval
        return torch.where((lowest <= t) & (t <= highest), scale, torch.ones_like(scale))

    def _unconditional_inputs(self, condition: dict, batch_size: int) -> dict:
        """Return the inputs of the unconditional call."""
        unconditional = {k: x for k, x in condition.items() if k != "class_labels"}
        return unconditional | {k: x.expand(batch_size, *x.shape[1:]) for k, x in (self.unconditional or {}).items()}

    def _field(self, model, x_t, t, averaged, v, scale, condition) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the velocity to regress, and the tangent to differentiate along, needed only on the rows `averaged`."""

        def network(condition, rows=slice(None)):
            time = t[rows] * 1000
            return model(x_t[rows], time, timestep_r=time, **_rows(condition, rows)).sample.float()

        target, conditional = v, None
        if self._is_guided:
            conditional = network(condition)
            inputs = self._unconditional_inputs(condition, len(x_t))
            if "guidance" in inputs:
                inputs["guidance"] = torch.ones_like(scale)
            w = per_sample(self._scale_at(t, scale), v)
            # Where the label is dropped, both calls have the same condition and there is nothing to guide to
            target = v + (1 - 1 / w) * (conditional - network(inputs))
        if self.tangent == "pair":
            return target, target
        if conditional is None:
            conditional = torch.zeros_like(v)
            conditional[averaged] = network(condition, averaged)
        return target, conditional


@dataclass
class Distillation(MeanFlow):
    """
    Learn the mean velocity of a frozen flow: MeanFlow with the teacher's guided velocity in place of the pair's.

    That velocity is both target and tangent, and is free of the noise of the pair. The student usually starts from the
    teacher's weights; its second time is zero-initialised, so that it equals the teacher at first.

    Args:
        teacher (`Callable`):
            A flow, called as `teacher(x_t, timestep, **condition).sample`, once, or twice with guidance. It is not trained.
        guidance_scale (`float`, *optional*), guidance_scale_range (`tuple[float, float]`, *optional*):
            The guidance of the teacher, `uncond + w (cond - uncond)`.

    The other arguments, except `tangent`, are those of [`MeanFlow`].

    Raises:
        ValueError: If a setting is not allowed, or `teacher` is missing.
    """

    teacher: Callable | None = field(default=None, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.teacher is None:
            raise ValueError("`teacher` must be given.")
        if self.tangent != "pair":
            raise ValueError(f"`tangent` must be left out: it is the teacher's velocity, got {self.tangent!r}.")

    def _field(self, model, x_t, t, averaged, v, scale, condition):
        condition = {k: x for k, x in condition.items() if k != "guidance"}
        velocity = self.teacher(x_t, t * 1000, **condition).sample.float()
        if self._is_guided:
            inputs = self._unconditional_inputs(condition, len(x_t))
            unconditional = self.teacher(x_t, t * 1000, **inputs).sample.float()
            w = per_sample(self._scale_at(t, scale), v)
            velocity = unconditional + w * (velocity - unconditional)
        return velocity, velocity
