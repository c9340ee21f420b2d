# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The scheduler: its source, its grid and its steps, against closed forms and diffusers' own flow-matching schedulers."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusers import (
    AutoencoderKL,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers_lowfreq import LowFreqFlowMatchScheduler


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def few_steps(num: int) -> list[float]:
    return [1 - i / num for i in range(num)]


def integrate(scheduler, velocity, x, **grid):
    """Follow `velocity(x, t)`, t in [0, 1], down the grid and return every state."""
    scheduler.set_timesteps(**grid)
    states = [x]
    for t in scheduler.timesteps:
        states.append(scheduler.step(velocity(states[-1], t / 1000), t, states[-1]).prev_sample)
    return states


# ----------------------------------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize("num", [1, 2, 3, 8])
def test_n_steps_are_really_n_steps_of_equal_length(num):
    scheduler = LowFreqFlowMatchScheduler()
    scheduler.set_timesteps(num)
    torch.testing.assert_close(scheduler.sigmas, torch.linspace(1, 0, num + 1))
    torch.testing.assert_close(scheduler.timesteps, 1000 * torch.linspace(1, 0, num + 1)[:-1])
    assert scheduler.num_inference_steps == num and scheduler.timesteps.dtype == torch.float32


def test_the_stock_grid_wastes_a_step_and_ours_does_not():
    """The trap that the default grid avoids is still there, so the default is still needed."""
    stock = FlowMatchEulerDiscreteScheduler()
    stock.set_timesteps(2)
    assert stock.sigmas[1] < 0.01
    ours = LowFreqFlowMatchScheduler.from_config(stock.config)
    ours.set_timesteps(2)
    assert ours.sigmas.tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("sigmas", [few_steps(1), few_steps(4), [0.9, 0.35, 0.3, 0.01]])
@pytest.mark.parametrize(
    ("config", "mu"),
    [
        ({}, None),
        ({"shift": 3.0}, None),
        ({"use_dynamic_shifting": True}, 0.8),
        ({"use_dynamic_shifting": True, "shift": 3.0, "time_shift_type": "linear"}, 1.7),
        ({"shift": 2.0, "shift_terminal": 0.1}, None),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.05}, 1.15),
        ({"num_train_timesteps": 500, "shift": 2.0}, None),
    ],
)
def test_shifts_equal_the_stock_scheduler(config, mu, sigmas):
    if config.get("shift_terminal") and len(sigmas) == 1:
        sigmas = [0.7]  # a grid of the one level 1 cannot be stretched: the stock scheduler divides by zero
    ours, stock = LowFreqFlowMatchScheduler(**config), FlowMatchEulerDiscreteScheduler(**config)
    torch.testing.assert_close(ours.timesteps, stock.timesteps)  # the training schedule, before `set_timesteps`
    ours.set_timesteps(sigmas=sigmas, mu=mu)
    stock.set_timesteps(sigmas=sigmas, mu=mu)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=1e-5, atol=1e-4)


def test_default_grid_is_shifted_after_it_is_laid_out():
    scheduler = LowFreqFlowMatchScheduler(shift=3.0)
    scheduler.set_timesteps(2)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([1, 0.75, 0]))
    scheduler.set_shift(1.0)
    assert scheduler.shift == 1.0
    scheduler.set_timesteps(2)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([1, 0.5, 0]))


def test_a_terminal_of_a_one_step_grid_does_not_break_it():
    scheduler = LowFreqFlowMatchScheduler(shift_terminal=0.1)
    scheduler.set_timesteps(1)
    assert scheduler.sigmas.tolist() == [1, 0]


@pytest.mark.parametrize("given", [[900.0, 400.0, 10.0], torch.tensor([900.0, 400.0, 10.0]), np.array([900, 400, 10])])
def test_given_timesteps_are_final(given):
    scheduler = LowFreqFlowMatchScheduler(shift=3.0)
    scheduler.set_timesteps(timesteps=given)
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([900.0, 400.0, 10.0]))
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([0.9, 0.4, 0.01, 0.0]))
    assert scheduler.num_inference_steps == 3


