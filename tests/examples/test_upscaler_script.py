# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`examples/train_lowfreq.py` on coarse latents of degraded images, and with a LoRA."""

import json
import os
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scripts import make_vae, workplace
from test_training_script import DEFAULTS, assert_same, command_line, differ, images, script, table, train, weights
from tiny import randomize

from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, LowFreqUpscalePipeline
from diffusers_lowfreq.objectives import FlowMatching
from diffusers_lowfreq.training import DegradedImages, load_images
from diffusers_lowfreq.training.checkpoints import load_ema_state


pytestmark = pytest.mark.usefixtures(workplace.__name__)

LORA = "pytorch_lora_weights.safetensors"
assert images  # the fixture


@pytest.fixture
def base(workplace, images):
    """A small trained pipeline of latents, in `base`, and the options of a LoRA of its flow."""
    make_vae(workplace / "vae")
    options = {"pretrained_vae_model_name_or_path": "vae", "patch_size": 2, "factor": 2, "cache_dir": "cache"}
    train(**options, noise_ratio_range=(0.2, 0.6), max_train_steps=2, prior_max_train_steps=2, output_dir="base")
    pipe = LowFreqPipeline.from_pretrained("base")
    randomize(pipe.transformer).save_pretrained("base/transformer")  # after two steps its blocks change nothing yet
    fixed = {"transformer_size", "patch_size", "prior_size"}
    new = dict.fromkeys(fixed) | {"train": "flow", "pretrained_model_name_or_path": "base", "cache_dir": "cache"}
    return new | {"degraded_share": 0.5, "rank": 2, "learning_rate": 1e-2}


def lora_state(checkpoint):
    folder = os.path.join(checkpoint, "transformer")
    found = {"lora": load_file(f"{folder}/{LORA}"), "ema": load_ema_state(f"{folder}_ema.safetensors")}
    with open(f"{checkpoint}/lr_scheduler.json") as file:
        found["lr_scheduler.json"] = json.load(file)
    return found | {"optimizer.bin": torch.load(f"{checkpoint}/optimizer.bin")}


@pytest.mark.parametrize("share, origins", [(0.0, {"true"}), (0.5, {"true", "degraded"}), (1.0, {"degraded"})])
def test_the_source_is_made_of_degraded_images_and_the_sample_is_not(workplace, images, monkeypatch, share, origins):
    """In pixels, where it can be seen which image a source was made of."""
    seen, make_source = [], LowFreqFlowMatchScheduler.make_source_from_sample

    def record(self, sample, noise, noise_ratio=None):
        seen.append(sample)
        return make_source(self, sample, noise, noise_ratio)

    monkeypatch.setattr(LowFreqFlowMatchScheduler, "make_source_from_sample", record)
    samples, objective = [], FlowMatching.__call__

    def record_sample(self, model, source, sample, **kwargs):
        samples.append(sample)
        return objective(self, model, source, sample, **kwargs)

    monkeypatch.setattr(FlowMatching, "__call__", record_sample)
    train(train="flow", degraded_share=share, max_train_steps=6)
    true = load_images(train_data_dir="images", resolution=16)
    sets = {"true": true, "degraded": DegradedImages(true)}
    known = {}
    for origin, dataset in sets.items():
        for i in range(len(dataset)):
            for flipped in (dataset[i], dataset[i].flip(-1)):
                known[flipped.numpy().tobytes()] = (origin, i)
    found = [known[((x + 1) * 127.5).round().byte().numpy().tobytes()] for x in torch.cat(seen)]
    targets = [known[((x + 1) * 127.5).round().byte().numpy().tobytes()] for x in torch.cat(samples)]
    assert {origin for origin, _ in found} == origins and {origin for origin, _ in targets} == {"true"}
    assert [i for _, i in found] == [i for _, i in targets]  # each the coarse version of its own image
    if share == 0.5:
        assert 0.3 < sum(origin == "true" for origin, _ in found) / len(found) < 0.7


@pytest.mark.parametrize("rank", [None, 2])
def test_a_resumed_run_is_the_same_run(workplace, base, rank):
    options = base | {"rank": rank, "max_train_steps": 6, "checkpointing_steps": 3}
    train(**options)
    read = lora_state if rank else (lambda c: [weights(f"{c}/transformer"), weights(f"{c}/transformer_ema")])
    final = f"out/{LORA}" if rank else "out/transformer/diffusion_pytorch_model.safetensors"
    expected, last = read("out/checkpoint-6"), load_file(final)
    shutil.rmtree("out/checkpoint-6")
    os.remove(final)
    train(**options, resume_from_checkpoint="latest")
    assert_same(read("out/checkpoint-6"), expected)
    assert_same(load_file(final), last)
    with pytest.raises(ValueError, match="degraded_share: 0.5 -> 0.6"):
        train(**options | {"degraded_share": 0.6}, resume_from_checkpoint="latest")


