# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The installed package and its version."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import diffusers_lowfreq


ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_installs_and_works_from_an_empty_folder(tmp_path):
    """The wheel alone, put first on the path of a fresh process, builds, saves and loads a pipeline."""
    # From a copy, so that no build files are left in the repository
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"diffusers_lowfreq-{diffusers_lowfreq.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert "diffusers_lowfreq/py.typed" in names
    assert not [n for n in names if not re.match(r"diffusers_lowfreq(-[\d.]+\.dist-info)?/", n)]
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import diffusers_lowfreq
from diffusers import DiffusionPipeline
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, LowFreqTransformer2DModel
assert diffusers_lowfreq.__file__.startswith({str(site)!r})
small = dict(patch_size=1, in_channels=3, num_layers=1, num_attention_heads=1, attention_head_dim=8)
pipe = LowFreqPipeline(
    LowFreqTransformer2DModel(sample_size=8, **small),
    LowFreqFlowMatchScheduler(factor=2),
    prior=LowFreqTransformer2DModel(sample_size=4, **small),
)
pipe.save_pretrained("saved")
pipe = DiffusionPipeline.from_pretrained("saved")
assert type(pipe) is LowFreqPipeline
assert pipe(num_images_per_prompt=2).images[1].size == (8, 8)
"""
    subprocess.run([sys.executable, "-c", code], cwd=empty, check=True)


def test_version_has_one_home():
    """Only version.py holds the version, apart from files that released versions have written."""
    version = re.escape(diffusers_lowfreq.__version__)
    command = ["git", "grep", "-lE", rf"version.*{version}", "--", ".", ":!tests/fixtures/*.*.*/*"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert set(files.split()) == {"src/diffusers_lowfreq/version.py"}


def test_setup_reads_the_version():
    found = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.split()[-1] == diffusers_lowfreq.__version__


@pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("sed") is None, reason="the workflow runs bash and sed"
)
@pytest.mark.parametrize(
    "tag, is_released", [("v{}", True), ("{}", True), ("v{}.1", False), ("v", False), ("", False)]
)
def test_the_release_workflow_publishes_the_version_only(tag, is_released):
    """Run the line of the workflow itself, in bash."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    (line,) = re.findall(r"run: (test .*GITHUB_REF_NAME.*)", workflow)
    environment = {**os.environ, "GITHUB_REF_NAME": tag.format(diffusers_lowfreq.__version__)}
    result = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment)
    assert (result.returncode == 0) == is_released
