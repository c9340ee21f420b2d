# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/degraded_latents.py` and `benchmarks/upscale.py`."""

import degraded_latents
import pytest
import report
import torch
import upscale
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from scripts import make_folder
from small_studies import call, read
from tiny import make_pipeline, seeded

from diffusers_lowfreq import LowFreqFlowMatchScheduler
from diffusers_lowfreq.training import degrade


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
    lines = degraded_latents.table(result | {"machine": "CPU", "torch": "2.13.0", "degradations": [row]}).splitlines()
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
    lines = upscale.table(result | {"machine": "CPU", "torch": "2.13.0", "upscaling": [real, made]}).splitlines()
    assert lines[4] == "| the image | none: the picture as it is | - | - | - | - | 50.0% | 12.3 | 32.1 |"
    assert lines[5] == "| thumbnail by 4 | with `tiny-upscale` | 0.25 | 4 | 30.0 dB | 100.0 dB | 50.0% | 12.3 | 32.1 |"


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
def test_upscaling_scripts_grade_flow_and_lora_from_the_same_noise(workplace, grader):
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
