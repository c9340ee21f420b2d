# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`examples/train_autoencoder.py`: an ordinary `AutoencoderKL` comes out, with a PSNR that is true."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from scripts import (
    EXAMPLES,
    load_script,
    make_folder,
    make_pixels,
    make_vae,
    run_process,
    run_two_processes,
    signalled_in_step,
    workplace,
)

from diffusers import AutoencoderKL, AutoModel
from diffusers_lowfreq import LowFrequencyProjection
from diffusers_lowfreq.training import load_images


pytestmark = pytest.mark.usefixtures(workplace.__name__)

script = load_script("train_autoencoder")

LINE = (
    "--train_data_dir images --resolution 16 --block_out_channels 16 16 --latent_channels 4 --num_validation_images 2 "
)
LINE += "--train_batch_size 4 --max_train_steps 4 --lr_warmup_steps 1"


def train(capsys=None, output_dir="out", **options) -> float | None:
    """Train in this process and return the PSNR that was printed last."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    changes = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    script.main(script.parse_args([*LINE.split(), "--output_dir", output_dir, *changes]))
    if capsys is not None:
        found = re.findall(r"PSNR ([\d.]+) dB on (\d+) held-out images", capsys.readouterr().out)
        assert found[-1][1] == "2"
        return float(found[-1][0])


def weights(folder: str = "out") -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/diffusion_pytorch_model.safetensors")


def same(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_validation_images_are_held_out_and_their_psnr_is_true(workplace, capsys):
    """An image is held out if another one in its place leaves the weights alone; there are as many as was asked."""
    make_folder(workplace / "images", 6)
    psnr = train(capsys)
    paths = [row["image"]["path"] for row in load_images(None, "images", resolution=16).dataset]
    held_out = []
    for i, path in enumerate(paths):
        shutil.copy(path, "kept.png")
        Image.fromarray(255 - make_pixels(1, seed=1)[0]).save(path)
        other = train(capsys, f"out{i}")
        if same(weights(f"out{i}"), weights()):
            held_out.append(i)
            assert abs(other - psnr) > 0.05
        shutil.move("kept.png", path)
    assert len(held_out) == 2

    vae = AutoencoderKL.from_pretrained("out")
    images = load_images(None, "images", resolution=16)
    x = torch.stack([images[i] for i in held_out]).double() / 255
    with torch.no_grad():
        decoded = vae.decode(vae.encode((x * 2 - 1).float()).latent_dist.mode()).sample
    decoded = decoded.double().clamp(-1, 1) / 2 + 0.5
    expected = (-10 * (decoded - x).square().mean((1, 2, 3)).log10()).mean()
    assert abs(psnr - expected) < 0.01


def test_training_lowers_the_error_and_latents_have_the_shape_asked_for(workplace, capsys):
    make_folder(workplace / "images")
    before, after = train(capsys, max_train_steps=1), train(capsys, "trained", max_train_steps=60)
    assert after > before + 1
    vae = AutoModel.from_pretrained("trained")
    assert isinstance(vae, AutoencoderKL)
    assert vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mode().shape == (1, 4, 8, 8)
    assert vae.config.scaling_factor == 1.0 and vae.config.sample_size == 16


def test_a_resumed_run_is_the_same_run(workplace):
    make_folder(workplace / "images")
    train(checkpointing_steps=2)
    expected = weights()
    shutil.rmtree("out/checkpoint-4")
    os.remove("out/diffusion_pytorch_model.safetensors")
    train(checkpointing_steps=2, resume_from_checkpoint="latest")
    assert same(weights(), expected)


def test_a_resume_may_not_change_what_is_held_out(workplace):
    make_folder(workplace / "images")
    train(max_train_steps=1)
    with pytest.raises(ValueError, match="num_validation_images: 2 -> 3"):
        train(max_train_steps=1, num_validation_images=3, resume_from_checkpoint="latest")


def test_batch_4_is_accumulation_of_2_times_2(workplace):
    make_folder(workplace / "images")
    train()
    train(output_dir="split", train_batch_size=2, gradient_accumulation_steps=2)
    torch.testing.assert_close(weights("split"), weights(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options, differs",
    [
        ({"equivariance_probability": 1.0}, True),
        ({"kl_weight": 1.0}, True),
        ({"l1_weight": 1.0}, True),
        ({"equivariance_probability": 0.0, "projection": "dct", "factor": 4}, False),
    ],
    ids=["equivariance", "kl", "l1", "no equivariance"],
)
def test_each_term_of_the_loss_acts_when_it_has_weight(workplace, options, differs):
    make_folder(workplace / "images")
    train(equivariance_probability=0.0 if not differs else 0.25)
    train(output_dir="other", **options)
    assert same(weights("other"), weights()) != differs


@pytest.mark.slow
def test_a_coarse_latent_is_trained_to_mean_a_coarse_image(workplace):
    """Every image has a bright frame, which a decoder finds by its padding alone: from coarse latents it must not."""
    frame = np.ones((16, 16))
    frame[1:-1, 1:-1] = 0
    frame -= frame.mean()  # nothing of it is left in blocks of 8 x 8
    os.makedirs("images")
    for i, level in enumerate(np.linspace(60, 140, 10)):
        Image.fromarray((level + 100 * frame)[..., None].repeat(3, -1).astype(np.uint8)).save(f"images/{i}.png")
    images = load_images(None, "images", resolution=16)
    x = torch.stack([images[i] for i in range(len(images))]) / 127.5 - 1
    projection, frame = LowFrequencyProjection("area", 8), torch.from_numpy(frame).float()
    left = []
    for probability in (0.0, 1.0):
        options = {"projection": "area", "factor": 8, "max_train_steps": 80, "learning_rate": 5e-3}
        train(output_dir=f"out{probability}", equivariance_probability=probability, **options)
        vae = AutoencoderKL.from_pretrained(f"out{probability}")
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            decoded = vae.decode(projection(z) if probability else z).sample
        left.append(float((decoded * frame).mean() / (x * frame).mean()))
    assert left[0] > 0.5 and abs(left[1]) < 0.2


@pytest.mark.parametrize("name", ["resolution", "train_batch_size", "max_train_steps", "num_validation_images"])
def test_a_number_that_is_not_positive_is_named(capsys, name):
    with pytest.raises(SystemExit):
        script.parse_args([*LINE.split(), "--output_dir", "out", f"--{name}", "0"])
    assert f"argument --{name}: must be positive, got 0" in capsys.readouterr().err


def test_more_held_out_than_there_are_is_refused(workplace):
    make_folder(workplace / "images", 6)
    with pytest.raises(ValueError, match="`num_validation_images` must be below the 6 images, got 6"):
        train(num_validation_images=6)


def test_a_size_that_the_levels_do_not_divide_is_refused(workplace):
    make_folder(workplace / "images", 6)
    with pytest.raises(ValueError, match="`resolution` must be a multiple of 4 .*got 18"):
        train(resolution=18)


@pytest.mark.slow
def test_the_script_makes_an_autoencoder_that_the_other_script_takes(workplace):
    make_folder(workplace / "images")
    output = run_process(EXAMPLES / "train_autoencoder.py", *LINE.split(), "--output_dir", "vae", cwd=workplace)
    assert "held-out images" in output
    line = "--train_data_dir images --resolution 16 --transformer_size nano --prior_size nano --factor 2 "
    line += "--pretrained_vae_model_name_or_path vae --max_train_steps 2 --prior_max_train_steps 2 --output_dir out "
    line += "--train_batch_size 8 --prior_train_batch_size 8 --num_validation_images 2"
    run_process(EXAMPLES / "train_lowfreq.py", *line.split(), cwd=workplace)
    assert same(weights("out/vae"), weights("vae")) and not same(
        weights("vae"), make_vae(workplace / "v").state_dict()
    )


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(workplace):
    make_folder(workplace / "images")
    line = LINE.replace("--train_batch_size 4", "--train_batch_size 2") + " --output_dir two"
    run_two_processes("train_autoencoder", *line.split(), cwd=workplace)
    train(output_dir="one")
    torch.testing.assert_close(weights("two"), weights("one"), rtol=1e-3, atol=1e-5)


def test_a_run_that_is_asked_to_leave_saves_and_goes_on(workplace):
    make_folder(workplace / "images", 6)
    train(output_dir="undisturbed")
    with signalled_in_step(2), pytest.raises(SystemExit, match="143"):
        train()
    assert [name for name in os.listdir("out") if name.startswith("checkpoint")] == ["checkpoint-2"]
    train(resume_from_checkpoint="latest")
    assert same(weights(), weights("undisturbed"))
