# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Every bad input raises a `ValueError` before any network runs. It names the argument, what is allowed and what was given."""

import math
import re

import numpy as np
import pytest
import torch
from tiny import make_components, make_pipeline, make_prior, make_transformer, randn, seeded

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, LowFrequencyProjection


NOT_A_COUNT = [0, -1, 1.0, 2.5, "2", None, True, math.nan, math.inf, [2], torch.tensor(2), np.float64(2)]
NOT_A_SCALE = [-0.1, math.nan, math.inf, -math.inf, "2", True, [2.0], torch.tensor(2.0), 1j]
NOT_A_SIZE = [0, -16, 6, 18, 16.0, "16", True, math.nan, [16], 10**30 + 2]
NOT_A_NAME = [None, "latent", "latents", 5, [None], ["prompt_embeds"], {"latents": 1}]


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def assert_refused(pipe, named, *texts, **inputs):
    """Check that a call raises before the prior, the flow or the decoder runs."""
    calls = []
    hooks = [m.register_forward_pre_hook(lambda *_: calls.append(1)) for m in (pipe.transformer, pipe.prior) if m]
    hooks += [pipe.vae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))] if pipe.vae else []
    try:
        with pytest.raises(ValueError) as error:
            pipe(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    message = str(error.value)
    assert f"`{named}`" in message
    assert all(str(text) in message for text in texts), message
    assert not calls


@pytest.mark.parametrize("value", NOT_A_COUNT, ids=repr)
@pytest.mark.parametrize("name", ["num_inference_steps", "prior_num_inference_steps", "num_images_per_prompt"])
def test_counts(pipe, name, value):
    assert_refused(pipe, name, "positive integer", repr(value), class_labels=[0, 1], **{name: value})


def test_a_prior_of_other_latents():
    prior = make_prior(in_channels=3, sample_mean=None, sample_std=None)
    assert_refused(make_pipeline(prior=prior), "prior", "4 channels", "got 3", class_labels=0)


@pytest.mark.parametrize("value", NOT_A_SCALE, ids=repr)
@pytest.mark.parametrize("name", ["guidance_scale", "prior_guidance_scale"])
def test_guidance_scales(pipe, name, value):
    assert_refused(pipe, name, "finite number from 0", repr(value), class_labels=0, **{name: value})


@pytest.mark.parametrize(
    "value",
    [None, 0.5, "01", (0.5,), (0, 0.5, 1), (0.6, 0.5), (-0.1, 1), (0, 1.1), (math.nan, 1), ("0", "1")],
    ids=repr,
)
def test_guidance_interval(pipe, value):
    assert_refused(pipe, "guidance_interval", "[0, 1]", repr(value), class_labels=0, guidance_interval=value)


@pytest.mark.parametrize(
    "value, allowed",
    [
        ("horse", "['cat', 'dog', 'ship']"),
        (["cat", "Dog"], "['cat', 'dog', 'ship']"),
        ("", "['cat', 'dog', 'ship']"),
        (3, "from 0 to 2"),
        (-1, "from 0 to 2"),
        (10**30, "from 0 to 2"),
        ([0, 1.0], "from 0 to 2"),
        ([0, None], "from 0 to 2"),
        ([[0], [1, 2]], "from 0 to 2"),
        ([[0], [3]], "from 0 to 2"),
        ([[0], []], "from 0 to 2"),
        ([[[0]]], "from 0 to 2"),
        (True, "from 0 to 2"),
        (np.array([0, 7]), "from 0 to 2"),
        (torch.tensor([0, 7]), "from 0 to 2"),
        (torch.tensor([True]), "from 0 to 2"),
        (1.5, "class name or number"),
        (math.nan, "class name or number"),
        (b"cat", "class name or number"),
        ({"cat": 1}, "class name or number"),
        (np.array(1.0), "class name or number"),
        ([], "at least one"),
        (torch.tensor([1.0]), "integers of shape (batch,)"),
        (torch.tensor([[1]]), "integers of shape (batch,)"),
    ],
    ids=repr,
)
def test_class_labels(pipe, value, allowed):
    assert_refused(pipe, "class_labels", allowed, class_labels=value)


def test_labels_of_an_unconditional_model():
    assert_refused(make_pipeline(transformer=make_transformer(num_classes=None)), "class_labels", class_labels=0)


@pytest.mark.parametrize("value", NOT_A_SIZE, ids=repr)
@pytest.mark.parametrize("name", ["height", "width"])
def test_sizes_that_do_not_divide(pipe, name, value):
    assert_refused(pipe, name, "multiple of 4", repr(value), class_labels=0, **{name: value})


def test_sizes_are_multiples_of_autoencoder_patch_and_factor():
    for vae, factor, patch, step in (("kl", 2, 2, 4), (None, 2, 4, 4), (None, 4, 1, 4), ("kl", 3, 2, 12)):
        scheduler = LowFreqFlowMatchScheduler(factor=factor)
        pipe = make_pipeline(vae, scheduler=scheduler, transformer=make_transformer(patch_size=patch))
        inputs = {"class_labels": 0, "num_inference_steps": 1, "prior_num_inference_steps": 1}
        assert_refused(pipe, "height", f"multiple of {step} (", height=step + step // 2, width=step, **inputs)
        assert len(pipe(height=step, width=2 * step, **inputs).images) == 1


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.5", True, [0.5], torch.tensor(0.5)], ids=repr)
def test_noise_ratio(pipe, value):
    assert_refused(pipe, "noise_ratio", "in [0, 1]", repr(value), class_labels=0, noise_ratio=value)


def test_noise_ratio_of_a_model_with_one_ratio_or_a_range(pipe):
    assert_refused(pipe, "noise_ratio", "must be 0.5", "0.4", class_labels=0, noise_ratio=0.4)
    assert len(pipe(0, noise_ratio=0.5, num_inference_steps=1).images) == 1
    ranged = make_pipeline(scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio_range=[0.3, 0.8]))
    for value in (0.29, 0.81, 0, 1):
        assert_refused(ranged, "noise_ratio", "[0.3, 0.8]", repr(value), class_labels=0, noise_ratio=value)


@pytest.mark.parametrize("name, shape", [("latents", (2, 4, 8, 8)), ("prior_latents", (2, 4, 4, 4))])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:1],
        lambda x: torch.cat([x, x[:1]]),
        lambda x: x[:, :3],
        lambda x: x[..., :2],
        lambda x: x[0],
        lambda x: x[None],
        lambda x: x.long(),
        lambda x: x.bool(),
        lambda x: x.to(torch.complex64),
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: "latents",
        lambda x: 0,
        lambda x: True,
    ],
)
def test_given_latents(pipe, name, shape, change):
    assert_refused(pipe, name, "floating point", shape, class_labels=[0, 1], **{name: change(randn(*shape))})


