# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoints are of a run: it prunes no others, starts beside no others, and goes on with the same images only."""

import fcntl
import json
import logging
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from scripts import load_script, make_folder, signalled_in_step, workplace

from diffusers_lowfreq.training import (
    check_output_dir,
    describe_images,
    load_images,
    make_accelerator,
    save_checkpoint,
)
from diffusers_lowfreq.training.engines import check_environment
from diffusers_lowfreq.training.resume import RunIdentity


pytestmark = pytest.mark.usefixtures(workplace.__name__)

PIPELINE = Path(__file__).parents[1] / "fixtures" / "0.1.0" / "gaussian"
SCRIPTS = {
    "train_lowfreq": "--transformer_size 1x1x8 --patch_size 4 --train flow",
    "train_autoencoder": "--block_out_channels 16 16 --latent_channels 4",
    "finetune_lora": f"--pretrained_model_name_or_path {PIPELINE} --factor 2 --rank 1 --resolution 8",
}
SHARED = "--train_data_dir images --resolution 16 --num_validation_images 2 --train_batch_size 4 --lr_warmup_steps 1"


@pytest.fixture
def images(workplace):
    return make_folder(workplace / "images", 6)


def train(script: str = "train_lowfreq", steps: int = 2, **options):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    options = {"output_dir": "out", "max_train_steps": steps, "lr_scheduler": "constant"} | options
    changes = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    module = load_script(script)
    module.main(module.parse_args([*SHARED.split(), *SCRIPTS[script].split(), *changes]))


def checkpoints(folder: str = "out") -> list[str]:
    return sorted(name for name in os.listdir(folder) if "checkpoint-" in name)


def settings(path: str) -> dict:
    return json.loads(Path(path, "training_args.json").read_text())


def rewrite(path: str, **changes):
    """Change what a checkpoint says of its run; `None` takes it out, as the first version did not write it."""
    saved = {k: v for k, v in (settings(path) | changes).items() if v is not None}
    Path(path, "training_args.json").write_text(json.dumps(saved))


# ------------------------------------------------------------------------------------------------------- several runs


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_new_run_is_not_started_beside_the_checkpoints_of_an_earlier_one(images, script):
    train(script)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match="`output_dir` 'out' holds checkpoint-2 of an earlier run.* latest`, use another"
    ):
        train(script, steps=1)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_another_run_beside_the_one_that_is_resumed_is_refused_by_name(images):
    train()
    train(output_dir="long", steps=3)
    shutil.copytree("long/checkpoint-3", "out/checkpoint-3")
    for resume in ("latest", "out/checkpoint-2"):
        steps = 3 if resume == "latest" else 2
        with pytest.raises(
            ValueError, match="`output_dir` 'out' holds checkpoint-[23] of another run.* Move them away"
        ):
            train(steps=steps, resume_from_checkpoint=resume)
    train(resume_from_checkpoint="out/checkpoint-2", output_dir="elsewhere")


def test_checkpoints_of_the_first_version_count_by_their_settings(images):
    train(checkpointing_steps=1)
    for step in (1, 2):
        rewrite(f"out/checkpoint-{step}", run=None, images=None)
    shutil.rmtree("out/checkpoint-2")
    train(checkpointing_steps=1, checkpoints_total_limit=1, resume_from_checkpoint="latest")
    assert checkpoints() == ["checkpoint-2"]  # the old one was pruned: it is of this run
    shutil.copytree("out/checkpoint-2", "out/checkpoint-1")
    rewrite("out/checkpoint-1", run=None, images=None, seed=5)
    with pytest.raises(ValueError, match="holds checkpoint-1 of another run"):
        train(resume_from_checkpoint="latest")


def test_a_checkpoint_is_never_pruned_as_it_is_written(images, capsys, caplog):
    """The run goes back to its second step: later checkpoints of it do not count for the limit."""
    train(steps=4, checkpointing_steps=1)
    with signalled_in_step(3), pytest.raises(SystemExit):
        train(steps=4, checkpoints_total_limit=2, resume_from_checkpoint="out/checkpoint-2/")
    assert "checkpoint-3 is saved" in capsys.readouterr().out
    assert checkpoints() == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert "later checkpoints of this run (checkpoint-3, checkpoint-4)" in caplog.text


