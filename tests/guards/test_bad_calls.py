# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""
Bad calls, generated from tables: the arguments of each entry point, and the values that each argument must refuse.

Every call raises an error that names the argument, before any network runs and without allocating much memory.
`test_bad_input.py` tests calls of a `LowFreqPipeline` by hand. Here that pipeline only gets the values that are missing there.
"""

import datetime
import fractions
import io
import json
import math
import os
import random
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from PIL import Image
from scripts import EXAMPLES, load_script, make_folder, run_failing_process, workplace
from test_bad_input import NOT_A_COUNT, NOT_A_SCALE, NOT_A_SIZE
from tiny import LABELS, make_autoencoder, make_components, make_pipeline, make_text_pipeline, make_transformer, randn

from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTransformer2DModel,
    LowFrequencyProjection,
    LowFreqUpscalePipeline,
    fit_projection_basis,
    generate_from_coarse,
)
from diffusers_lowfreq.couplings import SemiDiscreteCoupling, minibatch_optimal_transport
from diffusers_lowfreq.training import LatentCache, load_images


ROOM = 2**29  # bytes that a refusal may allocate. A size that is too large would need far more

usefixtures = pytest.mark.usefixtures(workplace.__name__)


@contextmanager
def little_memory():
    """Make every allocation of more than `ROOM` fail. Only on Linux, which says how much memory a process has."""
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def layers_called():
    """List every layer that runs, of any network."""
    layers = []
    record = lambda module, _: layers.append(module) if not any(module.children()) else None  # noqa: E731
    hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
    try:
        yield layers
    finally:
        hook.remove()


def assert_refused(call, name: str, may_run=()):
    """
    Check that a call raises an error of the right class, which names the argument.

    Before the error no network runs, except those in `may_run`, and no large memory is allocated.
    """
    with layers_called() as layers, little_memory(), pytest.raises((ValueError, TypeError, OSError)) as error:
        call()
    assert f"`{name}`" in str(error.value)
    allowed = {layer for network in may_run for layer in network.modules()}
    assert not [type(layer).__name__ for layer in layers if layer not in allowed]


def test_assert_refused_can_fail():
    def refuse(message, first=lambda: None):
        first()
        raise ValueError(message)

    vae = pipelines()["labels"].vae
    picture = torch.zeros(1, 3, 16, 16)
    assert_refused(lambda: refuse("`size` must be"), "size")
    assert_refused(
        lambda: refuse("`size` must be", lambda: vae.encode(picture)), "size", [vae.encoder, vae.quant_conv]
    )
    for fault in (
        lambda: None,
        lambda: refuse("size must be"),
        lambda: torch.zeros(2) @ torch.zeros(3),
        lambda: [].size,
        lambda: refuse("`size` must be", lambda: vae.encode(picture)),
        lambda: refuse("`size` must be", lambda: pipelines()["labels"](0, **FEWER)),
        lambda: refuse("`size` must be", lambda: torch.empty(2 * ROOM, dtype=torch.uint8)),
        lambda: refuse("`size` must be", lambda: np.ones(2 * ROOM, np.uint8)),
        lambda: refuse("`size` must be", lambda: [0] * ROOM),
    ):
        with pytest.raises((AssertionError, AttributeError, RuntimeError, MemoryError, pytest.fail.Exception)):
            assert_refused(fault, "size", [vae.decoder])


# ------------------------------------------------------------------------------------------------------- entry points


@cache
def scheduler(**config):
    return LowFreqFlowMatchScheduler(**{"factor": 2} | config)


@cache
def pipelines():
    stock = make_pipeline(
        prior=None, scheduler=scheduler(noise_ratio=1.0)
    )  # from Gaussian noise, as stock pipelines are
    upscaler = LowFreqUpscalePipeline(make_transformer(), scheduler(), make_autoencoder(), LABELS)
    upscaler.set_progress_bar_config(disable=True)
    return {"labels": make_pipeline(), "text": make_text_pipeline(vae="kl"), "upscale": upscaler, "stock": stock}


def step(timestep=1000.0, begin_index=None, **tensors):
    own = LowFreqFlowMatchScheduler()
    own.set_timesteps(2)
    if begin_index is not None:
        own.set_begin_index(begin_index)
    return own.step(**{"model_output": randn(1, 1, 4, 4), "sample": randn(1, 1, 4, 4)} | tensors, timestep=timestep)


def set_timesteps(config=None, **arguments):
    LowFreqFlowMatchScheduler(**config or {}).set_timesteps(**arguments)


IMAGE = Image.new("RGB", (16, 16), "red")
FEW = {"num_inference_steps": 1}
FEWER = {**FEW, "prior_num_inference_steps": 1}
EMBEDS = {"prompt_embeds": randn(1, 3, 6), "prompt_attention_mask": torch.ones(1, 3), "guidance_scale": 2.0}
EMBEDS |= {"negative_prompt_embeds": randn(1, 3, 6, seed=1), "negative_prompt_attention_mask": torch.ones(1, 3)}
SMALL = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 4}
UNIT = {"sample_mean": [0.0] * 4, "sample_std": [1.0] * 4}
SOURCE = {"low": randn(2, 1, 2, 2), "noise": randn(2, 1, 4, 4)}
TWO = {"source": randn(2, 1, 2, 2), "sample": randn(2, 1, 2, 2, seed=1)}
BASIS = fit_projection_basis([randn(8, 1, 4, 4)], 2)


def call(name: str, **good):
    """An entry point: a valid call of a pipeline, whose arguments can be changed."""
    return lambda **change: pipelines()[name](**good | change)


def start(**good):
    return lambda **change: generate_from_coarse(
        pipelines()["stock"], **{"scheduler": scheduler(), "class_labels": 0, **FEW} | good | change
    )


def grid(**config):
    return lambda **change: set_timesteps(config, **{"num_inference_steps": 2} | change)


# Each makes a valid call, with the changes that it is given
ENTRY_POINTS = {
    "LowFreqPipeline": call("labels", class_labels=0, **FEWER),
    "LowFreqTextToImagePipeline": call("text", prompt="cat", negative_prompt="dog", guidance_scale=2.0, **FEWER),
    "LowFreqTextToImagePipeline, embeddings": call("text", **EMBEDS, **FEWER),
    "LowFreqUpscalePipeline": call("upscale", image=IMAGE, class_labels=0, **FEW),
    "generate_from_coarse": start(image=IMAGE),
    "generate_from_coarse, latents": start(prior_latents=randn(1, 4, 4, 4), height=16, width=16),
    "generate_from_coarse, twice": start(coarse_num_inference_steps=1),
    "LowFreqPipeline()": lambda **change: LowFreqPipeline(**make_components() | change),
    "LowFreqFlowMatchScheduler()": LowFreqFlowMatchScheduler,
    "set_timesteps": grid(),
    "set_timesteps, sigmas": lambda sigmas=(1.0, 0.5): set_timesteps(sigmas=sigmas),
    "set_timesteps, timesteps": lambda timesteps=(900.0, 500.0): set_timesteps(timesteps=timesteps),
    "set_timesteps, exponential": grid(use_dynamic_shifting=True),
    "set_timesteps, linear": grid(use_dynamic_shifting=True, time_shift_type="linear"),
    "set_timesteps, constant": lambda shift=1.0: set_timesteps({"shift": shift}, num_inference_steps=2),
    "step": step,
    "make_source": lambda **change: scheduler().make_source(**SOURCE | change),
    "make_source_from_sample": lambda **change: scheduler().make_source_from_sample(
        **{"sample": randn(1, 1, 4, 4), "noise": randn(1, 1, 4, 4)} | change
    ),
    "scale_noise": lambda **change: scheduler().scale_noise(
        **{"sample": randn(2, 1, 4, 4), "timestep": 500.0, "noise": randn(2, 1, 4, 4)} | change
    ),
    "LowFreqTransformer2DModel()": lambda **change: LowFreqTransformer2DModel(**SMALL | {"num_classes": 3} | change),
    "LowFreqTransformer2DModel(), text": lambda **change: LowFreqTransformer2DModel(
        **SMALL | {"caption_channels": 6} | change
    ),
    "LowFreqTransformer2DModel(), prior": lambda **change: LowFreqTransformer2DModel(**SMALL | UNIT | change),
    "LowFreqTransformer2DModel": lambda **change: pipelines()["labels"].transformer(
        **{"hidden_states": randn(1, 4, 8, 8), "timestep": torch.tensor([500.0])} | change
    ),
    "LowFrequencyProjection()": lambda **change: LowFrequencyProjection(
        **{"projection": "pca", "factor": 2, "basis": BASIS} | change
    ),
    "downsample": lambda sample=SOURCE["noise"]: LowFrequencyProjection("bicubic", 2).downsample(sample),
    "upsample": lambda low=SOURCE["low"], factor=2: LowFrequencyProjection("bicubic", factor).upsample(low),
    "fit_projection_basis": lambda **change: fit_projection_basis(
        **{"batches": [randn(2, 1, 4, 4)], "factor": 2} | change
    ),
    "minibatch_optimal_transport": lambda **change: minibatch_optimal_transport(**TWO | change),
    "SemiDiscreteCoupling()": lambda **change: SemiDiscreteCoupling(**{"samples": randn(3, 1, 2, 2)} | change),
}
GOOD = {("set_timesteps, exponential", "mu"): 0.5, ("set_timesteps, linear", "mu"): 3.0}  # required arguments


@cache
def good_call(entry):
    ENTRY_POINTS[entry](**{name: value for (of, name), value in GOOD.items() if of == entry})


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_the_call_without_a_change_is_good(entry):
    good_call(entry)


# ------------------------------------------------------------------------------------------------------------- values

NAN, INF = math.nan, math.inf
OF_TWO = np.array([2, 2])  # neither true nor false
HUGE = [10**9, 10**30]
NEW_COUNT = [*HUGE, "２", b"2", OF_TWO]
COUNT = [*NOT_A_COUNT, *NEW_COUNT]
NEW_SIZE = [16 * 10**6, "１６", OF_TWO]
SIZE = [*NOT_A_SIZE, *NEW_SIZE]
NEW_SCALE = [1e308, 10**400, "２", OF_TWO]
SCALE = [*NOT_A_SCALE, *NEW_SCALE]
NUMBER = [NAN, INF, -INF, "0.5", [0.5], 1j, True]
FLAG = [0, 1, "yes", "False", [True], NAN, torch.tensor(True), OF_TWO]
CHOICE = ["", "Latent", "l\u0430tent", "latent\u202e", b"pt", 2.0, ("pt",), OF_TWO]  # one with a Cyrillic letter
LABEL = ["chät\u202e", "CAT", "ｃａｔ", "cat\0", "\ud800", 2**63, {"cat"}, OF_TWO[None]]
HALF = "a cat \ud800"  # half a character
STATISTICS = [["a"] * 4, [NAN] * 4, [INF] * 4, [None] * 4, [True] * 4, [[0.0]] * 4, "abcd", {0, 1, 2, 3}]
LEVELS = ["ab", [[1.0]], [NAN], [1.0, "x"], {"a": 1}, [1e-46], [0.5, 0.5 - 1e-12], torch.tensor([1j]), [10**400]]
# Values that no argument takes
STRANGE = [object(), b"\0", 1j, {"a"}, Ellipsis, {"": 0}, fractions.Fraction(1, 2), datetime.date(2026, 1, 1)]
STRANGE += [np.array([[1, 2]]), NotImplemented, frozenset(), ValueError("\u202e"), slice(1, 2)]


def not_finite(*shape) -> dict:
    """Tensors of this shape that no network can turn into an image."""
    one = {"one NaN": randn(*shape), "one infinity": randn(*shape)}
    one["one NaN"].view(-1)[-1], one["one infinity"].view(-1)[0] = NAN, -INF
    return {**one, "too large": randn(*shape).double() * 1e300, "none of them": randn(*shape)[:0]}


def not_a_tensor(*shape) -> dict:
    """Values that are not floating point tensors of this shape."""
    good = randn(*shape)
    bad = {"integers": good.long(), "an array": good.numpy(), "a list": good.tolist(), "a number": 0.5}
    return bad | {"complex": good + 1j, "more axes": good[None]}


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(file, "png")
    return file.getvalue()


CLOSED = Image.open(io.BytesIO(png()))
CLOSED.close()
IMAGES = {"a path": "picture.png", "bytes": png(), "a folder": EXAMPLES, "a number": 3, "a dict": {"image": IMAGE}}
IMAGES |= {"half a file": Image.open(io.BytesIO(png()[:400])), "a closed file": CLOSED, "strings": ["picture.png"]}
IMAGES |= {"not finite": np.full((16, 16, 3), NAN), "a set": {1}, "one of each": [IMAGE, None]}

CALLBACKS = {
    "returns nothing": lambda *_: None,
    "returns a list": lambda *_: [1],
    "returns words": lambda *_: {"latents": "x"},
    "returns less": lambda pipe, i, t, tensors: {"latents": tensors["latents"][..., :1]},
}
OUTPUT = {"output_type": CHOICE, "output_prior_images": FLAG, "return_dict": FLAG, "callback_on_step_end": CALLBACKS}
SIZES = {"height": SIZE, "width": SIZE}
PIXELS = not_a_tensor(1, 1, 4, 4)

# For each entry point: its arguments, and the values that they must refuse
TABLES = {
    "LowFreqPipeline": {
        "class_labels": LABEL,
        "height": NEW_SIZE,
        "width": NEW_SIZE,
        "num_inference_steps": NEW_COUNT,
        "prior_num_inference_steps": NEW_COUNT,
        "num_images_per_prompt": NEW_COUNT,
        "guidance_scale": [*NEW_SCALE, 1e37],
        "prior_guidance_scale": [*NEW_SCALE, 1e37],
        "truncate_prior": FLAG,
        "latents": not_finite(1, 4, 8, 8) | {"1e30": torch.full((1, 4, 8, 8), 1e30)},
        "prior_latents": not_finite(1, 4, 4, 4),
        **OUTPUT,
    },
    "LowFreqTextToImagePipeline": {
        "prompt": {"half a character": HALF, "one in a list": ["cat", HALF], "bytes": b"cat", "a dict": {}},
        "negative_prompt": {"half a character": HALF, "NaN": NAN},
        "num_inference_steps": COUNT,
        "prior_num_inference_steps": COUNT,
        "num_images_per_prompt": COUNT,
        "max_sequence_length": COUNT[:5],
        "guidance_scale": SCALE,
        "prior_guidance_scale": SCALE,
        "noise_ratio": NUMBER,
        "truncate_prior": FLAG,
        "latents": not_a_tensor(1, 4, 8, 8) | not_finite(1, 4, 8, 8),
        "prior_latents": not_a_tensor(1, 4, 4, 4) | not_finite(1, 4, 4, 4),
        **SIZES,
        **OUTPUT,
    },
    "LowFreqTextToImagePipeline, embeddings": {
        "prompt_embeds": not_a_tensor(1, 3, 6) | not_finite(1, 3, 6),
        "negative_prompt_embeds": not_a_tensor(1, 3, 6) | not_finite(1, 3, 6),
        "prompt_attention_mask": [torch.full((1, 3), NAN), [[1, 1, 1]], True, torch.ones(1, 2)],
        "negative_prompt_attention_mask": [torch.full((1, 3), NAN), [[1, 1, 1]], True, torch.ones(1, 2)],
    },
    "LowFreqUpscalePipeline": {
        "image": IMAGES | {"none": None},
        "class_labels": LABEL,
        "strength": NUMBER,
        "num_inference_steps": COUNT,
        "guidance_scale": SCALE,
        "num_images_per_prompt": COUNT,
        "resize_mode": CHOICE,
        **SIZES,
        **OUTPUT,
    },
    "generate_from_coarse": {
        "image": IMAGES,
        "resize_mode": CHOICE,
        "num_inference_steps": COUNT,
        "num_images_per_prompt": COUNT,
        "scheduler": [LowFreqFlowMatchScheduler, {"factor": 2}, "bicubic"],
        "class_labels": ["\u202etac"],
        "promt": ["cat"],
        **SIZES,
    },
    "generate_from_coarse, latents": {"prior_latents": not_a_tensor(1, 4, 4, 4) | not_finite(1, 4, 4, 4)},
    "generate_from_coarse, twice": {"coarse_num_inference_steps": [0, -1, *NEW_COUNT], "upsample": CHOICE},
    "LowFreqPipeline()": {
        "truncate_prior": [*FLAG, None],
        "id2label": [{"a": "cat"}, {0: 1}, {0.5: "cat"}, {-1: "cat"}],
        **dict.fromkeys(
            ("transformer", "scheduler", "prior", "vae", "prior_scheduler", "guider"),
            ["cat", {"a": 1}, LowFreqFlowMatchScheduler],
        ),
    },
    "LowFreqFlowMatchScheduler()": {
        "num_train_timesteps": NEW_COUNT,
        "base_shift": [*NUMBER, None],
        "max_shift": [*NUMBER, None],
        "base_image_seq_len": [0, -1, 2.5, "2", None, True, NAN],
        "max_image_seq_len": [0, -1, 2.5, "2", None, True, NAN, 256],
        "use_dynamic_shifting": FLAG,
        "projection": CHOICE,
        "time_shift_type": CHOICE,
        "noise_ratio_range": [[NAN, 1], [True, False], {0.1, 0.9}, "ab", OF_TWO],
        "solver_order": [True, 1.0, OF_TWO],
    },
    "set_timesteps": {"num_inference_steps": NEW_COUNT, "device": ["nowhere", "größe", 1.5, [], {"cpu"}]},
    "set_timesteps, sigmas": {"sigmas": LEVELS},
    "set_timesteps, timesteps": {"timesteps": LEVELS},
    "set_timesteps, exponential": {"mu": [*NUMBER, 1e308, 800, -800, 90.0]},
    "set_timesteps, linear": {"mu": [0, -1.0, 1e-50, 1e308]},
    "set_timesteps, constant": {"shift": [1e30, 1e-30]},
    "step": {
        "model_output": PIXELS | {"more": randn(2, 1, 4, 4), "none": None},
        "sample": PIXELS | {"more": randn(2, 1, 4, 4), "none": None},
        "timestep": ["1000", None, [], [1000.0, 1000.0], {1000.0}, 1j, INF, "\u0661"],
        "begin_index": ["0", -1, 0.0, True, NAN, [0]],
    },
    "make_source": {
        "low": [torch.ones(2, 1, 2, 2).long(), None, [[0.0]], 1.0],
        "noise": not_a_tensor(2, 1, 4, 4) | {"fewer": randn(1, 1, 4, 4), "none": None},
        "noise_ratio": [*NUMBER, torch.ones(3), torch.ones(2, 2)],
    },
    "make_source_from_sample": {
        "sample": [torch.ones(1, 1, 4, 4).long(), None, [[0.0]], 1.0],
        "noise": PIXELS | {"more": randn(2, 1, 4, 4), "none": None},
    },
    "scale_noise": {
        "sample": not_a_tensor(2, 1, 4, 4) | {"more": randn(4, 1, 4, 4), "none": None},
        "noise": not_a_tensor(2, 1, 4, 4) | {"fewer": randn(1, 1, 4, 4), "none": None},
        "timestep": ["500", None, NAN, -1.0, 1000.5, [500.0] * 3, torch.tensor([NAN, 1.0]), torch.ones(2, 2), 1j],
    },
    "LowFreqTransformer2DModel()": {
        **dict.fromkeys(
            ("patch_size", "in_channels", "num_layers", "num_attention_heads", "attention_head_dim"),
            [*HUGE, "２", OF_TWO],
        ),
        "num_classes": [10**30, 10**12, "２", {2}],
        "sample_size": [0, -8, 8.0, "8", None, True, NAN, [8], [8, 8, 8], [8, "8"], [8, 0], {8, 9}, 10**30],
        "use_meanflow": FLAG,
        "use_noise_ratio": FLAG,
        "mlp_ratio": [NAN, None, [4.0], True, 1e300, 10**400, OF_TWO],
        "time_max_frequency": [NAN, None, [4.0], True, 1e300, 10**400, OF_TWO],
    },
    "LowFreqTransformer2DModel(), text": {"caption_channels": [10**30, 10**12, "２", {2}]},
    "LowFreqTransformer2DModel(), prior": {
        "sample_mean": STATISTICS,
        "sample_std": [*STATISTICS, [0.0] * 4, [-1.0] * 4],
    },
    "LowFreqTransformer2DModel": {
        "hidden_states": not_a_tensor(1, 4, 8, 8),
        "timestep": [500.0, "500", None, [500.0]],
        "class_labels": [0, "cat", [0], torch.zeros(1), torch.tensor([True])],
    },
    "LowFrequencyProjection()": {"projection": CHOICE, "factor": [10**30, OF_TWO], "basis": [[], "{}", {"size": 1}]},
    "downsample": {"sample": [None, "ab", torch.zeros(1, 0, 4), torch.zeros(1).expand(4, 10**8)]},
    "upsample": {"low": [torch.zeros(1, 4, 0), torch.zeros(1).expand(10**8, 4)], "factor": HUGE},
    "fit_projection_basis": {
        "batches": [None, randn(1, 4), ["ab"], [], [torch.full((1, 1, 4, 4), NAN)], [randn(0, 1, 4, 4)]],
        "factor": NOT_A_COUNT,
    },
    "minibatch_optimal_transport": {
        "source": {"NaN": torch.full((2, 1, 2, 2), NAN), "a list": [0.0], "none": None, "one": randn(1, 1, 2, 2)},
        "sample": {"NaN": torch.full((2, 1, 2, 2), NAN), "a list": [0.0], "none": None, "one": randn(1, 1, 2, 2)},
        "labels": [["a", "b"], torch.zeros(1), torch.full((2,), NAN)],
    },
    "SemiDiscreteCoupling()": {
        "samples": [[0.0], None, torch.ones(3)],
        "labels": [["a", "b", "c"], [True] * 3],
    },
}
# Arguments that are valid, but not together. The error names one of them
TOGETHER = [
    ("LowFreqPipeline", "truncate_prior", {"latents": randn(1, 4, 8, 8), "truncate_prior": True}),
    ("LowFreqPipeline", "latents", {"latents": randn(1, 4, 8, 8), "height": 32}),
    ("LowFreqTextToImagePipeline", "prompt", {"prompt": None}),
    ("LowFreqTextToImagePipeline, embeddings", "prompt", {"prompt": "cat"}),
    ("LowFreqTextToImagePipeline", "prior_latents", {"prompt": ["a"] * 2, "prior_latents": randn(1, 4, 4, 4)}),
    ("LowFreqUpscalePipeline", "class_labels", {"class_labels": ["cat", "dog"]}),
    ("set_timesteps", "sigmas", {"sigmas": [1.0], "timesteps": [1000.0]}),
]


def cases() -> list[tuple[str, str, str, dict]]:
    """For each case: entry point, bad argument, label of the value, changed arguments."""
    drawn, found = random.Random(0), []
    for entry, arguments in TABLES.items():
        for name, values in arguments.items():
            values = values if isinstance(values, dict) else {repr(value)[:40]: value for value in values}
            strange = drawn.choice(STRANGE)  # one for each argument, at random
            values = values | {f"strange {type(strange).__name__}": strange}
            found += [(entry, name, label, {name: value}) for label, value in values.items()]
    return found + [(entry, name, "together", change) for entry, name, change in TOGETHER]


CASES = cases()

# Numbers that only overflow inside a network
ONLY_RUNNING = {
    ("LowFreqPipeline", "guidance_scale", "1e+37"),
    ("LowFreqPipeline", "prior_guidance_scale", "1e+37"),
    ("LowFreqPipeline", "latents", "1e30"),
}


def networks_before(entry: str, name: str, label: str) -> list[torch.nn.Module]:
    """Return the networks that may run before a bad value is refused."""
    names = {"LowFreqPipeline": "labels", "LowFreqUpscalePipeline": "upscale", "generate_from_coarse": "stock"}
    pipe = pipelines()[names.get(entry, "text")]
    if (entry, name, label) in ONLY_RUNNING or (name == "callback_on_step_end" and label in CALLBACKS):
        return [network for network in pipe.components.values() if isinstance(network, torch.nn.Module)]
    if entry in (
        "LowFreqUpscalePipeline",
        "generate_from_coarse",
    ):  # encodes a picture before it checks the call
        return [pipe.vae.encoder, pipe.vae.quant_conv]
    return []


@pytest.mark.parametrize(
    "entry, name, label, change",
    CASES,
    ids=[ascii(f"{i}-{entry} {name} {label}").strip("'") for i, (entry, name, label, _) in enumerate(CASES)],
)
def test_a_bad_call_ends_in_an_error_that_names_the_argument(entry, name, label, change):
    good_call(entry)  # builds what is built once
    assert_refused(lambda: ENTRY_POINTS[entry](**change), name, networks_before(entry, name, label))


# ------------------------------------------------------------------------------------------------------------ scripts

NEEDED = {
    "train_lowfreq": {"output_dir": "out"},
    "train_autoencoder": {"output_dir": "out"},
    "finetune_lora": {"output_dir": "out", "pretrained_model_name_or_path": "pipe"},
    "advise": {},
}
SCRIPTS = {name: load_script(name) for name in (*NEEDED, "demo")}
NO_INTEGER = ["four", "", "2.5", "nan", "inf", "1e3", "²", "9" * 30, "-" + "9" * 30, "0x10", "None", "[2]", "\u202e2"]
NO_NUMBER = ["four", "", "nan", "inf", "-inf", "1e400", "½", "1,5", "NaN\u202e", "None", "[0.5]", "0.5 0.5"]
NEGATIVE = [
    "seed",
    "learning_rate",
    "prior_learning_rate",
    "lr_warmup_steps",
    "adam_weight_decay",
    "adam_epsilon",
    "kl_weight",
]
NEGATIVE += [
    "max_grad_norm",
    "dataloader_num_workers",
    "logit_std",
    "l1_weight",
    "validation_guidance_scale",
    "adam_beta1",
]
OPTIONAL = {"train_lowfreq": {"rank": 4, "noise_ratio": 0.5, "degraded_share": 0.5, "guidance_scale": 2.0}}
OPTIONAL["finetune_lora"] = {"lora_alpha": 4, "checkpoints_total_limit": 2, "max_sequence_length": 16}
CHOSEN = {"train": "train_lowfreq", "projection": "train_autoencoder", "lr_scheduler": "train_autoencoder"}
CHOSEN |= {"mixed_precision": "finetune_lora", "objective": "train_lowfreq", "derivative": "train_lowfreq"}


def command_lines() -> list[tuple[str, str, list[str]]]:
    """For each case: script, bad option, command line. Every numeric option gets two bad values at random."""
    drawn, lines = random.Random(1), []
    for script, needed in NEEDED.items():
        base = [f"--{k}={v}" for k, v in needed.items()]
        defaults = vars(SCRIPTS[script].parse_args(base)) | OPTIONAL.get(script, {})
        for name, value in defaults.items():
            first = value[0] if isinstance(value, list) else value
            if isinstance(first, bool) or not isinstance(first, (int, float)):
                continue
            for bad in drawn.sample(NO_INTEGER if isinstance(first, int) else NO_NUMBER, 2):
                values = [bad] * (len(value) if isinstance(value, list) else 1)
                lines.append(
                    (script, name, [*base, f"--{name}={bad}"] if len(values) == 1 else [*base, f"--{name}", *values])
                )
            if name in NEGATIVE:
                lines.append((script, name, [*base, f"--{name}=-1"]))
    base = [f"--{k}={v}" for k, v in NEEDED["finetune_lora"].items()]
    lines += [(script, name, [*base[: len(NEEDED[script])], f"--{name}=Linеar"]) for name, script in CHOSEN.items()]
    autoencoder = ["--output_dir=out", "--block_out_channels"]
    lines += [
        ("train_autoencoder", "block_out_channels", autoencoder + bad) for bad in (["12"], ["0"], ["8", "-8"], [])
    ]
    return lines


COMMAND_LINES = command_lines()


def refused(capsys, script: str, line: list[str]) -> str:
    """Return the last line of the error of a script's parser."""
    with little_memory(), pytest.raises(SystemExit) as error:
        SCRIPTS[script].parse_args(line)
    assert error.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "script, name, line",
    COMMAND_LINES,
    ids=[ascii(f"{i}-{script} {line[-1]}").strip("'") for i, (script, _, line) in enumerate(COMMAND_LINES)],
)
def test_a_bad_option_is_named(capsys, script, name, line):
    assert f"argument --{name}: " in refused(capsys, script, line)


