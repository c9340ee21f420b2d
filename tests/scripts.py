# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Run the example scripts on small generated images, in this process or in one of their own."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from diffusers import AutoencoderKL
from diffusers_lowfreq.training import GradientGuard


EXAMPLES = Path(__file__).parents[1] / "examples"
CLASSES = ["blue", "green", "red"]


def load_script(name: str):
    """Import an example script from its path."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working directory with its own cache of data sets, and no state left behind by accelerate."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))
    random_state = torch.get_rng_state()
    yield tmp_path
    torch.set_rng_state(random_state)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def make_pixels(number: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Noisy images (number, size, size, 3) whose brightest channel is the class, `number % 3`, the other way round."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 128, (number, size, size, 3))
    for i in range(number):
        pixels[i, :, :, 2 - i % 3] += 100
    return pixels.astype(np.uint8)


def make_folder(path: Path, number: int = 18, size: int = 16) -> Path:
    """A folder of PNG files with a subfolder for each of the three classes."""
    for i, pixels in enumerate(make_pixels(number, size)):
        (path / CLASSES[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / CLASSES[i % 3] / f"{i:03d}.png")
    return path


def make_captioned_folder(path: Path, number: int = 18) -> Path:
    """A folder of PNG files whose metadata gives each two captions that name its colour (`text`), and the first (`one`)."""
    path.mkdir()
    rows = []
    for i, pixels in enumerate(make_pixels(number)):
        name, captions = f"{i:03d}.png", [f"a {CLASSES[i % 3]} photo", f"the {CLASSES[i % 3]} picture"]
        Image.fromarray(pixels).save(path / name)
        rows.append(json.dumps({"file_name": name, "text": captions, "one": captions[0]}))
    (path / "metadata.jsonl").write_text("\n".join(rows))
    return path


def make_vae(path: Path, seed: int = 0) -> AutoencoderKL:
    """Save a tiny autoencoder with random weights: 4 channels, half the size."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae.save_pretrained(path)
    return vae.eval()


def _run(*command, cwd: Path, timeout: float | None = None, **environment) -> subprocess.CompletedProcess:
    environment = {"HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@contextmanager
def signalled_in_step(step: int):
    """A context in which a training in this process gets a SIGTERM in a step, as its gradient is clipped."""
    clip = GradientGuard.clip

    def clip_and_signal(self, parameters, max_norm, optimizer, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        clip(self, parameters, max_norm, optimizer, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientGuard, "clip", clip_and_signal)
        yield


def run_process(*command, cwd: Path, **environment) -> str:
    """Run `python *command` from a folder and return its output; a failure shows it."""
    result = _run(*command, cwd=cwd, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def run_failing_process(*command, cwd: Path, timeout: float = 120, **environment) -> tuple[int, str]:
    """Run what must end in an error; return its exit code and what it says. Negative codes are crashes."""
    result = _run(*command, cwd=cwd, timeout=timeout, **environment)
    return result.returncode, result.stderr


def run_two_processes(script: str, *command, cwd: Path) -> str:
    """Run an example script on two processes of this CPU. (`accelerate launch --cpu --num_processes 2` starts one.)"""
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    launcher += " --mixed_precision no --dynamo_backend no"
    return run_process(*launcher.split(), EXAMPLES / f"{script}.py", *command, cwd=cwd, ACCELERATE_USE_CPU="1")
