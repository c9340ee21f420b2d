# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The flow-matching scheduler whose source is a low-frequency prior with added Gaussian noise."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..guards.values import (
    MAX_COUNT,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_rising_pair,
    check_setting,
    is_number,
)
from ..guards.versions import VersionedConfigMixin
from ..projections import LowFrequencyProjection


# The settings that define it
SOURCE = ("projection", "factor", "projection_basis", "noise_ratio", "noise_ratio_range")

# Settings of other flow-matching schedulers that change the trajectory. This one lacks them, so it refuses them.
_REFUSED = ("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling")


def _shape(x) -> tuple[int, ...] | None:
    """Return the shape of a floating point tensor, and `None` for anything else."""
    return tuple(x.shape) if isinstance(x, torch.Tensor) and x.is_floating_point() else None


def _time(timestep, device) -> torch.Tensor | None:
    """Return times as a tensor, or `None` if they are not numbers."""
    try:
        return torch.as_tensor(timestep, dtype=torch.float32, device=device)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return None


def _are_decreasing(levels: np.ndarray) -> bool:
    """Whether levels are strictly decreasing and above zero in float32."""
    levels = levels.astype(np.float32)
    return bool(levels[-1] > 0 and (np.diff(levels) < 0).all())


def _read_levels(name: str, levels, top: float, number: int | None) -> np.ndarray:
    """Read levels as an array. They must be strictly decreasing in (0, top], and `number` of them if that is given."""
    given = levels
    try:
        levels = torch.as_tensor(levels, dtype=torch.float64, device="cpu").numpy()
    except (OverflowError, TypeError, ValueError, RuntimeError):
        levels = np.empty(0)
    if levels.ndim != 1 or not len(levels) or not (levels[0] <= top and _are_decreasing(levels)):
        raise ValueError(f"`{name}` must be strictly decreasing numbers in (0, {top:g}], got {given!r}.")
    if number not in (None, len(levels)):
        raise ValueError(f"`num_inference_steps` must be the length of `{name}`, {len(levels)}, got {number!r}.")
    return levels


def _read_device(device) -> torch.device | None:
    try:
        return device if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"`device` must be a device of torch, got {device!r}.") from error


def _check_mu(mu):
    if not is_number(mu) or not abs(mu) < 88:  # beyond 88 the exponential overflows float32
        raise ValueError(
            f"`mu` must be passed, a number in (-88, 88), when `use_dynamic_shifting` is True, got {mu!r}."
        )


def _check_step(model_output, timestep, sample):
    if not _shape(sample) or _shape(sample) != _shape(model_output):
        raise ValueError(
            "`model_output` and `sample` must be floating point tensors of one shape, got "
            f"{_shape(model_output)} and {_shape(sample)}."
        )
    if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
        raise ValueError(f"`timestep` must be one of `scheduler.timesteps`, not an integer index, got {timestep}.")


def _read_sigma(timestep, last: int, sample, noise) -> torch.Tensor:
    """Return the level of a time, or of one for each sample, after a check of what [`scale_noise`] takes."""
    if not _shape(sample) or _shape(sample) != _shape(noise):
        raise ValueError(
            f"`sample` and `noise` must be floating point tensors of one shape, got {_shape(sample)} and {_shape(noise)}."
        )
    time = _time(timestep, sample.device)
    # Numbers on an accelerator are not checked: reading them would wait for it
    is_known = time is not None and time.device.type == "cpu" and not torch.compiler.is_compiling()
    is_outside = is_known and not ((0 <= time) & (time <= last)).all()
    if time is None or time.shape not in ((), (1,), (len(sample),)) or is_outside:
        raise ValueError(
            f"`timestep` must be one number from 0 to {last}, or one for each of the {len(sample)} samples, got {timestep}."
        )
    return time / last