CONFIGS = {
    "empty": (b"", "cannot read"),
    "UTF-16": ('{"factor": 2}'.encode("utf-16"), "cannot read"),
    "a byte order mark": (b'\xef\xbb\xbf{"factor": 2}', "cannot read"),
    "a pickle": (b"\x80\x04}\x94.", "cannot read"),
    "a bare NaN": (b"NaN", "it must hold one JSON object"),
    "null": (b"null", "it must hold one JSON object"),
    "a hundred thousand lists": (b'{"factor": ' + b"[" * 100_000, "cannot read"),
    "a hundred thousand objects": (b'{"factor":' * 100_000, "cannot read"),
    "a number of 5000 digits": (b'{"seed": ' + b"9" * 5000 + b"}", "cannot read"),
    "NaN": (b'{"learning_rate": NaN}', "--learning_rate: must be a finite number from 0 on, got nan"),
    "infinity": (b'{"ema_decay": Infinity}', "--ema_decay: must be a finite number from 0 on, below 1, got inf"),
    "beyond a double": (b'{"factor": 1e999}', "--factor: invalid int value: 'inf'"),
    "a whole float": (b'{"factor": 2.0}', "--factor: invalid int value: '2.0'"),
    "negative": (b'{"seed": -1}', "--seed: must be a finite number from 0 on, got -1"),
    "of no memory": (
        b'{"train_batch_size": 1000000000}',
        "--train_batch_size: must be a finite number, at most 65536",
    ),
    "an umlaut": ('{"faktör": 2}'.encode(), "unknown key 'faktör'"),
    "from right to left": (b'{"\\u202erotcaf": 2}', r"unknown key '\u202erotcaf'"),
    "half a character": (b'{"\\ud800": 2}', r"unknown key '\ud800'"),
    "a Cyrillic letter": ('{"fаctor": 2}'.encode(), "unknown key 'fаctor'"),
    "no key": (b'{"": 2}', "unknown key ''"),
    "an option": (b'{"--factor": 2}', "unknown key '--factor'"),
    "help": (b'{"help": true}', "unknown key 'help'"),
    "a negated flag": (b'{"no-random_flip": true}', "unknown key 'no-random_flip'"),
    "half a character as a value": (b'{"projection": "\\ud800"}', r"--projection: invalid choice: '\ud800'"),
    "no value": (b'{"factor": ""}', "--factor: invalid int value: ''"),
    "the second of two": (b'{"factor": 2, "factor": "x"}', "--factor: invalid int value: 'x'"),
    "nothing twice": (b'{"noise_ratio_range": [null, null]}', "--noise_ratio_range: invalid float value: 'None'"),
    "lists in a list": (b'{"noise_ratio_range": [[0.1], [0.9]]}', "--noise_ratio_range: invalid float value: '[0.1]'"),
    "an empty list": (b'{"noise_ratio_range": []}', "--noise_ratio_range: expected 2 arguments"),
    "a list of NaN": (b'{"noise_ratio_range": [NaN, NaN]}', "--noise_ratio_range: must be a finite number"),
}


