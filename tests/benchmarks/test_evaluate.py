# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/evaluate.py`."""

import math
from pathlib import Path

import evaluate
import pytest
import torch
from graders import Grader
from PIL import Image
from scripts import make_folder, make_pixels
from shared.reference import Extractor, Reference
from small_studies import call, read
from tiny import make_autoencoder, make_pipeline, make_prior, make_transformer, randomize

from diffusers import DDIMPipeline, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, UNet2DModel
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline
from diffusers_lowfreq.evaluation import count_flops, frechet_distance, radial_power_spectrum
from diffusers_lowfreq.training import keyed_generator


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


def test_evaluate_grades_ours_and_overwrites_nothing(workplace, evaluation):
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
    for group, names in (("rows", ["frechet_distance", "class_named"]), ("curvature", ["curvature"])):
        for a, b in zip([row for row in result[group] if row["prior_steps"] != 1], again[group], strict=True):
            assert [a[n] for n in names] == pytest.approx([b[n] for n in names], rel=1e-3)


def test_true_coarse_images_are_no_part_of_the_reference(workplace, evaluation, grader):
    extractor = Extractor(str(grader))
    reference = Reference("images", "test", 16, [extractor], "cache", 10)
    assert torch.allclose(reference.batch(10, 18)[0], real_images())
    with torch.no_grad():
        expected = extractor.network(real_images())[1].double().mean(0)
    assert torch.allclose(reference.statistics[0].moments.mean, expected, atol=1e-5)
    for number in (0, 17):
        with pytest.raises(ValueError, match="`num_images`"):
            Reference("images", "test", 16, [extractor], "cache", number)
    # The fingerprint is of the pixels, wherever they lie
    facts = reference.facts
    make_folder(workplace / "elsewhere/images")
    again = Reference("elsewhere/images", "test", 16, [extractor], "other", 9).facts
    assert again["reference_fingerprint"] == facts["reference_fingerprint"] and again["num_reference"] == 9
    Image.new("RGB", (16, 16)).save("elsewhere/images/red/002.png")
    other = Reference("elsewhere/images", "test", 16, [extractor], "third", 9).facts
    assert other["reference_fingerprint"] != facts["reference_fingerprint"]


def test_evaluate_takes_several_graders(workplace, evaluation, grader):
    torch.manual_seed(1)
    randomize(Grader(num_classes=3, width=2)).save_pretrained("second")
    LowFreqPipeline(make_transformer(in_channels=3, sample_size=16), LowFreqFlowMatchScheduler(noise_ratio=1.0)).save_pretrained("plain")  # fmt: skip
    call(evaluate, pipeline="plain", **evaluation | {"grader": [grader, "second"], "steps": 1})
    call(evaluate, pipeline="plain", **evaluation | {"grader": "second", "output": "alone.json", "steps": 1})
    (row,), (alone,) = read()["rows"], read("alone.json")["rows"]
    assert set(read()["graders"]) == {"tiny-grader", "second"} and row["extractor"] == "tiny-grader"
    assert row["graders"] == {"second": {k: alone[k] for k in ("frechet_distance", "kernel_distance")}}
    assert row["frechet_distance"] != alone["frechet_distance"]


def test_evaluate_grades_a_truncated_prior(workplace, evaluation):
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


@pytest.mark.slow
def test_evaluate_grades_an_unconditional_pipeline_of_diffusers(workplace, evaluation, grader):
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


@pytest.mark.slow
def test_evaluate_grades_a_conditional_latent_pipeline_of_diffusers(workplace, evaluation):
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "norm_num_groups": 4}
    transformer = DiTTransformer2DModel(sample_size=8, in_channels=4, out_channels=8, **heads)
    DiTPipeline(transformer, make_autoencoder(), DDIMScheduler()).save_pretrained("dit")
    call(evaluate, pipeline="dit", guidance_scale=[1.0, 3.0], **evaluation)
    rows = read()["rows"]
    assert [(row["guidance_scale"], row["effective_nfe"]) for row in rows] == [(1, 1), (1, 2), (3, 2), (3, 4)]
    assert all(0 <= row["class_named"] <= 1 for row in rows)


def test_evaluate_takes_the_prior_model_of_another_pipeline(workplace, evaluation):
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
def test_evaluate_asks_a_one_step_pipeline_for_what_it_has_folded_in(workplace, evaluation, scales):
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