def test_given_latents_that_contradict_other_arguments(pipe):
    low, full = randn(2, 4, 4, 4), randn(2, 4, 8, 8)
    assert_refused(pipe, "latents", "not both", class_labels=[0, 1], latents=full, prior_latents=low)
    assert_refused(pipe, "latents", (4, 4, 8, 8), class_labels=[0, 1], num_images_per_prompt=2, latents=full)
    assert_refused(pipe, "prior_latents", (3, 4, 4, 4), num_images_per_prompt=3, prior_latents=low)
    assert_refused(pipe, "latents", (2, 4, 8, 16), class_labels=[0, 1], width=32, latents=full)
    assert_refused(make_pipeline(prior=None), "prior_latents", "no `prior`", class_labels=0)


NOT_GENERATORS = {repr(value): value for value in (0, "cpu", True, [], [0, 1], {})}
NOT_GENERATORS |= {"one and None": [seeded(), None], "one": [seeded()], "three": [seeded()] * 3}
NOT_GENERATORS |= {"four in a tuple": (seeded(),) * 4}


@pytest.mark.parametrize("value", NOT_GENERATORS.values(), ids=NOT_GENERATORS)
def test_generators(pipe, value):
    assert_refused(pipe, "generator", "a list of 2", class_labels=[0, 1], generator=value)


@pytest.mark.parametrize("value", [None, "PIL", "tensor", 0, True, ["pt"]], ids=repr)
def test_output_type(pipe, value):
    assert_refused(pipe, "output_type", "'latent'", repr(value), class_labels=0, output_type=value)


@pytest.mark.parametrize(
    "value",
    [
        [],
        [0.0],
        [1.0, 1.0],
        [0.5, 1.0],
        [1.2, 0.5],
        [1.0, -0.1],
        [math.nan],
        [math.inf],
        0.5,
        1,
        "1",
        ["a"],
        [[1.0]],
        [None],
    ],
    ids=repr,
)
def test_sigmas(pipe, value):
    assert_refused(pipe, "sigmas", "strictly decreasing", repr(value), class_labels=0, sigmas=value)


@pytest.mark.parametrize("value", NOT_A_NAME, ids=repr)
@pytest.mark.parametrize("stage", ["", "prior_"])
def test_callback_names(pipe, stage, value):
    name = f"{stage}callback_on_step_end_tensor_inputs"
    assert_refused(pipe, name, f"['{stage}latents']", repr(value), class_labels=0, **{name: value})


