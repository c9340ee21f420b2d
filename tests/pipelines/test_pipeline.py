# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the pipeline computes, against the method written out, and what diffusers' users expect of a pipeline."""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import (
    LABELS,
    PRIOR_MEAN,
    PRIOR_STD,
    make_components,
    make_pipeline,
    make_prior,
    make_transformer,
    randn,
    seeded,
)

import diffusers
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.pipelines.early_stop import final_prior_sigma


def generate(pipe, class_labels=(0, 2), seed=0, **inputs):
    """Run a short call that returns images as tensors."""
    inputs = {"num_inference_steps": 2, "prior_num_inference_steps": 2, "output_type": "pt", **inputs}
    labels = list(class_labels) if isinstance(class_labels, tuple) else class_labels
    return pipe(labels, **{"generator": seeded(seed), **inputs}).images


def record_calls(module):
    """Collect (positional inputs, keyword inputs) of every call of a module."""
    calls = []
    module.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    return calls


def times(calls):
    return [round(float(args[1][0]), 3) for args, _ in calls]


# ---------------------------------------------------------------------------------------------------- the method


@torch.no_grad()
def by_hand(pipe, labels, generator, steps, prior_steps, scale, prior_scale, size, alpha):
    """The method with block means (D, U), a KL autoencoder and guidance, written out."""

    def integrate(model, x, n, scale):
        levels = [1 - i / n for i in range(n)] + [0.0]
        none = torch.full((len(x),), 3)
        for sigma, sigma_next in zip(levels, levels[1:]):
            t = torch.full((len(x),), 1000 * sigma)
            with_label, without = (model(x, t, class_labels=y).sample for y in (labels, none))
            x = x + (sigma_next - sigma) * (without + scale * (with_label - without))
        return x

    height, width = size
    low = torch.randn((len(labels), 4, height // 2, width // 2), generator=generator)
    noise_first = integrate(pipe.prior, low, prior_steps, prior_scale)
    low = noise_first * torch.tensor(PRIOR_STD).view(4, 1, 1) + torch.tensor(PRIOR_MEAN).view(4, 1, 1)
    noise = torch.randn((len(labels), 4, height, width), generator=generator)
    source = (1 - alpha) * low.repeat_interleave(2, -1).repeat_interleave(2, -2) + alpha * noise
    x = integrate(pipe.transformer, source, steps, scale)
    return (pipe.vae.decode(x / 0.4 + 0.3).sample / 2 + 0.5).clamp(0, 1), low, source


@pytest.mark.parametrize("scale, prior_scale", [(1.0, 1.0), (2.5, 1.7), (0.0, 0.5)])
@pytest.mark.parametrize("steps, prior_steps, size, alpha", [(3, 4, (8, 8), 0.5), (1, 1, (4, 12), 0.2)])
def test_a_call_is_the_method_written_out(scale, prior_scale, steps, prior_steps, size, alpha):
    pipe = make_pipeline(scheduler=LowFreqFlowMatchScheduler(projection="area", factor=2, noise_ratio=alpha))
    expected, low, _ = by_hand(
        pipe, torch.tensor([1, 0]), seeded(), steps, prior_steps, scale, prior_scale, size, alpha
    )
    result = pipe(
        ["dog", 0],
        height=2 * size[0],
        width=2 * size[1],
        num_inference_steps=steps,
        prior_num_inference_steps=prior_steps,
        guidance_scale=scale,
        prior_guidance_scale=prior_scale,
        generator=seeded(),
        output_type="pt",
    )
    torch.testing.assert_close(result.prior_latents, low, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.images, expected, rtol=1e-4, atol=1e-5)
    assert result.images.std() > 0.05


def test_the_source_reaches_the_flow_and_given_latents_are_the_source():
    pipe = make_pipeline()
    calls = record_calls(pipe.transformer)
    latents = generate(pipe, output_type="latent")
    source = calls[0][0][0]
    calls.clear()
    prior_calls = record_calls(pipe.prior)
    assert torch.equal(generate(pipe, latents=source, output_type="latent", generator=None), latents)
    assert torch.equal(calls[0][0][0], source) and not prior_calls
    assert pipe((0, 2), latents=source, num_inference_steps=1).prior_latents is None


@pytest.mark.parametrize("as_list", [False, True])
def test_prior_latents_of_a_call_fed_back_give_the_same_images(as_list):
    pipe = make_pipeline()
    generators = [seeded(0), seeded(1)] if as_list else seeded(0)
    first = pipe([0, 2], generator=generators, output_type="pt")
    for g in generators if as_list else [generators]:
        g.manual_seed(g.initial_seed())
        torch.randn((1 if as_list else 2, 4, 4, 4), generator=g)  # what the prior drew
    prior_calls = record_calls(pipe.prior)
    again = pipe([0, 2], prior_latents=first.prior_latents, generator=generators, output_type="pt")
    assert torch.equal(again.images, first.images) and not prior_calls
    assert torch.equal(again.prior_latents, first.prior_latents)


def test_one_step_from_the_source_is_one_evaluation_of_the_flow():
    pipe = make_pipeline(None)
    source = randn(2, 4, 8, 8)
    velocity = pipe.transformer(source, torch.tensor(1000.0), class_labels=torch.tensor([0, 2])).sample
    latents = generate(pipe, latents=source, num_inference_steps=1, output_type="latent")
    torch.testing.assert_close(latents, source - velocity)


def test_guidance_equals_two_manual_calls():
    pipe = make_pipeline(None)
    source, t = randn(2, 4, 8, 8), torch.tensor(1000.0)
    with torch.no_grad():
        conditional = pipe.transformer(source, t, class_labels=torch.tensor([0, 2])).sample
        unconditional = pipe.transformer(source, t).sample
    latents = generate(pipe, latents=source, num_inference_steps=1, guidance_scale=3.0, output_type="latent")
    torch.testing.assert_close(latents, source - (unconditional + 3 * (conditional - unconditional)))


@pytest.mark.parametrize(
    "interval, guided",
    [((0.0, 1.0), 11111), ((0.2, 0.6), 111), ((0.6, 0.6), 100), ((0.61, 1.0), 11000), ((0.0, 0.1), 0)],
)
def test_guidance_interval_holds_its_ends_and_nothing_outside(interval, guided):
    pipe = make_pipeline(None)
    calls = record_calls(pipe.transformer)
    generate(pipe, guidance_scale=2.0, guidance_interval=interval, num_inference_steps=5)  # 1, 0.8, 0.6, 0.4, 0.2
    assert [len(args[0]) == 4 for args, _ in calls] == [digit == "1" for digit in f"{guided:05d}"]


def test_guidance_without_labels_is_ignored_with_a_warning(caplog):
    pipe = make_pipeline()
    plain = pipe(generator=seeded(), output_type="latent").images
    assert "ignored" not in caplog.text
    for name in ("guidance_scale", "prior_guidance_scale"):
        assert torch.equal(pipe(generator=seeded(), output_type="latent", **{name: 3.0}).images, plain)
        assert f"`{name}`" in caplog.text
        caplog.clear()


def test_guidance_outside_its_interval_is_no_guidance():
    pipe = make_pipeline(None)
    plain = generate(pipe)
    assert torch.equal(generate(pipe, guidance_scale=4.0, guidance_interval=(0.0, 0.1)), plain)
    assert not torch.equal(generate(pipe, guidance_scale=4.0, guidance_interval=(0.5, 0.5)), plain)


def test_noise_ratio_makes_the_source_and_reaches_the_network():
    scheduler = LowFreqFlowMatchScheduler(factor=2, projection="area", noise_ratio_range=[0.25, 1.0])
    pipe = make_pipeline(None, scheduler=scheduler, transformer=make_transformer(use_noise_ratio=True))
    calls = record_calls(pipe.transformer)
    low = randn(2, 4, 4, 4)
    for given, used in ((None, 0.5), (0.25, 0.25), (1.0, 1.0)):
        calls.clear()
        generate(pipe, prior_latents=low, noise_ratio=given, guidance_scale=2.0)
        upsampled = low.repeat_interleave(2, -1).repeat_interleave(2, -2)
        noise = torch.randn((2, 4, 8, 8), generator=seeded())
        expected = (1 - used) * upsampled + used * noise
        torch.testing.assert_close(calls[0][0][0], torch.cat([expected, expected]))
        assert torch.equal(calls[0][1]["noise_ratio"], torch.full((4,), used))


def test_nothing_of_the_coarse_latent_is_left_at_noise_ratio_one():
    pipe = make_pipeline(None, scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio=1.0))
    assert torch.equal(
        generate(pipe, prior_latents=randn(2, 4, 4, 4)), generate(pipe, prior_latents=torch.ones(2, 4, 4, 4))
    )


def test_at_noise_ratio_one_it_is_plain_flow_matching_without_a_prior():
    pipe = make_pipeline(vae=None, scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio=1.0))
    noise = torch.randn((2, 4, 8, 8), generator=seeded(3))
    expected = pipe([0, 1], latents=noise, output_type="latent").images
    assert torch.equal(pipe([0, 1], generator=seeded(3), output_type="latent").images, expected)
    assert pipe.effective_nfe == 4
    alone = LowFreqPipeline(pipe.transformer, pipe.scheduler)
    alone.set_progress_bar_config(disable=True)
    assert torch.equal(alone([0, 1], generator=seeded(3), output_type="latent").images, expected)


