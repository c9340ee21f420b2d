# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`examples/train_lowfreq.py` with captions: what a run leaves behind, and that one trajectory comes out of it."""

import glob
import json
import re
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset, Features, Image, Value
from safetensors.torch import load_file
from scripts import CLASSES, load_script, make_captioned_folder, make_folder, make_vae, workplace
from tiny import make_text_encoder, make_tokenizer

from diffusers import DiffusionPipeline
from diffusers_lowfreq import LowFreqTextToImagePipeline
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.training import CaptionCache


pytestmark = pytest.mark.usefixtures(workplace.__name__)

script = load_script("train_lowfreq")

DEFAULTS = {"train_data_dir": "images", "output_dir": "out", "resolution": 16, "patch_size": 4, "cache_dir": "cache"}
DEFAULTS |= {"transformer_size": "2x2x8", "prior_size": "1x2x8", "lr_warmup_steps": 1, "num_validation_images": 3}
DEFAULTS |= {"train_batch_size": 8, "prior_train_batch_size": 8, "max_train_steps": 4, "prior_max_train_steps": 4}
DEFAULTS |= {"caption_column": "text", "pretrained_text_encoder_name_or_path": "encoder"}
FROM_PIPELINE = dict.fromkeys(["pretrained_text_encoder_name_or_path", "transformer_size", "patch_size", "prior_size"])


@pytest.fixture
def images(workplace):
    """Eighteen images with two captions each that name their colour, and a text encoder."""
    tokenizer = make_tokenizer(words="a the photo picture " + " ".join(CLASSES))
    for part in (tokenizer, make_text_encoder("clip", tokenizer)):
        part.save_pretrained("encoder")
    return make_captioned_folder(workplace / "images")


def train(**options):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    line = []
    for key, value in (DEFAULTS | options).items():
        if value is not None:
            line += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    script.main(script.parse_args(line))


def weights(folder):
    return load_file(f"{folder}/diffusion_pytorch_model.safetensors")


def assert_same(a, b, rtol=0.0, atol=0.0):
    torch.testing.assert_close(weights(a), weights(b), rtol=rtol, atol=atol)