def test_another_run_is_neither_pruned_nor_overwritten(workplace):
    args = SimpleNamespace(output_dir="out", checkpoints_total_limit=None)
    accelerator, ours, theirs = Accelerator(cpu=True), RunIdentity(), RunIdentity()
    for step in (2, 9):
        save_checkpoint(accelerator, args, step, 1, identity=theirs)
    args.checkpoints_total_limit = 1
    os.mkdir("out/.checkpoint-0.old")  # killed while it pruned
    for step in (1, 3, 4):
        save_checkpoint(accelerator, args, step, 1, identity=ours)
    assert [name for name in os.listdir("out") if name.startswith(".")] == []
    assert checkpoints() == ["checkpoint-2", "checkpoint-4", "checkpoint-9"]
    with pytest.raises(ValueError, match="holds checkpoint-9 of another run, and it is kept"):
        save_checkpoint(accelerator, args, 9, 1, identity=ours)
    assert settings("out/checkpoint-9")["run"] == theirs.run != ours.run


def test_a_finished_autoencoder_is_replaced_by_a_finished_one_only(images, capsys):
    train("train_autoencoder")
    finished = Path("out/diffusion_pytorch_model.safetensors").read_bytes()
    shutil.rmtree("out/checkpoint-2")  # as the error of a new run in this folder says
    options = {"steps": 3, "checkpointing_steps": 1, "seed": 1}
    with signalled_in_step(2), pytest.raises(SystemExit):
        train("train_autoencoder", **options)
    assert "PSNR" in capsys.readouterr().out
    assert Path("out/diffusion_pytorch_model.safetensors").read_bytes() == finished
    train("train_autoencoder", **options, resume_from_checkpoint="latest")
    expected = load_file("out/diffusion_pytorch_model.safetensors")
    os.remove("out/diffusion_pytorch_model.safetensors")  # killed between the last checkpoint and the end
    train("train_autoencoder", **options, resume_from_checkpoint="latest")
    actual = load_file("out/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert Path("out/diffusion_pytorch_model.safetensors").read_bytes() != finished


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(workplace, monkeypatch, caplog):
    """As on Windows, where a file of it is open."""
    args = SimpleNamespace(output_dir="out", checkpoints_total_limit=1)
    accelerator, replace = Accelerator(cpu=True), os.replace

    def refuse(source, target):
        if str(source).endswith("checkpoint-1"):
            raise PermissionError("it is being used by another process")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    for step in (1, 2, 3):
        save_checkpoint(accelerator, args, step, 1)
    assert checkpoints() == ["checkpoint-1", "checkpoint-3"]
    assert "'out/checkpoint-1' cannot be removed" in caplog.text


def test_files_are_flushed_through_handles_that_may_write(workplace, monkeypatch):
    """`os.fsync` of another one fails on Windows."""
    flushed, fsync = [], os.fsync

    def fsync_of_windows(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc/self/fd") else handle)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync_of_windows)
    path = save_checkpoint(
        Accelerator(cpu=True), SimpleNamespace(output_dir="out", checkpoints_total_limit=None), 1, 1
    )
    assert len(flushed) == len([name for name in Path(path).rglob("*") if name.is_file()])


# ------------------------------------------------------------------------------------------------------- other images


def add_an_image():
    shutil.copy("images/red/002.png", "images/red/new.png")


def rename_a_class():
    os.rename("images/blue", "images/white")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("change", "named"),
    [(add_an_image, "6 -> 7 images"), (rename_a_class, "3 -> 3 classes, without 'blue', new 'white'")],
    ids=["more", "renamed"],
)
def test_a_run_does_not_go_on_with_other_images(images, script, change, named):
    if script == "train_autoencoder" and change is rename_a_class:
        named = "other files, labels or captions"
    train(script)
    change()
    with pytest.raises(
        ValueError, match=f"images have changed since it was saved.*{re.escape(named)}.* new run in another"
    ):
        train(script, steps=3, resume_from_checkpoint="latest")
    assert checkpoints() == ["checkpoint-2"]


def test_the_images_may_be_written_in_another_way(images):
    train(steps=2)
    train(steps=2, resume_from_checkpoint="latest", train_data_dir="images/")
    rewrite("out/checkpoint-2", images=None)
    train(steps=2, resume_from_checkpoint="latest", train_data_dir="./images")


@pytest.mark.parametrize("identity", ["a1", None])
def test_a_set_that_is_known_may_move_and_another_one_may_not(images, identity):
    """The set is compared, and where one of the two does not know what it is, the name."""
    images = load_images(None, "images", resolution=16)
    known = describe_images(images)
    train()
    rewrite("out/checkpoint-2", images=known | {"identity": identity})
    args = SimpleNamespace(output_dir="out", resume_from_checkpoint="latest")
    for other, named in (
        ({"identity": "b2"}, "other files, labels or captions"),
        ({"number": 5}, "6 -> 5 images"),
        ({"classes": ["blue", "red", "green"]}, "3 -> 3 classes, in another order"),
        ({"classes": None}, "3 -> 0 classes, without 'blue', 'green', 'red'"),
    ):
        if identity is not None or "identity" not in other:
            with pytest.raises(ValueError, match=re.escape(named)):
                check_output_dir(args, known | {"identity": identity} | other)
    check_output_dir(args, known | {"identity": identity})
    os.rename("images", "moved")
    if known["identity"] is None:
        with pytest.raises(ValueError, match="train_data_dir: 'images' -> 'moved'"):
            train(resume_from_checkpoint="latest", train_data_dir="moved")
    else:
        rewrite("out/checkpoint-2", images=known)
        train(resume_from_checkpoint="latest", train_data_dir="moved")


# --------------------------------------------------------------------------------------------------- the environment


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_options_decide_the_accumulation_and_not_the_environment(images, monkeypatch, caplog, script):
    train(script, output_dir="expected", gradient_accumulation_steps=2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", number := str(3 + list(SCRIPTS).index(script)))
    train(script, gradient_accumulation_steps=2)
    assert f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {number}, and it is not used" in caplog.text
    paths = [path for path in Path("expected").rglob("*.safetensors") if "cache" not in path.parts]
    assert paths
    for path in paths:
        actual, expected = load_file(Path("out", path.relative_to("expected"))), load_file(path)
        assert all(torch.equal(actual[key], expected[key]) for key in actual | expected)


OPTIONS = {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "report_to": None, "output_dir": "out"}


def options(**changes) -> SimpleNamespace:
    return SimpleNamespace(**OPTIONS | {"mixed_precision": None} | changes)


@pytest.mark.parametrize("value", ["1", "2", "4", "auto"])
def test_no_accumulation_of_the_environment_is_taken(workplace, monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", value)
    assert make_accelerator(options()).gradient_accumulation_steps == 2


@pytest.mark.parametrize(("option", "expected"), [(None, "bf16"), ("no", "no")])
def test_the_precision_is_that_of_the_environment_where_the_option_is_left_out(
    workplace, monkeypatch, option, expected
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator(options(mixed_precision=option)).mixed_precision == expected


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "`mixed_precision` of the accelerate configuration .*got 'fp8'"),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            "`parallelism_config_tp_size` .* must be 1, got 2",
        ),
    ],
)
def test_what_the_scripts_do_not_support_is_refused_by_name(workplace, monkeypatch, variables, named):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=named):
        make_accelerator(options())


def test_what_the_environment_asks_alike_is_not_worth_a_word(monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    for value in ("1.0", "1", "auto", "none"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", value)
        check_environment(options())
    assert not caplog.text
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "0.25")
    check_environment(options())
    assert "ACCELERATE_GRADIENT_CLIPPING is 0.25" in caplog.text
