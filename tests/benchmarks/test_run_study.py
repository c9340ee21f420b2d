# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/run_study.py`."""

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import pytest
import run_study
import torch
from PIL import Image
from scripts import make_folder, make_vae, run_process
from shared.example_scripts import DECIDED, command_line, train_lowfreq
from small_studies import BENCHMARKS, ROOT, STUDY, call, read, write_study
from tiny import make_transformer

from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, LowFreqTransformer2DModel
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.models import read_size


def figures(path) -> list:
    """Return what a results file says, without the clock."""
    kept = [(run["run"], run["seed"], [row["frechet_distance"] for row in run["rows"]]) for run in read(path)["runs"]]
    return sorted(kept)


def study_options(workplace: Path, study=STUDY) -> dict:
    """Write a tiny study; return the options that run it."""
    options = {"study": "tiny", "tier": "cpu", "train_data": "images", "test_data": "images", "graders_dir": "."}
    return options | {"benchmarks_dir": write_study(workplace, study)}


def files(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_run_study_trains_and_grades_once(workplace, grader):
    options = study_options(workplace)
    call(run_study, runs=["plain"], **options)
    path = workplace / "benchmarks/results/tiny-cpu.json"
    (first,) = read(path)["runs"]
    assert first["run"] == "plain" and "prior" not in first and first["flow"]["steps"] == "3"
    call(run_study, **options)
    result = read(path)
    assert [run["run"] for run in result["runs"]] == ["plain", "ours"] and result["runs"][0] == first
    assert [row["coarse"] for row in result["runs"][1]["rows"]] == ["generated", "true"]
    assert result["runs"][1]["prior"]["steps"] == "2" and len(result["spectrum"]) == 9
    before = files(workplace / "out") | files(workplace / "benchmarks")
    call(run_study, **options)
    after = files(workplace / "out") | files(workplace / "benchmarks")
    assert {name for name in before if before[name] != after[name]} <= {p for p in before if "cache" in str(p)}
    assert set(after) == set(before)
    # It is a file that the report takes, spectrum included
    assert len(run_study.table(result).splitlines()) == 7
    assert [len(figure.axes) for figure in run_study.figures(result, "kernel_distance").values()] == [1, 1]

    written = path.read_bytes()
    for level in ("settings", "runs"):
        study = json.loads(json.dumps(STUDY))
        if level == "settings":
            study["settings"]["train"] = {"max_train_steps": 5}
        else:
            study["runs"]["plain"]["flow"]["max_train_steps"] = 4
        write_study(workplace, study)
        with pytest.raises(ValueError, match="another configuration.*nothing is overwritten"):
            call(run_study, **options)
    write_study(workplace)
    for argument, value in (("runs", ["none"]), ("tier", "tpu")):
        with pytest.raises(ValueError, match=f"`{argument}`"):
            call(run_study, **options | {argument: value})
    # Results of other images are not mixed with these
    Image.new("RGB", (16, 16)).save(make_folder(workplace / "others") / "red/002.png")
    for argument in ("train_data", "test_data"):
        with pytest.raises(ValueError, match="fingerprint.*nothing is overwritten"):
            call(run_study, **options | {argument: "others"})
    assert path.read_bytes() == written


def test_studies_of_a_tier_share_their_networks(workplace, grader):
    options = study_options(workplace)
    write_study(workplace, STUDY | {"runs": {"again": {}}}, name="second")
    call(run_study, runs=["ours"], **options)
    before = files(workplace / "out/studies/models-cpu")
    call(run_study, **options | {"study": "second"})
    after = files(workplace / "out/studies/models-cpu")
    assert {k: v for k, v in after.items() if k.suffix != ".lock"} == {k: v for k, v in before.items() if k.suffix != ".lock"}  # fmt: skip
    first, second = (read(workplace / f"benchmarks/results/{name}-cpu.json")["runs"][0] for name in ("tiny", "second"))
    assert [r["frechet_distance"] for r in first["rows"]] == [r["frechet_distance"] for r in second["rows"]]


def test_run_study_distils_what_a_run_names(workplace, grader):
    """Teachers are shared, the part that is not named stays the teacher's, and one call of each network is what is graded."""
    runs = {
        "teacher": {},
        "pair": {"student": {"flow": {}, "prior": {"prior_max_train_steps": 1}}},
        "prior": {"student": {"prior": {"prior_max_train_steps": 1}}},
        "plain": {"variants": ["long"], "flow": {"noise_ratio": 1.0}, "student": {"flow": {}}},
    }
    call(run_study, **study_options(workplace, STUDY | {"runs": runs}))
    teacher, pair, prior, plain = read(workplace / "benchmarks/results/tiny-cpu.json")["runs"]
    assert pair["flow"] == prior["flow"] == teacher["flow"] and pair["prior"] == teacher["prior"]
    assert pair["student prior"] == prior["student prior"] and pair["student prior"]["steps"] == "1"
    assert pair["student flow"]["steps"] == "2" and plain["student flow"]["steps"] == "3" and "prior" not in plain
    one_call = [row["effective_nfe"] for row in teacher["rows"]]  # the second time costs its embedding
    assert [row["effective_nfe"] for row in pair["rows"]] == pytest.approx(one_call, rel=0.05)
    _, tier = run_study.read_study("tiny", "cpu", workplace / "benchmarks")
    args = argparse.Namespace(work_dir="out/studies", tier="cpu", train_data="images", vae=None)
    built = {name: run_study.build(run, tier, 0, args)[0] for name, run in runs.items()}
    flows = {name: pipe.transformer.config.use_meanflow for name, pipe in built.items()}
    priors = {name: pipe.prior is not None and pipe.prior.config.use_meanflow for name, pipe in built.items()}
    assert flows == {"teacher": False, "pair": True, "prior": False, "plain": True}
    assert priors == {"teacher": False, "pair": True, "prior": True, "plain": False}


# That of strangers.py has no runs of its own
STUDIES = {path.stem: json.loads(path.read_text()) for path in (BENCHMARKS / "studies").glob("*.json")}
STUDIES = sorted(name for name, study in STUDIES.items() if study["runs"])


TIER_NAMES = list(json.loads((BENCHMARKS / "tiers.json").read_text()))


@functools.cache
def count(size: str, patch_size: int, channels: int, side: int) -> tuple[int, int]:
    """Count the FLOPs of a forward pass of a network, and its parameters."""
    with torch.device("meta"):
        model = LowFreqTransformer2DModel(side, patch_size, channels, **read_size(size))
    return count_flops(model, (channels, side, side)), model.num_parameters()


@pytest.mark.parametrize("option", [option for option in DECIDED if not option.startswith("prior_")])
def test_a_teacher_decides_what_a_distillation_leaves_out(option, capsys):
    """The training script refuses it beside a teacher; that of a prior, as soon as it sees that the teacher has one."""
    values = {
        "conditional": False,
        "noise_ratio": 0.3,
        "transformer_size": "1x1x8",
        "noise_ratio_range": [0.1, 0.7],
        "projection": "dct",
    }
    line = command_line({"output_dir": "-", "train_data_dir": "-", "teacher": "-", option: values.get(option, 3)})
    with pytest.raises(SystemExit):
        train_lowfreq.parse_args(line)
    assert f"argument --{option}: " in capsys.readouterr().err


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("tier", ["cpu", *(pytest.param(t, marks=pytest.mark.slow) for t in TIER_NAMES if t != "cpu")])
def test_every_study_parses_in_every_tier_and_keeps_its_limits(study, tier):
    """Options of all runs are taken by the scripts; networks, runs and graders are of the size that the tier allows."""
    content, settings = run_study.read_study(study, tier)
    assert len(content["runs"]) * len(settings["seeds"]) <= 20 and len(settings["seeds"]) >= 2
    for name in settings["graders"]:
        assert (ROOT / "checkpoints/graders" / name / "diffusion_pytorch_model.safetensors").is_file()
    for options in content["runs"].values():
        parsed = {}
        for part in ("flow", "prior"):
            given = run_study.run_options(options, settings, "train") | run_study.run_options(options, settings, part)
            line = command_line(given | {"output_dir": "-", "train_data_dir": "-", "train": part})
            parsed[part] = train_lowfreq.parse_args(line)
        flow, prior = parsed["flow"], parsed["prior"]
        side = flow.resolution // (4 if settings.get("latents") else 1)
        channels = 8 if settings.get("latents") else 3
        sizes = {"flow": (flow.transformer_size, flow.patch_size, side)}
        sizes["prior"] = (prior.prior_size, prior.prior_patch_size, side // flow.factor)
        flops = {}
        for part, (size, patch_size, side) in sizes.items():
            flops[part], parameters = count(size, patch_size, channels, side)
            assert parameters <= 500_000 if tier == "cpu" else (20e6 <= parameters <= 40e6) == (part == "flow")
            assert tier != "cpu" or (side // patch_size) ** 2 <= 16
        given = run_study.run_options(options, settings, "evaluate")
        # A flow that needs no prior model is trained for what the prior model of the others costs, and not less
        both = flops["flow"] * settings["train"]["max_train_steps"] * flow.train_batch_size
        both += flops["prior"] * prior.prior_max_train_steps * prior.prior_train_batch_size
        alone = flops["flow"] * flow.max_train_steps * flow.train_batch_size
        assert flow.noise_ratio < 1 or 1 <= alone / both < 1.01
        rest = {"pipeline": "-", "grader": "-", "data": "-", "split": "-", "output": "-"}
        evaluate.parse_args(command_line(rest | given))


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("tier", ["gpu", "gpu-latents"])
def test_the_large_tiers_run_in_miniature(workplace, grader, study, tier):
    """The studies as they are, with every option of the tier but those of size: networks, steps, batches, images."""
    content = (
        (BENCHMARKS / f"studies/{study}.json").read_text().replace('"curvature_images": 250', '"curvature_images": 5')
    )
    write_study(workplace, json.loads(content), study)
    tiers = json.loads((BENCHMARKS / "tiers.json").read_text())
    small = {
        "resolution": 16,
        "patch_size": 1,
        "prior_patch_size": 1,
        "transformer_size": "1x2x8",
        "prior_size": "1x2x8",
    }
    small |= {"max_train_steps": 1, "prior_max_train_steps": 1, "train_batch_size": 4, "prior_train_batch_size": 4}
    settings = tiers[tier]
    settings["train"] |= small | {"lr_warmup_steps": 1, "dataloader_num_workers": 0}
    settings["evaluate"] |= {"num_images": 10, "batch_size": 10, "steps": [2]}
    settings |= {"graders": ["tiny-grader"], "seeds": [0]}
    for variant in settings["variants"].values():
        for options in variant.values():
            options |= {key: small[key] for key in options.keys() & small.keys()}
            if "factor" in options:
                options["factor"] = 2
    (workplace / "benchmarks/tiers.json").write_text(json.dumps(tiers))
    LowFreqPipeline(make_transformer(), vae=make_vae("vae"), scheduler=LowFreqFlowMatchScheduler()).save_pretrained(
        "pipe"
    )
    options = {"train_data": "images", "test_data": "images", "vae": "pipe", "graders_dir": "."}
    call(run_study, study=study, tier=tier, benchmarks_dir=workplace / "benchmarks", **options)
    result = read(workplace / f"benchmarks/results/{study}-{tier}.json")
    assert [run["run"] for run in result["runs"]] == list(json.loads(content)["runs"])
    assert all(run["flow"]["mixed precision"] == "bf16" for run in result["runs"])
    assert all(("autoencoder_psnr_db" in run) == (tier == "gpu-latents") for run in result["runs"])
    assert len(run_study.table(result).splitlines()) > 4


@pytest.mark.slow
def test_run_study_goes_on_after_a_kill(workplace, grader):
    """Killed after the first run, the command says the same in the end as one that was left alone."""
    for name in ("benchmarks", "examples"):
        ignored = shutil.ignore_patterns("results", "studies", "__pycache__")
        shutil.copytree(ROOT / name, workplace / "root" / name, ignore=ignored)
    write_study(workplace / "root")
    (workplace / "root/images").rename(workplace / "images")
    line = [
        sys.executable,
        "root/benchmarks/run_study.py",
        "--study",
        "tiny",
        "--tier",
        "cpu",
        "--graders_dir",
        ".",
    ]
    line += ["--train_data", "images", "--test_data", "images", "--output"]
    environment = os.environ | {"HF_HOME": str(workplace / "hf"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*line, "killed.json"], cwd=workplace, env=environment, stderr=subprocess.DEVNULL)
    while not Path("killed.json").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (first,) = read("killed.json")["runs"]
    run_process(*line[1:], "killed.json", cwd=workplace)
    run_process(*line[1:], "whole.json", "--work_dir", "elsewhere", cwd=workplace)
    assert read("killed.json")["runs"][0] == first and len(read("whole.json")["runs"]) == 2
    for a, b in zip(figures("killed.json"), figures("whole.json")):
        assert a[:2] == b[:2] and a[2] == pytest.approx(b[2], rel=1e-4)