@pytest.mark.parametrize("kind", ["kl", "tiny", "dc"])
def test_latents_are_brought_back_to_the_scale_of_each_autoencoder(kind):
    pipe = make_pipeline(kind)
    latents = generate(pipe, output_type="latent")
    scale, shift = {"kl": (0.4, 0.3), "tiny": (0.8, 0.0), "dc": (0.6, 0.0)}[kind]
    with torch.no_grad():
        images = pipe.vae.decode(latents / scale + shift, return_dict=False)[0]
    torch.testing.assert_close(generate(pipe), (images / 2 + 0.5).clamp(0, 1))
    assert images.shape == (2, 3, 16, 16)


def test_without_an_autoencoder_latents_are_pixels():
    pipe = make_pipeline(None)
    torch.testing.assert_close(generate(pipe), (generate(pipe, output_type="latent") / 2 + 0.5).clamp(0, 1))


def test_prior_images_are_the_decoded_upsampled_coarse_latents():
    pipe = make_pipeline()
    result = pipe([0, 2], output_prior_images=True, output_type="pt", generator=seeded())
    with torch.no_grad():
        upsampled = pipe.scheduler.projection.upsample(result.prior_latents)
        expected = pipe.vae.decode(upsampled / 0.4 + 0.3).sample / 2 + 0.5
    torch.testing.assert_close(result.prior_images, expected.clamp(0, 1))
    as_tuple = pipe([0, 2], output_prior_images=True, output_type="pt", generator=seeded(), return_dict=False)
    assert len(as_tuple) == 2 and torch.equal(as_tuple[1], result.prior_images)


