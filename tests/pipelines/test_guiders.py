# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Diffusers' guiders as a component of our pipelines."""

import json

import pytest
import torch
from tiny import make_pipeline, make_transformer, randn, seeded

from diffusers import DiffusionPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers_lowfreq import LowFreqPipeline


def generate(pipe, labels=("cat", "ship"), **options):
    options = {"num_inference_steps": 3, "generator": seeded(), "output_type": "pt"} | options
    return pipe(list(labels), **options).images


def test_the_classifier_free_guider_is_the_guidance_scale():
    guided = make_pipeline(guider=ClassifierFreeGuidance(guidance_scale=4.0))
    plain = make_pipeline()
    torch.testing.assert_close(generate(guided), generate(plain, guidance_scale=4.0), rtol=0, atol=5e-6)
    assert guided.effective_nfe == pytest.approx(plain.effective_nfe)
    guided.guider.disable()
    torch.testing.assert_close(generate(guided), generate(plain), rtol=0, atol=0)


def test_a_guider_that_stops_early_makes_no_second_call_afterwards():
    pipe = make_pipeline(guider=ClassifierFreeGuidance(guidance_scale=4.0, start=0.25, stop=0.5))
    options = {"num_inference_steps": 4, "prior_latents": randn(2, 4, 4, 4)}
    images = generate(pipe, **options)
    assert pipe.effective_nfe == 5
    # The second of four steps, sigma = 0.75
    expected = generate(make_pipeline(), guidance_scale=4.0, guidance_interval=(0.7, 0.8), **options)
    torch.testing.assert_close(images, expected, rtol=0, atol=5e-6)


def test_the_guider_gets_velocities_with_the_label_and_without():
    """One step from the source to data: the guider's formula (here its rescaling) on the two velocities themselves."""
    guider = ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.7)
    pipe = make_pipeline(None, guider=guider)
    source, labels = randn(2, 4, 8, 8), torch.tensor([0, 2])
    data = generate(pipe, latents=source, num_inference_steps=1, output_type="latent")
    with torch.no_grad():
        conditional, unconditional = (
            pipe.transformer(source, torch.full((2,), 1000.0), class_labels=label)[0]
            for label in (labels, torch.full_like(labels, 3))
        )
    combined = unconditional + 3.0 * (conditional - unconditional)
    std_of = lambda v: v.std(dim=(1, 2, 3), keepdim=True)  # noqa: E731
    combined = 0.7 * combined * std_of(conditional) / std_of(combined) + 0.3 * combined
    torch.testing.assert_close(data, source - combined, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "guider", [AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance, TangentialClassifierFreeGuidance]
)
def test_other_guiders_run_and_guide(guider):
    images = generate(make_pipeline(guider=guider(guidance_scale=6.0)))
    assert images.isfinite().all() and not torch.allclose(images, generate(make_pipeline()), atol=1e-3)


def test_without_labels_the_guider_is_not_asked():
    pipe = make_pipeline(guider=ClassifierFreeGuidance(guidance_scale=4.0))
    options = {"num_inference_steps": 2, "output_type": "pt"}
    expected = make_pipeline()(generator=seeded(), **options).images
    assert torch.equal(pipe(generator=seeded(), **options).images, expected)


def test_the_guider_is_told_the_noise_ratio_with_both_conditions():
    from diffusers_lowfreq import LowFreqFlowMatchScheduler

    parts = {
        "transformer": make_transformer(use_noise_ratio=True),
        "scheduler": LowFreqFlowMatchScheduler(factor=2, noise_ratio_range=[0.2, 0.8]),
    }
    pipe = make_pipeline(**parts, guider=ClassifierFreeGuidance(guidance_scale=4.0))
    for ratio in (0.3, 0.7):
        expected = generate(make_pipeline(**parts), guidance_scale=4.0, noise_ratio=ratio)
        torch.testing.assert_close(generate(pipe, noise_ratio=ratio), expected, rtol=0, atol=5e-6)


def test_it_is_saved_and_found_again(tmp_path):
    pipe = make_pipeline(guider=ClassifierFreeGuidance(guidance_scale=4.0, stop=0.9))
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["guider"] == ["diffusers", "ClassifierFreeGuidance"]
    for loader in (DiffusionPipeline, LowFreqPipeline):
        again = loader.from_pretrained(tmp_path)
        assert (again.guider.config.guidance_scale, again.guider.config.stop) == (4.0, 0.9)
        assert torch.equal(generate(again), generate(pipe))


def test_two_guidances_at_a_time_are_refused():
    pipe = make_pipeline(guider=ClassifierFreeGuidance())
    for options in ({"guidance_scale": 2.0}, {"guidance_interval": (0.1, 1.0)}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be left out: the `guider`"):
            generate(pipe, **options)
    folded = make_transformer(use_meanflow=True, guidance_scale=2.0)
    with pytest.raises(ValueError, match="`guider` must be None with a one-step `transformer`"):
        generate(make_pipeline(transformer=folded, guider=ClassifierFreeGuidance()))
    with pytest.raises(ValueError, match="`guider` must be one of diffusers' guiders, got float"):
        make_pipeline(guider=4.0)
    for guider in (
        SkipLayerGuidance(skip_layer_guidance_layers=[0]),
        PerturbedAttentionGuidance(perturbed_guidance_layers=[0]),
    ):
        with pytest.raises(ValueError, match=f"`guider` must combine one prediction .* got {type(guider).__name__}"):
            make_pipeline(guider=guider)
