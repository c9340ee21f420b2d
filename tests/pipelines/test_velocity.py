# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What a network predicts at a state, in each way, against calls of the network itself."""

import pytest
import torch
from tiny import make_transformer, randn

from diffusers.guiders import ClassifierFreeGuidance
from diffusers_lowfreq import LowFreqFlowMatchScheduler
from diffusers_lowfreq.pipelines.velocity import (
    GuidedVelocity,
    GuiderVelocity,
    MeanVelocity,
    Network,
    PlainVelocity,
    make_velocity,
)


X = randn(2, 4, 8, 8)
LABELS = {"class_labels": torch.tensor([0, 2])}
NO_LABELS = {"class_labels": torch.tensor([3, 3])}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def make_scheduler(steps: int = 4) -> LowFreqFlowMatchScheduler:
    scheduler = LowFreqFlowMatchScheduler(factor=2)
    scheduler.set_timesteps(steps)  # levels 1, 0.75, 0.5, 0.25 and 0
    return scheduler


def predict(model, level: float, condition: dict, x: torch.Tensor = X, **inputs) -> torch.Tensor:
    return model(x, torch.full((len(x),), 1000 * level), **condition, **inputs).sample


def test_each_kind_of_model_and_call_has_its_velocity():
    flow, one_step = Network(make_transformer()), Network(make_transformer(use_meanflow=True))
    guider = ClassifierFreeGuidance()
    assert type(make_velocity(flow, LABELS)) is type(make_velocity(flow, {}, None, guider=guider)) is PlainVelocity
    assert type(make_velocity(flow, LABELS, NO_LABELS)) is GuidedVelocity
    assert type(make_velocity(flow, LABELS, NO_LABELS, guider=guider)) is GuiderVelocity
    assert type(make_velocity(one_step, LABELS)) is type(make_velocity(one_step, LABELS, NO_LABELS)) is MeanVelocity


def test_the_plain_velocity_is_the_prediction_at_the_level_of_the_step():
    network = Network(make_transformer())
    velocity = make_velocity(network, LABELS)
    assert torch.equal(velocity(X, make_scheduler(), 1), predict(network.model, 0.75, LABELS))
    assert network.calls == {"flow": 1}


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_extrapolates_from_the_unconditional_to_the_conditional_prediction(scale):
    network = Network(make_transformer(), "prior")
    velocity = make_velocity(network, LABELS, NO_LABELS, lambda: scale)
    conditional, unconditional = (predict(network.model, 0.5, condition) for condition in (LABELS, NO_LABELS))
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(velocity(X, make_scheduler(), 2), expected, rtol=1e-5, atol=1e-5)
    assert network.calls == {"prior": 2}


def test_what_the_unconditional_input_lacks_is_shared():
    network = Network(make_transformer(use_noise_ratio=True), noise_ratio=0.3)
    ratio, conditional_input = torch.full((2,), 0.3), LABELS | {"noise_ratio": torch.full((2,), 0.3)}
    guided = make_velocity(network, LABELS, NO_LABELS, lambda: 2.0)(X, make_scheduler(), 0)
    unconditional = predict(network.model, 1.0, NO_LABELS, noise_ratio=ratio)
    expected = 2 * predict(network.model, 1.0, conditional_input) - unconditional
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)


def test_the_scale_is_asked_for_in_every_step_and_one_takes_one_pass():
    network, scales = Network(make_transformer()), [2.0, 1.0, 3.0]
    velocity = make_velocity(network, LABELS, NO_LABELS, lambda: scales.pop(0))
    plain = make_velocity(Network(network.model), LABELS)
    passes, scheduler = [], make_scheduler()
    for i in range(3):
        v = velocity(X, scheduler, i)
        passes.append(network.calls["flow"])
        assert torch.equal(v, plain(X, scheduler, i)) == (i == 1)
    assert passes == [2, 3, 5] and not scales


@pytest.mark.parametrize(
    ("interval", "guided"), [((0.0, 1.0), [0, 1, 2, 3]), ((0.25, 0.75), [1, 2, 3]), ((0.3, 0.74), [2]), ((1, 1), [0])]
)
def test_guidance_holds_within_its_interval_of_levels_ends_included(interval, guided):
    network, scheduler = Network(make_transformer()), make_scheduler()
    velocity = make_velocity(network, LABELS, NO_LABELS, lambda: 2.0, interval)
    passes = []
    for i in range(4):
        before = network.calls["flow"]
        velocity(X, scheduler, i)
        passes.append(network.calls["flow"] - before)
    assert passes == [2 if i in guided else 1 for i in range(4)]


def test_the_mean_velocity_is_that_down_to_the_next_level():
    network = Network(make_transformer(use_meanflow=True))
    velocity = make_velocity(network, LABELS, NO_LABELS)
    for i, (t, r) in enumerate([(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]):
        expected = predict(network.model, t, LABELS, timestep_r=torch.full((2,), 1000 * r))
        assert torch.equal(velocity(X, make_scheduler(), i), expected)
    assert network.calls == {"flow": 4}


@pytest.mark.parametrize(("stage", "name"), [("flow", "guidance_scale"), ("prior", "prior_guidance_scale")])
def test_the_guidance_of_a_range_is_an_input_of_the_mean_velocity_and_checked(stage, name):
    folded = {"use_meanflow": True, "guidance_scale": 2.0, "guidance_scale_range": [1.0, 4.0]}
    network, scale = Network(make_transformer(**folded), stage), [3.0]
    velocity = make_velocity(network, LABELS, NO_LABELS, lambda: scale[0])
    guidance = {"timestep_r": torch.full((2,), 500.0), "guidance": torch.full((2,), 3.0)}
    assert torch.equal(velocity(X, make_scheduler(2), 0), predict(network.model, 1.0, LABELS, **guidance))
    scale[0] = 5.0
    with pytest.raises(ValueError, match=rf"`{name}` must be in the trained range \[1.0, 4.0\], got 5.0"):
        velocity(X, make_scheduler(2), 0)


def test_the_classifier_free_guider_is_guidance_with_its_scale():
    model, scheduler = make_transformer(), make_scheduler()
    network = Network(model)
    guider = make_velocity(network, LABELS, NO_LABELS, guider=ClassifierFreeGuidance(guidance_scale=3.0))
    guided = make_velocity(Network(model), LABELS, NO_LABELS, lambda: 3.0)
    for i in range(4):
        torch.testing.assert_close(guider(X, scheduler, i), guided(X, scheduler, i), rtol=1e-5, atol=1e-5)
    assert network.calls == {"flow": 8}
