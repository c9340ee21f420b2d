# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The real Hub client, each time in a fresh process, against a Hub on the loopback interface."""

import datasets
import numpy as np
import pytest
from hub_server import TOKEN, HubServer
from PIL import Image
from scripts import CLASSES, EXAMPLES, make_folder, make_pixels, make_vae, run_process, workplace

from diffusers_lowfreq import LowFreqPipeline


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures(workplace.__name__)]

TRAIN = [EXAMPLES / "train_lowfreq.py", *"--output_dir out --resolution 16 --transformer_size nano".split()]
TRAIN += "--prior_size nano --train_batch_size 8 --prior_train_batch_size 8 --max_train_steps 2".split()
TRAIN += "--prior_max_train_steps 2 --lr_warmup_steps 1 --num_validation_images 2".split()

GENERATE = """
import sys, torch, diffusers_lowfreq
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
generator = [torch.Generator().manual_seed(i) for i in range(2)]
images = pipe(["red", "blue"], num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="np").images
__import__("numpy").save("images.npy", images)
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def generate_here(folder: str) -> np.ndarray:
    import torch

    generator = [torch.Generator().manual_seed(i) for i in range(2)]
    kwargs = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    return LowFreqPipeline.from_pretrained(folder)(["red", "blue"], generator=generator, **kwargs).images


def test_a_pipeline_that_is_pushed_loads_by_name_without_remote_code(workplace, hub):
    make_folder(workplace / "images")
    push = ["--push_to_hub", "--hub_model_id", "org/name", "--hub_token", TOKEN]
    run_process(*TRAIN, "--patch_size", 4, "--train_data_dir", "images", *push, cwd=workplace, **hub.environment)
    files = hub.repos["models", "org/name"]
    assert {"model_index.json", "README.md", f"transformer/{'diffusion_pytorch_model.safetensors'}"} <= set(files)
    assert not [path for path in files if "checkpoint" in path or "cache" in path or path.startswith("logs")]
    assert not [path for path in files if path.endswith(".py")]
    assert 'from_pretrained("org/name")' in files["README.md"].decode()
    assert TOKEN not in b"".join(files.values()).decode(errors="ignore")

    run_process("-c", GENERATE, "org/name", cwd=workplace, HF_HOME=str(workplace / "fresh"), **hub.environment)
    np.testing.assert_array_equal(np.load("images.npy"), generate_here("out"))


def test_a_wrong_token_is_found_before_any_work(workplace, hub):
    make_folder(workplace / "images")
    push = ["--push_to_hub", "--hub_model_id", "org/name", "--hub_token", "hf_wrong"]
    with pytest.raises(AssertionError, match="401"):
        run_process(*TRAIN, "--train_data_dir", "images", *push, cwd=workplace, **hub.environment)
    assert not (workplace / "out").exists()


def test_data_and_autoencoder_come_by_name(workplace, hub):
    data = {"img": [Image.fromarray(p) for p in make_pixels(12)], "label": [i % 3 for i in range(12)]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    datasets.Dataset.from_dict(data, features).to_parquet("train.parquet")
    hub.repos["datasets", "org/data"] = {
        "data/train-00000-of-00001.parquet": (workplace / "train.parquet").read_bytes()
    }
    make_vae(workplace / "vae")
    hub.repos["models", "org/vae"] = {path.name: path.read_bytes() for path in (workplace / "vae").iterdir()}
    names = "--dataset_name org/data --image_column img --pretrained_vae_model_name_or_path org/vae --factor 2"
    run_process(*TRAIN, *names.split(), cwd=workplace, **hub.environment)
    pipe = LowFreqPipeline.from_pretrained("out")
    assert sorted(pipe.labels) == CLASSES and pipe.vae.config.latents_mean is not None
    assert "| images | 12 of org/data |" in (workplace / "out" / "README.md").read_text()
    assert generate_here("out").shape == (2, 16, 16, 3)


def test_a_teacher_comes_by_name(workplace, hub):
    make_folder(workplace / "images")
    run_process(*TRAIN, "--patch_size", 4, "--train_data_dir", "images", cwd=workplace, **hub.environment)
    files = [path for path in (workplace / "out").rglob("*") if path.is_file()]
    parts = ("model_index.json", "transformer", "prior", "scheduler", "prior_scheduler")
    names = {str(path.relative_to(workplace / "out")): path for path in files}
    hub.repos["models", "org/teacher"] = {
        name: path.read_bytes() for name, path in names.items() if name.split("/")[0] in parts
    }
    student = [option for option in TRAIN if option != "nano"]  # the sizes are the teacher's
    student = [option for option in student if option not in ("--transformer_size", "--prior_size")]
    student[student.index("out")] = "student"
    teacher = ["--teacher", "org/teacher", "--guidance_scale", 2, "--prior_guidance_scale", 2]
    run_process(*student, "--train_data_dir", "images", *teacher, cwd=workplace, **hub.environment)
    pipe = LowFreqPipeline.from_pretrained("student")
    assert pipe.transformer.config.use_meanflow and pipe.prior.config.guidance_scale == 2.0
    assert "| teacher | org/teacher |" in (workplace / "student" / "README.md").read_text()
