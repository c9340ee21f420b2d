# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/text_to_image.py`."""

import argparse
import json
from pathlib import Path

import pytest
import text_to_image
import torch
from PIL import Image
from scripts import make_pixels
from small_studies import call


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

    def take_classes(self):
        classes, self.classes = self.classes, []
        return torch.cat(classes)


def test_text_benchmark_grades_a_painter_that_obeys_as_one():
    settings = text_to_image.SETTINGS | {"images": 40, "negative_images": 400, "guidance_scales": [1.0, 2.0]}
    result = text_to_image.grade(Painter(), Reader(), Painter.names, 0, settings)
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

    result = text_to_image.grade(Deaf(), Reader(), Painter.names, 0, settings)
    for row in result["rows"]:
        assert row["verdict_changed"] == 0 and row["class_named"] == row["class_named_if_another_is_asked"] == 0.25
    assert all(row["named"] == row["named_with_negative_prompt"] for row in result["negative"])


@pytest.mark.slow
def test_text_benchmark_trains_and_grades_once(workplace, grader):
    import datasets

    pixels = [Image.fromarray(p) for p in make_pixels(24)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red_hot", "b", "c"])}
    )
    data = {"image": pixels, "label": [i % 3 for i in range(24)]}
    datasets.Dataset.from_dict(data, features).to_parquet("data.parquet")
    small = {"transformer_size": "1x2x8", "prior_size": "1x2x8", "max_train_steps": 2, "prior_max_train_steps": 2}
    small |= {"train_batch_size": 4, "prior_train_batch_size": 4, "num_validation_images": 2}
    settings = {"images": 6, "negative_images": 4, "guidance_scales": [2.0], "seeds": [0, 1]}
    settings["train"] = text_to_image.SETTINGS["train"] | small
    Path("settings.json").write_text(json.dumps(settings))
    options = {"train_data": "data.parquet", "test_data": "data.parquet", "grader": grader}
    options |= {"settings": "settings.json", "output": "results.json"}
    call(text_to_image, **options)
    captions = datasets.load_dataset("parquet", data_files="out/text-to-image/captioned.parquet", split="train")
    assert captions[3]["text"] == [template.format("red hot") for template in text_to_image.TEMPLATES]
    result = json.loads(Path("results.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1] and len(result["runs"][0]["rows"]) == 2
    files = {path: path.stat().st_mtime_ns for path in workplace.glob("out/text-to-image/*/*.safetensors")}
    call(text_to_image, **options)
    assert json.loads(Path("results.json").read_text()) == result
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    table = text_to_image.table(result)
    named = [run["rows"][0]["class_named"] for run in result["runs"]]
    assert f"{100 * sum(named) / 2:.1f} % ({100 * named[0]:.1f}, {100 * named[1]:.1f})" in table
    assert "red hot" in table and table.count("\n| ") == 2 + 2 + 3 + 1
    Path("settings.json").write_text(json.dumps(settings | {"images": 9}))
    with pytest.raises(ValueError, match="`output` 'results.json' holds results of another configuration .`settings`"):
        call(text_to_image, **options)