def test_effective_nfe_counts_forwards_in_flops():
    pipe = make_pipeline(None)
    ratio = count_flops(pipe.prior, (4, 4, 4)) / count_flops(pipe.transformer, (4, 8, 8))
    generate(pipe, num_inference_steps=3, prior_num_inference_steps=5)
    assert pipe.effective_nfe == pytest.approx(3 + 5 * ratio)
    generate(pipe, num_inference_steps=4, prior_num_inference_steps=2, guidance_scale=2.0, guidance_interval=(0.5, 1))
    assert pipe.effective_nfe == pytest.approx(2 * 3 + 1 + 2 * ratio)  # levels 1, 0.75 and 0.5 are guided
    generate(pipe, num_inference_steps=2, prior_num_inference_steps=3, prior_guidance_scale=2.0)
    assert pipe.effective_nfe == pytest.approx(2 + 6 * ratio)
    generate(pipe, latents=randn(2, 4, 8, 8))
    assert pipe.effective_nfe == 2
    wide = count_flops(pipe.prior, (4, 4, 8)) / count_flops(pipe.transformer, (4, 8, 16))
    generate(pipe, width=16)
    assert pipe.effective_nfe == pytest.approx(2 + 2 * wide) and wide != ratio


def test_effective_nfe_is_read_without_running_a_network():
    pipe = make_pipeline(None)
    generate(pipe)
    calls = record_calls(pipe.prior), record_calls(pipe.transformer)
    first = pipe.effective_nfe
    assert first == pipe.effective_nfe > 2 and not any(calls)
    generate(pipe)
    assert [len(recorded) for recorded in calls] == [2, 2] and pipe.effective_nfe == first


def test_effective_nfe_grows_while_a_call_runs():
    pipe, seen = make_pipeline(None), []

    def look(pipe, step, timestep, tensors):
        seen.append(pipe.effective_nfe)
        return tensors

    generate(pipe, prior_latents=randn(2, 4, 4, 4), callback_on_step_end=look, guidance_scale=2.0)
    assert seen == [2, 4]


# ---------------------------------------------------------------------------------------------------- the grids


def test_default_grids_waste_no_step():
    pipe = make_pipeline(None)
    flow, prior = record_calls(pipe.transformer), record_calls(pipe.prior)
    generate(pipe, num_inference_steps=4, prior_num_inference_steps=2)
    assert times(flow) == [1000, 750, 500, 250] and times(prior) == [1000, 500]
    flow.clear()
    generate(pipe, sigmas=[0.9, 0.3])
    assert times(flow) == [900, 300] and pipe.num_timesteps == 2


def test_dynamic_shifting_of_both_grids_follows_the_number_of_tokens():
    options = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.5}
    options |= {"base_image_seq_len": 16, "max_image_seq_len": 116}
    flow = LowFreqFlowMatchScheduler(factor=2, **options)
    pipe = make_pipeline(scheduler=flow, prior_scheduler=FlowMatchEulerDiscreteScheduler(**options))
    calls = record_calls(pipe.transformer), record_calls(pipe.prior)
    for width, tokens, prior_tokens in ((16, 16, 16), (32, 32, 32)):  # patches of 2 and 1, in 8x8 and 4x4 latents
        for recorded in calls:
            recorded.clear()
        generate(pipe, width=width, num_inference_steps=4, prior_num_inference_steps=3)
        for recorded, n, count in zip(calls, (4, 3), (tokens, prior_tokens)):
            m = np.exp(0.5 + (count - 16) / 100)
            levels = np.linspace(1, 1 / n, n)
            expected = 1000 * m * levels / (1 + (m - 1) * levels)
            np.testing.assert_allclose(times(recorded), expected, atol=0.01)


def test_deterministic_flow_schedulers_sample_the_same_prior():
    stock = make_pipeline(None)
    other = make_pipeline(None, prior_scheduler=LowFreqFlowMatchScheduler())
    torch.testing.assert_close(generate(other, seed=3), generate(stock, seed=3))


# ------------------------------------------------------------------------------------------------ one-step models