@dataclass
class LowFreqFlowMatchSchedulerOutput(BaseOutput):
    """
    Output of [`LowFreqFlowMatchScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `(batch, channels, height, width)`):
            The sample at the next, lower level of the schedule.
        pred_original_sample (`torch.Tensor` of shape `(batch, channels, height, width)`):
            A preview of the data: where the velocity points from here, `x - sigma * v`.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class LowFreqFlowMatchScheduler(VersionedConfigMixin, SchedulerMixin, ConfigMixin):
    r"""
    Flow matching from a low-frequency source (*Optimal Transport Flow Matching by Design*, arXiv 2606.04092).

    The source of a sample `x` is the coarse version of `x` itself, mixed with Gaussian noise (`T = U∘D` in the paper):

        source = (1 - noise_ratio) * T(x) + noise_ratio * noise

    The flow runs on the straight line `x_sigma = (1 - sigma) * x + sigma * source`, in the direction of diffusers:
    `sigma = 1` is the source, `sigma = 0` is data, the model predicts `v = source - x`, and `timestep = sigma * 1000`.
    The paper's `t` is `1 - sigma`. `noise_ratio = 1` is ordinary flow matching. There the steps are those of
    `FlowMatchEulerDiscreteScheduler`, on a grid that does not waste its last step: `linspace(1, 1 / N, N)`, then 0.

    Args:
        num_train_timesteps (`int`, defaults to `1000`):
            The timestep of `sigma = 1`.
        shift (`float`, defaults to `1.0`):
            Constant shift `k` of the grid, `k * sigma / (1 + (k - 1) * sigma)`.
        use_dynamic_shifting (`bool`, defaults to `False`):
            Shift the grid by `mu`, passed to [`~LowFreqFlowMatchScheduler.set_timesteps`], instead.
        base_shift (`float`, defaults to `0.5`), max_shift (`float`, defaults to `1.15`):
            `mu` at `base_image_seq_len` and at `max_image_seq_len` tokens. Pipelines interpolate between them.
        base_image_seq_len (`int`, defaults to `256`), max_image_seq_len (`int`, defaults to `4096`):
            See above.
        shift_terminal (`float`, *optional*):
            Stretch the shifted grid so that its last level before 0 is this one.
        time_shift_type (`str`, defaults to `"exponential"`):
            How `mu` shifts: `"exponential"` or `"linear"`.
        projection (`str`, defaults to `"bicubic"`), factor (`int`, defaults to `4`):
            The projection `T`, see [`LowFrequencyProjection`].
        projection_basis (`dict`, *optional*):
            What the projection `"pca"` keeps, see [`fit_projection_basis`].
        noise_ratio (`float`, defaults to `0.5`):
            The share of noise in the source, the paper's alpha, in [0, 1].
        noise_ratio_range (`list[float]`, *optional*):
            The lowest and highest noise ratio that the model was trained for. It then takes the noise ratio as an input
            (`use_noise_ratio`). Omitted, only `noise_ratio` itself is valid.
        solver_order (`int`, defaults to `1`):
            1: Euler, which is also the flow-map step of a one-step model. 2: two-step Adams-Bashforth on the uneven steps
            of the grid, still with one model call per step.

    Raises:
        ValueError: If an argument is outside its allowed values.
    """

    _compatibles = []
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
        projection: str = "bicubic",
        factor: int = 4,
        noise_ratio: float = 0.5,
        noise_ratio_range: list[float] | None = None,
        solver_order: int = 1,
        projection_basis: dict | None = None,
    ):
        for name in ("num_train_timesteps", "base_image_seq_len", "max_image_seq_len"):
            check_setting(name, self.config[name], MAX_COUNT)
        if base_image_seq_len == max_image_seq_len:
            raise ValueError(
                f"`max_image_seq_len` must differ from `base_image_seq_len`, got {max_image_seq_len} for both."
            )
        for name in ("base_shift", "max_shift"):
            check_number(name, self.config[name])
        check_flag("use_dynamic_shifting", use_dynamic_shifting)
        check_choice("time_shift_type", time_shift_type, ("exponential", "linear"))
        check_choice("solver_order", solver_order, (1, 2))
        if shift_terminal is not None:
            check_number("shift_terminal", shift_terminal, 0, 1, open="()")
        self.projection = LowFrequencyProjection(projection, factor, projection_basis)
        if noise_ratio_range is not None:
            check_rising_pair("noise_ratio_range", noise_ratio_range)
        self.check_noise_ratio(noise_ratio)
        self.set_shift(shift)
        # Before `set_timesteps` is called, this is the training schedule, as in diffusers' flow-matching schedulers
        sigmas = np.linspace(1, 1 / num_train_timesteps, num_train_timesteps)
        if not use_dynamic_shifting:
            sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        self._set_schedule(sigmas, None)
        self.num_inference_steps = None

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs=False, **kwargs):
        """
        Build a scheduler from the configuration of this class or of `FlowMatchEulerDiscreteScheduler`.

        Raises:
            ValueError: If the configuration uses a setting that this scheduler lacks.
        """
        for key in _REFUSED:
            if (config or {}).get(key) or kwargs.get(key):
                raise ValueError(f"`{key}` of the configuration must be False: {cls.__name__} does not have it.")
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls]  # every scheduler is compatible with itself; the mixin would look for its name in diffusers

    # ------------------------------------------------------------------------------------------------ the source

    @property
    def source(self) -> dict:
        """The settings that define the source a model was trained for: with `noise_ratio`, or the range if there is one."""
        unused = "noise_ratio_range" if self.config.noise_ratio_range is None else "noise_ratio"
        return {name: self.config[name] for name in SOURCE if name != unused}

    def check_noise_ratio(self, noise_ratio: float, name: str = "noise_ratio") -> float:
        """
        Return a noise ratio that the model was trained for, as a float.

        Args:
            noise_ratio (`float`):
                The noise ratio.
            name (`str`, defaults to `"noise_ratio"`):
                The argument that an error names.

        Raises:
            ValueError: If it is outside [0, 1] or `noise_ratio_range`, or differs from the fixed `noise_ratio`.
        """
        check_number(name, noise_ratio, 0, 1)
        allowed = self.config.noise_ratio_range
        if allowed is None and noise_ratio != self.config.noise_ratio:
            raise ValueError(
                f"`{name}` must be {self.config.noise_ratio}, the one that this model was trained with, got "
                f"{noise_ratio!r}. Only models trained over a `noise_ratio_range` leave the choice."
            )
        if allowed is not None and not allowed[0] <= noise_ratio <= allowed[1]:
            raise ValueError(f"`{name}` must be in the trained range {list(allowed)}, got {noise_ratio!r}.")
        return float(noise_ratio)

    def alpha(self, noise_ratio: float | None = None, name: str = "noise_ratio") -> float:
        """
        Resolve and check the noise ratio of a call, the paper's alpha.

        Args:
            noise_ratio (`float`, *optional*):
                The argument of the call; the `noise_ratio` of the configuration when omitted.
            name (`str`, defaults to `"noise_ratio"`):
                The argument that an error names.

        Raises:
            ValueError: If the model was not trained for it, see [`~LowFreqFlowMatchScheduler.check_noise_ratio`].
        """
        return self.check_noise_ratio(self.config.noise_ratio if noise_ratio is None else noise_ratio, name)

    def make_source(
        self,
        low: torch.Tensor,
        noise: torch.Tensor,
        noise_ratio: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        Make the source from a coarse latent: `(1 - noise_ratio) * U(low) + noise_ratio * noise`.

        At inference `low` comes from the prior model or from the user. In training it is `D(x)`, see
        [`~LowFreqFlowMatchScheduler.make_source_from_sample`].

        Args:
            low (`torch.Tensor` of shape `(batch, channels, height / factor, width / factor)`):
                Coarse latents at the scale of the latents.
            noise (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Standard Gaussian noise.
            noise_ratio (`float` or `torch.Tensor` of shape `(batch,)`, *optional*):
                The paper's alpha; the `noise_ratio` of the configuration when omitted. A tensor is for training over a
                range, and its numbers are not checked.

        Returns:
            `torch.Tensor` of shape `(batch, channels, height, width)`: The state at `sigma = 1`.

        Raises:
            ValueError: If the shapes do not fit or `noise_ratio` is not allowed.
        """
        upsampled = self.projection.upsample(low)
        if _shape(noise) != tuple(upsampled.shape):
            raise ValueError(
                f"`low` of shape {tuple(low.shape)} and factor {self.projection.factor} needs `noise` of shape "
                f"{tuple(upsampled.shape)}, floating point, got {_shape(noise)}."
            )
        if isinstance(noise_ratio, torch.Tensor):
            if noise_ratio.shape not in ((), (1,), (len(noise),)):
                raise ValueError(f"`noise_ratio` must have shape ({len(noise)},), got {tuple(noise_ratio.shape)}.")
            alpha = noise_ratio.float().view(-1, *[1] * (noise.ndim - 1))
        else:
            alpha = self.alpha(noise_ratio)
        return ((1 - alpha) * upsampled + alpha * noise).to(noise.dtype)

    def make_source_from_sample(
        self, sample: torch.Tensor, noise: torch.Tensor, noise_ratio: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Make the source of a sample, `(1 - noise_ratio) * T(x) + noise_ratio * noise`, as training pairs it with `x`.

        Args:
            sample (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Images or latents `x`.
            noise (`torch.Tensor` of the shape of `sample`):
                Standard Gaussian noise.
            noise_ratio (`float` or `torch.Tensor` of shape `(batch,)`, *optional*):
                As in [`~LowFreqFlowMatchScheduler.make_source`].
        """
        return self.make_source(self.projection.downsample(sample), noise, noise_ratio)

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        Mix data and source at a level: `(1 - sigma) * sample + sigma * noise`, `sigma = timestep / 1000`.

        Args:
            sample (`torch.Tensor` of shape `(batch, ...)`):
                Data, the state at `sigma = 0`.
            timestep (`float` or `torch.Tensor` of shape `(batch,)`):
                Any time between 0 and `num_train_timesteps`, on the grid or not.
            noise (`torch.Tensor` of the shape of `sample`):
                The state at `sigma = 1`. This is the source, which is pure noise only if `noise_ratio` is 1; diffusers
                calls it `noise`.

        Raises:
            ValueError: If the shapes do not fit or a time is outside its range.
        """
        sigma = _read_sigma(timestep, self.config.num_train_timesteps, sample, noise)
        sigma = sigma.view(-1, *[1] * (sample.ndim - 1))
        return ((1 - sigma) * sample + sigma * noise).to(sample.dtype)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Do what [`~LowFreqFlowMatchScheduler.scale_noise`] does, in the argument order of older schedulers."""
        return self.scale_noise(original_samples, timesteps, noise)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Return `sample` unchanged; flow matching does not scale its input."""
        return sample

    # ------------------------------------------------------------------------------------------------ the grid

    @property
    def shift(self) -> float:
        """The constant shift of the grid."""
        return self._shift

    def set_shift(self, shift: float):
        """Set the constant shift, a positive number, of all grids set after this."""
        check_number("shift", shift, 0, open="(")
        self._shift = shift

    def time_shift(self, mu: float, sigma: float, t: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
        """Shift levels `t` in (0, 1] by `mu`: `m / (m + (1 / t - 1) ** sigma)`, `m = exp(mu)` or `mu` (linear)."""
        m = math.exp(mu) if self.config.time_shift_type == "exponential" else mu
        return m / (m + (1 / t - 1) ** sigma)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ):
        """
        Set the grid of levels: by default `linspace(1, 1 / N, N)`, shifted, then 0. N steps are N model calls.

        Args:
            num_inference_steps (`int`, *optional*):
                The number of steps N.
            device (`str` or `torch.device`, *optional*):
                Where the schedule lives.
            sigmas (`list[float]`, *optional*):
                The levels before the shift, strictly decreasing in (0, 1]. The final 0 is added.
            mu (`float`, *optional*):
                The amount of dynamic shifting, required with `use_dynamic_shifting`.
            timesteps (`list[float]`, *optional*):
                The final timesteps instead of `sigmas`. They are not shifted.

        Raises:
            ValueError: If an argument is not allowed, or does not fit the others.
        """
        if sigmas is not None and timesteps is not None:
            raise ValueError("Pass `sigmas` or `timesteps`, not both.")
        is_shifted = timesteps is None
        if self.config.use_dynamic_shifting and is_shifted:
            _check_mu(mu)
        device = _read_device(device)
        if sigmas is not None:
            sigmas = _read_levels("sigmas", sigmas, 1.0, num_inference_steps)
        elif timesteps is not None:
            last = float(self.config.num_train_timesteps)
            sigmas = _read_levels("timesteps", timesteps, last, num_inference_steps) / last
        else:
            check_count("num_inference_steps", num_inference_steps)
            sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        sigmas = self._shift_levels(sigmas, mu) if is_shifted else sigmas
        self.num_inference_steps = len(sigmas)
        self._set_schedule(sigmas, device)

    def _shift_levels(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        """Shift levels as the configuration says, by `mu` if that is dynamic."""
        if self.config.use_dynamic_shifting:
            sigmas = self.time_shift(mu, 1.0, sigmas)
        else:
            sigmas = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        if self.config.shift_terminal is not None and sigmas[-1] < 1:
            sigmas = 1 - (1 - sigmas) * (1 - self.config.shift_terminal) / (1 - sigmas[-1])
        if not (sigmas[0] < 1 + 1e-6 and _are_decreasing(sigmas)):
            name, value = ("mu", mu) if self.config.use_dynamic_shifting else ("shift", self.shift)
            raise ValueError(f"`{name}` must leave levels that float32 can tell apart, got {value!r}.")
        return sigmas

    def _set_schedule(self, sigmas: np.ndarray, device):
        sigmas = torch.from_numpy(sigmas).to(dtype=torch.float32, device=device)
        self.timesteps = sigmas * self.config.num_train_timesteps
        self.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        self._step_index = None
        self._begin_index = None
        self._previous_velocity = None

    @property
    def step_index(self) -> int | None:
        """The index of the next step."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of the first step, set by [`~LowFreqFlowMatchScheduler.set_begin_index`]."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0):
        """Set the index of the first step, which saves a look-up and a synchronisation."""
        check_count("begin_index", begin_index, least=0)
        self._begin_index = begin_index

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """
        Find the index of the nearest timestep in the schedule.

        Raises:
            ValueError: If no timestep of the schedule is near `timestep`.
        """
        schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
        time = _time(timestep, schedule.device)
        distance = None if time is None or time.numel() != 1 else (schedule - time.flatten()).abs()
        if distance is None or not distance.min() <= 1e-3 * self.config.num_train_timesteps / len(schedule):
            raise ValueError(f"`timestep` must be one of the schedule's {schedule.tolist()}, got {timestep}.")
        return int(distance.argmin())

    # ------------------------------------------------------------------------------------------------ the step

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> LowFreqFlowMatchSchedulerOutput | tuple:
        """
        Step to the next level: `x + (sigma_next - sigma) * v`.

        With the mean velocity of a one-step model this is its flow map, `x_r = x_t - (t - r) * u(x_t, r, t)`
        (MeanFlow, arXiv 2505.13447, eq. 12). With `solver_order=2`, `v` is extrapolated to the middle of the step
        from this velocity and the last one.

        Args:
            model_output (`torch.Tensor` of shape `(batch, channels, height, width)`):
                The velocity `v = source - x` that the model predicts.
            timestep (`float` or `torch.Tensor`):
                One of `timesteps`.
            sample (`torch.Tensor` of shape `(batch, channels, height, width)`):
                The state at `timestep`.
            generator (`torch.Generator`, *optional*):
                Unused: the step draws nothing. Some pipelines pass it to every scheduler.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LowFreqFlowMatchSchedulerOutput`] rather than a tuple `(prev_sample,)`.

        Raises:
            ValueError: If the shapes differ, `timestep` is an index or not in the schedule, or no step is left.
        """
        _check_step(model_output, timestep, sample)
        if self._step_index is None:
            self._step_index = (
                self._begin_index if self._begin_index is not None else self.index_for_timestep(timestep)
            )
        i = self._step_index
        if i >= len(self.timesteps):
            raise ValueError(f"The schedule of {len(self.timesteps)} steps is used up; call `set_timesteps` again.")

        x, v = sample.float(), model_output.float()
        sigma, sigma_next = self.sigmas[i], self.sigmas[i + 1]
        slope = v
        if self.config.solver_order == 2:
            if self._previous_velocity is not None:
                ratio = (sigma_next - sigma) / (sigma - self.sigmas[i - 1])
                slope = v + ratio / 2 * (v - self._previous_velocity)
            self._previous_velocity = v
        prev_sample = (x + (sigma_next - sigma) * slope).to(model_output.dtype)

        self._step_index += 1
        if not return_dict:
            return (prev_sample,)
        pred_original_sample = (x - sigma * v).to(model_output.dtype)
        return LowFreqFlowMatchSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