@usefixtures
@pytest.mark.parametrize("what", CONFIGS)
def test_a_bad_configuration_file_is_named(workplace, capsys, what):
    content, message = CONFIGS[what]
    file = Path("größe\u202e.json")
    file.write_bytes(content)
    said = refused(capsys, "train_lowfreq", ["--output_dir=out", "--config", str(file)])
    assert message in said
    assert repr(str(file)) in said or "argument --config" not in said


@pytest.mark.parametrize("label", ["²", "chät\u202e", "١٠"])
def test_a_class_of_the_demo_that_does_not_exist_is_named(label):
    with pytest.raises(ValueError, match="`class_labels` must be"):
        SCRIPTS["demo"].main(["--class_labels", "ship", label, "--device", "cpu"])


# ------------------------------------------------------------------------- what an engine or a cache cannot do

TINY = "--train_data_dir images --output_dir out --resolution 16 --transformer_size 1x1x8 --prior_size 1x1x8 --patch_size 4"
TINY = [
    *TINY.split(),
    "--train_batch_size=2",
    "--prior_train_batch_size=2",
    "--max_train_steps=1",
    "--prior_max_train_steps=1",
]


def pretend(**shared):
    """Change the state that all of accelerate shares, as if this were a different run."""
    Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):
        state._shared_state.update(shared)


