# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The scripts in `benchmarks/`: figures come from results files, results come from what was measured, once."""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from scripts import make_folder, make_pixels, make_vae, run_process, workplace
from tiny import make_autoencoder, make_pipeline, make_prior, make_transformer, randn, randomize, seeded

from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    UNet2DModel,
)
from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTransformer2DModel,
    LowFreqUpscalePipeline,
)
from diffusers_lowfreq.autoencoding import decode_latents
from diffusers_lowfreq.evaluation import count_flops, curvature, frechet_distance, radial_power_spectrum
from diffusers_lowfreq.model_card import save_model_card
from diffusers_lowfreq.training import degrade, keyed_generator


ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import coupling  # noqa: E402
import degraded_latents  # noqa: E402
import evaluate  # noqa: E402
import report  # noqa: E402
import run_study  # noqa: E402
import scale  # noqa: E402
import ship  # noqa: E402
import strangers  # noqa: E402
import text_to_image  # noqa: E402
import toy  # noqa: E402
import training_speed  # noqa: E402
import trajectories  # noqa: E402
import upscale  # noqa: E402
from graders import Grader  # noqa: E402


pytestmark = pytest.mark.usefixtures(workplace.__name__)

DOCUMENTS = [
    "README.md",
    "checkpoints/cifar10-32-upscale/README.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]


@pytest.fixture
def call(monkeypatch):
    """Call the `main` of a script with a command line."""

    def call(script, **options):
        line = run_study.command_line(options)
        monkeypatch.setattr(sys, "argv", [script.__file__, *line])
        script.main()

    return call


@pytest.fixture
def grader(workplace):
    torch.manual_seed(0)
    randomize(Grader(num_classes=3, width=2)).save_pretrained(workplace / "tiny-grader")
    return workplace / "tiny-grader"


# ---------------------------------------------------------------------------------------------------- report.py


def stale_tables(text: str, results: Path) -> list[str]:
    """Name the marked places of a text that do not hold what their results files give."""
    tables = report.marks(text)
    return [
        name
        for name, view, metric, grader, _, content in tables
        if report.table(report.load(results / f"{name}.json"), view, metric, grader) != content
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_committed_tables_are_those_of_their_results_files(document):
    """No figure between the marks of a study can be typed by hand."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert text.count("<!-- study ") == len(report.marks(text)) == text.count("<!-- /study -->")
    assert not stale_tables(text, BENCHMARKS / "results")


def study_results() -> dict:
    """Two runs, two seeds: every value can be worked out by hand."""
    facts = {"FLOPs of a forward pass for one image": "2,000,000", "steps": "1,000", "global batch": 50}
    grading = {"extractor": "tiny-grader", "split": "test", "num_images": 2000, "num_reference": 10000}
    result = {"study": "few", "question": "Which?", "tier": "cpu", "machine": "CPU, 2 cores", "torch": "2.13.0"}
    result |= {
        "diffusers": "0.42.1",
        "spectrum": [4.0, 2.0, 1.0],
        "extractor": "tiny-grader",
        "graders": {"tiny-grader": {}},
        "runs": [],
    }
    for seed in (0, 1):
        for run in ("plain", "ours"):
            entry = {"run": run, "seed": seed, "options": {}, "flow": facts, "rows": [], "curvature": []}
            if run == "ours":
                entry["prior"] = facts | {"FLOPs of a forward pass for one image": "200,000"}
            kinds = [("generated", 1), ("generated", 2), ("true", None)] if run == "ours" else [(None, None)]
            for coarse, prior_steps in kinds:
                setting = {"coarse": coarse, "prior_steps": prior_steps, "noise_ratio": 0.5, "guidance_scale": 1.0}
                for steps in (1, 2):
                    row = {"steps": steps, "effective_nfe": steps + 0.1 * (prior_steps or 0)}
                    row |= {"frechet_distance": 12 / steps + 0.8 * seed, "kernel_distance": 0.03 / steps}
                    if coarse == "generated":
                        row |= {"coarse_frechet_distance": 0.25, "frechet_distance": row["frechet_distance"] + 1}
                    entry["rows"].append(setting | row | grading | {"spectrum": [4.0, 1.0, 0.25 * steps]})
                bend = {"curvature": 0.02 + 0.01 * seed, "squared_path_length": 0.5, "normalized_curvature": 0.04 + 0.02 * seed}  # fmt: skip
                entry["curvature"].append(setting | bend | {"curvature_images": 250})
            result["runs"].append(entry)
    return result


def coupling_results() -> dict:
    result = {"study": "coupling", "space": "pixels", "machine": "CPU", "torch": "2.13.0", "rows": []}
    for seed, noise_ratio, kept in ((0, 0.0, 1.0), (0, 0.5, 0.9), (1, 0.0, 1.0), (1, 0.5, 0.8)):
        cell = {"seed": seed, "num_pairs": 1000, "operator": "area", "factor": 4, "noise_ratio": noise_ratio}
        result["rows"].append(cell | {"identity_kept": kept, "cost_ratio": 1.0})
    return result


def test_study_table_has_means_half_ranges_and_costs():
    lines = report.table(study_results(), metric="frechet_distance").splitlines()
    assert lines[2].count("|") == lines[3].count("|")
    assert lines[4] == (
        "| plain | - | - | 0.10 | 0.0250 ± 0.0050 | 0.0500 ± 0.0100 | 0.500 ± 0.000 | - | 1.00 / 2.00 | 12.4 ± 0.4 | "
        "6.4 ± 0.4 |"
    )
    assert lines[6].startswith("| ours | generated | 2 | 0.11 |")  # 2e6 * 1000 * 50 + 2e5 * 1000 * 50
    assert "| 0.250 ± 0.000 | 1.20 / 2.20 |" in lines[6]
    assert lines[7].startswith("| ours | true | - |") and "| - | 1.00 / 2.00 |" in lines[7] and len(lines) == 8
    assert report.table(study_results()).endswith("| 30.0 ± 0.0 | 15.0 ± 0.0 |")
    for fact in (
        "Which?",
        "seeds 0 and 1",
        "2,000 images",
        "10,000 test",
        "tiny-grader",
        "not an FID",
        "torch 2.13.0",
    ):
        assert fact in lines[0]


def test_study_table_says_what_is_missing_or_differs():
    result = study_results()
    result["runs"].pop()
    text = report.table(result, metric="frechet_distance")
    assert "Not run with seed 1: ours." in text and "| 12.4 ± 0.4 |" in text and "| 12.0 | 6.0 |" in text
    result["runs"] = result["runs"][:2]
    assert (
        "no difference here is a finding" in report.table(result) and "±" not in report.table(result).split("\n\n")[1]
    )
    for key, value in (("noise_ratio", 0.3), ("guidance_scale", 2.0)):
        result = study_results()
        more = [row | {key: value} for row in result["runs"][0]["rows"]]
        result["runs"][0]["rows"] += more
        header = report.table(result).splitlines()[2]
        assert ("α" in header) == (key == "noise_ratio") and ("guidance" in header) == (key == "guidance_scale")
    result = study_results()
    result["runs"][0]["rows"][0]["effective_nfe"] = 3.0
    with pytest.raises(ValueError, match="one effective NFE"):
        report.table(result)
    result = study_results()
    result["runs"][0]["rows"][0]["extractor"] = "another"
    with pytest.raises(ValueError, match="one extractor"):
        report.table(result)


def test_budgets_table_takes_the_best_split_within_each_budget():
    lines = report.table(study_results(), "budgets", "frechet_distance").splitlines()
    assert lines[2].endswith("| NFE 1 | NFE 2 | NFE 4 | NFE 8 |") and len(lines) == 6
    best = "6.4 ± 0.4 (2)"
    assert lines[4] == f"| plain | 0.10 | 12.4 ± 0.4 (1) | {best} | {best} | {best} |"
    # 1.2 is over the budget of 1, true coarse latents take no part, and of equals the first is shown
    best = "7.4 ± 0.4 (2 + 1)"
    assert lines[5] == f"| ours | 0.11 | 13.4 ± 0.4 (1 + 1) | {best} | {best} | {best} |"
    # What is better but costs more than 0.1 over is not taken
    result = study_results()
    for run in result["runs"]:
        for row in run["rows"]:
            row["frechet_distance"] -= 5 if row["prior_steps"] == 2 else 0
    assert "| ours | 0.11 | 13.4 ± 0.4 (1 + 1) | 7.4 ± 0.4 (2 + 1) | 2.4 ± 0.4 (2 + 2) |" in report.table(
        result, "budgets", "frechet_distance"
    )
    # A run that costs more than a budget has no place in it
    result = study_results()
    for run in result["runs"]:
        run["rows"] = [row for row in run["rows"] if run["run"] == "plain" or row["steps"] == 2]
    assert "| ours | 0.11 | - | 7.4" in report.table(result, "budgets", "frechet_distance")


def test_gap_table_subtracts_seed_by_seed():
    lines = report.table(study_results(), "gap", "frechet_distance").splitlines()
    assert lines[4:] == [f"| ours | {n} | 1.0 ± 0.0 (+8%) | 1.0 ± 0.0 (+16%) |" for n in (1, 2)]


def test_ratios_table_divides_by_many_steps_of_the_first_run():
    result = study_results()
    result["runs"] = result["runs"][1::2] + result["runs"][::2]  # "ours" first
    for run in result["runs"][:2]:
        for row in [row for row in run["rows"] if row["steps"] == 2]:
            prior_steps = row["prior_steps"] or 0
            many = {"steps": 16, "frechet_distance": 2.0 + run["seed"] + prior_steps}
            run["rows"].append(row | many | {"effective_nfe": 16 + 0.1 * prior_steps})
    lines = report.table(result, "ratios", "frechet_distance").splitlines()
    assert "4.5 with generated coarse latents of 2 prior steps and 2.5 with true coarse latents" in lines[0]
    # 13 / 4 and 13.8 / 5 with generated ones, 12 / 2 and 12.8 / 3 with true ones; without, over the former
    first = (
        "| ours | generated | 1 | 1.10 | 13.4 ± 0.4 (3.00×) | 2.10 | 7.4 ± 0.4 (1.66×) | 16.10 | 3.5 ± 0.5 (0.78×) |"
    )
    assert lines[4] == first and lines[5].endswith("| 4.5 ± 0.5 (1.00×) |")
    assert lines[6].startswith("| ours | true | - | 1.00 | 12.4 ± 0.4 (5.13×) |")
    assert lines[7].startswith("| plain | - | - | 1.00 | 12.4 ± 0.4 (2.78×) |") and lines[7].endswith("| - | - |")
    assert len(lines) == 8


def test_objectives_table_has_the_ratios_both_ways():
    result = {"machine": "CPU", "threads": 2, "torch": "2.13.0", "pipeline": "tiny"}
    result["objective_steps"] = {"MeanFlow": {"ratio": 1.6, "quartiles": [1.5, 1.81], "pairs": 3}}
    lines = report.table(result).splitlines()
    assert lines[4:] == ["| MeanFlow | 1.60× (1.50 to 1.81) | 0.62× |"] and "2 threads" in lines[0]


def test_degraded_latents_table_has_both_spaces():
    figures = {"relative_distance": 0.5, "centred_distance": 0.625}
    row = {"degradation": "blur", "factor": 4.0, "latents": figures, "pixels": {k: v / 10 for k, v in figures.items()}}
    result = {
        "pipeline": "tiny",
        "split": "test",
        "num_images": 2000,
        "projection": "area",
        "factor": 2,
        "pixel_factor": 8,
    }
    lines = report.table(result | {"machine": "CPU", "torch": "2.13.0", "degradations": [row]}).splitlines()
    assert lines[4:] == ["| blur by 4 | 50.0% (62.5%) | 5.0% (6.2%) |"] and "2,000 degraded test images" in lines[0]


def test_upscaling_table_has_a_row_for_each_method():
    row = {
        "class_named": 0.5,
        "frechet_distance": 12.34,
        "kernel_distance": 0.0321,
        "fidelity_db": 100.0,
        "psnr_db": 100.0,
    }
    real = row | {"degradation": "none", "method": "image", "strength": None, "steps": None}
    made = row | {"degradation": "thumbnail-4", "method": "LoRA", "strength": 0.25, "steps": 4, "fidelity_db": 30.04}
    result = {"pipeline": "tiny", "lora": "tiny-upscale", "extractor": "g", "graders": {"g": {"accuracy": 0.9}}}
    result |= {"num_images": 2000, "num_reference": 8000, "split": "test", "seed": 0, "guidance_scale": 1.0}
    lines = report.table(result | {"machine": "CPU", "torch": "2.13.0", "upscaling": [real, made]}).splitlines()
    assert lines[4] == "| the image | none: the picture as it is | - | - | - | - | 50.0% | 12.3 | 32.1 |"
    assert lines[5] == "| thumbnail by 4 | with `tiny-upscale` | 0.25 | 4 | 30.0 dB | 100.0 dB | 50.0% | 12.3 | 32.1 |"


def test_training_cost_counts_the_teacher_too():
    run = study_results()["runs"][1]
    before = report.training_teraflops(run)
    assert report.training_teraflops(run | {"student flow": run["flow"]}) == pytest.approx(before + 0.1)


def test_curvature_table_has_ratios_to_the_first_run():
    result = study_results()
    for run in result["runs"][1::2]:
        for row in run["curvature"]:
            row |= {"curvature": row["curvature"] / 5, "squared_path_length": 0.25}
    lines = report.table(result, "curvature").splitlines()
    plain = "0.0250 ± 0.0050 | 1.0 | 0.500 ± 0.000 | 1.0 | 0.0500 ± 0.0100 | 1.0 |"
    assert lines[4] == f"| plain | - | {plain}" and "from 250 sources" in lines[0]
    ours = "0.0050 ± 0.0010 | 5.0 | 0.250 ± 0.000 | 2.0 | 0.0500 ± 0.0100 | 1.0 |"
    assert lines[5] == f"| ours | generated | {ours}" and len(lines) == 8


def test_captions_tell_how_far_two_graders_agree():
    result = study_results()
    assert "Kendall" not in report.table(result)
    result["graders"]["another"] = {}
    for sign in (1, -1):
        for run in result["runs"]:
            for row in run["rows"]:
                row["graders"] = {"another": {k: sign * row[k] for k in report.METRICS}}
        text = report.table(result, metric="frechet_distance")
        assert f"`another` agrees on the order of the 8 settings with Kendall's τ = {sign}.000" in text


def test_tables_by_the_second_grader_have_its_figures():
    result = study_results()
    result["graders"]["another"] = {}
    for run in result["runs"]:
        for row in run["rows"]:
            row["graders"] = {"another": {k: 2 * row[k] for k in report.METRICS}}
    text = report.table(result, "budgets", "frechet_distance", "another")
    assert "extractor `another`" in text and "The grader `tiny-grader` agrees" in text
    assert "| plain | 0.10 | 24.8 ± 0.8 (1) |" in text
    (found,) = report.marks(f"<!-- study few budgets by another -->\n{text}\n<!-- /study -->")
    assert found[:4] == ("few", "budgets", "kernel_distance", "another") and found[-1] == text


def test_coupling_table_and_figure():
    lines = report.table(coupling_results()).splitlines()
    assert (
        lines[-1] == "| 1,000 | area | 4 | 100.00 ± 0.00 | 85.00 ± 5.00 |" and "1,000 pairs: seeds 0 and 1" in lines[0]
    )
    (axes,) = report.coupling_figure(coupling_results()).axes
    (line,) = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert line.get_xydata() == pytest.approx(torch.tensor([[0.0, 100.0], [0.5, 85.0]]).numpy())


def test_study_figure_draws_the_means_and_is_readable_in_grey():
    """No two kinds of lines share marker, fill and dashes."""
    axes = report.study_figure(study_results(), "frechet_distance").axes[0]
    drawn = {tuple(line.get_xdata()): line for line in axes.lines if line.get_linestyle() != "None"}
    # Of equals the cheaper: the settings of two prior steps are pale points only
    assert set(drawn) == {(1, 2), (1.1, 2.1)} and axes.get_xscale() == "log"
    assert list(drawn[1.1, 2.1].get_ydata()) == pytest.approx([13.4, 7.4])
    (pale,) = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert list(pale.get_xdata()) == pytest.approx([1.1, 1.2, 2.1, 2.2])
    looks = {(line.get_marker(), line.get_markerfacecolor(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 4
    assert len({(color, marker) for color, marker in zip(report.COLORS, report.MARKERS)}) == len(report.COLORS)


def test_sweep_figure_draws_the_setting_that_a_study_varies():
    result = study_results()
    result["sweep"] = "noise_ratio"
    result["runs"] = [run for run in result["runs"] if run["run"] == "ours"]
    for run in result["runs"]:
        rows = run["rows"]
        run["rows"] = [row | {"noise_ratio": a, "frechet_distance": row["frechet_distance"] + a} for a in (0.2, 0.4, 0.6) for row in rows]  # fmt: skip
        run["curvature"] = []
    figure = report.sweep_figure(result, "frechet_distance")
    assert [axes.get_title() for axes in figure.axes] == ["1 step of the flow", "2 steps of the flow"]
    for axes, end in zip(figure.axes, (12.4, 6.4)):
        generated, _, true = axes.lines
        assert list(true.get_xdata()) == [0.2, 0.4, 0.6] and true.get_linestyle() == "--"
        assert list(true.get_ydata()) == pytest.approx([end + a for a in (0.2, 0.4, 0.6)])
        assert list(generated.get_ydata()) == pytest.approx([end + 1 + a for a in (0.2, 0.4, 0.6)])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "ours, generated coarse, prior steps 1",
        "ours, generated coarse, prior steps 2",
        "ours, true coarse",
    ]
    assert "class named" not in report.table(result)
    for run in result["runs"]:
        for row in run["rows"]:
            row["class_named"] = 0.5
    assert report.table(result).endswith("| 50.0 ± 0.0 % | 50.0 ± 0.0 % |")


def test_spectrum_figure_draws_ratios_of_generated_to_real():
    figure = report.spectrum_figure(study_results())
    assert [axes.get_title() for axes in figure.axes] == ["1 step of the flow", "2 steps of the flow"]
    for axes, last in zip(figure.axes, (0.25, 0.5)):
        for line in axes.lines[1:]:
            assert line.get_xydata() == pytest.approx(torch.tensor([[0.25, 0.5], [0.5, last]]).numpy())
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"plain", "ours, generated coarse, 2 prior steps", "ours, true coarse"}
    with pytest.raises(ValueError, match="power spectra"):
        report.spectrum_figure({"spectrum": [4.0, 2.0, 1.0], "runs": [{"run": "plain", "rows": [{"steps": 1}]}]})


def test_report_script_writes_tables_and_figures_only_where_marks_are(workplace):
    (workplace / "few.json").write_text(json.dumps(study_results()))
    before = (
        "Kept.\n<!-- study few -->\n<!-- /study -->\n<!-- study few gap frechet_distance -->\nold\n<!-- /study -->\n"
    )
    before += "<!-- study another -->\nold\n<!-- /study -->\n"
    (workplace / "evidence.md").write_text(before)
    (workplace / "other.md").write_text("no marks")
    script = [BENCHMARKS / "report.py", "--results", "few.json"]
    run_process(*script, "--figures_dir", "pictures", "evidence.md", "other.md", cwd=workplace)
    text = (workplace / "evidence.md").read_text()
    assert text.startswith("Kept.\n<!-- study few -->\n**Which?**") and text.count("\nold\n") == 1
    for name in ("few", "few-spectrum"):
        assert Image.open(workplace / f"pictures/{name}.png").size[0] > 500
    assert (workplace / "other.md").read_text() == "no marks"
    text = text.split("<!-- study another")[0]
    assert len(report.marks(text)) == 2 and not stale_tables(text, workplace)
    assert stale_tables(text.replace("30.0 ± 0.0", "30.1 ± 0.0", 1), workplace) == ["few"]
    with pytest.raises(ValueError, match="`files`"):
        report.write_tables(study_results(), "few", ["other.md"])


def test_report_refuses_a_file_without_results(workplace):
    (workplace / "empty.json").write_text(json.dumps({"study": "few", "runs": []}))
    with pytest.raises(ValueError, match="must hold one of .'runs', 'rows', .*'objective_steps'"):
        report.load("empty.json")


# --------------------------------------------------------------------------------- degraded_latents.py, upscale.py


def test_what_is_not_degraded_is_at_no_distance_and_a_linear_map_is_as_far_as_its_parts():
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=seeded(), dtype=torch.uint8)
    degraded = degrade(images, "blur", 4)
    spaces = {"pixels": lambda x: x, "scaled": lambda x: 3 * x, "shifted": lambda x: x + 100}
    row = degraded_latents.measure(spaces, images, "blur", 4, batch_size=4)
    x, y = (pixels.double() / 127.5 - 1 for pixels in (images, degraded))
    assert row["pixels"]["relative_distance"] == pytest.approx(((x - y).norm() / x.norm()).item(), rel=1e-5)
    assert row["scaled"] == pytest.approx(row["pixels"], rel=1e-5)
    assert row["shifted"]["centred_distance"] == pytest.approx(row["pixels"]["centred_distance"], rel=1e-3)
    assert row["shifted"]["relative_distance"] < 0.02 < row["pixels"]["relative_distance"]
    assert degraded_latents.measure(spaces, images, "thumbnail", 1, 4)["pixels"]["relative_distance"] == 0


@pytest.mark.slow
def test_upscaling_scripts_grade_flow_and_lora_from_the_same_noise(workplace, grader, call):
    make_folder(workplace / "images", 30)
    pipe = make_pipeline(scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.3))
    pipe.save_pretrained("tiny")
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "ff.net.2"]))
    metadata = pipe.transformer.peft_config["default"].to_dict()
    layers = get_peft_model_state_dict(pipe.transformer)
    changed = {k: v + 0.3 for k, v in layers.items()}
    for name, layers in (("none", layers), ("lora", changed)):
        pipe.save_lora_weights(name, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)
    options = {"pipeline": "tiny", "data": "images", "split": "train"}
    call(degraded_latents, **options, num_images=8, factor=[2.0], output="degraded-latents.json")
    options |= {"grader": [grader], "num_images": 8, "batch_size": 5, "strength": [0.3], "steps": [2]}
    for name in ("none", "lora"):
        call(upscale, **options, lora=name, degradation=["blur-2"], figure=f"{name}.png", output=f"{name}.json")
        assert Image.open(f"{name}.png").size[0] > 900
    for name, same in (("none", True), ("lora", False)):
        rows = read(f"{name}.json")["upscaling"]
        by_flow, by_lora = ([r for r in rows if r["method"] == m] for m in ("flow", "LoRA"))
        assert [r["degradation"] for r in by_flow] == [r["degradation"] for r in by_lora] == ["none", "blur-2"]
        for a, b in zip(by_flow, by_lora):  # a LoRA that has not been trained changes nothing
            assert (a["kernel_distance"] == b["kernel_distance"]) == (a["psnr_db"] == b["psnr_db"]) == same
        (image,) = [r for r in rows if (r["degradation"], r["method"]) == ("none", "image")]
        assert image["fidelity_db"] == image["psnr_db"] == pytest.approx(100)
    (workplace / "page.md").write_text(
        "<!-- study lora -->\n<!-- /study -->\n<!-- study degraded-latents -->\n<!-- /study -->"
    )
    for name in ("lora", "degraded-latents"):
        report.write_tables(report.load(f"{name}.json"), name, ["page.md"])
    assert (workplace / "page.md").read_text().count("\n| ") == 1 + 8 + 1 + 2
    with pytest.raises(ValueError, match="`output` must not exist"):
        call(upscale, **options, lora="lora", output="lora.json")


def test_a_lora_is_shipped_in_half_precision_with_a_card_that_runs(workplace, call, monkeypatch):
    pipe = make_pipeline()
    pipe.save_pretrained("checkpoints/tiny")
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    metadata = pipe.transformer.peft_config["default"].to_dict() | {"auto_mapping": pipe.scheduler.source}
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights("out", transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)
    parts = {k: getattr(pipe, k) for k in ("transformer", "scheduler", "vae")}
    facts = {"Data": {"images": 18}}
    save_model_card("out", "out", LowFreqUpscalePipeline(**parts, id2label={0: "horse"}), facts, base_model="tiny")
    (workplace / "cards").mkdir()
    (workplace / "cards/tiny-upscale.md").write_text("## What this is\n\nSmall.\n")
    monkeypatch.setattr(ship, "CARDS", "cards")
    call(ship, lora="out", output="checkpoints/tiny-upscale")
    path = "checkpoints/tiny-upscale/pytorch_lora_weights.safetensors"
    shipped = load_file(path)
    assert {k: v.dtype for k, v in shipped.items()} == dict.fromkeys(shipped, torch.float16)
    for key, value in layers.items():
        assert torch.equal(shipped[f"transformer.{key}"], value.half())
    text = (workplace / "checkpoints/tiny-upscale/README.md").read_text()
    assert "Small." in text and "| images | 18 |" in text
    code = text.split("```py\n")[1].split("```")[0].replace('"horse"', '"cat"')
    found = {}
    exec(code, found)
    assert len(found["images"]) == 2
    found["pipe"].scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.4)
    with pytest.raises(ValueError, match="must be a LoRA for the source"):  # it still says what it is for
        found["pipe"].load_lora_weights("checkpoints/tiny-upscale", adapter_name="again")


# ------------------------------------------------------------------------------------------- toy.py, trajectories.py


@pytest.mark.parametrize("noise_ratio", [0.3, 1.0])
def test_toy_velocity_is_the_regression_of_the_pairs(noise_ratio):
    """E[(source - sample) g(x)] = E[v(x) g(x)] for any g, and one Euler path ends on the data set."""
    sample = toy.make_samples(12, seeded())
    velocity = toy.exact_velocity(sample, noise_ratio)
    x_1 = sample.repeat(4000, 1)
    source = toy.make_source(x_1, randn(*x_1.shape, seed=1, dtype=torch.float64), noise_ratio)
    for sigma in (0.25, 0.75, 1.0):
        x = (1 - sigma) * x_1 + sigma * source
        v = velocity(x, torch.full((len(x),), sigma))
        for g in (torch.ones_like(x), x, torch.sin(3 * x.flip(1))):
            difference = ((source - x_1 - v) * g).mean(0)
            assert (difference.abs() < 5 * ((source - x_1 - v) * g).std(0) / len(x) ** 0.5).all()
    end = toy.trajectories(velocity, source[:200])[-1]
    assert torch.cdist(end, sample).min(1).values.quantile(0.9) < 0.01
    assert torch.allclose(end.float(), curvature(velocity, source[:200]).sample.float(), atol=1e-4)


def test_toy_with_one_sample_has_straight_paths():
    sample = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    bend = curvature(toy.exact_velocity(sample, 0.5), randn(6, 2, dtype=torch.float64))
    assert bend.curvature.max() < 1e-20 and torch.allclose(bend.sample, sample.expand(6, 2))


def test_toy_counts_crossings():
    """Against the solution of the two linear equations of each couple of segments."""
    start, stop = randn(25, 2, seed=1, dtype=torch.float64), randn(25, 2, seed=2, dtype=torch.float64)
    number = 0
    for i in range(25):
        for j in range(i):
            places = torch.linalg.solve(torch.stack([stop[i] - start[i], start[j] - stop[j]], 1), start[j] - start[i])
            number += bool(((places > 0) & (places < 1)).all())
    assert toy.num_crossings(start, stop) == number > 20


def test_toy_script_draws_fewer_crossings_and_less_curvature(workplace, call, capsys):
    call(toy, output="a/toy.png", num_samples=60, num_drawn=20)
    lines = [line.split("crossings ")[1] for line in capsys.readouterr().out.splitlines() if "crossings" in line]
    plain, ours = ([float(part.split()[-1]) for part in line.split(",")] for line in lines)
    assert plain[0] > ours[0] and plain[1] < ours[1] <= 1  # crossings, and what optimal transport would cost
    assert plain[2] > ours[2] and plain[4] == pytest.approx(plain[2] / plain[3], rel=2e-3)
    assert Image.open(workplace / "a/toy.png").size[0] > 800
    for name, value in (("noise_ratio", 0.0), ("num_drawn", 61)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            call(toy, **{"output": "b/toy.png", "num_samples": 60, name: value})
    assert not (workplace / "b").exists()


def strip_arguments(**changes):
    arguments = {"num_samples": 2, "class_labels": None, "guidance_scale": 1.5, "prior_num_inference_steps": 2}
    arguments |= {"columns": 3, "steps_per_column": 2, "seed": 0}
    return type("Arguments", (), arguments | changes)


def test_strips_run_from_the_source_to_what_the_pipeline_makes():
    pipe = make_pipeline()
    picture, sigmas = trajectories.strips(pipe, strip_arguments())
    assert sigmas == pytest.approx([1.0, 0.5, 0.0]) and len(picture) == 3
    call = {"guidance_scale": 1.5, "prior_guidance_scale": 1.5, "output_type": "latent"}
    generators = [keyed_generator(0, "prior", i) for i in range(2)]
    low = pipe([0, 1], generator=generators, prior_num_inference_steps=2, **call).prior_latents
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=keyed_generator(0, "noise", i)) for i in range(2)])
    source = pipe.scheduler.make_source(low, noise)
    end = pipe([0, 1], latents=source, num_inference_steps=4, **call).images
    for state, image in ((source, picture[0]), (end, picture[-1])):
        decoded = decode_latents(pipe.vae, state).detach()
        assert torch.allclose(image, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)
    finer, _ = trajectories.strips(pipe, strip_arguments(columns=5, steps_per_column=1))
    assert torch.allclose(finer[::2], picture, atol=1e-6)


def test_trajectories_script(workplace, call, monkeypatch):
    """Of saved pipelines, and of the runs of a study, trained once."""
    make_pipeline().save_pretrained("ours")
    options = {"columns": 3, "num_samples": 2}
    call(trajectories, pipelines="ours", output="a/strips.png", **options)
    wide, high = Image.open(workplace / "a/strips.png").size
    assert wide > 300 and high > 200
    monkeypatch.setattr(run_study, "ROOT", str(workplace))
    write_study(workplace)
    options |= {"study": "tiny", "output": "b/strips.png"}
    with pytest.raises(ValueError, match="`runs`"):
        call(trajectories, runs="none", train_data="images", **options)
    with pytest.raises(ValueError, match="`train_data`"):
        call(trajectories, runs="plain", **options)
    assert not (workplace / "b").exists()
    for _ in range(2):
        call(trajectories, runs=["plain", "ours"], train_data="images", **options)
    assert len(list((workplace / "out/studies/models-cpu").glob("*/model_index.json"))) == 2
    assert Image.open(workplace / "b/strips.png").size[1] > 1.5 * high


def test_strips_of_plain_and_low_frequency_flows_get_the_same_noise():
    scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=1.0)
    plain = LowFreqPipeline(make_transformer(in_channels=3, sample_size=16, num_classes=None), scheduler)
    picture, _ = trajectories.strips(plain, strip_arguments())
    noise = torch.cat([torch.randn(1, 3, 16, 16, generator=keyed_generator(0, "noise", i)) for i in range(2)])
    assert torch.allclose(picture[0], (noise / 2 + 0.5).clamp(0, 1))


# ---------------------------------------------------------------------------------------------------- evaluate.py


@pytest.fixture
def evaluation(workplace, grader):
    make_folder(workplace / "images")
    return {
        "grader": grader,
        "data": "images",
        "split": "test",
        "num_images": 10,
        "steps": [1, 2],
        "output": "out.json",
    }


def real_images(held_out: int = 10) -> torch.Tensor:
    """All images but the first of the fixed order, which only lend their labels and coarse versions."""
    pixels = torch.from_numpy(make_pixels(18))[
        [3 * (i % 6) + i // 6 for i in range(18)]
    ]  # by class, as a folder is read
    order = torch.randperm(18, generator=keyed_generator(0, "test"))
    return pixels[order[held_out:]].permute(0, 3, 1, 2).float() / 255


def read(path="out.json"):
    return json.loads(Path(path).read_text())


def test_evaluate_grades_ours_and_overwrites_nothing(workplace, evaluation, call):
    pipe = make_pipeline()
    pipe.save_pretrained("ours")
    more = {"prior_steps": [1, 3], "guidance_scale": 2.0, "curvature_images": 5, "spectrum": True}
    call(evaluate, pipeline="ours", batch_size=10, **evaluation, **more)
    result = read()
    share = count_flops(pipe.prior, (4, 4, 4)) / count_flops(pipe.transformer, (4, 8, 8))
    for row in result["rows"]:  # guided: two passes a step; the prior follows the flow
        prior = 2 * row["prior_steps"] * share if row["coarse"] == "generated" else 0
        assert row["effective_nfe"] == pytest.approx(2 * row["steps"] + prior, abs=2e-3)
        assert row["num_images"] == 10 and row["num_reference"] == 8 and 0 <= row["class_named"] <= 1
    settings = [(row["coarse"], row["prior_steps"]) for row in result["rows"][::2]]
    assert settings == [("generated", 1), ("generated", 3), ("true", None)] and result["extractor"] == "tiny-grader"
    assert all(("coarse_frechet_distance" in row) == (row["coarse"] == "generated") for row in result["rows"])
    # The curvature from generated coarse latents is that of the most steps of the prior model
    assert [(row["coarse"], row["prior_steps"]) for row in result["curvature"]] == settings[1:]
    for row in result["curvature"]:
        assert row["normalized_curvature"] == pytest.approx(row["curvature"] / row["squared_path_length"])
    assert result["spectrum"] == pytest.approx(radial_power_spectrum(real_images()).mean(0).tolist(), rel=1e-4)

    written = Path("out.json").read_bytes()
    with pytest.raises(ValueError, match="nothing is overwritten"):
        call(evaluate, pipeline="ours", **evaluation)
    assert Path("out.json").read_bytes() == written
    with pytest.raises(ValueError, match="`curvature_images`"):
        call(evaluate, pipeline="ours", **evaluation | {"curvature_images": 11, "output": "no.json"})
    # However the images are cut into batches, the figures are the same
    more["prior_steps"] = 3
    call(evaluate, pipeline="ours", batch_size=5, **evaluation | {"output": "again.json"}, **more)
    again = read("again.json")
    for kind, names in (("rows", ["frechet_distance", "class_named"]), ("curvature", ["curvature"])):
        for a, b in zip([row for row in result[kind] if row["prior_steps"] != 1], again[kind], strict=True):
            assert [a[n] for n in names] == pytest.approx([b[n] for n in names], rel=1e-3)


def test_true_coarse_images_are_no_part_of_the_reference(workplace, evaluation, grader):
    extractor = evaluate.Extractor(str(grader))
    reference = evaluate.Reference("images", "test", 16, [extractor], "cache", 10)
    assert torch.allclose(reference.batch(10, 18)[0], real_images())
    with torch.no_grad():
        expected = extractor.network(real_images())[1].double().mean(0)
    assert torch.allclose(reference.statistics[0].moments.mean, expected, atol=1e-5)
    for number in (0, 17):
        with pytest.raises(ValueError, match="`num_images`"):
            evaluate.Reference("images", "test", 16, [extractor], "cache", number)
    # The fingerprint is of the pixels, wherever they lie
    facts = reference.facts
    make_folder(workplace / "elsewhere/images")
    again = evaluate.Reference("elsewhere/images", "test", 16, [extractor], "other", 9).facts
    assert again["reference_fingerprint"] == facts["reference_fingerprint"] and again["num_reference"] == 9
    Image.new("RGB", (16, 16)).save("elsewhere/images/red/002.png")
    other = evaluate.Reference("elsewhere/images", "test", 16, [extractor], "third", 9).facts
    assert other["reference_fingerprint"] != facts["reference_fingerprint"]


def test_evaluate_takes_several_graders(workplace, evaluation, grader, call):
    torch.manual_seed(1)
    randomize(Grader(num_classes=3, width=2)).save_pretrained("second")
    LowFreqPipeline(make_transformer(in_channels=3, sample_size=16), LowFreqFlowMatchScheduler(noise_ratio=1.0)).save_pretrained("plain")  # fmt: skip
    call(evaluate, pipeline="plain", **evaluation | {"grader": [grader, "second"], "steps": 1})
    call(evaluate, pipeline="plain", **evaluation | {"grader": "second", "output": "alone.json", "steps": 1})
    (row,), (alone,) = read()["rows"], read("alone.json")["rows"]
    assert set(read()["graders"]) == {"tiny-grader", "second"} and row["extractor"] == "tiny-grader"
    assert row["graders"] == {"second": {k: alone[k] for k in ("frechet_distance", "kernel_distance")}}
    assert row["frechet_distance"] != alone["frechet_distance"]


def test_evaluate_grades_a_truncated_prior(workplace, evaluation, call):
    pipe = make_pipeline()
    scheduler = LowFreqFlowMatchScheduler(projection="area", factor=2, noise_ratio=0.5)
    pipe = LowFreqPipeline(pipe.transformer, scheduler, pipe.vae, pipe.prior, id2label=pipe.config.id2label)
    pipe.save_pretrained("area")
    call(evaluate, pipeline="area", coarse=["generated", "truncated"], prior_steps=3, **evaluation)
    generated, truncated = read()["rows"][::2]
    assert (generated["coarse"], truncated["coarse"]) == ("generated", "truncated")
    assert generated["effective_nfe"] == pytest.approx(truncated["effective_nfe"], abs=1e-3)
    assert generated["frechet_distance"] != truncated["frechet_distance"]


def make_ddim(path: Path):
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    pipe = DDIMPipeline(UNet2DModel(sample_size=16, add_attention=False, **config, **blocks), DDIMScheduler())
    pipe.save_pretrained(path)
    return pipe


def test_evaluate_grades_an_unconditional_pipeline_of_diffusers(workplace, evaluation, grader, call):
    """The distance is that of a plain loop around the pipeline; a forward pass an image and step is counted."""
    pipe = make_ddim(workplace / "ddim")
    call(evaluate, pipeline="ddim", batch_size=5, **evaluation)
    rows = read()["rows"]
    assert [row["effective_nfe"] for row in rows] == [1.0, 2.0] and "class_named" not in rows[0]
    pipe.set_progress_bar_config(disable=True)
    generators = [keyed_generator(0, i) for i in range(10)]
    images = pipe(batch_size=10, generator=generators, num_inference_steps=2, output_type="np").images
    features = Grader.from_pretrained(grader).eval()
    with torch.no_grad():
        generated = features(torch.from_numpy(images).permute(0, 3, 1, 2))[1]
        expected = frechet_distance(generated, features(real_images())[1])
    assert rows[1]["frechet_distance"] == pytest.approx(expected, rel=1e-3)


def test_evaluate_grades_a_conditional_latent_pipeline_of_diffusers(workplace, evaluation, call):
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "norm_num_groups": 4}
    transformer = DiTTransformer2DModel(sample_size=8, in_channels=4, out_channels=8, **heads)
    DiTPipeline(transformer, make_autoencoder(), DDIMScheduler()).save_pretrained("dit")
    call(evaluate, pipeline="dit", guidance_scale=[1.0, 3.0], **evaluation)
    rows = read()["rows"]
    assert [(row["guidance_scale"], row["effective_nfe"]) for row in rows] == [(1, 1), (1, 2), (3, 2), (3, 4)]
    assert all(0 <= row["class_named"] <= 1 for row in rows)


def test_evaluate_takes_the_prior_model_of_another_pipeline(workplace, evaluation, call):
    make_pipeline().save_pretrained("pipe")
    make_pipeline(prior=make_prior(seed=7)).save_pretrained("other")
    found = {}
    for name, options in (("own", {}), ("taken", {"prior": "other"}), ("whole", {"pipeline": "other"})):
        settings = {"pipeline": "pipe"} | evaluation | options | {"output": f"{name}.json", "coarse": "generated"}
        call(evaluate, **settings)
        found[name] = read(f"{name}.json")
    assert found["taken"]["pipeline"] == "pipe, prior of other"
    assert found["taken"]["rows"][0]["frechet_distance"] == found["whole"]["rows"][0]["frechet_distance"]
    assert found["own"]["rows"][0]["frechet_distance"] != found["taken"]["rows"][0]["frechet_distance"]


@pytest.mark.parametrize("scales", [{}, {"guidance_scale_range": [1.0, 4.0]}])
def test_evaluate_asks_a_one_step_pipeline_for_what_it_has_folded_in(workplace, evaluation, call, scales):
    flow = make_transformer(use_meanflow=True, guidance_scale=3.0, **scales)
    prior = make_prior(use_meanflow=True, guidance_scale=2.0, **scales)
    make_pipeline(transformer=flow, prior=prior).save_pretrained("one-step")
    call(evaluate, pipeline="one-step", **evaluation | {"curvature_images": 5})
    result = read()
    rows = [row for row in result["rows"] if row["coarse"] == "generated"]
    assert {(row["guidance_scale"], row["prior_guidance_scale"]) for row in rows} == {(3.0, 2.0)}
    share = count_flops(prior, (4, 4, 4)) / count_flops(flow, (4, 8, 8))
    assert [row["effective_nfe"] for row in rows] == pytest.approx([1 + 8 * share, 2 + 8 * share], abs=1e-4)
    assert all(math.isfinite(figures["curvature"]) for figures in result["curvature"])


# ---------------------------------------------------------------------------------------------------- run_study.py


TIERS = {
    "cpu": {
        "train": {
            "resolution": 16, "conditional": False, "factor": 4, "patch_size": 4, "prior_patch_size": 2,
            "transformer_size": "1x2x8", "prior_size": "1x2x8", "max_train_steps": 2, "prior_max_train_steps": 2,
            "train_batch_size": 4, "prior_train_batch_size": 4, "lr_warmup_steps": 1, "num_validation_images": 2,
        },
        "flow": {"noise_ratio": 0.5},
        "prior": {},
        "split": "test",
        "graders": ["tiny-grader", "not-there"],
        "num_graders": 1,
        "evaluate": {"num_images": 10, "batch_size": 10, "steps": [1], "prior_steps": [1]},
        "seeds": [0],
        "variants": {"long": {"flow": {"max_train_steps": 3}}},
    }
}  # fmt: skip
STUDY = {
    "question": "Which?",
    "settings": {"evaluate": {"spectrum": True}},
    "runs": {"plain": {"variants": ["long"], "flow": {"noise_ratio": 1.0}}, "ours": {}},
}


def write_study(root: Path, study=STUDY, name="tiny"):
    (root / "benchmarks/studies").mkdir(parents=True, exist_ok=True)
    (root / "benchmarks/tiers.json").write_text(json.dumps(TIERS))
    (root / f"benchmarks/studies/{name}.json").write_text(json.dumps(study))
    if not (root / "images").exists():
        make_folder(root / "images")


def figures(path) -> list:
    """What a results file says, without the clock."""
    kept = [(run["run"], run["seed"], [row["frechet_distance"] for row in run["rows"]]) for run in read(path)["runs"]]
    return sorted(kept)


def files(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_run_study_trains_and_grades_once(workplace, grader, call, monkeypatch):
    monkeypatch.setattr(run_study, "ROOT", str(workplace))
    write_study(workplace)
    options = {"study": "tiny", "tier": "cpu", "train_data": "images", "test_data": "images", "graders_dir": "."}
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
    assert len(report.table(result).splitlines()) == 7 and len(report.spectrum_figure(result).axes) == 1

    written = path.read_bytes()
    for place in ("settings", "runs"):
        study = json.loads(json.dumps(STUDY))
        if place == "settings":
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


def test_studies_of_a_tier_share_their_networks(workplace, grader, call, monkeypatch):
    monkeypatch.setattr(run_study, "ROOT", str(workplace))
    write_study(workplace)
    write_study(workplace, STUDY | {"runs": {"again": {}}}, name="second")
    options = {"tier": "cpu", "train_data": "images", "test_data": "images", "graders_dir": "."}
    call(run_study, study="tiny", runs=["ours"], **options)
    before = files(workplace / "out/studies/models-cpu")
    call(run_study, study="second", **options)
    after = files(workplace / "out/studies/models-cpu")
    assert {k: v for k, v in after.items() if k.suffix != ".lock"} == {k: v for k, v in before.items() if k.suffix != ".lock"}  # fmt: skip
    first, second = (read(workplace / f"benchmarks/results/{name}-cpu.json")["runs"][0] for name in ("tiny", "second"))
    assert [r["frechet_distance"] for r in first["rows"]] == [r["frechet_distance"] for r in second["rows"]]


def test_run_study_distils_what_a_run_names(workplace, grader, call, monkeypatch):
    """Teachers are shared, the part that is not named stays the teacher's, and one call of each network is what is graded."""
    monkeypatch.setattr(run_study, "ROOT", str(workplace))
    runs = {
        "teacher": {},
        "pair": {"student": {"flow": {}, "prior": {"prior_max_train_steps": 1}}},
        "prior": {"student": {"prior": {"prior_max_train_steps": 1}}},
        "plain": {"variants": ["long"], "flow": {"noise_ratio": 1.0}, "student": {"flow": {}}},
    }
    write_study(workplace, STUDY | {"runs": runs})
    options = {"study": "tiny", "tier": "cpu", "train_data": "images", "test_data": "images", "graders_dir": "."}
    call(run_study, **options)
    teacher, pair, prior, plain = read(workplace / "benchmarks/results/tiny-cpu.json")["runs"]
    assert pair["flow"] == prior["flow"] == teacher["flow"] and pair["prior"] == teacher["prior"]
    assert pair["student prior"] == prior["student prior"] and pair["student prior"]["steps"] == "1"
    assert pair["student flow"]["steps"] == "2" and plain["student flow"]["steps"] == "3" and "prior" not in plain
    one_call = [row["effective_nfe"] for row in teacher["rows"]]  # the second time costs its embedding
    assert [row["effective_nfe"] for row in pair["rows"]] == pytest.approx(one_call, rel=0.05)
    study, tier = run_study.read_study("tiny", "cpu")
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


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("tier", ["cpu", *(pytest.param(t, marks=pytest.mark.slow) for t in TIER_NAMES if t != "cpu")])
def test_every_study_parses_in_every_tier_and_keeps_its_limits(study, tier):
    """Options of all runs are taken by the scripts; networks, runs and graders are of the size that the tier allows."""
    content, settings = run_study.read_study(study, tier)
    assert len(content["runs"]) * len(settings["seeds"]) <= 20 and len(settings["seeds"]) >= 2
    for name in settings["graders"]:
        assert (ROOT / "checkpoints/graders" / name / "diffusion_pytorch_model.safetensors").is_file()
    for options in content["runs"].values():
        parts = {}
        for part in ("flow", "prior"):
            given = run_study.run_options(options, settings, "train") | run_study.run_options(options, settings, part)
            line = run_study.command_line(given | {"output_dir": "-", "train_data_dir": "-", "train": part})
            parts[part] = run_study.train_lowfreq.parse_args(line)
        flow, prior = parts["flow"], parts["prior"]
        side = flow.resolution // (4 if settings.get("latents") else 1)
        channels = 8 if settings.get("latents") else 3
        sizes = {"flow": (flow.transformer_size, flow.patch_size, side)}
        sizes["prior"] = (prior.prior_size, prior.prior_patch_size, side // flow.factor)
        flops = {}
        for part, (size, patch_size, side) in sizes.items():
            with torch.device("meta"):
                config = run_study.train_lowfreq.size_config(size)
                model = LowFreqTransformer2DModel(
                    sample_size=side, patch_size=patch_size, in_channels=channels, **config
                )
            flops[part] = count_flops(model, (channels, side, side))
            parameters = model.num_parameters()
            assert parameters <= 500_000 if tier == "cpu" else (20e6 <= parameters <= 40e6) == (part == "flow")
            assert tier != "cpu" or (side // patch_size) ** 2 <= 16
        given = run_study.run_options(options, settings, "evaluate")
        # A flow that needs no prior model is trained for what the prior model of the others costs, and not less
        both = flops["flow"] * settings["train"]["max_train_steps"] * flow.train_batch_size
        both += flops["prior"] * prior.prior_max_train_steps * prior.prior_train_batch_size
        alone = flops["flow"] * flow.max_train_steps * flow.train_batch_size
        assert flow.noise_ratio < 1 or 1 <= alone / both < 1.01
        rest = {"pipeline": "-", "grader": "-", "data": "-", "split": "-", "output": "-"}
        evaluate.parse_args(run_study.command_line(rest | given))


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("tier", ["gpu", "gpu-latents"])
def test_the_large_tiers_run_in_miniature(workplace, grader, call, monkeypatch, study, tier):
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
    monkeypatch.setattr(run_study, "ROOT", str(workplace))
    LowFreqPipeline(make_transformer(), vae=make_vae("vae"), scheduler=LowFreqFlowMatchScheduler()).save_pretrained(
        "pipe"
    )
    data = {"train_data": "images", "test_data": "images", "vae": "pipe", "graders_dir": "."}
    call(run_study, study=study, tier=tier, **data)
    result = read(workplace / f"benchmarks/results/{study}-{tier}.json")
    assert [run["run"] for run in result["runs"]] == list(json.loads(content)["runs"])
    assert all(run["flow"]["mixed precision"] == "bf16" for run in result["runs"])
    assert all(("autoencoder_psnr_db" in run) == (tier == "gpu-latents") for run in result["runs"])
    assert len(report.table(result).splitlines()) > 4


@pytest.mark.parametrize("strength", [0.3, 0.45, 0.6, 0.75])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_baseline_of_strangers_is_image_to_image_of_diffusers(strength, steps):
    """The very levels of the stock pipeline's own `get_timesteps`, with as many network calls."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    img2img = StableDiffusion3Img2ImgPipeline(None, scheduler, None, *[None] * 6)
    pipe = make_pipeline(None, prior=None, scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio=1.0))
    levels = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: levels.append(float(args[1][0]) / 1000), with_kwargs=True
    )
    pipe("cat", num_inference_steps=1)
    levels.clear()
    strangers.sdedit(pipe, pipe.scheduler, torch.zeros(1, 4, 4, 4), strength, steps, [torch.Generator()])
    assert len(levels) == steps
    found = []
    for total in range(1, 40):
        scheduler.set_timesteps(total)
        timesteps, number = img2img.get_timesteps(total, strength, "cpu")
        found.append([round(float(t) / 1000, 5) for t in timesteps] if len(timesteps) == steps else None)
    assert [round(level, 5) for level in levels] in found


@pytest.mark.slow
def test_strangers_trains_and_grades_once(workplace, grader, call, monkeypatch):
    for module in (run_study, strangers):
        monkeypatch.setattr(module, "ROOT", str(workplace))
    study = json.loads((BENCHMARKS / "studies/strangers.json").read_text())
    study["settings"] = {"flow": {"noise_ratio": 1.0}, "evaluate": {"steps": [1, 2], "prior_steps": [2]}}
    study["strengths"] = [0.4, 0.6]
    study["lora"] |= {"rank": 2, "max_train_steps": 2, "train_batch_size": 4, "lr_warmup_steps": 1}
    write_study(workplace, study, "strangers")
    options = {"tier": "cpu", "train_data": "images", "test_data": "images", "graders_dir": "."}
    call(strangers, **options)
    path = workplace / "benchmarks/results/strangers-cpu.json"
    result, written = read(path), path.read_bytes()
    # Two plain ones; two strengths of two methods and two LoRAs, each from generated and from true coarse images
    assert len(result["rows"]) == 2 * (2 + 2 * (2 * 2 + 2))
    assert {row["effective_nfe"] == row["steps"] for row in result["rows"] if row["coarse"] == "generated"} == {False}
    assert {row["effective_nfe"] == row["steps"] for row in result["rows"] if row["coarse"] != "generated"} == {True}
    distances = {
        (r["method"], r["noise_ratio"], r["coarse"], r["steps"]): r["frechet_distance"] for r in result["rows"]
    }
    assert len(set(distances.values())) >= len(distances) - 4  # few ways of sampling come to the same with one step
    assert len(report.table(result).splitlines()) == 2 * (2 + 2 + 2 * 4) + 3
    call(strangers, **options)
    assert path.read_bytes() == written
    write_study(workplace, study | {"strengths": [0.5]}, "strangers")
    with pytest.raises(ValueError, match="another configuration.*nothing is overwritten"):
        call(strangers, **options)


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


# ---------------------------------------------------------------------------------------------------- coupling.py


@pytest.mark.parametrize("name", coupling.MASKS)
def test_masks_are_orthogonal_projections_of_the_same_rank(name):
    sample = randn(3, 2, 16, 16)
    kept = coupling.project(sample, name, 4, seeded(1))
    assert torch.equal(coupling.project(kept, name, 4, seeded(1)), kept)
    assert (kept * (sample - kept)).abs().max() == 0 and (kept != 0).sum() == kept.numel() / 16
    side = 4 if name == "patch mask" else 1
    blocks = (kept != 0).float().unfold(2, side, side).unfold(3, side, side).mean((-1, -2))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}


def test_coupling_script_keeps_the_identity_without_noise_and_what_is_done(workplace, call):
    make_folder(workplace / "images")
    options = {"data": "images", "resolution": 16, "num_pairs": 18, "factor": [2, 4], "seeds": 0, "output": "a/c.json"}
    call(coupling, noise_ratio=0.0, **options)
    first = read("a/c.json")["rows"]
    for row in first:  # an orthogonal projection of distinct images is its own optimal transport
        if row["operator"] in ("area", "dct", "pca"):
            assert row["identity_kept"] == 1 and row["cost_ratio"] == pytest.approx(1)
    call(coupling, noise_ratio=[0.0, 1.0], **options)
    rows = read("a/c.json")["rows"]
    assert rows[: len(first)] == first and len(rows) == 2 * len(first) == 24
    assert all(row["cost_ratio"] < 1 and row["identity_kept"] < 1 for row in rows[len(first) :])
    assert len(report.table(read("a/c.json")).splitlines()) == 4 + 12
    written = Path("a/c.json").read_bytes()
    with pytest.raises(ValueError, match="`num_pairs`"):
        call(coupling, **options | {"num_pairs": 19})
    make_pipeline().save_pretrained("tiny-pipeline")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        call(coupling, vae="tiny-pipeline", **options)
    assert Path("a/c.json").read_bytes() == written
    call(coupling, vae="tiny-pipeline", noise_ratio=0.5, operators="area", **options | {"output": "latents.json"})
    assert [row["factor"] for row in read("latents.json")["rows"]] == [2, 4]


# -------------------------------------------------------------------------------------------------- text_to_image.py


class Painter:
    """In the place of a pipeline: it paints the number of the last class in the prompt, and else of one that is not to be seen."""

    names = ["cat", "dog", "ship", "truck"]
    effective_nfe = 3.0

    def __call__(self, prompts, negative_prompt, generator, **inputs):
        images = []
        for prompt, g in zip(prompts, generator):
            unwanted = [i for i, name in enumerate(self.names) if name in (negative_prompt or "")]
            free = [i for i in range(4) if i not in unwanted]
            named = [i for i, name in enumerate(self.names) if name in prompt]
            choice = free[int(torch.randint(len(free), (), generator=g))]
            images.append(torch.full((3, 2, 2), float(named[0] if named else choice)))
        return argparse.Namespace(images=torch.stack(images))


class Reader:
    """In the place of a grader: it reads the number."""

    def __init__(self):
        self.classes = []

    def __call__(self, images):
        self.classes.append(images[:, 0, 0, 0].long())


def test_text_benchmark_grades_a_painter_that_obeys_as_one(monkeypatch):
    settings = {"images": 40, "negative_images": 400, "guidance_scales": [1.0, 2.0]}
    monkeypatch.setattr(text_to_image, "SETTINGS", text_to_image.SETTINGS | settings)
    result = text_to_image.grade(Painter(), Reader(), Painter.names, seed=0)
    assert [(row["templates"], row["guidance_scale"]) for row in result["rows"]] == [
        (kind, scale) for kind in ("as in training", "held out") for scale in (1.0, 2.0)
    ]
    for row in result["rows"]:
        assert (row["class_named"], row["class_named_if_another_is_asked"], row["verdict_changed"]) == (1, 0, 1)
    for row in result["negative"]:
        assert 0.18 < row["named"] < 0.32 and row["named_with_negative_prompt"] == 0

    class Deaf(Painter):
        def __call__(self, prompts, negative_prompt, **inputs):
            return super().__call__([""] * len(prompts), None, **inputs)

    result = text_to_image.grade(Deaf(), Reader(), Painter.names, seed=0)
    for row in result["rows"]:
        assert row["verdict_changed"] == 0 and row["class_named"] == row["class_named_if_another_is_asked"] == 0.25
    assert all(row["named"] == row["named_with_negative_prompt"] for row in result["negative"])


@pytest.mark.slow
def test_text_benchmark_trains_and_grades_once(workplace, grader, call, monkeypatch):
    import datasets

    pixels = [Image.fromarray(p) for p in make_pixels(24)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red_hot", "b", "c"])}
    )
    data = {"image": pixels, "label": [i % 3 for i in range(24)]}
    datasets.Dataset.from_dict(data, features).to_parquet("data.parquet")
    small = {"transformer_size": "1x2x8", "prior_size": "1x2x8", "max_train_steps": 2, "prior_max_train_steps": 2}
    small |= {"train_batch_size": 4, "prior_train_batch_size": 4, "num_validation_images": 2}
    settings = text_to_image.SETTINGS | {"images": 6, "negative_images": 4, "guidance_scales": [2.0], "seeds": [0, 1]}
    settings["train"] = settings["train"] | small
    monkeypatch.setattr(text_to_image, "SETTINGS", settings)
    options = {"train_data": "data.parquet", "test_data": "data.parquet", "grader": grader, "output": "results.json"}
    call(text_to_image, **options)
    captions = datasets.load_dataset("parquet", data_files="out/text-to-image/captioned.parquet", split="train")
    assert captions[3]["text"] == [template.format("red hot") for template in text_to_image.TEMPLATES]
    result = json.loads(Path("results.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1] and len(result["runs"][0]["rows"]) == 2
    files = {path: path.stat().st_mtime_ns for path in workplace.glob("out/text-to-image/*/*.safetensors")}
    call(text_to_image, **options)
    assert json.loads(Path("results.json").read_text()) == result
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    table = report.table(result)
    named = [run["rows"][0]["class_named"] for run in result["runs"]]
    assert f"{100 * sum(named) / 2:.1f} % ({100 * named[0]:.1f}, {100 * named[1]:.1f})" in table
    assert "red hot" in table and table.count("\n| ") == 2 + 2 + 3 + 1
    monkeypatch.setitem(settings, "images", 9)
    with pytest.raises(ValueError, match="`output` 'results.json' holds results of another `settings`"):
        call(text_to_image, **options)


# ------------------------------------------------------------------------------------------------------------ scale


SMALL_SCALE = {
    "repeats": 2,
    "batch_size": 2,
    "token_size": "1x1x8",
    "sample_sizes": [4, 8],
    "sizes": ["1x1x8", "2x1x8"],
}
SMALL_SCALE |= {"images": 128, "shard_size": 64, "latents": {"tiny": [4, 2, 2]}, "set_size": 1000}
SMALL_SCALE |= {"reduced_bytes": [4, 4000], "process_sizes": ["1x1x8"], "checkpoint_size": "1x1x8"}
SMALL_SCALE |= {"activations": [[1, 4, 16], [2, 4, 16]]}


@pytest.mark.slow
def test_scale_measures_calculates_and_is_written_into_tables(workplace, call, monkeypatch):
    monkeypatch.setattr(scale, "SETTINGS", SMALL_SCALE)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # of this process, which has more to do
    make_vae(workplace / "vae")
    call(scale, vae="vae", output="scale.json")
    result = read("scale.json")
    measured, calculated = result["measured"], result["calculated"]
    for row in measured["steps"]["tokens"] + measured["steps"]["parameters"]:
        assert row["forward_flops"] == row["calculated_flops"] and row["seconds"] > 0
    for row in measured["activations"]:
        assert row["calculated"] == pytest.approx(row["measured"], rel=0.2)
    assert measured["checkpoint"]["state_bytes_per_parameter"] == {"weights": 4, "gradients": 4, "moments": 8, "averages": 4}  # fmt: skip
    halves = measured["two_processes"]["fsdp2_state_bytes_per_parameter"]
    assert halves == pytest.approx({"weights": 2, "gradients": 2, "moments": 4, "averages": 2}, rel=0.2)
    assert measured["cache"]["calculated_bytes_per_image"] < measured["cache"]["stored_bytes_per_image"]
    assert measured["order"]["bytes_per_image"] == 5 and calculated["held_bytes_per_image"] == pytest.approx(
        21, abs=0.2
    )
    views = [None, "costs", "checked", "networks", "engines", "sets", "limits"]
    marks = [f"<!-- study scale{f' {view}' if view else ''} -->\n<!-- /study -->" for view in views]
    Path("scale.md").write_text("\n\n".join(marks))
    report.write_tables(result, "scale", ["scale.md"])
    text = Path("scale.md").read_text()
    kinds = ("Measured**", "Measured**", "Calculated over measured**", *["Calculated**"] * 4)
    assert [text.count(f"**{kind}") for kind in set(kinds)] == [kinds.count(kind) for kind in set(kinds)]


def test_formulas_of_scale_agree_with_what_they_are_made_of():
    for engine in scale.ENGINES:  # on one process nothing is in parts, and nothing is sent
        alone = scale.memory_bytes(engine, 10**9, 1, 0, 0)
        assert alone["moments"] == 8e9 and alone["averages"] == 4e9
        assert alone["weights"] - 2e9 * (engine == "ZeRO-3") >= 4e9 and scale.communicated_bytes(engine, 10**9, 1) == 0
        sizes = [scale.memory_bytes(engine, 10**9, n, 10**7, 10**6) for n in (8, 64, 1024)]
        assert all(sum(v for k, v in size.items() if k != "all") == pytest.approx(size["all"]) for size in sizes)
        shrinks = sizes[0]["all"] > sizes[1]["all"] > sizes[2]["all"]
        assert shrinks == (engine != "DDP") and (sizes[0] == sizes[2]) == (engine == "DDP")
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert f"{scale.memory_bytes('DDP', 1, 64, 0, 0)['all']} bytes a parameter" in page
    assert "`24·tokens·width² + 4·tokens²·width`" in page
    layer = scale.forward_flops(2, 64, 100) - scale.forward_flops(1, 64, 100)
    assert layer == 24 * 100 * 64**2 + 4 * 100**2 * 64
    # The interval between checkpoints at which writing and what a failure loses cost the same
    interval = scale.best_interval(20.0, 1024, 50_000)
    assert 20 / interval == pytest.approx(interval / 2 / (50_000 * 3600 / 1024))
    assert scale.latent_bytes([4, 8, 8]) == 2 * torch.zeros(4, 8, 8).half().nbytes


@pytest.mark.slow
def test_training_speed_is_measured_and_written_into_a_table(workplace, call):
    make_vae(workplace / "vae")
    small = {"vae": "vae", "resolution": 16, "num_images": 24, "transformer_size": "1x1x8", "batch_size": 4}
    small |= {"process_batch_size": 8, "block": 2, "blocks": 4, "steps": 8, "repeats": 1, "memory_steps": 20}
    call(training_speed, output="training-speed.json", **small)
    result = read("training-speed.json")
    for kind in ("independent", "minibatch_ot"):
        assert result[kind]["blocks"] == 3 and result[kind]["ratio"] > 0
    processes = result["two_processes"]
    assert processes["mb_sent_by_each_measured"] >= processes["mb_sent_by_each_calculated"] > 0
    assert result["checkpoints"]["saves"] == 8 and 0 < result["checkpoints"]["share"]
    assert len(result["memory"]["mib_by_tenth_of_the_run"]) == 10
    Path("page.md").write_text("<!-- study training-speed -->\n<!-- /study -->")
    report.write_tables(result, "training-speed", ["page.md"])
    assert f"**{processes['ratio']:.2f}**" in Path("page.md").read_text()
