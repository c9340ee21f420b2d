# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Pipelines that share their networks."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import make_pipeline, make_text_pipeline, seeded

from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers_lowfreq import LowFreqPipeline, LowFreqTextToImagePipeline, LowFreqUpscalePipeline


def types(pipe):
    return {
        name: {key: value.dtype for key, value in component.state_dict().items()}
        for name, component in pipe.components.items()
        if isinstance(component, torch.nn.Module)
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make, pipeline_class",
    [
        (make_pipeline, LowFreqUpscalePipeline),
        (make_pipeline, LowFreqPipeline),
        (make_text_pipeline, LowFreqTextToImagePipeline),
    ],
)
def test_from_pipe_leaves_the_networks_as_they_are(make, pipeline_class, dtype):
    pipe = make().to(dtype)
    pipe.vae is None or pipe.vae.decoder.to(torch.float32)  # of two types
    before = types(pipe)
    other = pipeline_class.from_pipe(pipe)
    assert other.transformer is pipe.transformer and other.vae is pipe.vae
    assert types(pipe) == before and types(other).items() <= before.items()
    back = type(pipe).from_pipe(other, prior=pipe.prior, dtype=None)
    assert types(back) == before


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_from_pipe_casts_when_asked(name):
    other = LowFreqUpscalePipeline.from_pipe(make_pipeline(), **{name: torch.bfloat16})
    assert other.transformer.dtype == other.vae.dtype == torch.bfloat16


def test_pipelines_with_schedulers_of_their_own_serve_calls_at_the_same_time():
    """As docs/diffusers.md says: the images are those of one call after the other."""
    pipe = make_pipeline()

    def make_worker(_):
        schedulers = {name: copy.deepcopy(getattr(pipe, name)) for name in ("scheduler", "prior_scheduler")}
        worker = LowFreqPipeline.from_pipe(pipe, **schedulers)
        worker.set_progress_bar_config(disable=True)
        return worker

    def serve(worker, i):
        return [
            worker("dog", num_inference_steps=1 + (i + j) % 5, guidance_scale=1.0 + i, generator=seeded(i), **options)
            for j in range(6)
        ]

    options = {"output_type": "latent", "return_dict": False}
    workers = list(map(make_worker, range(3)))
    assert all(worker.transformer is pipe.transformer for worker in workers)
    assert isinstance(workers[0].prior_scheduler, FlowMatchEulerDiscreteScheduler)
    alone = [serve(pipe, i) for i in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(serve, workers, range(3)))
    for one, other in zip(alone, together):
        for (image,), (expected,) in zip(other, one):
            torch.testing.assert_close(image, expected)