def test_schedule_lives_on_the_device_asked_for():
    scheduler = LowFreqFlowMatchScheduler()
    for device in ("meta", "cpu"):
        scheduler.set_timesteps(4, device=device)
        assert scheduler.timesteps.device.type == scheduler.sigmas.device.type == device


# --------------------------------------------------------------------------------------------------------- the source


@pytest.mark.parametrize("noise_ratio", [0, 0.3, 0.5, 1.0])
def test_source_formula_against_torch_pooling(noise_ratio):
    """`(1 - a) T(x) + a noise`, from the sample (training) and from its coarse version (inference)."""
    scheduler = LowFreqFlowMatchScheduler(projection="area", factor=2, noise_ratio=noise_ratio)
    x, noise = draw(2, 3, 8, 4), draw(2, 3, 8, 4, seed=1)
    low = F.avg_pool2d(x, 2)
    expected = (1 - noise_ratio) * F.interpolate(low, scale_factor=2) + noise_ratio * noise
    torch.testing.assert_close(scheduler.make_source_from_sample(x, noise), expected)
    torch.testing.assert_close(scheduler.make_source(low, noise), expected)
    torch.testing.assert_close(scheduler.make_source(low, noise, noise_ratio), expected)


def test_source_with_one_noise_ratio_per_sample():
    scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio_range=[0.2, 0.9])
    x, noise = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    ratios = [0.2, 0.55, 0.9]
    together = scheduler.make_source_from_sample(x, noise, torch.tensor(ratios))
    for i, ratio in enumerate(ratios):
        alone = scheduler.make_source_from_sample(x[i : i + 1], noise[i : i + 1], ratio)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_noise_ratio_one_is_plain_flow_matching():
    scheduler = LowFreqFlowMatchScheduler(noise_ratio=1)
    noise = draw(2, 3, 8, 8)
    assert torch.equal(scheduler.make_source_from_sample(draw(2, 3, 8, 8, seed=1), noise), noise)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_levels_and_ratios_stay_float32_for_half_precision_samples(dtype):
    """Only the result is rounded, once; a level rounded to bfloat16 would be off by up to 4 timesteps."""
    scheduler = LowFreqFlowMatchScheduler(projection="area", factor=2, noise_ratio_range=[0, 1])
    zero, ones = torch.zeros(2, 1, 2, 2, dtype=dtype), torch.ones(2, 1, 2, 2, dtype=dtype)
    level = torch.tensor([997.3, 301.7])
    big = 256 * ones  # makes the rounding of a level visible beside the rounding of the result
    mixed = scheduler.scale_noise(big, level, zero)
    exact = (1 - level.double() / 1000).view(-1, 1, 1, 1) * big.double()
    torch.testing.assert_close(mixed.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)
    source = scheduler.make_source(big[..., :1, :1], zero, level / 1000)
    torch.testing.assert_close(source.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)
    assert mixed.dtype == source.dtype == dtype


def test_scale_noise_is_the_straight_line_at_any_time():
    scheduler = LowFreqFlowMatchScheduler()
    scheduler.set_timesteps(2)  # the grid must not matter
    x, source = draw(4, 3, 4, 4), draw(4, 3, 4, 4, seed=1)
    t = torch.tensor([0.0, 123.456, 777.7, 1000.0])
    expected = torch.stack([torch.lerp(x[i], source[i], t[i].item() / 1000) for i in range(4)])
    torch.testing.assert_close(scheduler.scale_noise(x, t, source), expected)
    torch.testing.assert_close(scheduler.add_noise(x, source, t), expected)
    torch.testing.assert_close(scheduler.scale_noise(x, 123.456, source)[1], expected[1])
    assert torch.equal(scheduler.scale_model_input(x, t), x)


