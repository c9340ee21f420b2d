# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The flow-matching objective, against the closed forms of Gaussian data."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.stats import kstest, norm

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqTransformer2DModel
from diffusers_lowfreq.objectives import FlowMatching, sample_times


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generators(num, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(num)]


def function_of(velocity):
    """Wrap `velocity(x_t, timestep, **condition)` as a model."""

    def model(x_t, timestep, **condition):
        return Transformer2DModelOutput(sample=velocity(x_t, timestep, **condition))

    return model


# ------------------------------------------------------------------------------------------------ oracle: Gaussian data

# Data N(MEAN, STD²), independent elements; the source keeps block means and adds noise in the ratio ALPHA.
MEAN, STD, ALPHA, FACTOR = 0.8, 0.6, 0.4, 2


def exact_velocity(x_t, timestep, scale=1.0):
    """
    E[source - x | x_t]. In the kept subspace x_t = (1 - a t) x + a t e and v = a (e - x); in its complement
    x_t = (1 - t) x + a t e and v = a e - x.
    """
    t = timestep.view(-1, 1, 1, 1) / 1000
    kept = F.interpolate(F.avg_pool2d(x_t, FACTOR), scale_factor=FACTOR)
    removed = x_t - kept
    c_x, c_e = 1 - ALPHA * t, ALPHA * t
    gain = (-ALPHA * c_x * STD**2 + ALPHA * c_e) / (c_x**2 * STD**2 + c_e**2)
    v_kept = -ALPHA * MEAN + gain * (kept - c_x * MEAN)
    c_x = 1 - t
    v_removed = (-c_x * STD**2 + ALPHA * c_e) / (c_x**2 * STD**2 + c_e**2) * removed
    return scale * (v_kept + v_removed)


def irreducible_error(t: float) -> float:
    """Var(v | x_t) per element, a² s² / Var(x_t) in each subspace; the kept one has 1 / FACTOR² of the dimensions."""
    share = 1 / FACTOR**2
    noise = (ALPHA * t) ** 2
    kept = (ALPHA * STD) ** 2 / ((1 - ALPHA * t) ** 2 * STD**2 + noise)
    removed = (ALPHA * STD) ** 2 / ((1 - t) ** 2 * STD**2 + noise)
    return share * kept + (1 - share) * removed


def gaussian_pairs(num):
    scheduler = LowFreqFlowMatchScheduler(projection="area", factor=FACTOR, noise_ratio=ALPHA)
    sample = MEAN + STD * draw(num, 2, 4, 4)
    return scheduler.make_source_from_sample(sample, draw(num, 2, 4, 4, seed=1)), sample


@pytest.mark.parametrize(
    "settings", [{}, {"time_sampling": "logit_normal"}, {"time_sampling": "logit_normal", "logit_mean": -0.8}]
)
def test_loss_of_the_exact_velocity_is_the_irreducible_error(settings):
    source, sample = gaussian_pairs(8192)
    loss = FlowMatching(**settings)(
        function_of(exact_velocity), source, sample, generator=torch.Generator().manual_seed(2)
    )
    if settings:
        mean = settings.get("logit_mean", 0.0)
        expected, _ = quad(lambda n: norm.pdf(n) * irreducible_error(1 / (1 + math.exp(-mean - n))), -8, 8)
    else:
        expected, _ = quad(irreducible_error, 0, 1)
    standard_error = loss.std().item() / len(loss) ** 0.5
    assert standard_error < 0.01 * expected
    assert abs(loss.mean().item() - expected) < 4 * standard_error


def test_no_multiple_of_the_exact_velocity_does_better():
    source, sample = gaussian_pairs(4096)
    losses = {
        scale: FlowMatching()(
            function_of(exact_velocity), source, sample, generator=torch.Generator().manual_seed(2), scale=scale
        ).mean()
        for scale in (-1.0, 0.0, 0.9, 1.0, 1.1)
    }
    assert min(losses, key=losses.get) == 1.0
    quadratic = (losses[0.9] + losses[1.1]) / 2 - losses[1.0]
    torch.testing.assert_close(quadratic, 0.01 * (losses[0.0] - losses[1.0]), rtol=0.05, atol=0)


