# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Files of every released version still load, still give the same images, and their runs still finish as they would have."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from scripts import load_script, workplace

import diffusers_lowfreq


pytestmark = pytest.mark.usefixtures(workplace.__name__)

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.name for path in FIXTURES.glob("[0-9]*"))
spec = importlib.util.spec_from_file_location("make_fixtures", FIXTURES / "make_fixtures.py")
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)


@pytest.fixture(params=VERSIONS)
def files(request, workplace):
    """The files of a version, copied into the working directory: a run writes beside its checkpoints."""
    shutil.copytree(FIXTURES / request.param, ".", dirs_exist_ok=True)
    return workplace


def resume(run: str, *changes: str):
    """Finish a run from its checkpoint."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    script = load_script(made.RUNS[run][0])
    line = made.command_line(run, f"runs/{run}")
    script.main(script.parse_args([*line, "--resume_from_checkpoint", "latest", *changes]))


def change_arguments(run: str, change):
    """Change what the checkpoints of a run say about its options."""
    for path in Path(f"runs/{run}").glob("*checkpoint-2/training_args.json"):
        arguments = json.loads(path.read_text())
        change(arguments)
        path.write_text(json.dumps(arguments))


def expected_weights(run: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in load_file("trained.safetensors").items() if key.startswith(run)}


def weights(run: str) -> dict[str, torch.Tensor]:
    """The weights that `make_fixtures.py` kept of a finished run."""
    folder = Path("runs") / run
    if run == "autoencoder":
        return {run: made.reconstruct(folder)}
    return {f"{run}/{file}/{k}": x for file in made.TRAINED[run] for k, x in load_file(folder / file).items()}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)  # other builds of torch round in another way


def test_there_are_files_of_the_first_version():
    assert "0.1.0" in VERSIONS


def test_pipelines_and_loras_load_and_give_the_same_images(files):
    assert_close(made.make_calls(files), load_file("images.safetensors"))


@pytest.mark.parametrize("run", made.RUNS)
def test_a_run_is_resumed_and_ends_in_the_same_weights(files, run):
    resume(run)
    assert_close(weights(run), expected_weights(run))


@pytest.mark.parametrize("run", made.RUNS)
def test_the_checkpoint_matters(files, run):
    """Proof that the test above can fail: a run from other averages of the gradient ends in other weights."""
    for path in Path(f"runs/{run}").glob("*checkpoint-2/optimizer.bin"):
        optimizer = torch.load(path, weights_only=True)
        for values in optimizer["state"].values():
            values["exp_avg"].neg_()
        torch.save(optimizer, path)
    resume(run)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(weights(run), expected_weights(run))


# An option that is newer than the checkpoint is missing from what the checkpoint says: here an old one is taken out.
NEWER = {"flow": "time_sampling", "lora": "time_sampling", "finetune": "caption_dropout", "autoencoder": "l1_weight"}
CHANGED = {"time_sampling": "logit_normal", "caption_dropout": "0.5", "l1_weight": "0.7"}


@pytest.mark.parametrize("run", made.RUNS)
def test_an_option_that_a_checkpoint_does_not_know_counts_as_its_default(files, run):
    change_arguments(run, lambda arguments: arguments.pop(NEWER[run]))
    resume(run)
    assert_close(weights(run), expected_weights(run))


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("run", made.RUNS)
def test_an_option_of_another_value_is_refused(files, run, known):
    name = NEWER[run]
    if not known:
        change_arguments(run, lambda arguments: arguments.pop(name))
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint`.*comes from another configuration.*{name}: "):
        resume(run, f"--{name}", CHANGED[name])


def test_fixtures_are_of_released_versions():
    """They are made once, by the code of the release; none is from a version that is not there yet."""
    from packaging.version import Version

    assert all(Version(version) <= Version(diffusers_lowfreq.__version__) for version in VERSIONS)