def test_scale_noise_equals_the_stock_one_on_the_grid():
    ours, stock = LowFreqFlowMatchScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    for scheduler in (ours, stock):
        scheduler.set_timesteps(sigmas=few_steps(4))
    x, noise = draw(4, 3, 4, 4), draw(4, 3, 4, 4, seed=1)
    expected = stock.scale_noise(x, stock.timesteps, noise)
    torch.testing.assert_close(ours.scale_noise(x, ours.timesteps, noise), expected)


@pytest.mark.parametrize(
    ("config", "allowed", "refused"),
    [({}, [0.5], [0.4, 0, 1]), ({"noise_ratio_range": [0.3, 0.8]}, [0.3, 0.5, 0.8], [0.29, 0.81, 0, 1])],
)
def test_only_trained_noise_ratios_are_allowed(config, allowed, refused):
    scheduler = LowFreqFlowMatchScheduler(**config)
    for ratio in allowed:
        assert scheduler.check_noise_ratio(ratio) == ratio
    for ratio in [*refused, -0.1, 1.1, math.nan, True, "0.5", None]:
        with pytest.raises(ValueError, match="`noise_ratio` must be"):
            scheduler.check_noise_ratio(ratio)
    with pytest.raises(ValueError, match="`noise_ratio` must be"):
        scheduler.make_source(draw(1, 1, 2, 2), draw(1, 1, 8, 8), refused[0])


def test_alpha_is_the_noise_ratio_of_a_call_or_else_the_schedulers():
    fixed, free = LowFreqFlowMatchScheduler(noise_ratio=0.4), LowFreqFlowMatchScheduler(noise_ratio_range=[0.0, 1.0])
    assert (fixed.alpha(), fixed.alpha(0.4), free.alpha(), free.alpha(1)) == (0.4, 0.4, 0.5, 1.0)
    assert isinstance(free.alpha(1), float)  # a tensor filled with it is floating point
    with pytest.raises(ValueError, match="`noise_ratio` must be 0.4"):
        fixed.alpha(0.5)
    with pytest.raises(ValueError, match=r"`strength` must be a number in \[0, 1\], got 2"):
        free.alpha(2, "strength")


# ------------------------------------------------------------------------------------------------------ the Euler step


@pytest.mark.parametrize("sigmas", [few_steps(1), few_steps(4), [0.9, 0.35, 0.3, 0.01]])
@pytest.mark.parametrize("stock_class", [FlowMatchEulerDiscreteScheduler, FlowMapEulerDiscreteScheduler])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_stock_step_and_the_flow_map_step(stock_class, sigmas, shift):
    ours, stock = LowFreqFlowMatchScheduler(shift=shift), stock_class(shift=shift)
    states = integrate(ours, lambda x, t: torch.sin(3 * x) + t, draw(2, 3, 4, 4), sigmas=sigmas)
    expected = integrate(stock, lambda x, t: torch.sin(3 * x) + t.float(), draw(2, 3, 4, 4), sigmas=sigmas)
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state, other)


def test_one_step_of_the_true_velocity_lands_on_the_data():
    scheduler = LowFreqFlowMatchScheduler()
    x, source = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=1)
    scheduler.set_timesteps(3)
    state = source
    for t in scheduler.timesteps:
        torch.testing.assert_close(state, scheduler.scale_noise(x, t, source))  # on the line at every level
        output = scheduler.step(source - x, t, state)
        torch.testing.assert_close(output.pred_original_sample, x)
        state = output.prev_sample
    torch.testing.assert_close(state, x)


# ------------------------------------------------------------------------------------------------- the second-order step


