# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""One-step training: the mean velocity between two times, from pairs or from a teacher."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.utils.torch_utils import randn_tensor

from .flow_matching import sample_times


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
    Draw pairs of times `r <= t` in (0, 1), float32: the larger and the smaller of two draws (MeanFlow, section 4.3).

    Args:
        batch_size (`int`):
            How many.
        time_sampling (`str`, defaults to `"uniform"`), logit_mean (`float`, defaults to `0.0`), logit_std (`float`, defaults to `1.0`):
            See [`sample_times`]. (A log-normal noise level `t / (1 - t)` is the logit-normal time.)
        equal_share (`float`, defaults to `0.5`):
            The chance of `r = t`, each sample by itself.
        generator (`torch.Generator` or a list of one per sample, *optional*), device (`torch.device`, *optional*):
            Of the draw.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(batch_size,)`: `r` and `t`.
    """
    times = [sample_times(batch_size, time_sampling, logit_mean, logit_std, generator, device) for _ in range(2)]
    t, r = torch.maximum(*times), torch.minimum(*times)
    normal = randn_tensor((batch_size,), generator=generator, device=device, dtype=torch.float32)
    return torch.where(torch.special.ndtr(normal) < equal_share, t, r), t


def check_derivative(model: nn.Module, derivative: str):
    """
    Refuse a way of taking the derivative that cannot work for `model`, before anything is trained.

    Raises:
        ValueError: If `derivative` is unknown; if it is `"forward"` and the parameters are sharded by FSDP or the attention
            backend has no forward-mode derivative; or if the parameters are not float32, or gathered in something less, where a
            difference is noise.
    """
    if derivative not in ("forward", "central"):
        raise ValueError(f"`derivative` must be 'forward' or 'central', got {derivative!r}.")
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
        # FSDP2 keeps its policy in a state, FSDP1 in an attribute; what it gathers in half precision autocast cannot undo
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
        # None: the backend that is set for all, by the environment for example
        backend = getattr(processor, "_attention_backend", None) or _AttentionBackendRegistry.get_active_backend()[0]
        if backend not in (AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH):
            raise ValueError(
                "`derivative` must be 'central' with the attention backend "
                f"{getattr(backend, 'value', backend)!r}: it has no forward-mode derivative. 'native' and '_native_math' do."
            )


@contextmanager
def _full_precision(model: nn.Module, device: torch.device):
    """Give the bare network, out of autocast, also of the one that accelerate puts around the forward of an instance."""
    inner = model
    while isinstance(inner, nn.Module) and (
        "_orig_mod" in inner._modules or isinstance(inner, nn.parallel.DistributedDataParallel)
    ):
        inner = inner._modules.get("_orig_mod") or inner.module
    # `_original_forward` is accelerate's mark of a wrapped forward
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

    The tangents of (x, r, t) are (tangent, 0, 1). It is taken in float32 whatever the autocast, without gradients, and
    outside gradient checkpointing.

    Args:
        model (`Callable`):
            The network, or its DDP, FSDP or compiled wrapper, called as `model(x_t, timestep, timestep_r=..., **condition).sample`
            with times in 0…1000.
        x_t (`torch.Tensor` of shape `(batch, channels, height, width)`):
            The states at `t`.
        r (`torch.Tensor` of shape `(batch,)`), t (`torch.Tensor` of shape `(batch,)`):
            The times, in [0, 1].
        tangent (`torch.Tensor` of the shape of `x_t`):
            dx/dt.
        derivative (`str`, defaults to `"forward"`):
            `"forward"`: forward-mode differentiation (`torch.func.jvp`) of the bare network, with the attention that has
            one; exact, but not under FSDP. `"central"`: the difference of the states a `step` ahead and behind; two ordinary
            calls in one batch, under DDP and FSDP alike, with an error of `step²`.
        step (`float`, defaults to `0.005`):
            Of the central difference, in units of `t`.
        condition:
            Passed to the model.

    Returns:
        `torch.Tensor` of the shape of `x_t`, float32.

    Raises:
        ValueError: If an `r` is above its `t`, `derivative` is unknown or `step` is not positive.
    """
    if derivative not in ("forward", "central") or not step > 0:
        raise ValueError(
            f"`derivative` must be 'forward' or 'central' and `step` positive, got {derivative!r} and {step!r}."
        )
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
        twice = {k: torch.cat([v, v]) if isinstance(v, torch.Tensor) else v for k, v in condition.items()}
        ahead, behind = u(x, torch.cat([t + step, t - step]), torch.cat([r, r]), twice).chunk(2)
        return (ahead - behind) / (2 * step)


@dataclass
class MeanFlow:
    r"""
    Learn the mean velocity `u(x_t, r, t)` between two times, to walk a path in one stride (arXiv 2505.13447).

    The loss is the error of the MeanFlow identity (eq. 6 and 9 there), `|u - sg(v - (t - r) du/dt)|²` with
    `x_t = (1 - t) x + t source` and `v = source - x`; at `r = t` it is flow matching. The derivative runs along the
    `tangent`: the pair's own `v`, as in MeanFlow, or the network's `u(x_t, t, t)`, which has no noise of the pair in it
    (improved MeanFlow, arXiv 2512.02012).

    Guidance is folded into the field with the network's own velocities, so that sampling needs one call (MeanFlow's
    mixture of both velocities, with `omega = 1` and `kappa = 1 - 1 / w`): `v + (1 - 1 / w) (u(x_t, t, t | c) - u(x_t, t, t))`. At its fixed point that is the guided
    velocity `v(x_t) + w (v(x_t | c) - v(x_t))`. The scale is fixed, or drawn for each sample and given to the network.

    Called as `objective(model, source, sample, *, generator, **condition)`; the `model` has `use_meanflow`. Its network
    calls beside the one that is trained: those of the derivative on samples with `r < t` (forward mode, or two by central
    difference); the network's tangent, one on samples with `r < t`; guidance, two on all.

    Args:
        time_sampling (`str`, defaults to `"uniform"`), logit_mean (`float`, defaults to `0.0`), logit_std (`float`, defaults to `1.0`), equal_share (`float`, defaults to `0.5`):
            See [`sample_time_pairs`].
        tangent (`str`, defaults to `"pair"`):
            `"pair"` or `"network"`.
        guidance_scale (`float`, *optional*), guidance_scale_range (`tuple[float, float]`, *optional*):
            The scale `w` to fold in, or the range to draw it from, with density `1 / w²`, where the first is then what the
            model has for a default; none of them: no guidance.
        guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
            The times between which the field is guided (arXiv 2404.07724).
        adaptive_power (`float`, defaults to `1.0`), adaptive_epsilon (`float`, defaults to `0.001`):
            The gradient of each sample is that of its squared error, divided by `(error + adaptive_epsilon)` to this power.
        derivative (`str`, defaults to `"forward"`), derivative_step (`float`, defaults to `0.005`):
            See [`time_derivative`].
        unconditional (`dict[str, torch.Tensor]`, *optional*):
            What the network is told instead in the second call of guidance, one row each: the embedding of the empty string
            for a model of text. By default it is told no `class_labels`.

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
        bounds, interval = self.guidance_scale_range, self.guidance_interval
        is_range = bounds is not None and len(bounds) == 2 and 1 <= bounds[0] < bounds[1] < float("inf")
        lowest, highest = bounds if is_range else (0.0, float("inf"))
        scale = self.guidance_scale
        for name, allowed, is_allowed in (
            ("time_sampling", "'uniform' or 'logit_normal'", self.time_sampling in ("uniform", "logit_normal")),
            ("equal_share", "in [0, 1]", 0 <= self.equal_share <= 1),
            ("tangent", "'pair' or 'network'", self.tangent in ("pair", "network")),
            ("derivative", "'forward' or 'central'", self.derivative in ("forward", "central")),
            ("derivative_step", "positive", self.derivative_step > 0),
            ("adaptive_power", "at least 0", self.adaptive_power >= 0),
            ("adaptive_epsilon", "positive", self.adaptive_epsilon > 0),
            ("guidance_scale_range", "two rising numbers from 1 on", bounds is None or is_range),
            (
                "guidance_scale",
                "a positive number, in `guidance_scale_range` where that is given",
                scale is None or (0 < scale < float("inf") and lowest <= scale <= highest),
            ),
            (
                "guidance_interval",
                "two rising numbers in [0, 1], and left out without guidance",
                len(interval) == 2
                and 0 <= interval[0] <= interval[1] <= 1
                and (self._is_guided or tuple(interval) == (0.0, 1.0)),
            ),
        ):
            if not is_allowed:
                raise ValueError(f"`{name}` must be {allowed}, got {getattr(self, name)!r}.")

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
        Draw a pair of times per sample and return the squared error of the MeanFlow identity there.

        Args:
            model (`Callable`):
                Called as `model(x_t, timestep, timestep_r=..., **condition).sample`, times in 0…1000, float32.
            source (`torch.Tensor` of shape `(batch, channels, height, width)`):
                The state at t = 1.
            sample (`torch.Tensor` of the shape of `source`):
                Data, the state at t = 0.
            generator (`torch.Generator` or a list of one per sample, *optional*):
                For the times and the guidance scales.
            condition:
                Passed to the model, for example `class_labels`.

        Returns:
            `torch.Tensor` of shape `(batch,)`, float32: Squared error, averaged over the elements of each sample. The value
            is the error itself; the adaptive weight acts on the gradient only.

        Raises:
            ValueError: If guidance is asked for without `class_labels` or `unconditional`.
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
        t_ = t.view(-1, *[1] * (sample.ndim - 1))
        x_t = ((1 - t_) * sample + t_ * source).to(sample.dtype)
        scale = self._draw_guidance(t, generator, condition)
        if self.guidance_scale_range is not None:
            condition = condition | {"guidance": scale}
        later = r < t  # where there is a stretch to average over
        later[0] |= ~later.any()  # one row at least, of length 0: the ranks of FSDP must make the same calls
        with torch.no_grad():
            target, tangent = self._field(model, x_t, t, later, (source - sample).float(), scale, condition)
            rows = {k: v[later] if isinstance(v, torch.Tensor) else v for k, v in condition.items()}
            change = time_derivative(
                model,
                x_t[later],
                r[later],
                t[later],
                tangent[later],
                self.derivative,
                self.derivative_step,
                **rows,
            )
            target = target.clone()
            target[later] -= (t - r)[later].view(-1, *[1] * (sample.ndim - 1)) * change
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
                "`guidance_scale` needs `class_labels`, or `unconditional` for text: without there is nothing to guide to."
            )
        if self.guidance_scale_range is None:
            return torch.full_like(t, self.guidance_scale)
        lowest, highest = self.guidance_scale_range
        normal = randn_tensor(t.shape, generator=generator, device=t.device, dtype=torch.float32)
        return 1 / (1 / highest + (1 / lowest - 1 / highest) * torch.special.ndtr(normal))

    def _guided(self, t: torch.Tensor, scale: torch.Tensor, ndim: int) -> torch.Tensor:
        """The scale of each sample within the interval and 1 outside, for products with states."""
        lowest, highest = self.guidance_interval
        return torch.where((lowest <= t) & (t <= highest), scale, torch.ones_like(scale)).view(-1, *[1] * (ndim - 1))

    def _free(self, condition: dict, batch: int) -> dict:
        """The condition of the second call of guidance."""
        free = {k: x for k, x in condition.items() if k != "class_labels"}
        return free | {k: x.expand(batch, *x.shape[1:]) for k, x in (self.unconditional or {}).items()}

    def _field(self, model, x_t, t, later, v, scale, condition) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity to regress and the one to differentiate along, of which the rows `later` are used."""

        def network(condition, rows=slice(None)):
            time = t[rows] * 1000
            condition = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in condition.items()}
            return model(x_t[rows], time, timestep_r=time, **condition).sample.float()

        target, own = v, None
        if self._is_guided:
            own = network(condition)
            free = self._free(condition, len(x_t))
            if "guidance" in free:
                free["guidance"] = torch.ones_like(scale)
            w = self._guided(t, scale, v.ndim)
            # Where the label is dropped there is nothing to guide to: the two calls are of the same condition
            target = v + (1 - 1 / w) * (own - network(free))
        if self.tangent == "pair":
            return target, target
        if own is None:
            own = torch.zeros_like(v)
            own[later] = network(condition, later)
        return target, own


@dataclass
class Distillation(MeanFlow):
    """
    Learn the mean velocity of a frozen flow: MeanFlow, whose field is the teacher's guided velocity instead of the pair's.

    It is target and tangent at once, and has no noise of the pair in it. The student usually starts from the teacher's
    weights; its second time is zero-initialised, so it is the teacher at first.

    Args:
        teacher (`Callable`):
            A flow, called as `teacher(x_t, timestep, **condition).sample`; not trained. One call, or two with guidance.
        guidance_scale (`float`, *optional*), guidance_scale_range (`tuple[float, float]`, *optional*):
            Of the teacher, `uncond + w (cond - uncond)`.

    The other arguments, but for `tangent`, are those of [`MeanFlow`].

    Raises:
        ValueError: If a setting is not allowed, or `teacher` is missing.
    """

    teacher: Callable | None = field(default=None, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.teacher is None:
            raise ValueError("`teacher` must be given.")
        if self.tangent != "pair":
            raise ValueError(f"`tangent` must be left out: it is the velocity of the teacher, got {self.tangent!r}.")

    def _field(self, model, x_t, t, later, v, scale, condition):
        condition = {k: x for k, x in condition.items() if k != "guidance"}
        velocity = self.teacher(x_t, t * 1000, **condition).sample.float()
        if self._is_guided:
            free = self._free(condition, len(x_t))
            unconditional = self.teacher(x_t, t * 1000, **free).sample.float()
            velocity = unconditional + self._guided(t, scale, v.ndim) * (velocity - unconditional)
        return velocity, velocity