# --------------------------------------------------------------------------------------------------------------- laws


def test_loss_of_the_true_difference_is_zero_and_of_a_constant_error_its_square():
    source, sample = draw(4, 3, 4, 4), draw(4, 3, 4, 4, seed=1)
    error = torch.tensor([0.0, 0.5, -1.0, 2.0])
    for settings in ({}, {"time_sampling": "logit_normal"}):
        model = function_of(lambda x, t: source - sample + error.view(-1, 1, 1, 1))
        torch.testing.assert_close(FlowMatching(**settings)(model, source, sample), error**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_gets_the_state_of_the_scheduler_and_a_float32_time(dtype):
    """x_t is that of `scale_noise`, times are float32 from 0 to 1000, and conditions pass through."""
    source, sample, labels = draw(64, 3, 4, 4).to(dtype), draw(64, 3, 4, 4, seed=1).to(dtype), torch.arange(64)
    seen = {}

    def velocity(x_t, timestep, class_labels):
        seen.update(x_t=x_t, timestep=timestep, class_labels=class_labels)
        return torch.zeros_like(x_t)

    loss = FlowMatching()(
        function_of(velocity), source, sample, generator=torch.Generator().manual_seed(0), class_labels=labels
    )
    timestep = seen["timestep"]
    assert timestep.dtype == loss.dtype == torch.float32 and seen["x_t"].dtype == dtype
    assert 0 < timestep.min() < 100 and 900 < timestep.max() < 1000
    assert torch.equal(timestep, 1000 * sample_times(64, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(seen["x_t"], LowFreqFlowMatchScheduler().scale_noise(sample, timestep, source))
    assert seen["class_labels"] is labels
    torch.testing.assert_close(loss, (source - sample).float().square().mean((1, 2, 3)))


@pytest.mark.parametrize("time_sampling", ["uniform", "logit_normal"])
def test_the_loss_of_a_sample_does_not_depend_on_the_batch(time_sampling):
    """With one generator per sample, for a real network with labels."""
    torch.manual_seed(0)
    model = LowFreqTransformer2DModel(
        in_channels=3, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_classes=4
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    objective = FlowMatching(time_sampling)
    source, sample, labels = draw(5, 3, 4, 4), draw(5, 3, 4, 4, seed=1), torch.tensor([0, 1, 2, 3, 4])
    together = objective(model, source, sample, generator=generators(5), class_labels=labels)
    for i in range(5):
        row = slice(i, i + 1)
        alone = objective(model, source[row], sample[row], generator=generators(1, seed=i), class_labels=labels[row])
        torch.testing.assert_close(together[row], alone)
    assert len(set(together.tolist())) == 5
    together.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------ drawing times


def test_uniform_times_are_uniform():
    times = sample_times(4000, generator=torch.Generator().manual_seed(0))
    assert times.dtype == torch.float32 and kstest(times.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.4, 1.0), (0.7, 1.6)])
def test_logit_normal_times_have_normal_logits(mean, std):
    times = sample_times(4000, "logit_normal", mean, std, generator=torch.Generator().manual_seed(0))
    logits = torch.logit(times.double()).numpy()
    assert kstest(logits, norm(mean, std).cdf).pvalue > 0.01
    assert abs(logits.mean() - mean) < 4 * std / 4000**0.5 and abs(logits.std() / std - 1) < 4 / 8000**0.5


@pytest.mark.parametrize("time_sampling", ["uniform", "logit_normal"])
def test_times_with_one_generator_per_sample_do_not_depend_on_the_batch(time_sampling):
    together = sample_times(4, time_sampling, generator=generators(4))
    alone = torch.cat([sample_times(1, time_sampling, generator=generator) for generator in generators(4)])
    assert torch.equal(together, alone)


def test_unknown_time_sampling_is_named():
    with pytest.raises(ValueError, match="`time_sampling` must be 'uniform' or 'logit_normal', got 'cosmap'"):
        FlowMatching("cosmap")(function_of(lambda x, t: x), draw(1, 1, 2, 2), draw(1, 1, 2, 2))