def test_second_order_is_exact_for_velocities_linear_in_time_on_an_uneven_grid():
    """Every step but the first, which is an Euler step, is exact: v(t) = a + b t integrates to a t + b t²/2."""
    a, b = draw(1, 1, 4, 4), draw(1, 1, 4, 4, seed=1)
    scheduler = LowFreqFlowMatchScheduler(solver_order=2)
    sigmas = [1.0, 0.93, 0.5, 0.4, 0.12]
    states = integrate(scheduler, lambda x, t: a + b * t, draw(1, 1, 4, 4, seed=2), sigmas=sigmas)
    levels = [*sigmas, 0.0]
    torch.testing.assert_close(states[1] - states[0], (levels[1] - levels[0]) * (a + b))
    for i in range(1, 5):
        s, r = levels[i], levels[i + 1]
        torch.testing.assert_close(states[i + 1] - states[i], a * (r - s) + b * (r**2 - s**2) / 2)


def gaussian_velocity(mean: float, std: float):
    """The exact velocity from N(0, 1) to N(mean, std²): E[source - x | x_t]; its flow takes z to mean + std z."""

    def velocity(x, t):
        variance = (1 - t) ** 2 * std**2 + t**2
        return -mean + (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean)

    return velocity


@pytest.mark.parametrize(("order", "shift"), [(1, 1.0), (2, 1.0), (2, 2.0)])
def test_order_of_convergence_on_gaussian_data(order, shift):
    """Halving the step divides the error of a known solution by 2 (Euler) or 4 (second order)."""
    mean, std, z = 1.5, 0.4, draw(1, 1, 16, 16)
    scheduler, errors = LowFreqFlowMatchScheduler(noise_ratio=1, solver_order=order, shift=shift), []
    for num in (16, 32, 64):
        end = integrate(scheduler, gaussian_velocity(mean, std), z, num_inference_steps=num)[-1]
        errors.append((end - (mean + std * z)).square().mean().sqrt().item())
    observed = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert all(order - 0.2 < rate < order + 0.5 for rate in observed), (errors, observed)


@pytest.mark.parametrize("order", [1, 2])
def test_set_timesteps_forgets_the_last_trajectory(order):
    scheduler = LowFreqFlowMatchScheduler(solver_order=order)
    first = integrate(scheduler, lambda x, t: x * t, draw(1, 2, 4, 4), num_inference_steps=3)
    assert scheduler.step_index == 3
    scheduler.set_begin_index(1)
    scheduler.set_timesteps(3)
    assert scheduler.step_index is None and scheduler.begin_index is None
    again = integrate(scheduler, lambda x, t: x * t, draw(1, 2, 4, 4), num_inference_steps=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# --------------------------------------------------------------------------------------------------- contract of `step`


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_is_computed_in_float32(order, dtype):
    """Each step equals the float32 step of the same (rounded) inputs, rounded once."""
    half, full = (LowFreqFlowMatchScheduler(solver_order=order) for _ in range(2))
    for scheduler in (half, full):
        scheduler.set_timesteps(3)
    x = draw(2, 3, 4, 4, dtype=dtype)
    for i, t in enumerate(half.timesteps):
        v = draw(2, 3, 4, 4, dtype=dtype, seed=i + 1)
        expected = full.step(v.float(), t, x.float())
        output = half.step(v, t, x)
        assert output.prev_sample.dtype == output.pred_original_sample.dtype == dtype
        assert torch.equal(output.prev_sample, expected.prev_sample.to(dtype))
        assert torch.equal(output.pred_original_sample, expected.pred_original_sample.to(dtype))
        x = output.prev_sample


def test_tuple_output_and_generator_argument_change_nothing():
    as_dict, as_tuple = LowFreqFlowMatchScheduler(), LowFreqFlowMatchScheduler()
    x, v, generator = draw(1, 2, 4, 4), draw(1, 2, 4, 4, seed=1), torch.Generator().manual_seed(0)
    state = generator.get_state()
    for scheduler in (as_dict, as_tuple):
        scheduler.set_timesteps(2)
    expected = as_dict.step(v, as_dict.timesteps[0], x).prev_sample
    result = as_tuple.step(v, as_tuple.timesteps[0], x, generator=generator, return_dict=False)
    assert isinstance(result, tuple) and torch.equal(result[0], expected)
    assert torch.equal(generator.get_state(), state)


def test_steps_start_where_the_timestep_or_the_begin_index_says():
    x, v = draw(1, 1, 4, 4), draw(1, 1, 4, 4, seed=1)
    found, given = LowFreqFlowMatchScheduler(), LowFreqFlowMatchScheduler()
    for scheduler in (found, given):
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.1])
    given.set_begin_index(1)
    assert given.begin_index == 1 and found.index_for_timestep(600.0) == 1
    for timestep in (found.timesteps[1], 100.0):
        a, b = found.step(v, timestep, x).prev_sample, given.step(v, timestep, x).prev_sample
        assert torch.equal(a, b)
    torch.testing.assert_close(a, x - 0.1 * v)
    assert found.step_index == given.step_index == 3


