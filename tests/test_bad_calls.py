# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""
Generated bad calls: entry points, their arguments, and for each kind of argument the values that it must refuse.

Every one ends within a second in an error that names the argument. `tests/test_bad_input.py` has the same for the calls of a
`LowFreqPipeline`, by hand; here that pipeline gets what it has not.
"""

import datetime
import fractions
import io
import json
import math
import os
import random
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

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


LIMIT = 1.0  # seconds, from the call to its error

usefixtures = pytest.mark.usefixtures(workplace.__name__)


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


def set_timesteps(of=None, **arguments):
    LowFreqFlowMatchScheduler(**of or {}).set_timesteps(**arguments)


IMAGE = Image.new("RGB", (16, 16), "red")
FEW = {"num_inference_steps": 1}
EMBEDS = {"prompt": None, "prompt_embeds": randn(1, 3, 6), "prompt_attention_mask": torch.ones(1, 3)}
NEGATIVE = {"negative_prompt_embeds": randn(1, 3, 6), "negative_prompt_attention_mask": torch.ones(1, 3)}
SMALL = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 4, "num_classes": 3}
TWO = {"source": randn(2, 1, 2, 2), "sample": randn(2, 1, 2, 2, seed=1)}

# Each takes changes of a call that is good without them
ENTRY_POINTS = {
    "LowFreqPipeline": lambda **c: pipelines()["labels"](
        **{"class_labels": 0, **FEW, "prior_num_inference_steps": 1} | c
    ),
    "LowFreqTextToImagePipeline": lambda **c: pipelines()["text"](
        **{"prompt": "cat", **FEW, "prior_num_inference_steps": 1} | c
    ),
    "LowFreqUpscalePipeline": lambda **c: pipelines()["upscale"](**{"image": IMAGE, "class_labels": 0, **FEW} | c),
    "generate_from_coarse": lambda **c: generate_from_coarse(
        pipelines()["stock"], **{"scheduler": scheduler(), "image": IMAGE, "class_labels": 0, **FEW} | c
    ),
    "LowFreqPipeline()": lambda **c: LowFreqPipeline(**make_components() | c),
    "LowFreqFlowMatchScheduler()": lambda **c: LowFreqFlowMatchScheduler(**c),
    "set_timesteps": lambda **c: set_timesteps(
        **{"num_inference_steps": None if {"sigmas", "timesteps"} & c.keys() else 2} | c
    ),
    "step": step,
    "make_source": lambda **c: scheduler().make_source(**{"low": randn(2, 1, 2, 2), "noise": randn(2, 1, 4, 4)} | c),
    "make_source_from_sample": lambda **c: scheduler().make_source_from_sample(
        **{"sample": randn(1, 1, 4, 4), "noise": randn(1, 1, 4, 4)} | c
    ),
    "scale_noise": lambda **c: scheduler().scale_noise(
        **{"sample": randn(2, 1, 4, 4), "timestep": 500.0, "noise": randn(2, 1, 4, 4)} | c
    ),
    "LowFreqTransformer2DModel()": lambda **c: LowFreqTransformer2DModel(**SMALL | c),
    "LowFreqTransformer2DModel": lambda **c: pipelines()["labels"].transformer(
        **{"hidden_states": randn(1, 4, 8, 8), "timestep": torch.tensor([500.0])} | c
    ),
    "downsample": lambda factor=2, **c: LowFrequencyProjection("bicubic", factor).downsample(
        **{"sample": randn(1, 4, 4)} | c
    ),
    "upsample": lambda factor=2, **c: LowFrequencyProjection("bicubic", factor).upsample(
        **{"low": randn(1, 4, 4)} | c
    ),
    "fit_projection_basis": lambda **c: fit_projection_basis(**{"batches": [randn(2, 1, 4, 4)], "factor": 2} | c),
    "minibatch_optimal_transport": lambda **c: minibatch_optimal_transport(**TWO | c),
    "SemiDiscreteCoupling()": lambda **c: SemiDiscreteCoupling(**{"samples": randn(3, 1, 2, 2)} | c),
}


@cache
def good_call(entry):
    ENTRY_POINTS[entry]()


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_the_call_without_a_change_is_good(entry):
    good_call(entry)


# ------------------------------------------------------------------------------------------------------------- values

NAN, INF = math.nan, math.inf
HUGE = [10**9, 10**30]
COUNT = [*NOT_A_COUNT, *HUGE, "２", b"2", np.array([2, 2])]
SIZE = [*NOT_A_SIZE, 16 * 10**6, "１６", np.array([16, 16])]
SCALE = [*NOT_A_SCALE, 1e308, 10**400, "２", np.array([2.0, 2.0])]
NUMBER = [NAN, INF, -INF, "0.5", None, [0.5], 1j, True]
FLAG = [None, 0, 1, "yes", "False", [True], NAN, torch.tensor(True), np.array([True, True])]
CHOICE = [
    "",
    "Latent",
    "lаtent",
    "latent\u202e",
    b"pt",
    0,
    True,
    ["pt"],
    np.array(["pt", "np"]),
]  # one "а" is Cyrillic
LABEL = ["chät\u202e", "CAT", "ｃａｔ", "cat\0", "\ud800", -1, 3, 2**63, NAN, b"cat", {"cat"}, np.array([[0, 1]])]
SURROGATE = "a cat \ud800"
STRANGE = [object(), b"\0", 1j, {"a"}, Ellipsis, {"": 0}, fractions.Fraction(1, 2), datetime.date(2026, 1, 1)]
STRANGE += [np.array([[1, 2]]), NotImplemented, frozenset(), ValueError("\u202e"), slice(1, 2)]


def not_latents(*shape):
    """Not floating point tensors of this shape, or not such as a network makes an image of."""
    good = randn(*shape)
    bad = {name: good.clone() for name in ("one NaN", "one infinity")}
    bad["one NaN"].view(-1)[-1], bad["one infinity"].view(-1)[0] = NAN, -INF
    bad |= {
        "integers": good.long(),
        "bytes": good.byte(),
        "complex": good + 1j,
        "an array": good.numpy(),
        "a list": [0.0],
    }
    bad |= {"no batch": good[0], "more axes": good[None], "less": good[..., :-1], "none": good[:0], "a number": 0.5}
    return {**bad, "too large": good.double() * 1e300}


def file_of(content: bytes, closed=False):
    image = Image.open(io.BytesIO(content))
    if closed:
        image.close()
    return image


def png():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(file, "png")
    return file.getvalue()


IMAGES = {
    "none": None,
    "a path": "picture.png",
    "bytes": png(),
    "a folder": EXAMPLES,
    "a number": 3,
    "a dict": {"image": IMAGE},
}
IMAGES |= {
    "half a file": file_of(png()[:400]),
    "a closed file": file_of(png(), closed=True),
    "strings": ["picture.png"],
}
IMAGES |= {"one NaN": np.full((16, 16, 3), NAN), "a set": {1}, "one of each": [IMAGE, None]}
LARGE = {"latents": torch.full((1, 4, 8, 8), 1e30)}  # finite, but what a network makes of them is not


class Case(NamedTuple):
    entry: str
    name: str
    label: str
    change: dict
    named: tuple[str, ...] = ()

    def __str__(self):
        return ascii(f"{self.entry} {self.name} {self.label}").strip("'")


def table(entry: str, name: str, values, named=(), **beside) -> list[Case]:
    """A case for each value of an argument, `beside` other arguments."""
    values = values if isinstance(values, dict) else {repr(value)[:40]: value for value in values}
    return [Case(entry, name, label, beside | {name: value}, named or (name,)) for label, value in values.items()]


def together(entry: str, named: str | tuple, **change) -> list[Case]:
    """One case of arguments that are good, but not together."""
    label = " ".join(f"{k}={str(v)[:20]!r}" if not torch.is_tensor(v) else k for k, v in change.items())
    return [Case(entry, "together", label, change, (named,) if isinstance(named, str) else named)]


def cases() -> list[Case]:
    found = []
    labels, text, upscale = "LowFreqPipeline", "LowFreqTextToImagePipeline", "LowFreqUpscalePipeline"
    for name in ("num_inference_steps", "prior_num_inference_steps", "num_images_per_prompt"):
        found += table(labels, name, [v for v in COUNT if not any(v is w for w in NOT_A_COUNT)])
        found += table(text, name, COUNT)
    for name in ("height", "width"):
        found += table(labels, name, SIZE[len(NOT_A_SIZE) :]) + table(text, name, SIZE) + table(upscale, name, SIZE)
    for name in ("guidance_scale", "prior_guidance_scale"):
        found += table(labels, name, [*SCALE[len(NOT_A_SCALE) :], 1e37]) + table(text, name, SCALE)
    for name in ("num_inference_steps", "num_images_per_prompt"):
        found += table(upscale, name, COUNT)
    found += table(upscale, "guidance_scale", SCALE) + table(upscale, "strength", [v for v in NUMBER if v is not None])
    found += table(text, "noise_ratio", [v for v in NUMBER if v is not None])
    for entry in (labels, text, upscale):
        for name in ("output_prior_images", "return_dict"):
            found += table(entry, name, FLAG)
        found += table(entry, "output_type", CHOICE)
        found += table(entry, "callback_on_step_end", {"none": lambda *_: None, "a list": lambda *_: [1]})
        found += table(entry, "callback_on_step_end", {"words": lambda *_: {"latents": "x"}})
        found += table(
            entry, "callback_on_step_end", {"less": lambda p, i, t, kw: {"latents": kw["latents"][..., :1]}}
        )
    found += table(labels, "truncate_prior", FLAG[1:]) + table(text, "truncate_prior", FLAG[1:])
    found += table(labels, "class_labels", LABEL) + table(upscale, "class_labels", LABEL)
    for entry in (labels, text):
        found += table(entry, "latents", not_latents(1, 4, 8, 8)) + table(
            entry, "prior_latents", not_latents(1, 4, 4, 4)
        )
        found += table(entry, "latents", {"1e30": torch.full((1, 4, 8, 8), 1e30)})
    found += table(upscale, "image", IMAGES)
    found += table(
        text, "prompt", {"a surrogate": SURROGATE, "in a list": ["cat", SURROGATE], "bytes": b"cat", "a dict": {}}
    )
    found += table(text, "negative_prompt", {"a surrogate": SURROGATE, "NaN": NAN}, guidance_scale=2.0)
    found += table(text, "max_sequence_length", [v for v in COUNT if v is not None])
    found += table(
        text, "prompt_embeds", not_latents(1, 3, 6), **{k: v for k, v in EMBEDS.items() if k != "prompt_embeds"}
    )
    masks = {"NaN": torch.full((1, 3), NAN), "a list": [[1, 1, 1]], "a flag": True, "a shorter one": torch.ones(1, 2)}
    found += table(text, "prompt_attention_mask", masks, prompt=None, prompt_embeds=EMBEDS["prompt_embeds"])
    negative = {k: v for k, v in NEGATIVE.items() if k != "negative_prompt_embeds"} | {"guidance_scale": 2.0}
    found += table(text, "negative_prompt_embeds", not_latents(1, 3, 6), **negative)

    coarse = "generate_from_coarse"
    for name in ("num_inference_steps", "num_images_per_prompt"):
        found += table(coarse, name, COUNT)
    found += table(coarse, "coarse_num_inference_steps", [v for v in COUNT if v is not None], image=None)
    for name in ("height", "width"):
        found += table(coarse, name, SIZE)
    found += table(coarse, "image", {k: v for k, v in IMAGES.items() if v is not None})
    found += table(coarse, "prior_latents", not_latents(1, 4, 4, 4), image=None, height=16, width=16)
    found += table(coarse, "upsample", CHOICE) + table(coarse, "resize_mode", CHOICE)
    found += table(
        coarse, "scheduler", {"a class": LowFreqFlowMatchScheduler, "a dict": {"factor": 2}, "a name": "bicubic"}
    )
    found += together(coarse, "promt", promt="cat") + together(coarse, "class_labels", class_labels="\u202etac")

    own = "LowFreqFlowMatchScheduler()"
    found += table(own, "num_train_timesteps", COUNT[len(NOT_A_COUNT) :])
    for name in ("base_shift", "max_shift"):
        found += table(own, name, NUMBER)
    for name in ("base_image_seq_len", "max_image_seq_len"):
        found += table(own, name, [0, -1, 2.5, "2", None, True, NAN])
    found += together(own, ("base_image_seq_len", "max_image_seq_len"), base_image_seq_len=256, max_image_seq_len=256)
    found += (
        table(own, "use_dynamic_shifting", FLAG)
        + table(own, "projection", CHOICE)
        + table(own, "time_shift_type", CHOICE)
    )
    found += table(own, "noise_ratio_range", [[NAN, 1], [True, False], {0.1, 0.9}, "ab", np.array([0.1, 0.9])])
    found += table(own, "projection_basis", [[], "{}", {"channels": [[1]]}], ("basis",), projection="pca")
    found += table(own, "solver_order", [True, 1.0, np.array([1, 2])])
    found += table("set_timesteps", "num_inference_steps", COUNT[len(NOT_A_COUNT) :])
    for name in ("sigmas", "timesteps"):
        values = [
            "ab",
            [[1.0]],
            [NAN],
            [1.0, "x"],
            {"a": 1},
            [1e-46],
            [0.5, 0.5 - 1e-12],
            torch.tensor([1j]),
            [10**400],
        ]
        found += table("set_timesteps", name, values)
    found += table("set_timesteps", "mu", [*NUMBER, 1e308, 800, -800, 90.0], of={"use_dynamic_shifting": True})
    linear = {"use_dynamic_shifting": True, "time_shift_type": "linear"}
    found += table("set_timesteps", "mu", [0, -1.0, 1e-50, 1e308], of=linear)
    found += table("set_timesteps", "of", [{"shift": 1e30}, {"shift": 1e-45}], ("shift",))
    found += table("set_timesteps", "device", ["nowhere", "größe", 1.5, [], {"cpu"}])
    tensors = {
        "a list": [[0.0]],
        "none": None,
        "a number": 1.0,
        "an array": np.zeros((1, 1, 4, 4)),
        "more": randn(2, 1, 4, 4),
    }
    tensors |= {"integers": torch.zeros(1, 1, 4, 4, dtype=torch.long), "no batch": randn(4, 4)}
    for name in ("model_output", "sample"):
        found += table("step", name, tensors)
    found += table("step", "timestep", ["1000", None, [], [1000.0, 1000.0], {1000.0}, 1j, INF, "\u0661"])
    found += table("step", "begin_index", ["0", -1, 0.0, True, NAN, [0]])
    for entry, name in (("make_source", "low"), ("make_source", "noise"), ("make_source_from_sample", "sample")):
        found += table(entry, name, {k: v for k, v in tensors.items() if k not in ("no batch", "more")})
    found += table("make_source_from_sample", "noise", tensors)
    found += table(
        "make_source", "noise_ratio", [*[v for v in NUMBER if v is not None], torch.ones(3), torch.ones(2, 2)]
    )
    found += table("scale_noise", "sample", tensors | {"more": randn(4, 1, 4, 4)})
    found += table("scale_noise", "noise", tensors | {"more": randn(4, 1, 4, 4), "one": randn(1, 1, 4, 4)})
    values = ["500", None, NAN, -1.0, 1000.5, [500.0] * 3, torch.tensor([NAN, 1.0]), torch.ones(2, 2), 1j]
    found += table("scale_noise", "timestep", values)

    model = "LowFreqTransformer2DModel()"
    for name in ("patch_size", "in_channels", "num_layers", "num_attention_heads", "attention_head_dim"):
        found += table(model, name, [*HUGE, "２", np.array([2, 2])])
    for name in ("num_classes", "caption_channels"):
        found += table(model, name, [10**30, 10**12, "２", {2}], **({"num_classes": None} if name[0] == "c" else {}))
    found += table(
        model, "sample_size", [0, -8, 8.0, "8", None, True, NAN, [8], [8, 8, 8], [8, "8"], [8, 0], {8, 9}, 10**30]
    )
    for name in ("use_meanflow", "use_noise_ratio"):
        found += table(model, name, FLAG)
    for name in ("mlp_ratio", "time_max_frequency"):
        found += table(model, name, [NAN, None, [4.0], True, 1e300, 10**400, np.array([4.0, 4.0])])
    bad_statistics = [["a"] * 4, [NAN] * 4, [INF] * 4, [None] * 4, [True] * 4, [[0.0]] * 4, "abcd", {0, 1, 2, 3}]
    found += table(model, "sample_mean", bad_statistics, sample_std=[1.0] * 4)
    found += table(model, "sample_std", [*bad_statistics, [0.0] * 4, [-1.0] * 4], sample_mean=[0.0] * 4)
    call = "LowFreqTransformer2DModel"
    found += table(call, "hidden_states", {k: v for k, v in not_latents(1, 4, 8, 8).items() if k in ("integers", "an array", "a list", "a number")})  # fmt: skip
    found += table(call, "timestep", {"a number": 500.0, "a string": "500", "none": None, "a list": [500.0]})
    labels_of_a_model = {
        "a number": 0,
        "a name": "cat",
        "a list": [0],
        "floats": torch.zeros(1),
        "flags": torch.tensor([True]),
    }
    found += table(call, "class_labels", labels_of_a_model)

    found += table("downsample", "sample", {"none": None, "words": "ab", "integers": torch.ones(1, 4, 4).long()})
    found += table(
        "downsample", "sample", {"no rows": torch.zeros(1, 0, 4), "too long": torch.zeros(1).expand(4, 10**8)}
    )
    found += table(
        "upsample", "low", {"no columns": torch.zeros(1, 4, 0), "too long": torch.zeros(1).expand(10**8, 4)}
    )
    found += table("upsample", "factor", [10**9, 10**30])
    batches = {
        "none": None,
        "a tensor": randn(1, 4),
        "words": ["ab"],
        "no batch": [],
        "integers": [torch.ones(1, 1, 4, 4).long()],
    }
    found += table(
        "fit_projection_basis",
        "batches",
        batches | {"NaN": [torch.full((1, 1, 4, 4), NAN)], "empty": [randn(0, 1, 4, 4)]},
    )
    found += table("fit_projection_basis", "factor", NOT_A_COUNT)
    for name in ("source", "sample"):
        values = {"NaN": torch.full((2, 1, 2, 2), NAN), "a list": [0.0], "none": None, "one": randn(1, 1, 2, 2)}
        found += table("minibatch_optimal_transport", name, values)
    found += table(
        "minibatch_optimal_transport",
        "labels",
        {"words": ["a", "b"], "one": torch.zeros(1), "NaN": torch.full((2,), NAN)},
    )
    found += table("SemiDiscreteCoupling()", "samples", {"a list": [0.0], "none": None, "no axes": torch.ones(3)})
    found += table("SemiDiscreteCoupling()", "labels", {"words": ["a", "b", "c"], "flags": [True] * 3})

    constructor = "LowFreqPipeline()"
    found += table(constructor, "truncate_prior", FLAG)
    found += table(
        constructor,
        "id2label",
        [{"a": "cat"}, {0: 1}, {0.5: "cat"}, {-1: "cat"}],
    )
    for name in ("transformer", "scheduler", "prior", "vae", "prior_scheduler", "guider"):
        found += table(constructor, name, ["cat", {"a": 1}, LowFreqFlowMatchScheduler])

    found += together(labels, ("latents", "truncate_prior"), latents=randn(1, 4, 8, 8), truncate_prior=True)
    found += together(labels, "latents", latents=randn(1, 4, 8, 8), height=32)
    found += together(labels, ("callback_on_step_end_tensor_inputs",), callback_on_step_end_tensor_inputs=["lаtents"])
    found += together(text, "prompt", prompt=None) + together(text, "prompt", **EMBEDS | {"prompt": "cat"})
    found += together(text, "prior_latents", prompt=["cat"] * 2, prior_latents=randn(1, 4, 4, 4))
    found += together(upscale, "class_labels", class_labels=["cat", "dog"])
    found += together("set_timesteps", ("sigmas", "timesteps"), sigmas=[1.0], timesteps=[1000.0])
    return found + strange_cases(found)


def strange_cases(found: list[Case]) -> list[Case]:
    """For every argument of the pipelines that has cases, one of the values that nothing takes, by lot."""
    drawn = random.Random(0)
    arguments = sorted(
        {(case.entry, case.name) for case in found if case.name in case.change} - {("set_timesteps", "of")}
    )
    strange = []
    for entry, name in arguments:
        beside = next(c.change for c in found if (c.entry, c.name) == (entry, name))
        beside = {k: v for k, v in beside.items() if k != name}
        named = next(c.named for c in found if (c.entry, c.name) == (entry, name))
        i = drawn.randrange(len(STRANGE))
        strange += table(entry, name, {f"strange {type(STRANGE[i]).__name__}": STRANGE[i]}, named, **beside)
    return strange


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case}" for i, case in enumerate(CASES)])
def test_a_bad_call_ends_in_an_error_that_names_the_argument(case):
    good_call(case.entry)  # what is built once is not counted
    started = time.monotonic()
    with pytest.raises((ValueError, TypeError, OSError)) as error:
        ENTRY_POINTS[case.entry](**case.change)
    seconds = time.monotonic() - started
    assert any(f"`{name}`" in str(error.value) for name in case.named), f"{type(error.value)}: {error.value}"
    assert seconds < LIMIT


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
    """Script, the option that is bad, and the command line: for every option that is a number, two by lot."""
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
    """The last line that the parser of a script says before it leaves."""
    started = time.monotonic()
    with pytest.raises(SystemExit) as error:
        SCRIPTS[script].parse_args(line)
    assert time.monotonic() - started < LIMIT
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


# ------------------------------------------------------------------------- what an engine, or a cache, cannot do

TINY = "--train_data_dir images --output_dir out --resolution 16 --transformer_size 1x1x8 --prior_size 1x1x8 --patch_size 4"
TINY = [
    *TINY.split(),
    "--train_batch_size=2",
    "--prior_train_batch_size=2",
    "--max_train_steps=1",
    "--prior_max_train_steps=1",
]


def pretend(**shared):
    """Tell the state that all of accelerate shares that the run is another one."""
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