def one_step_parts(flow=None, prior=None, **changes):
    """Flow and prior as mean-flow models, with guidance folded in."""
    flow = {"use_meanflow": True, "guidance_scale": 3.0} | (flow or {})
    prior = {"use_meanflow": True, "guidance_scale": 2.0} | (prior or {})
    return {"transformer": make_transformer(**flow), "prior": make_prior(**prior)} | changes


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, FlowMapEulerDiscreteScheduler])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_one_step_checkpoint_makes_one_call_a_step_and_is_told_where_it_ends(scheduler, steps):
    pipe = make_pipeline(None, **one_step_parts(prior_scheduler=scheduler()))
    flow, prior = record_calls(pipe.transformer), record_calls(pipe.prior)
    x = generate(pipe, num_inference_steps=steps, prior_num_inference_steps=2)
    ends = [[round(float(kwargs["timestep_r"][0]), 3) for _, kwargs in calls] for calls in (flow, prior)]
    starts = [round(1000 * (steps - i) / steps, 3) for i in range(steps)]
    assert times(flow) == starts and ends == [[*starts[1:], 0], [500, 0]] and times(prior) == [1000, 500]
    assert all(len(args[0]) == 2 for args, _ in flow + prior)  # one row an image: no call for guidance
    ratio = count_flops(pipe.prior, (4, 4, 4)) / count_flops(pipe.transformer, (4, 8, 8))
    assert pipe.effective_nfe == pytest.approx(steps + 2 * ratio)
    assert pipe.guidance_scale == 3.0 and pipe.prior_guidance_scale == 2.0 and not pipe.do_classifier_free_guidance
    torch.testing.assert_close(
        x, generate(pipe, num_inference_steps=steps, guidance_scale=3.0, prior_guidance_scale=2.0)
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_flow_map_steps_are_those_of_diffusers(steps):
    """The loop of the pipeline, with our scheduler, against the mean velocity stepped by FlowMapEulerDiscreteScheduler."""
    pipe = make_pipeline(None, **one_step_parts())
    source, labels = randn(2, 4, 8, 8, seed=7), torch.tensor([0, 2])
    stock = FlowMapEulerDiscreteScheduler()
    stock.set_timesteps(steps)
    x = source
    for t, r in zip(stock.timesteps, [*stock.timesteps[1:], torch.tensor(0.0)]):
        with torch.no_grad():
            u = pipe.transformer(x, t.expand(2), class_labels=labels, timestep_r=r.expand(2)).sample
        x = stock.step(u, t, x, r_timestep=r).prev_sample
    actual = generate(pipe, latents=source, num_inference_steps=steps, output_type="latent")
    torch.testing.assert_close(actual, x, rtol=1e-5, atol=1e-5)


def test_one_network_may_be_one_step_and_the_other_not():
    for part in ("transformer", "prior"):
        pipe = make_pipeline(None, **{part: one_step_parts()[part]})
        calls = {"transformer": record_calls(pipe.transformer), "prior": record_calls(pipe.prior)}
        own = {"transformer": "guidance_scale", "prior": "prior_guidance_scale"}
        generate(pipe, **{own[name]: 2.0 for name in own if name != part})
        for name, recorded in calls.items():
            assert ("timestep_r" in recorded[0][1]) == (name == part)
            assert len(recorded[0][0][0]) == (2 if name == part else 4)


def test_a_one_step_prior_may_stop_early_too():
    pipe = make_pipeline(None, **one_step_parts())
    calls = record_calls(pipe.prior)
    generate(pipe, truncate_prior=True, prior_num_inference_steps=1)
    (end,) = [float(kwargs["timestep_r"][0]) / 1000 for _, kwargs in calls]
    assert 0.1 < end < 0.9 and end == pytest.approx(final_prior_sigma(pipe.prior, pipe.scheduler, 0.5, 4, 4), abs=1e-6)


def test_clean_coarse_latents_of_a_one_step_prior_that_stopped_early_take_one_more_call():
    """The exact flow map of a standard normal latent: what is left after the last call has its deviation again."""

    class FlowMap(torch.nn.Module):
        def __init__(self, prior):
            super().__init__()
            self.config, self.dtype, self.calls = prior.config, prior.dtype, 0

        def forward(self, x, timestep, timestep_r=None, **condition):
            self.calls += 1
            t, r = (time.view(-1, 1, 1, 1) / 1000 for time in (timestep, timestep_r))
            end = x * (((1 - r) ** 2 + r**2) / ((1 - t) ** 2 + t**2)) ** 0.5
            return ((x - end) / (t - r),)

    pipe = make_pipeline(None, **one_step_parts())
    prior = FlowMap(pipe.prior)
    mean, std = (torch.tensor(pipe.prior.config[k]).view(-1, 1, 1) for k in ("sample_mean", "sample_std"))
    pipe.prior = None
    pipe.register_modules(prior=make_prior(use_meanflow=True, guidance_scale=2.0))
    ratio = count_flops(pipe.prior, (4, 4, 4)) / count_flops(pipe.transformer, (4, 8, 8))
    pipe.prior.forward = prior.forward
    found = {}
    for shown in (False, True):
        prior.calls = 0
        inputs = {"num_inference_steps": 1, "prior_num_inference_steps": 1, "truncate_prior": True}
        output = pipe([0] * 512, generator=seeded(), output_prior_images=shown, output_type="latent", **inputs)
        assert prior.calls == 1 + shown and pipe.effective_nfe == pytest.approx(1 + (1 + shown) * ratio)
        found[shown] = ((output.prior_latents - mean) / std).std().item()
    assert found[True] == pytest.approx(1, abs=0.02) and found[False] < 0.9


@pytest.mark.parametrize("scales", [{}, {"guidance_scale_range": [1.0, 4.0]}])
@pytest.mark.parametrize("scale", [0.0, 1e9])
def test_guidance_that_a_callback_sets_is_checked_too(scales, scale):
    pipe = make_pipeline(None, **one_step_parts(flow=scales, prior=scales))

    def change(pipe, step, timestep, tensors):
        pipe._guidance_scale = scale
        return tensors

    with pytest.raises(ValueError, match="`guidance_scale` must be"):
        generate(pipe, callback_on_step_end=change)


def test_guidance_of_a_range_is_an_input_and_stays_a_choice():
    options = {"guidance_scale_range": [1.0, 4.0]}
    pipe = make_pipeline(None, **one_step_parts(flow=options, prior=options))
    flow, prior = record_calls(pipe.transformer), record_calls(pipe.prior)
    first = generate(pipe, num_inference_steps=1)
    second = generate(pipe, num_inference_steps=1, guidance_scale=1.5, prior_guidance_scale=4.0)
    scales = [[float(kwargs["guidance"][0]) for _, kwargs in calls] for calls in (flow, prior)]
    assert scales == [[3.0, 1.5], [2.0, 2.0, 4.0, 4.0]] and not torch.allclose(first, second)
    with pytest.raises(ValueError, match=r"`guidance_scale` must be in the trained range \[1.0, 4.0\], got 5.0"):
        generate(pipe, guidance_scale=5.0)


def test_a_one_step_checkpoint_survives_saving(tmp_path):
    pipe = make_pipeline(**one_step_parts(flow={"guidance_scale_range": [1.0, 4.0]}))
    pipe.save_pretrained(tmp_path)
    again = LowFreqPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    steps = {"num_inference_steps": 1, "prior_num_inference_steps": 1}
    assert torch.equal(generate(again, **steps), generate(pipe, **steps))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"guidance_scale": 2.0}, "`guidance_scale` must be left out, or be 3: .*folded in, got 2.0"),
        ({"guidance_scale": 1.0}, "`guidance_scale` must be left out, or be 3"),
        ({"prior_guidance_scale": 4.0}, "`prior_guidance_scale` must be left out, or be 2"),
        ({"guidance_interval": (0.2, 0.8)}, "`guidance_interval` must be left out"),
        ({"guidance_interval": 0.5}, "`guidance_interval` must be two rising numbers"),
    ],
)
def test_guidance_that_is_folded_in_cannot_be_asked_for(inputs, message):
    pipe = make_pipeline(None, **one_step_parts())
    calls = record_calls(pipe.prior)
    with pytest.raises(ValueError, match=message):
        generate(pipe, **inputs)
    assert not calls