@pytest.mark.parametrize("timestep", [0, 1, torch.tensor(1), torch.tensor([1], dtype=torch.int32)])
def test_integer_timesteps_are_refused(timestep):
    scheduler = LowFreqFlowMatchScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="`timestep` must be one of `scheduler.timesteps`, not an integer index"):
        scheduler.step(draw(1, 1, 4, 4), timestep, draw(1, 1, 4, 4))


@pytest.mark.parametrize(
    "timestep", [640.0, torch.tensor(640.0), torch.tensor([1000.0, 500.0]), torch.ones(3) * 500, math.nan]
)
def test_timesteps_off_the_schedule_or_not_one_are_refused(timestep):
    scheduler = LowFreqFlowMatchScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="`timestep` must be one of the schedule's"):
        scheduler.step(draw(1, 1, 4, 4), timestep, draw(1, 1, 4, 4))


def test_a_used_up_schedule_is_refused():
    scheduler = LowFreqFlowMatchScheduler()
    integrate(scheduler, lambda x, t: x, draw(1, 1, 4, 4), num_inference_steps=2)
    with pytest.raises(ValueError, match="schedule of 2 steps is used up"):
        scheduler.step(draw(1, 1, 4, 4), 500.0, draw(1, 1, 4, 4))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_train_timesteps": 0}, "`num_train_timesteps` must be"),
        ({"shift": 0.0}, "`shift` must be"),
        ({"time_shift_type": "cubic"}, "`time_shift_type` must be"),
        ({"shift_terminal": 1.0}, "`shift_terminal` must be"),
        ({"solver_order": 3}, "`solver_order` must be 1 or 2, got 3"),
        ({"projection": "box"}, "`projection` must be 'bicubic', 'area', 'dct' or 'pca', got 'box'"),
        ({"factor": 0}, "`factor` must be"),
        ({"noise_ratio": 1.5}, "`noise_ratio` must be"),
        ({"noise_ratio": 0.1, "noise_ratio_range": [0.3, 0.8]}, "`noise_ratio` must be"),
        ({"noise_ratio_range": [0.8, 0.3]}, "`noise_ratio_range` must be"),
        ({"noise_ratio_range": [0.5]}, "`noise_ratio_range` must be"),
        ({"noise_ratio_range": [0.3, 1.1]}, "`noise_ratio_range` must be"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        LowFreqFlowMatchScheduler(**config)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({}, {}, "`num_inference_steps` must be a positive integer, got None"),
        ({}, {"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
        ({}, {"num_inference_steps": -1}, "`num_inference_steps` must be a positive integer, got -1"),
        ({}, {"num_inference_steps": 2.0}, "`num_inference_steps` must be a positive integer, got 2.0"),
        ({}, {"num_inference_steps": True}, "`num_inference_steps` must be a positive integer, got True"),
        ({}, {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "`num_inference_steps` must be the length of `sigmas`"),
        ({}, {"sigmas": [0.5, 1.0]}, "`sigmas` must be strictly decreasing"),
        ({}, {"sigmas": [1.0, 0.5, 0.5]}, "`sigmas` must be strictly decreasing"),
        ({}, {"sigmas": [1.0, 0.0]}, "`sigmas` must be strictly decreasing"),
        ({}, {"sigmas": [1.1, 0.5]}, "`sigmas` must be strictly decreasing"),
        ({}, {"sigmas": [math.nan]}, "`sigmas` must be strictly decreasing"),
        ({}, {"sigmas": []}, "`sigmas` must be strictly decreasing"),
        ({}, {"timesteps": [1001.0]}, "`timesteps` must be strictly decreasing"),
        ({}, {"sigmas": [1.0], "timesteps": [1000.0]}, "Pass `sigmas` or `timesteps`, not both"),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 2}, "`mu` must be passed"),
    ],
)
def test_bad_grids_are_named(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        LowFreqFlowMatchScheduler(**config).set_timesteps(**arguments)


def test_a_low_of_the_wrong_size_is_named():
    scheduler = LowFreqFlowMatchScheduler(factor=4)
    with pytest.raises(ValueError, match=r"`low` of shape \(1, 1, 4, 4\) and factor 4 needs `noise` of shape"):
        scheduler.make_source(draw(1, 1, 4, 4), draw(1, 1, 8, 8))
    with pytest.raises(ValueError, match="`sample` must have a height and width divisible by the factor 4"):
        scheduler.make_source_from_sample(draw(1, 1, 6, 6), draw(1, 1, 6, 6))


# ------------------------------------------------------------------------------------------------------ configuration

OWN = {"shift": 3.0, "projection": "dct", "factor": 2, "noise_ratio": 0.6, "solver_order": 2}


def test_save_and_load_give_the_same_trajectory(tmp_path):
    saved = LowFreqFlowMatchScheduler(**OWN, noise_ratio_range=[0.3, 0.8])
    saved.save_pretrained(tmp_path)
    loaded = LowFreqFlowMatchScheduler.from_pretrained(tmp_path)
    expected = {k: v for k, v in saved.config.items() if k != "_use_default_values"}
    assert {k: v for k, v in loaded.config.items() if k in expected} == expected
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "LowFreqFlowMatchScheduler"
    x, noise = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    start = saved.make_source_from_sample(x, noise)
    assert torch.equal(loaded.make_source_from_sample(x, noise), start)
    for a, b in zip(
        *(integrate(s, lambda x, t: x * t, start, num_inference_steps=3) for s in (saved, loaded)), strict=True
    ):
        assert torch.equal(a, b)


def test_configurations_travel_to_the_stock_scheduler_and_back():
    """Shared keys keep their meaning, and our own survive the detour."""
    ours = LowFreqFlowMatchScheduler(**OWN, num_train_timesteps=500, shift_terminal=0.1)
    stock = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    back = LowFreqFlowMatchScheduler.from_config(stock.config)
    for scheduler in (ours, stock, back):
        scheduler.set_timesteps(sigmas=few_steps(3))
    torch.testing.assert_close(ours.sigmas, stock.sigmas)
    assert torch.equal(ours.timesteps, back.timesteps)
    assert {key: back.config[key] for key in OWN} == OWN


def test_from_a_stock_configuration_with_our_keys_added():
    stock = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.4, max_shift=1.2, time_shift_type="linear"
    )
    ours = LowFreqFlowMatchScheduler.from_config(stock.config, projection="area", factor=8, noise_ratio=0.7)
    assert (ours.projection.projection, ours.projection.factor, ours.config.noise_ratio) == ("area", 8, 0.7)
    for key in ("use_dynamic_shifting", "base_shift", "max_shift", "time_shift_type"):
        assert ours.config[key] == stock.config[key]


