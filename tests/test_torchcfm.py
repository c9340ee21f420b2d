# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The independent and minibatch baselines against torchcfm, whose t is 1 - sigma and whose flow is -v."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusers_lowfreq.couplings import minibatch_optimal_transport
from diffusers_lowfreq.objectives import FlowMatching


@pytest.fixture(scope="module")
def torchcfm():
    if importlib.util.find_spec("torchcfm") is None:
        pytest.skip("torchcfm is not installed: pip install --no-deps torchcfm POT")
    import torchcfm.conditional_flow_matching  # an installation that cannot be imported is a failure, not a skip

    return torchcfm.conditional_flow_matching


def pairs(num, *shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num, *shape, generator=generator), 0.5 + torch.randn(num, *shape, generator=generator)


@pytest.mark.parametrize("time_sampling", ["uniform", "logit_normal"])
def test_flow_matching_is_conditional_flow_matching_with_time_reversed(torchcfm, time_sampling):
    """At sigma = 1 - t both have the same state, and minus its flow is a velocity with zero loss."""
    source, sample = pairs(16, 3, 4, 4)
    matcher = torchcfm.ConditionalFlowMatcher(sigma=0.0)
    times = []

    def model(x_t, timestep):
        t, theirs, flow = matcher.sample_location_and_conditional_flow(source, sample, t=1 - timestep / 1000)
        torch.testing.assert_close(x_t, theirs, rtol=0, atol=1e-5)
        times.append(t)
        return SimpleNamespace(sample=-flow)

    loss = FlowMatching(time_sampling)(model, source, sample, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, torch.zeros(16), rtol=0, atol=1e-10)
    (t,) = times
    assert t.min() < 0.3 and t.max() > 0.7


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
@pytest.mark.parametrize("num_classes", [1, 4])
def test_minibatch_assignment_is_the_exact_plan(torchcfm, shape, num_classes):
    """The plan puts 1/n on each of our pairs and zero elsewhere; with labels, within each class."""
    source, sample = pairs(64, *shape)
    labels = torch.arange(64) % num_classes
    order = minibatch_optimal_transport(source, sample, labels if num_classes > 1 else None)
    sampler = torchcfm.OTPlanSampler(method="exact")
    for label in range(num_classes):
        members = (labels == label).nonzero()[:, 0]
        plan = torch.from_numpy(sampler.get_map(source[members], sample[members]))
        ours = (order[members][None] == members[:, None]).double() / len(members)  # rows: source, columns: sample
        torch.testing.assert_close(plan, ours, rtol=0, atol=1e-12)


def test_the_exact_matcher_draws_the_pairs_of_our_assignment(torchcfm):
    """It draws pairs from the plan with replacement. Without replacement, the draws are exactly our pairs."""
    source, sample = pairs(32, 2, 3, 3)
    order = minibatch_optimal_transport(source, sample)

    def rows(x0, x1):
        return {(tuple(a.tolist()), tuple(b.tolist())) for a, b in zip(x0.flatten(1), x1.flatten(1))}

    ours = rows(source[order], sample)
    matcher = torchcfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    state = np.random.get_state()
    try:
        np.random.seed(0)
        _, start, flow = matcher.sample_location_and_conditional_flow(source, sample, t=torch.zeros(32))
        x0, x1 = matcher.ot_sampler.sample_plan(source, sample, replace=False)
    finally:
        np.random.set_state(state)
    assert rows(x0, x1) == ours
    end = torch.cdist((start + flow).flatten(1), sample.flatten(1)).argmin(1)
    drawn = rows(start, sample[end])
    assert drawn < ours
    velocities = source[order][end] - sample[end]
    torch.testing.assert_close(-flow, velocities, rtol=0, atol=1e-5)