def differ(a, b):
    a, b = weights(a), weights(b)
    return any(not torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_a_pipeline_that_generates_and_a_true_card(workplace, images):
    make_vae(workplace / "vae")
    train(pretrained_vae_model_name_or_path="vae", patch_size=2, factor=2, noise_ratio_range=[0.3, 0.8])
    pipe = DiffusionPipeline.from_pretrained("out")
    assert type(pipe) is LowFreqTextToImagePipeline and pipe.config.truncate_prior
    assert pipe.transformer.config.caption_channels == pipe.prior.config.caption_channels == 6
    assert len(glob.glob("out/samples/*.png")) == 2
    captions = CaptionCache(glob.glob("cache/captions-*")[0], [["a red photo"]])
    text = {"encoder_hidden_states": torch.zeros(1, captions.mean_tokens, 6)}
    with open("out/README.md") as file:
        card = file.read()
    for row in (
        "captions | 6 different ones, of 5 tokens on average",
        "text encoder | CLIPTextModel",
        f"FLOPs of a forward pass for one image | {count_flops(pipe.transformer, (4, 8, 8), **text):,}",
        f"FLOPs of a forward pass for one image | {count_flops(pipe.prior, (4, 4, 4), **text):,}",
    ):
        assert f"| {row} |" in card
    namespace = {}
    exec(re.search(r"```py\n(.*?)```", card, re.DOTALL)[1], namespace)
    assert namespace["images"][0].size == (16, 16)


@pytest.mark.slow
def test_a_flow_alone_is_shown_from_true_coarse_latents(workplace, images):
    train(train="flow")
    assert len(glob.glob("out/samples/flow-000004-true-coarse-*.png")) == 1
    assert LowFreqTextToImagePipeline.from_pretrained("out").prior is None
    train(train="prior", output_dir="prior")
    both = {"pretrained_prior_model_name_or_path": "prior", "prior_subfolder": "prior", "prior_size": None}
    train(train="flow", output_dir="both", **both)
    assert_same("both/prior", "prior/prior")
    assert_same("both/transformer", "out/transformer")


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(workplace, images):
    options = {"max_train_steps": 6, "prior_max_train_steps": 6, "checkpointing_steps": 3}
    train(**options)
    for name in ("prior", "transformer"):
        shutil.copytree(f"out/{name}", f"whole/{name}")
    for path in ("out/prior-checkpoint-6", "out/checkpoint-6", "out/prior", "out/transformer"):
        shutil.rmtree(path)
    shutil.rmtree(glob.glob("cache/captions-*")[0])  # encoded again, to the same
    train(**options, resume_from_checkpoint="latest")
    for name in ("prior", "transformer"):
        assert_same(f"out/{name}", f"whole/{name}")


def test_batch_8_is_accumulation_of_4_times_2(workplace, images):
    for batch, accumulation in ((8, 1), (2, 4)):
        split = {"train_batch_size": batch, "prior_train_batch_size": batch, "prior_coupling": "independent"}
        train(**split, gradient_accumulation_steps=accumulation, output_dir=f"out{batch}")
    for name in ("prior", "transformer"):
        assert_same(f"out2/{name}", f"out8/{name}", rtol=1e-3, atol=2e-6)


@pytest.mark.slow
def test_a_caption_of_many_is_drawn_and_a_single_one_is_a_list_of_one(workplace, images):
    train(train="flow")
    train(train="flow", output_dir="again")
    assert_same("again/transformer", "out/transformer")
    train(train="flow", caption_column="one", output_dir="one")
    assert differ("one/transformer", "out/transformer")
    rows = [json.loads(line) | {"text": [json.loads(line)["one"]]} for line in open("images/metadata.jsonl")]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(train="flow", output_dir="list")
    assert_same("list/transformer", "one/transformer")


def test_a_dropped_caption_is_the_empty_one(workplace, images):
    """All of them dropped is a set without captions, and nothing else."""
    train(train="flow", label_dropout=1.0)
    rows = [json.loads(line) | {"text": ""} for line in open("images/metadata.jsonl")]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for dropout in (0.0, 1.0):
        train(train="flow", label_dropout=dropout, output_dir=f"empty-{dropout}")
        assert_same(f"empty-{dropout}/transformer", "out/transformer")
    train(train="flow", label_dropout=0.0, output_dir="captioned", caption_column="one")
    assert differ("captioned/transformer", "out/transformer")


def test_the_coupling_of_the_prior_stays_within_a_caption(workplace, images):
    """With captions that are all different it has nothing to exchange; with few it has."""
    for coupling in ("independent", "minibatch_ot"):
        train(train="prior", prior_coupling=coupling, caption_column="one", output_dir=coupling)
    assert differ("minibatch_ot/prior", "independent/prior")
    rows = [json.loads(line) for line in open("images/metadata.jsonl")]
    for i, row in enumerate(rows):  # eight draws of eighteen images do not hold one twice
        row["one"] = " ".join([*["photo"] * (i % 5), *["red"] * (i // 5 + 1)])
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"train": "prior", "caption_column": "one", "prior_max_train_steps": 2}
    for coupling in ("independent", "minibatch_ot"):
        train(prior_coupling=coupling, output_dir=f"{coupling}-2", **options)
    assert_same("minibatch_ot-2/prior", "independent-2/prior")


@pytest.mark.slow
def test_parquet_files_may_hold_the_captions(workplace, images):
    rows = [json.loads(line) for line in open("images/metadata.jsonl")]
    data = {"picture": [f"images/{row['file_name']}" for row in rows], "caption": [row["one"] for row in rows]}
    Dataset.from_dict(data, Features({"picture": Image(), "caption": Value("string")})).to_parquet("file.parquet")
    train(train="flow", caption_column="one")
    columns = {"image_column": "picture", "caption_column": "caption"}
    train(train="flow", train_data_dir="file.parquet", output_dir="parquet", **columns)
    assert_same("parquet/transformer", "out/transformer")


@pytest.mark.slow
def test_one_step_models_of_text_are_distilled_from_a_pipeline(workplace, images):
    train(max_train_steps=40, learning_rate=1e-2)
    options = FROM_PIPELINE | {"teacher": "out", "guidance_scale": 2.0, "prior_guidance_scale": 2.0}
    train(**options, output_dir="student")
    student = LowFreqTextToImagePipeline.from_pretrained("student")
    assert student.transformer.config.use_meanflow and student.prior.config.guidance_scale == 2.0
    assert glob.glob("student/samples/flow-*teacher-then-student*.png")
    assert student("a red photo", num_inference_steps=1, prior_num_inference_steps=1).images[0].size == (16, 16)
    unguided = options | {"guidance_scale": None, "prior_guidance_scale": None}
    train(**unguided, output_dir="unguided")
    assert differ("student/transformer", "unguided/transformer")


@pytest.mark.slow
def test_mean_flow_of_text_trains(workplace, images):
    train(objective="mean_flow", guidance_scale=2.0, prior_guidance_scale=2.0, guidance_scale_range=[1.0, 4.0])
    pipe = LowFreqTextToImagePipeline.from_pretrained("out")
    assert pipe("red", guidance_scale=3.0, num_inference_steps=1).images[0].size == (16, 16)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_pipeline_and_keeps_its_text_encoder(workplace, images):
    train()
    shutil.rmtree("encoder")
    on = FROM_PIPELINE | {"pretrained_model_name_or_path": "out", "learning_rate": 0.0, "prior_learning_rate": 0.0}
    train(**on, output_dir="same")
    for name in ("prior", "transformer"):
        assert_same(f"same/{name}", f"out/{name}")
    lora = on | {"train": "flow", "rank": 2, "learning_rate": 1e-2, "prior_learning_rate": None}
    train(**lora, output_dir="lora")
    pipe = LowFreqTextToImagePipeline.from_pretrained("out")
    inputs = {"num_inference_steps": 1, "prior_num_inference_steps": 1, "output_type": "pt"}
    before, after = [], []
    for images in (before, after):
        images.append(pipe("red", generator=torch.Generator().manual_seed(0), **inputs).images)
        if images is before:
            pipe.load_lora_weights("lora")
    assert not torch.equal(before[0], after[0])
    files = [load_file(f"{folder}/text_encoder/model.safetensors") for folder in ("out", "same")]
    torch.testing.assert_close(files[1], files[0], rtol=0, atol=0)


@pytest.mark.slow
def test_pipelines_of_another_kind_or_encoder_are_refused(workplace, images):
    train()
    make_folder(workplace / "classes")
    labels = {"caption_column": None, "pretrained_text_encoder_name_or_path": None}
    train(**labels, train_data_dir="classes", output_dir="labels")
    of_labels = FROM_PIPELINE | {"output_dir": "other"}
    with pytest.raises(ValueError, match="cannot be loaded as a pipeline.*text_encoder"):
        train(**of_labels, pretrained_model_name_or_path="labels")
    with pytest.raises(ValueError, match="cannot be loaded as a pipeline.*LowFreqTextToImagePipeline"):
        train(**of_labels | {"caption_column": None}, teacher="out", train_data_dir="classes")
    pipe = LowFreqTextToImagePipeline.from_pretrained("out")
    pipe.register_modules(text_encoder=make_text_encoder("clip", pipe.tokenizer, seed=8))
    pipe.save_pretrained("changed")
    with pytest.raises(ValueError, match="`teacher` must have the text encoder of the pipeline to train"):
        train(**of_labels, teacher="out", pretrained_model_name_or_path="changed")