def test_one_step_solvers_and_models_are_not_mixed_up():
    with pytest.raises(ValueError, match="`prior_scheduler` must not be a FlowMapEulerDiscreteScheduler.*`prior`"):
        make_pipeline(None, prior_scheduler=FlowMapEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="`scheduler` must step by .*`transformer`.*order 2"):
        make_pipeline(None, **one_step_parts(), scheduler=LowFreqFlowMatchScheduler(factor=2, solver_order=2))
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    make_pipeline(None, prior_scheduler=unipc)
    with pytest.raises(ValueError, match="`prior_scheduler` must step by .*`prior`.*UniPCMultistepScheduler"):
        make_pipeline(None, **one_step_parts(), prior_scheduler=unipc)
    pipe = make_pipeline(None)
    pipe.prior_scheduler = FlowMapEulerDiscreteScheduler()  # set later: refused by the call
    with pytest.raises(ValueError, match="`prior_scheduler` must not be"):
        generate(pipe)


@pytest.mark.parametrize("order", [1, 2])
def test_a_call_leaves_no_trace_in_the_next(order):
    pipe = make_pipeline(None, scheduler=LowFreqFlowMatchScheduler(factor=2, solver_order=order))
    first = generate(pipe, num_inference_steps=3)
    generate(pipe, num_inference_steps=5, guidance_scale=2.0, width=16)
    assert torch.equal(generate(pipe, num_inference_steps=3), first)


# ---------------------------------------------------------------------------------------------------- batches


def test_an_image_does_not_depend_on_its_batch():
    pipe = make_pipeline()
    labels, inputs = [0, 1, 2, 0], {"guidance_scale": 2.0, "prior_guidance_scale": 1.5}
    together = generate(pipe, tuple(labels), generator=[seeded(i) for i in range(4)], **inputs)
    for i, label in enumerate(labels):
        torch.testing.assert_close(generate(pipe, (label,), generator=[seeded(i)], **inputs), together[i : i + 1])
        torch.testing.assert_close(generate(pipe, (label,), seed=i, **inputs), together[i : i + 1])
    assert (together[0] - together[3]).abs().max() > 1e-3


def test_images_per_prompt_repeat_each_label_in_place():
    pipe = make_pipeline(None)
    generators = [seeded(i) for i in range(4)]
    repeated = generate(pipe, (1, 0), num_images_per_prompt=2, generator=generators)
    written_out = generate(pipe, (1, 1, 0, 0), generator=[seeded(i) for i in range(4)])
    assert torch.equal(repeated, written_out)
    assert len(generate(pipe, None, num_images_per_prompt=3)) == 3
    latents = randn(2, 4, 8, 8)
    assert len(generate(pipe, None, latents=latents)) == len(
        generate(pipe, 1, num_images_per_prompt=2, latents=latents)
    )


@pytest.mark.parametrize(
    "labels",
    ["dog", 1, np.int64(1), ["dog"], [1], (1,), [[1]], [["dog"]], np.array([1]), torch.tensor([1]), torch.tensor(1)],
)
def test_every_way_to_name_a_class(labels):
    pipe = make_pipeline(None)
    calls = record_calls(pipe.transformer)
    pipe(labels, num_inference_steps=1, prior_num_inference_steps=1)
    assert torch.equal(calls[0][1]["class_labels"], torch.tensor([1]))


def test_unconditional_models_get_no_labels():
    pipe = make_pipeline(None, transformer=make_transformer(num_classes=None), prior=make_prior(num_classes=None))
    calls = record_calls(pipe.transformer), record_calls(pipe.prior)
    images = generate(pipe, None, num_images_per_prompt=2, guidance_scale=2.0)
    assert images.shape == (2, 4, 8, 8)
    assert not any("class_labels" in kwargs for recorded in calls for _, kwargs in recorded)
    assert not pipe.do_classifier_free_guidance


# ---------------------------------------------------------------------------------------------------- outputs