@usefixtures
@pytest.mark.parametrize(
    "line, named",
    [
        (["--objective=mean_flow"], "derivative"),
        (["--teacher=pipe"], "derivative"),
        (["--rank=2", "--train=flow", "--pretrained_model_name_or_path=pipe"], "rank"),
    ],
)
def test_what_sharded_weights_cannot_do_is_refused_before_the_images_are_read(workplace, line, named):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    pretend(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    args = SCRIPTS["train_lowfreq"].parse_args(["--train_data_dir=images", "--output_dir=out", *line])
    with pytest.raises(ValueError, match=f"`{named}` must .* where the weights are sharded"):
        SCRIPTS["train_lowfreq"].main(args)
    assert not os.listdir()


@usefixtures
@pytest.mark.parametrize("script", ["train_lowfreq", "train_autoencoder"])
def test_more_processes_than_images_are_refused_before_they_are_encoded(workplace, script):
    make_folder(workplace / "images", 6)
    pretend(num_processes=7)
    with pytest.raises(ValueError, match="`num_processes` .* must not exceed the number of images, 6, got 7"):
        SCRIPTS[script].main(SCRIPTS[script].parse_args(TINY[:6]))
    assert not Path("out/cache").exists()


@usefixtures
def test_a_cache_that_lacks_a_shard_is_refused_before_the_first_step(workplace):
    make_folder(workplace / "images", 6)
    cache = LatentCache.build(load_images(None, "images", resolution=16), None, "out/cache", shard_size=8192)
    os.remove(Path(cache.folder) / "latents-00000.safetensors")
    with pytest.raises(ValueError, match="lacks its shard latents-00000.safetensors"):
        SCRIPTS["train_lowfreq"].main(SCRIPTS["train_lowfreq"].parse_args(TINY))
    assert os.listdir("out") == ["cache"]


# ----------------------------------------------------------------------------------------------- as other processes

PROCESSES = {
    "a number": (
        "train_lowfreq",
        ["--output_dir=out", "--learning_rate=nan"],
        2,
        "argument --learning_rate: must be a finite",
    ),
    "a size": (
        "train_lowfreq",
        ["--output_dir=out", f"--factor={10**30}"],
        2,
        "argument --factor: must be a finite number",
    ),
    "a deep configuration": (
        "train_lowfreq",
        ["--output_dir=out", "--config=deep.json"],
        2,
        "argument --config: cannot read",
    ),
    "a key": (
        "train_lowfreq",
        ["--output_dir=out", "--config=key.json"],
        2,
        r"unknown key '\u202erotcaf' in 'key.json'",
    ),
    "a folder": (
        "train_lowfreq",
        ["--output_dir=out", "--train_data_dir=größe"],
        1,
        "`train_data_dir` 'größe' does not exist",
    ),
    "a resolution": (
        "train_lowfreq",
        ["--output_dir=out", "--train_data_dir=images", "--resolution=60000"],
        1,
        "`resolution` must give at most",
    ),
    "channels": (
        "train_autoencoder",
        ["--output_dir=out", "--block_out_channels", "12"],
        2,
        "--block_out_channels: must be",
    ),
    "a ratio": (
        "finetune_lora",
        ["--output_dir=out", "--pretrained_model_name_or_path=pipe", "--noise_ratio=1"],
        2,
        "argument --noise_ratio: must be between 0 and 1, got 1.0",
    ),
    "an image": (
        "advise",
        ["--train_data_dir=one", "--resolution=16"],
        1,
        "`num_images` must leave at least two readable",
    ),
    "a class": ("demo", ["--class_labels", "²", "--device=cpu"], 1, r"ValueError: `class_labels` must be among"),
}


@usefixtures
@pytest.mark.slow
@pytest.mark.parametrize("what", PROCESSES)
def test_a_bad_command_ends_in_a_line_that_names_it(workplace, what):
    make_folder(workplace / "images", 3)
    make_folder(workplace / "one", 1)
    Path("deep.json").write_text("[" * 100_000)
    Path("key.json").write_text(json.dumps({"\u202erotcaf": 2}))
    script, line, code, named = PROCESSES[what]
    returncode, said = run_failing_process(EXAMPLES / f"{script}.py", *line, cwd=workplace)
    assert returncode == code, said
    assert named in said.strip().splitlines()[-1]