@pytest.mark.parametrize(
    "key", ["invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling"]
)
def test_settings_that_would_be_ignored_are_refused(key):
    stock = FlowMatchEulerDiscreteScheduler(**{key: True})
    with pytest.raises(ValueError, match=f"`{key}` of the configuration must be False"):
        LowFreqFlowMatchScheduler.from_config(stock.config)
    with pytest.raises(ValueError, match=f"`{key}` of the configuration must be False"):
        LowFreqFlowMatchScheduler.from_config(FlowMatchEulerDiscreteScheduler().config, **{key: True})


def test_public_attributes_of_a_diffusers_scheduler():
    scheduler = LowFreqFlowMatchScheduler(num_train_timesteps=400)
    assert len(scheduler) == 400 and scheduler.order == 1 and scheduler.init_noise_sigma == 1.0
    assert scheduler.compatibles == [LowFreqFlowMatchScheduler]  # as each scheduler of diffusers names itself
    assert len(scheduler.timesteps) == 400 and len(scheduler.sigmas) == 401 and scheduler.sigmas[-1] == 0
    scheduler.register_to_config(extra=5)
    with pytest.warns(FutureWarning):
        assert scheduler.extra == 5
    with pytest.raises(AttributeError):
        scheduler.does_not_exist


# ------------------------------------------------------------------------------------------- stock pipelines drive it


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        shift_factor=0.1,
        scaling_factor=1.5,
    )