def test_output_types_are_the_same_images():
    pipe = make_pipeline()
    tensors, arrays, pictures = (generate(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    np.testing.assert_array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(picture, PIL.Image.Image) for picture in pictures)
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    np.testing.assert_array_equal(stacked, (arrays * 255).round().astype("uint8"))


def test_tuple_equals_output_class():
    pipe = make_pipeline()
    result = pipe([0, 2], output_type="pt", generator=seeded(), return_dict=False)
    assert isinstance(result, tuple) and len(result) == 1
    assert torch.equal(result[0], pipe([0, 2], output_type="pt", generator=seeded())[0])


def test_latent_output_is_the_state_of_the_loop_untouched():
    pipe = make_pipeline()

    def zero_the_last(pipe, i, t, tensors):
        if i == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    assert generate(pipe, output_type="latent", callback_on_step_end=zero_the_last).abs().sum() == 0
    assert generate(pipe, output_type="latent").abs().sum() > 0


def test_a_call_keeps_no_gradients():
    assert not generate(make_pipeline()).requires_grad


# ---------------------------------------------------------------------------------------------------- callbacks


def test_callbacks_see_every_step_of_both_loops():
    pipe = make_pipeline()
    seen = []

    def callback(pipe, i, t, tensors):
        seen.append((i, float(t), float(pipe.current_timestep), *tensors, *(tuple(x.shape) for x in tensors.values())))
        return tensors

    plain = generate(pipe)
    images = generate(
        pipe,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
        prior_callback_on_step_end=callback,
        prior_callback_on_step_end_tensor_inputs=["prior_latents"],
    )
    assert seen == [
        (0, 1000.0, 1000.0, "prior_latents", (2, 4, 4, 4)),
        (1, 500.0, 500.0, "prior_latents", (2, 4, 4, 4)),
        (0, 1000.0, 1000.0, "latents", (2, 4, 8, 8)),
        (1, 500.0, 500.0, "latents", (2, 4, 8, 8)),
    ]
    assert torch.equal(images, plain) and pipe.current_timestep is None
    pipe([0], callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[], num_inference_steps=1)
    assert seen[-1] == (0, 1000.0, 1000.0)


def test_the_prior_callback_can_change_the_coarse_latents():
    pipe = make_pipeline()
    low = randn(2, 4, 4, 4, seed=9)
    mean, std = (torch.tensor(s).view(4, 1, 1) for s in (PRIOR_MEAN, PRIOR_STD))

    def replace(pipe, i, t, tensors):
        return {"prior_latents": low}

    result = pipe([0, 2], prior_callback_on_step_end=replace)
    torch.testing.assert_close(result.prior_latents, low * std + mean)


def test_guidance_can_be_changed_during_the_run():
    pipe = make_pipeline(None)

    def raise_guidance(pipe, i, t, tensors):
        pipe._guidance_scale += 1.0
        return tensors

    calls = record_calls(pipe.transformer)
    changed = generate(pipe, guidance_scale=2.0, callback_on_step_end=raise_guidance)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    halfway = calls[1][0][0][:2]  # the second step is guided by 3
    assert torch.equal(changed, generate(pipe, latents=halfway, sigmas=[0.5], guidance_scale=3.0))

    def end_guidance(pipe, i, t, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    calls.clear()
    generate(pipe, guidance_scale=2.0, callback_on_step_end=end_guidance)
    assert [len(args[0]) for args, _ in calls] == [4, 2]


class Halve(PipelineCallback):
    """Halve the state after the first step."""

    def __init__(self, name):
        super().__init__(cutoff_step_ratio=None, cutoff_step_index=0)
        self.name = name

    @property
    def tensor_inputs(self):
        return [self.name]

    def callback_fn(self, pipe, step, timestep, callback_kwargs):
        if step == self.config.cutoff_step_index:
            callback_kwargs[self.name] = callback_kwargs[self.name] / 2
        return callback_kwargs


def test_callback_objects_work_as_functions_do():
    pipe = make_pipeline(None)

    def quarter(name):
        return lambda pipe, i, t, tensors: {name: tensors[name] / (4 if i == 0 else 1)}

    functions = generate(
        pipe, callback_on_step_end=quarter("latents"), prior_callback_on_step_end=quarter("prior_latents")
    )
    objects = generate(
        pipe,
        callback_on_step_end=MultiPipelineCallbacks([Halve("latents"), Halve("latents")]),
        prior_callback_on_step_end=MultiPipelineCallbacks([Halve("prior_latents"), Halve("prior_latents")]),
    )
    assert torch.equal(objects, functions) and not torch.equal(objects, generate(pipe))


def test_a_prior_of_other_classes_is_refused_where_it_runs():
    pipe = make_pipeline(prior=make_prior(num_classes=5))
    with pytest.raises(ValueError, match="`prior` must know the 3 classes of the `transformer`, got 5"):
        pipe("cat")
    pipe("cat", prior_latents=randn(1, 4, 4, 4), num_inference_steps=1)


def test_interrupt_stops_the_network_calls_and_still_decodes():
    pipe = make_pipeline()

    def interrupt(pipe, i, t, tensors):
        pipe._interrupt = i == 1
        return tensors

    calls = record_calls(pipe.transformer)
    intermediate = generate(pipe, callback_on_step_end=interrupt, num_inference_steps=5)
    assert len(calls) == 2 and pipe.interrupt and intermediate.shape == (2, 3, 16, 16)
    generate(pipe)
    assert len(calls) == 4 and not pipe.interrupt  # the next call starts afresh


def test_a_progress_bar_for_each_loop(capsys):
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=False)
    generate(pipe, num_inference_steps=3, prior_num_inference_steps=5)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "5/5" in shown
    pipe.set_progress_bar_config(disable=True)
    generate(pipe)
    assert not capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- components


def test_signature_components_and_optional_ones_agree():
    parameters = inspect.signature(LowFreqPipeline.__init__).parameters
    components = make_components()
    pipe = LowFreqPipeline(**components)
    assert set(pipe.components) == {"transformer", "scheduler", "vae", "prior", "prior_scheduler", "guider"}
    assert all(parameters[name].default is None for name in pipe._optional_components)
    modules = [name for name, c in pipe.components.items() if isinstance(c, torch.nn.Module)]
    assert sorted(pipe.model_cpu_offload_seq.split("->")) == sorted(modules)
    again = LowFreqPipeline(**pipe.components, id2label=LABELS)
    assert again.transformer is pipe.transformer
    again.set_progress_bar_config(disable=True)
    assert torch.equal(generate(again), generate(pipe))
    call = inspect.signature(LowFreqPipeline.__call__).parameters
    for name in ("num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"):
        assert call[name].default is not inspect.Parameter.empty


def test_every_argument_of_a_call_is_documented():
    text = LowFreqPipeline.__call__.__doc__
    for name in inspect.signature(LowFreqPipeline.__call__).parameters:
        assert name == "self" or f"{name} (`" in text, name
    assert ">>> pipe = LowFreqPipeline.from_pretrained" in text


def test_from_pipe_shares_components():
    pipe = make_pipeline()
    derived = LowFreqPipeline.from_pipe(pipe)
    derived.set_progress_bar_config(disable=True)
    assert derived.transformer is pipe.transformer and derived.labels == pipe.labels
    assert torch.equal(generate(derived, ("dog",)), generate(pipe, ("dog",)))
    pixels = LowFreqPipeline.from_pipe(pipe, vae=None)
    assert pixels.vae is None and pixels.vae_scale_factor == 1


def test_constructs_in_part_and_completes_later(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    partial = LowFreqPipeline.from_pretrained(tmp_path, transformer=None, vae=None)
    with pytest.raises(ValueError, match="`transformer`.*None"):
        partial(0)
    complete = LowFreqPipeline(**partial.components | {"transformer": pipe.transformer, "vae": pipe.vae})
    complete.set_progress_bar_config(disable=True)
    assert torch.equal(generate(complete), generate(pipe))


def test_sizes_follow_an_autoencoder_that_is_put_in_later():
    whole, pixels = make_pipeline(), make_pipeline(None)
    late = make_pipeline(None)
    late.vae = whole.vae
    assert torch.equal(generate(late, height=16, width=24), generate(whole, height=16, width=24))
    late.vae = None
    assert torch.equal(generate(late, height=16, width=24), generate(pixels, height=16, width=24))


@pytest.mark.parametrize("kind", ["kl", "tiny", "dc", None])
def test_saved_and_loaded_images_are_bit_identical(tmp_path, kind):
    pipe = make_pipeline(kind)
    pipe.save_pretrained(tmp_path)
    loaded = LowFreqPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    inputs = {"class_labels": ("dog", 2), "guidance_scale": 2.0}
    assert torch.equal(generate(loaded, **inputs), generate(pipe, **inputs))
    assert loaded.labels == pipe.labels and loaded.effective_nfe == pipe.effective_nfe


def test_saved_and_loaded_without_optional_components(tmp_path):
    pipe = make_pipeline()
    for name in pipe._optional_components:
        setattr(pipe, name, None)
    pipe.save_pretrained(tmp_path)
    loaded = LowFreqPipeline.from_pretrained(tmp_path)
    assert all(getattr(loaded, name) is None for name in loaded._optional_components)
    for given in ({"prior_latents": randn(2, 4, 4, 4)}, {"latents": randn(2, 4, 8, 8)}):
        assert torch.equal(generate(loaded, **given), generate(pipe, **given))


def test_variants_and_dtypes_of_components_load(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path, variant="fp16")
    for name in ("transformer", "prior", "vae"):
        assert (tmp_path / name / "diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = LowFreqPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(generate(loaded), generate(pipe))
    dtypes = {"transformer": torch.bfloat16, "default": torch.float16}
    mixed = LowFreqPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=dtypes)
    assert mixed.transformer.dtype == torch.bfloat16
    assert mixed.prior.dtype == mixed.vae.dtype == torch.float16


def test_a_variant_that_is_not_there_is_refused(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="variant=fp16"):
        LowFreqPipeline.from_pretrained(tmp_path, variant="fp16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pipelines_stay_near(dtype):
    pipe = make_pipeline()
    expected = generate(pipe, guidance_scale=1.5)
    pipe.to(dtype=dtype)
    assert {c.dtype for c in (pipe.transformer, pipe.prior, pipe.vae)} == {dtype}
    latents = generate(pipe, output_type="latent")
    assert latents.dtype == dtype
    images = generate(pipe, guidance_scale=1.5, generator=seeded()).float()
    assert images.isfinite().all() and images.shape == expected.shape


def test_components_of_different_dtypes_work_together():
    pipe = make_pipeline()
    expected = generate(pipe, prior_latents=randn(2, 4, 4, 4))
    pipe.vae.to(torch.bfloat16)
    pipe.prior.to(torch.bfloat16)
    assert generate(pipe).isfinite().all()
    near = generate(pipe, prior_latents=randn(2, 4, 4, 4).double()).float()
    torch.testing.assert_close(near, expected, rtol=0.1, atol=0.05)


def test_model_offloading_changes_nothing():
    pipe = make_pipeline()
    expected = generate(pipe)
    for _ in range(2):
        pipe.enable_model_cpu_offload(device="cuda" if torch.cuda.is_available() else "cpu")
        components = (pipe.transformer, pipe.prior, pipe.vae)
        hooks = [component._hf_hook for component in components]
        torch.testing.assert_close(generate(pipe).cpu(), expected)
        for component, hook in zip(components, hooks):
            # a call ends by giving the devices back and hooking every component anew
            assert component._hf_hook is not hook and component.device.type == "cpu"
        assert pipe.effective_nfe > 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="accelerate's sequential offloading needs an accelerator")
def test_sequential_offloading_changes_nothing():
    pipe = make_pipeline()
    expected = generate(pipe)
    pipe.enable_sequential_cpu_offload(device="cuda")
    torch.testing.assert_close(generate(pipe).cpu(), expected, rtol=1e-3, atol=1e-4)
    assert all(c.device.type == "meta" for c in (pipe.transformer, pipe.prior, pipe.vae))


@pytest.mark.skipif(
    not torch.cuda.is_available() and diffusers.__version__ < "0.42",
    reason="group offloading of older diffusers needs an accelerator",
)
@pytest.mark.parametrize(
    "options", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offloading_of_the_pipeline_changes_nothing(options):
    pipe = make_pipeline()
    expected = generate(pipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe.enable_group_offload(onload_device=device, offload_device=torch.device("cpu"), **options)
    torch.testing.assert_close(generate(pipe).cpu(), expected)


def test_layerwise_casting_of_the_flow_runs_in_the_pipeline():
    pipe = make_pipeline().to(dtype=torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert generate(pipe).isfinite().all()


def test_the_prior_scheduler_is_stock_euler_by_default_and_absent_without_a_prior():
    assert isinstance(make_pipeline(None).prior_scheduler, FlowMatchEulerDiscreteScheduler)
    assert make_pipeline(None, prior=None).prior_scheduler is None


# ------------------------------------------------------------------------------------------- a prior that stops early


@pytest.mark.parametrize("projection", ["bicubic", "area", "dct"])
def test_a_truncated_prior_leaves_a_source_of_the_same_distribution(projection, monkeypatch):
    """With the exact velocity for Gaussian coarse latents; the flow does nothing here, so the image is the source."""
    pipe = make_pipeline()
    pipe.vae = None
    pipe.scheduler = LowFreqFlowMatchScheduler(projection=projection, factor=2, noise_ratio=0.5)

    def exact(state, timestep, return_dict, **condition):  # of (1 - s) z + s n, with z and n standard normal
        s = (timestep / 1000).view(-1, 1, 1, 1)
        return ((2 * s - 1) / ((1 - s) ** 2 + s**2) * state,)

    monkeypatch.setattr(pipe.prior, "forward", exact)
    monkeypatch.setattr(pipe.transformer, "forward", lambda x, *_, **__: (torch.zeros_like(x),))
    number = 4000
    call = {"num_images_per_prompt": number, "num_inference_steps": 1, "output_type": "latent"}
    call |= {"prior_num_inference_steps": 100, "generator": torch.Generator().manual_seed(0)}
    output = pipe("cat", truncate_prior=True, **call)
    mean = torch.tensor(PRIOR_MEAN).view(4, 1, 1)
    std = torch.tensor(PRIOR_STD).view(4, 1, 1)
    deviation = pipe.scheduler.projection.upsample(mean.expand(4, 4, 4)) * 0.5 - output.images
    assert deviation.mean((0, 2, 3)).abs().max() < 0.02
    coarse = torch.eye(16).view(16, 1, 4, 4).expand(-1, 4, -1, -1)
    upsampled = pipe.scheduler.projection.upsample(0.5 * std * coarse).flatten(2)  # (16, channels, pixels)
    covariance = torch.einsum("ncp,ncq->cpq", deviation.flatten(2), deviation.flatten(2)) / number
    expected = torch.einsum("kcp,kcq->cpq", upsampled, upsampled) + 0.25 * torch.eye(64)
    error = (covariance - expected).abs()
    assert error.max() < 0.12 * expected.max() and error.mean() < 0.015 * expected.max()


def test_a_truncated_prior_stops_above_zero_at_the_same_cost():
    pipe, seen = make_pipeline(), []
    pipe.scheduler = LowFreqFlowMatchScheduler(projection="area", factor=2, noise_ratio=0.4)

    def see(pipe, step, timestep, tensors):
        seen.append(float(timestep) / 1000)
        return {}

    images = generate(pipe, prior_num_inference_steps=4, truncate_prior=True, prior_callback_on_step_end=see)
    nfe = pipe.effective_nfe
    assert not torch.equal(images, generate(pipe, prior_num_inference_steps=4)) and nfe == pipe.effective_nfe
    ratio = 0.4 / 2 / (0.6 * max(PRIOR_STD))
    end = ratio / (1 + ratio)
    assert seen == pytest.approx([1 - i * (1 - end) / 4 for i in range(4)], abs=1e-5)


def test_without_noise_there_is_nothing_to_leave():
    pipe = make_pipeline()
    pipe.scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.0)
    assert torch.equal(generate(pipe, truncate_prior=True), generate(pipe))


def test_a_truncated_prior_is_refused_where_it_cannot_be():
    pipe = make_pipeline()
    for given in ({"prior_latents": randn(2, 4, 4, 4)}, {"latents": randn(2, 4, 8, 8)}):
        with pytest.raises(ValueError, match="`truncate_prior`"):
            generate(pipe, truncate_prior=True, **given)
    pipe.prior_scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.raises(ValueError, match="`truncate_prior` must be False with a `prior_scheduler`"):
        generate(pipe, truncate_prior=True)
    with pytest.raises(ValueError, match="`truncate_prior` must be True or False, got 1"):
        generate(make_pipeline(), truncate_prior=1)


def test_truncation_is_a_setting_of_the_pipeline_that_a_call_can_change(tmp_path):
    pipe = make_pipeline()
    LowFreqPipeline(**pipe.components, id2label=pipe.config.id2label, truncate_prior=True).save_pretrained(tmp_path)
    early = LowFreqPipeline.from_pretrained(tmp_path)
    assert torch.equal(generate(early), generate(pipe, truncate_prior=True))
    assert torch.equal(generate(early, truncate_prior=False), generate(pipe))
    # Given coarse latents are coarse latents
    low = randn(2, 4, 4, 4)
    assert torch.equal(generate(early, prior_latents=low), generate(pipe, prior_latents=low))


def test_the_coarse_latents_of_a_truncated_prior_are_without_its_noise():
    """By the last velocity: one step from the end, which is what an untruncated prior of one step makes at once."""
    pipe, inputs = make_pipeline(), {"num_inference_steps": 1, "prior_num_inference_steps": 1, "output_type": "latent"}
    low = pipe([0, 2], generator=seeded(), truncate_prior=True, **inputs).prior_latents
    expected = pipe([0, 2], generator=seeded(), **inputs).prior_latents
    torch.testing.assert_close(low, expected, rtol=1e-4, atol=1e-5)
