# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The modular blocks make the same images as the pipeline."""

import pytest
import torch
from tiny import make_pipeline, make_prior, make_transformer, randn, seeded

from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from diffusers_lowfreq.modular import LowFreqBlocks, LowFreqDecodeStep, LowFreqFlowStep


def load(folder, pipe, blocks=None):
    pipe.save_pretrained(folder)
    modular = (blocks or LowFreqBlocks()).init_pipeline(str(folder))
    modular.load_components()
    return modular


def of(pipe, **options):
    return pipe(generator=seeded(), output_type="pt", **options).images


def of_blocks(modular, **options):
    return modular(generator=seeded(), output_type="pt", output="images", **options)


def test_blocks_and_pipeline_make_the_same_images(tmp_path):
    pipe = make_pipeline()
    modular = load(tmp_path, pipe)
    steps = {"num_inference_steps": 3, "prior_num_inference_steps": 2}
    images = of_blocks(modular, class_labels=[0, 2], **steps)
    assert torch.equal(images, of(pipe, class_labels=[0, 2], **steps))
    assert torch.equal(of_blocks(modular, num_images=3), of(pipe, num_images_per_prompt=3))
    modular.update_components(guider=ClassifierFreeGuidance(guidance_scale=3.0))
    images = of_blocks(modular, class_labels=[0, 2], prior_guidance_scale=2.0, **steps)
    expected = of(pipe, class_labels=[0, 2], guidance_scale=3.0, prior_guidance_scale=2.0, **steps)
    torch.testing.assert_close(images, expected, rtol=0, atol=5e-6)


def test_blocks_of_a_one_step_pipeline(tmp_path):
    folded = {"use_meanflow": True, "guidance_scale": 2.0}
    pipe = make_pipeline(transformer=make_transformer(**folded), prior=make_prior(**folded))
    options = {"class_labels": [1], "num_inference_steps": 1, "prior_num_inference_steps": 1}
    modular = load(tmp_path, pipe)
    assert torch.equal(of_blocks(modular, **options), of(pipe, **options))
    assert torch.equal(of_blocks(modular, prior_guidance_scale=2.0, **options), of(pipe, **options))


class FixedLayout(ModularPipelineBlocks):
    """A user's block in place of the prior model."""

    model_name = "lowfreq"
    description = "Takes one layout for all images."
    expected_components = []
    inputs = [InputParam("layout", required=True), InputParam("num_images", default=2)]
    intermediate_outputs = [OutputParam("prior_latents")]

    def __call__(self, components, state):
        block = self.get_block_state(state)
        block.prior_latents = block.layout.expand(block.num_images, -1, -1, -1)
        self.set_block_state(state, block)
        return components, state


def test_another_block_takes_the_place_of_the_prior_model(tmp_path):
    pipe = make_pipeline()
    steps = {"layout": FixedLayout, "flow": LowFreqFlowStep, "decode": LowFreqDecodeStep}
    modular = load(tmp_path, pipe, SequentialPipelineBlocks.from_blocks_dict(steps))
    layout = randn(1, 4, 4, 4)
    expected = of(pipe, class_labels=[1, 1], prior_latents=layout.expand(2, -1, -1, -1))
    assert torch.equal(of_blocks(modular, layout=layout, class_labels=[1, 1]), expected)


def test_a_bad_argument_is_named(tmp_path):
    modular = load(tmp_path, make_pipeline())
    for options, name in (
        ({"class_labels": [7]}, "class_labels"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"prior_num_inference_steps": 0}, "prior_num_inference_steps"),
        ({"noise_ratio": 0.9}, "noise_ratio"),
        ({"num_images": 0}, "num_images"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"class_labels": ["ship"]}, "class_labels"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            modular(**{"generator": seeded(), "output": "images", "class_labels": None} | options)