@pytest.mark.parametrize("name", ["callback_on_step_end", "prior_callback_on_step_end"])
def test_callbacks(pipe, name):
    assert_refused(pipe, name, "callable", "5", class_labels=0, **{name: 5})


# ---------------------------------------------------------------------------------------------------- components


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(), DDIMScheduler()], ids=lambda s: type(s).__name__
)
def test_a_scheduler_that_cannot_make_the_source(scheduler):
    with pytest.raises(ValueError, match=f"`scheduler`.*LowFreqFlowMatchScheduler.*{type(scheduler).__name__}"):
        LowFreqPipeline(**make_components(scheduler=scheduler))
    pipe = make_pipeline()
    pipe.scheduler = scheduler
    assert_refused(pipe, "scheduler", "LowFreqFlowMatchScheduler", class_labels=0)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        FlowMatchLCMScheduler(),
        FlowMatchHeunDiscreteScheduler(),
        EulerDiscreteScheduler(),
        EulerAncestralDiscreteScheduler(),
        DDIMScheduler(),
        DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="sde-dpmsolver++"
        ),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_prior_scheduler_that_redraws_noise_or_takes_no_sigmas(scheduler):
    with pytest.raises(ValueError, match=f"`prior_scheduler`.*deterministic.*{type(scheduler).__name__}"):
        LowFreqPipeline(**make_components(prior_scheduler=scheduler))
    pipe = make_pipeline()
    pipe.prior_scheduler = scheduler
    assert_refused(pipe, "prior_scheduler", "deterministic", class_labels=0)


@pytest.mark.parametrize("name", ["transformer", "scheduler", "prior_scheduler"])
def test_an_incomplete_pipeline_does_not_generate(name):
    pipe = make_pipeline()
    setattr(pipe, name, None)
    with pytest.raises(ValueError, match=f"`{name}` must be given.*None"):
        pipe(0)


@pytest.mark.parametrize("value", [["cat", "dog"], "cat", 3])
def test_id2label(value):
    with pytest.raises(ValueError, match="`id2label` must be a dict"):
        LowFreqPipeline(**make_components(id2label=value))


@pytest.mark.parametrize(
    "name, values",
    [
        ("projection", ["Bicubic", "nearest", None, 3, ["area"], {"area": 1}, ""]),
        ("factor", [0, -2, 2.0, "4", None, True, math.nan, [2]]),
    ],
)
def test_unknown_projections(name, values):
    for value in values:
        for build in (LowFrequencyProjection, LowFreqFlowMatchScheduler):
            with pytest.raises(ValueError, match=f"`{name}` must be .*{re.escape(repr(value))}"):
                build(**{name: value})


@pytest.mark.parametrize(
    "name, values",
    [
        ("num_train_timesteps", NOT_A_COUNT),
        ("shift", [0, -1.0, math.nan, math.inf, "3", None, True, [3.0]]),
        ("shift_terminal", [0.0, 1.0, -0.1, math.nan, "0.1", True, [0.1]]),
        ("time_shift_type", ["exp", None, 3, ["linear"]]),
        ("solver_order", [0, 3, "2", None, [1], math.nan]),
        ("noise_ratio", [-0.1, 1.1, math.nan, "0.5", None, True, [0.5]]),
        ("noise_ratio_range", [[], [0.5], [0.8, 0.3], [0.5, 0.5], [-0.1, 0.5], [0.5, 1.1], 0.5, "01", ["0", "1"]]),
    ],
)
def test_scheduler_configurations(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"`{name}` must be .*{re.escape(repr(value))}"):
            LowFreqFlowMatchScheduler(**{name: value})


def test_a_noise_ratio_outside_its_own_range():
    with pytest.raises(ValueError, match=r"`noise_ratio` .*\[0.6, 0.8\].*0.5"):
        LowFreqFlowMatchScheduler(noise_ratio=0.5, noise_ratio_range=[0.6, 0.8])


@pytest.mark.parametrize("mu", [None, "0.5", [0.5]])
def test_mu(mu):
    scheduler = LowFreqFlowMatchScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match=f"`mu` must be .*{re.escape(repr(mu))}"):
        scheduler.set_timesteps(2, mu=mu)


@pytest.mark.parametrize("value", NOT_A_COUNT, ids=repr)
def test_steps_of_the_scheduler(value):
    with pytest.raises(ValueError, match="`num_inference_steps` must be a positive integer"):
        LowFreqFlowMatchScheduler().set_timesteps(value)
