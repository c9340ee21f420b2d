# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The documentation matches the code: snippets run, defaults and figures agree."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load_script
from tiny import make_text_pipeline

import diffusers_lowfreq
from diffusers_lowfreq import LowFreqTransformer2DModel
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.models import SIZES


ROOT = Path(__file__).parent.parent
CHECKPOINTS = ("cifar10-32", "cifar10-32-one-step")
PAGES = [f"checkpoints/{name}/README.md" for name in (*CHECKPOINTS, "cifar10-32-upscale")]
# Every page with snippets, except stock-pipelines.md, whose large models test_stock_lora.py replaces by tiny ones
GUIDES = sorted(p.name for p in (ROOT / "docs").glob("*.md") if "```py" in p.read_text(encoding="utf-8"))
GUIDES = [f"docs/{name}" for name in GUIDES if name != "stock-pipelines.md"]
PAGES += GUIDES
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def make_images(folder):
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_readme_python_runs_from_a_clone(tmp_path):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    code = "\n".join(blocks("python"))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "forward passes of the flow per image" in run.stdout
    assert Image.open(tmp_path / "horse.png").size == Image.open(tmp_path / "horse-coarse.png").size == (32, 32)
    assert (tmp_path / "my-model" / "model_index.json").is_file()


def python_of(file):
    return re.findall(r"```(?:python|py)\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("file", PAGES)
def test_python_of_guides_and_cards_runs_from_a_clone(tmp_path, file):
    """Run all snippets of a page in order, as a reader would."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(
        ROOT / "checkpoints" / "cifar10-32"
    )  # as an earlier step of the training guide does
    code = "\n".join(python_of(file))
    if "out/text-to-image" in code:
        make_text_pipeline(vae="kl").save_pretrained(tmp_path / "out" / "text-to-image")
    if "checkpoints/" in file:
        code += "\nassert [image.size for image in images] == [(32, 32), (32, 32)]"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("file", ["docs/one-step.md", "docs/text-to-image.md", "docs/training.md"])
def test_the_script_parses_the_training_commands_of_guides(file):
    script = load_script("train_lowfreq")
    text = (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^accelerate launch .*examples/train_lowfreq.py (.+)$", text, re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        options = line.replace("out/advice/config.json", str(ROOT / "examples/configs/cifar10.json")).split()
        options = [str(ROOT / o) if o.startswith("examples/configs") else o for o in options]
        if "…" not in options:
            script.parse_args(options + ["--output_dir", "out"] * ("--output_dir" not in options))


@pytest.mark.slow
def test_readme_training_line_runs(tmp_path):
    (line,) = [b for b in blocks("bash") if b.startswith("accelerate launch")]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    make_images(tmp_path / "my_images")
    small = "--max_train_steps 2 --prior_max_train_steps 2 --train_batch_size 2 --prior_train_batch_size 4"
    small += " --transformer_size nano --prior_size nano --num_validation_images 2"
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", *line.split()[2:], *small.split()]
    run = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "pixels" / "model_index.json").is_file()


def test_readme_make_targets_exist():
    (commands,) = [b for b in blocks("bash") if b.startswith("make")]
    for target in re.findall(r"^make (\S+)", commands, re.MULTILINE):
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


def anchors(file):
    """Return the anchors of the headings of a page, as the Hub and GitHub form them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "file", ["README.md", "examples/README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_exist(file):
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)(#[^)]+)?\)", (ROOT / file).read_text(encoding="utf-8")):
        path = (ROOT / file).parent / target if target else ROOT / file
        assert path.exists(), target
        assert not anchor or anchor[1:] in anchors(path), target + anchor


def test_readme_hub_id_is_the_constant():
    assert "`HUB_ID`" in README and re.fullmatch(r"[\w.-]+/[\w.-]+", diffusers_lowfreq.HUB_ID)


@pytest.mark.parametrize("file", ["README.md", *(f"checkpoints/{name}/README.md" for name in CHECKPOINTS)])
def test_figures_are_those_of_the_results_files(file):
    """Every row of the table is a row of the JSON that the benchmark wrote for that checkpoint."""
    known = set()
    for path in (ROOT / "benchmarks/results").glob("cifar10-32*.json"):
        result = json.loads(path.read_text())
        known |= {
            (
                result["pipeline"],
                row["coarse"],
                str(row["prior_steps"] or "-"),
                str(row["steps"]),
                f"{row['effective_nfe']:.2f}",
                f"{row['class_named']:.1%}",
                f"{row['frechet_distance']:.2f}",
            )
            for row in result["rows"]
        }
    table = re.findall(
        r"^\| (cifar10-32[\w, -]*) \| (generated|truncated|true) \| ([\d-]+) \|.*\| (\d+) \| ([\d.]+) \| ([\d.]+%) \| ([\d.]+) \|$",
        (ROOT / file).read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(table) >= 4 and set(table) <= known


def test_the_table_of_models_matches_the_code():
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs/models.md").read_text(), re.MULTILINE)  # fmt: skip
    assert [row[0] for row in rows] == list(SIZES)
    for name, layers, width, heads, parameters, gflops in rows:
        with torch.device("meta"):
            model = LowFreqTransformer2DModel(sample_size=8, num_classes=1000, **SIZES[name])
        size = model.config.num_attention_heads
        assert (int(layers), int(width), int(heads)) == (model.config.num_layers, size * 64, size)
        assert f"{model.num_parameters() / 1e6:.1f}" == parameters
        assert f"{count_flops(model, (4, 8, 8)) / 1e9:.3f}" == gflops


def public_callables():
    from diffusers_lowfreq import autoencoding, couplings, evaluation, objectives, projections, text_encoding, training

    seen = {}
    for module in (
        diffusers_lowfreq,
        autoencoding,
        couplings,
        evaluation,
        objectives,
        projections,
        text_encoding,
        training,
    ):
        for name, thing in vars(module).items():
            if name.startswith("_") or not getattr(thing, "__module__", "").startswith("diffusers_lowfreq"):
                continue
            if inspect.isclass(thing):
                seen[name] = (thing.__doc__, thing.__init__)
                for method, function in vars(thing).items():
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function) and (not method.startswith("_") or method == "__call__"):
                        seen[f"{name}.{method}"] = (function.__doc__, inspect.unwrap(function))
            elif inspect.isfunction(thing):
                seen[name] = (thing.__doc__, thing)
    return seen


@pytest.mark.parametrize("name", sorted(public_callables()))
def test_docstring_defaults_equal_the_signature(name):
    documentation, function = public_callables()[name]
    assert documentation, f"{name} has no docstring"
    parameters = inspect.signature(function).parameters
    for argument, default in re.findall(r"(\w+) \(`[^()]*(?:\([^()]*\)[^()]*)*defaults to `([^`]*)`\)", documentation):
        assert argument in parameters, f"{name}: `{argument}` is not an argument"
        actual = parameters[argument].default
        assert str(actual) == default.strip('"') or eval(default) == actual, f"{name}: `{argument}` is {actual!r}"  # noqa: S307


@pytest.mark.slow
def test_the_reference_is_made_of_the_docstrings(tmp_path):
    (command,) = re.findall(
        r"^\t\$\(RUN\) (-m pdoc .+?)\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL
    )
    options = [o for o in command.replace("out/docs", str(tmp_path)).split() if o != "\\"]
    run = subprocess.run([sys.executable, *options], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "Warn" not in run.stderr, run.stderr
    page = (tmp_path / "diffusers_lowfreq.html").read_text()
    assert all(f'id="{name}"' in page for name in diffusers_lowfreq.__all__)
    assert all((tmp_path / f"{module.replace('.', '/')}.html").is_file() for module in options[-9:])
