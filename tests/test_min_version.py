# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The oldest supported diffusers."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
TESTS = [
    "pipelines/test_loading.py",
    "pipelines/test_pipeline.py",
    "pipelines/test_guiders.py",
    "pipelines/test_hub.py",
]
TESTS += ["pipelines/test_text_to_image.py", "models/test_transformer.py", "stock/test_stock_start.py"]


@pytest.mark.slow
def test_works_with_the_oldest_supported_versions(tmp_path):
    # A copy, so that the tests import the installed package and no build files are left in the repository
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=ignore)  # test_hub.py runs the training scripts
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # the path to the helpers of the tests
    constraints = ROOT / "constraints-min.txt"
    lowest = re.search(r"diffusers>=([\d.]+)", (ROOT / "setup.py").read_text())[1]
    pinned = re.search(r"^diffusers==(.+)$", constraints.read_text(), re.MULTILINE)[1]
    assert pinned.startswith(lowest)

    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments):
        command = [str(python), "-m", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
        return result.stdout

    run("pip", "install", "--quiet", "--constraint", str(constraints), f"{source}[training,test]")
    assert f"Version: {pinned}" in run("pip", "show", "diffusers")
    report = run(
        "pytest", "-q", "-W", "ignore", "-k", "not compile", *(f"tests/{name}" for name in TESTS)
    )  # fails if one does
    assert re.search(r"\d{3} passed", report)