def test_batch_8_is_accumulation_of_4_times_2(workplace, base):
    for batch, accumulation in ((8, 1), (4, 2)):
        split = {"train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        train(**base, **split, output_dir=f"out{batch}")
    actual, expected = (lora_state(f"out{batch}/checkpoint-4") for batch in (4, 8))
    assert_same(actual["lora"], expected["lora"], rtol=1e-3, atol=1e-5)
    assert_same(actual["ema"]["shadow_params"], expected["ema"]["shadow_params"], rtol=1e-3, atol=1e-5)
    assert actual["lr_scheduler.json"] == expected["lr_scheduler.json"]


def test_a_lora_is_all_that_a_run_leaves_and_it_loads(workplace, base):
    train(**base, gradient_checkpointing=True)
    left = ["README.md", LORA, "checkpoint-4", "samples", "training.json"]
    assert sorted(os.listdir("out")) == sorted(left)
    assert os.listdir("out/samples") == ["flow-000004-degraded-coarse-steps-1-2-4-8.png"]
    before = {k: weights(f"base/{k}") for k in ("transformer", "prior")}
    pipe = LowFreqUpscalePipeline.from_pretrained("base")
    image, options = Image.new("RGB", (8, 8), "red"), {"num_inference_steps": 2, "output_type": "pt"}
    make = lambda: pipe(image, "red", generator=torch.Generator().manual_seed(0), **options).images  # noqa: E731
    plain = make()
    pipe.load_lora_weights("out")
    assert (make() - plain).abs().max() > 1e-3
    for name in ("transformer", "prior"):
        assert_same(weights(f"base/{name}"), before[name])
    # What is saved is the average of the weights, not the last ones
    last, saved = load_file(f"out/checkpoint-4/transformer/{LORA}"), load_file(f"out/{LORA}")
    assert {f"transformer.{k}" for k in last} == saved.keys()
    assert differ(last, {k: saved[f"transformer.{k}"] for k in last})
    assert all(x.dtype == torch.float32 for x in saved.values())
    rows = table()
    assert rows["LoRA"]["rank"] == "2" and rows["Source"]["share of degraded coarse latents"] == "0.5"
    assert rows["Training of the flow"]["parameters"] == f"{sum(x.numel() for x in saved.values()):,}"
    code = re.search(r"```py\n(.*?)```", open("out/README.md").read(), re.DOTALL)[1]
    found = {"image": image}
    exec(code.replace('"out"', repr(os.path.abspath("out"))), found)
    assert found["images"][0].size == (16, 16)


def test_a_lora_of_other_weights_or_of_another_source_is_refused(workplace, base):
    train(**base)
    other = LowFreqPipeline.from_pretrained("base")
    randomize(other.transformer, seed=1, std=1.0)
    with pytest.raises(ValueError, match="was trained on 'base' .* other weights of a LowFreqTransformer2DModel"):
        other.load_lora_weights("out")
    other = LowFreqPipeline.from_pretrained("base")
    other.scheduler = LowFreqFlowMatchScheduler.from_config(other.scheduler.config, noise_ratio_range=[0.2, 0.7])
    with pytest.raises(ValueError, match=r"with noise_ratio_range \[0.2, 0.7\]; it was trained with \[0.2, 0.6\]"):
        other.load_lora_weights("out")


@pytest.mark.parametrize(
    "line, message",
    [
        ("--rank 2", "argument --rank: needs --train flow and --pretrained_model_name_or_path"),
        ("--rank 2 --train flow", "argument --rank: needs --train flow and --pretrained_model_name_or_path"),
        ("--rank 2 --pretrained_model_name_or_path p", "argument --rank: needs --train flow"),
        ("--rank 2 --train flow --teacher p", "argument --rank: needs"),
        ("--rank 0 --train flow --pretrained_model_name_or_path p", "argument --rank: must be positive, got 0"),
        ("--degraded_share 1.5", "argument --degraded_share: must be in [0, 1], got 1.5"),
        ("--degraded_share 0.5 --train prior", "argument --degraded_share: is for the flow, which is not trained"),
    ],
)
def test_a_bad_argument_is_named(capsys, line, message):
    with pytest.raises(SystemExit):
        script.parse_args(["--output_dir", "out", *line.split()])
    assert message in capsys.readouterr().err


def test_the_new_options_leave_other_runs_as_they_were():
    args = script.parse_args(command_line())
    assert args.rank is args.degraded_share is None and "rank" not in DEFAULTS