def tiny_sd3(scheduler):
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    )
    nothing = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=scheduler, vae=tiny_vae(), **dict.fromkeys(nothing)
    )
    return pipe, {"guidance_scale": 2.0, "negative_prompt_embeds": draw(2, 3, 16, seed=2)} | {
        "negative_pooled_prompt_embeds": draw(2, 16, seed=3)
    }


def tiny_flux(scheduler):
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
    )
    nothing = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return FluxPipeline(transformer=transformer, scheduler=scheduler, vae=tiny_vae(), **dict.fromkeys(nothing)), {}


@pytest.mark.parametrize(
    ("build", "config"),
    [(tiny_sd3, {}), (tiny_sd3, {"shift": 3.0})] + [(tiny_flux, {}), (tiny_flux, {"use_dynamic_shifting": True})],
)
def test_a_stock_pipeline_runs_with_our_scheduler_swapped_in(build, config):
    """Equal to the stock scheduler given the same explicit sigmas, and driven from a low-frequency source."""
    pipe, extra = build(FlowMatchEulerDiscreteScheduler(**config))
    pipe.set_progress_bar_config(disable=True)
    inputs = {
        "prompt_embeds": draw(2, 3, 16),
        "pooled_prompt_embeds": draw(2, 16, seed=1),
        "height": 16,
        "width": 16,
        "num_inference_steps": 2,
        "sigmas": few_steps(2),
        "output_type": "pt",
        **extra,
    }
    expected = pipe(**inputs, generator=torch.Generator().manual_seed(0)).images
    stock = pipe.scheduler
    pipe.scheduler = ours = LowFreqFlowMatchScheduler.from_config(stock.config, projection="area", factor=2)
    images = pipe(**inputs, generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(images, expected)
    if not config:
        assert torch.equal(images, expected)
        defaults = {key: value for key, value in inputs.items() if key != "sigmas"}
        torch.testing.assert_close(pipe(**defaults, generator=torch.Generator().manual_seed(0)).images, expected)

    source = ours.make_source(draw(2, 4, 4, 4, seed=4), draw(2, 4, 8, 8, seed=5))
    packed = pipe._pack_latents(source, 2, 4, 8, 8) if build is tiny_flux else source
    from_source = pipe(**inputs, latents=packed).images
    pipe.scheduler = stock
    torch.testing.assert_close(from_source, pipe(**inputs, latents=packed).images)
    assert (from_source - images).abs().max() > 1e-3


def test_scale_noise_compiles_whole():
    scheduler = LowFreqFlowMatchScheduler()
    sample, noise, timestep = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([100.0, 900.0])
    compiled = torch.compile(scheduler.scale_noise, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(sample, timestep, noise), scheduler.scale_noise(sample, timestep, noise), rtol=0, atol=0
    )
