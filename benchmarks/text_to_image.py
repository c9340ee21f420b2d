#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Does a small text model follow its prompt, and keep away from its negative prompt?

    python benchmarks/text_to_image.py --train_data cifar10/train.parquet --test_data cifar10/test.parquet \
        --output benchmarks/results/text-to-image-cpu.json
    python benchmarks/report.py --results benchmarks/results/text-to-image-cpu.json docs/text-to-image.md

`TEMPLATES` make captions of the names of the classes; `HELD_OUT` ones are for prompts only. The text encoder is a frozen T5
encoder with random weights, and its tokenizer is trained on the captions: what the prompt does is learnt by the flow and the
prior model alone. (Relative positions, as T5 has, let a word look alike wherever it stands.) A classifier of real images says
what a generated image shows. After an interruption run the command again: nothing is done twice.
"""

import argparse
import os

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from shared.environment import environment
from shared.example_scripts import ROOT, train
from shared.formats import markdown, measured_by, percentages
from shared.reference import Extractor, Reference
from shared.results import earlier, read, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from diffusers_lowfreq import LowFreqTextToImagePipeline, LowFreqTransformer2DModel
from diffusers_lowfreq.training import keyed_generator, load_images


TEMPLATES = (
    "a photo of a {}",
    "a small picture of one {}",
    "this is a {}",
    "{}, seen from nearby",
    "an image with a {} in it",
)
HELD_OUT = ("a {}", "one small photo of this {}", "a nearby {} in a picture")
NEUTRAL = ""  # a prompt that names no class: what a dropped caption is
SETTINGS = {
    "train": {
        "resolution": 16, "factor": 4, "patch_size": 4, "prior_patch_size": 2, "noise_ratio": 0.5,
        "transformer_size": "3x3x32", "prior_size": "3x2x32", "max_train_steps": 1000, "prior_max_train_steps": 2000,
        "train_batch_size": 256, "prior_train_batch_size": 256, "learning_rate": 2e-3, "prior_learning_rate": 2e-3,
        "lr_warmup_steps": 50, "ema_decay": 0.99, "checkpointing_steps": 250, "checkpoints_total_limit": 1,
        "validation_steps": 100000, "num_validation_images": 10, "caption_column": "text",
    },
    "encoder": {"d_model": 64, "num_layers": 2, "num_heads": 2, "d_kv": 32, "d_ff": 256},
    "steps": 4, "prior_steps": 8, "guidance_scales": [1.0, 3.0, 5.0, 7.0], "negative_guidance_scale": 3.0,
    "images": 600, "negative_images": 300, "seeds": [0, 1],
}  # fmt: skip


def caption(data: str, folder: str, resolution: int) -> tuple[str, list[str]]:
    """
    Write a copy of a labelled set with captions: for each image its class in each of the templates.

    Returns:
        `tuple[str, list[str]]`: the path of the copy, and the names of the classes.
    """
    images = load_images(train_data_dir=data, resolution=resolution)
    names = [name.replace("_", " ") for name in images.id2label.values()]
    texts = [[template.format(names[label]) for template in TEMPLATES] for label in images.labels]
    path = os.path.join(folder, "captioned.parquet")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        table = pq.read_table(data, columns=["image"]).append_column("text", pa.array(texts))
        pq.write_table(table.replace_schema_metadata(None), path + ".new")
        os.replace(path + ".new", path)
    return path, names


def make_encoder(names: list[str], folder: str, sizes: dict):
    """Save a frozen text encoder of the given sizes with random weights and a byte-level tokenizer trained on the captions."""
    if os.path.exists(os.path.join(folder, "tokenizer.json")):
        return
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([t.format(name) for t in TEMPLATES for name in names], trainer)
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build(data: str, encoder: str, folder: str, seed: int, settings: dict) -> tuple[LowFreqTextToImagePipeline, dict]:
    """Train a prior model and a flow of one seed unless that is done; return their pipeline and the facts of the training."""
    options = settings["train"] | {"train_data_dir": data, "pretrained_text_encoder_name_or_path": encoder}
    options |= {"seed": seed, "cache_dir": os.path.join(folder, "cache")}
    facts = {}
    prior, facts["prior"] = train("prior", options, folder)
    flow, facts["flow"] = train("flow", options, folder)
    pipe = LowFreqTextToImagePipeline.from_pretrained(flow)
    prior = LowFreqTransformer2DModel.from_pretrained(prior, subfolder="prior", use_safetensors=True)
    pipe = LowFreqTextToImagePipeline(**pipe.components | {"prior": prior}, truncate_prior=pipe.config.truncate_prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe, facts


def named_classes(pipe, extractor, prompts: list[str], seed: int, settings: dict, scale: float, negative=None):
    """Return the class that the grader names for an image of each prompt; image i has the same noise in every call."""
    for start in range(0, len(prompts), 100):
        batch = prompts[start : start + 100]
        generators = [keyed_generator(seed, "text-to-image", start + i) for i in range(len(batch))]
        images = pipe(
            batch,
            negative_prompt=negative,
            num_inference_steps=settings["steps"],
            prior_num_inference_steps=settings["prior_steps"],
            guidance_scale=scale,
            prior_guidance_scale=scale,
            generator=generators,
            output_type="pt",
        ).images
        extractor(images)
    return extractor.take_classes()


@torch.no_grad()
def grade(pipe, extractor, names: list[str], seed: int, settings: dict) -> dict:
    """Ask for every class in turn, and then for none while keeping away from one."""
    rows, number = [], settings["images"] // len(names)
    for title, templates in (("as in training", TEMPLATES), ("held out", HELD_OUT)):
        for scale in settings["guidance_scales"]:
            verdicts = []
            for name in names:  # the same noise for every class: only the prompt differs
                prompts = [templates[i % len(templates)].format(name) for i in range(number)]
                verdicts.append(named_classes(pipe, extractor, prompts, seed, settings, scale))
            verdicts = torch.stack(verdicts)  # (class asked for, image)
            hit = verdicts[:, None] == torch.arange(len(names))[None, :, None]  # (asked for, named, image)
            asked = torch.eye(len(names), dtype=torch.bool)
            changed = (verdicts[:, None] != verdicts[None])[~asked]
            row = {"templates": title, "guidance_scale": scale, "images": verdicts.numel()}
            row |= {"effective_nfe": round(pipe.effective_nfe, 4)}
            row["class_named"] = hit[asked].float().mean().item()
            row["class_named_if_another_is_asked"] = hit[~asked].float().mean().item()
            row["verdict_changed"] = changed.float().mean().item()
            rows.append(row)
    return {"rows": rows, "negative": grade_negative(pipe, extractor, names, seed, settings)}


def grade_negative(pipe, extractor, names: list[str], seed: int, settings: dict) -> list[dict]:
    """Count how often each class is named for a prompt of none, without and with a negative prompt that names it."""
    number, scale, rows = settings["negative_images"], settings["negative_guidance_scale"], []
    prompts = [NEUTRAL] * number
    free = named_classes(pipe, extractor, prompts, seed, settings, 1.0)
    for i, name in enumerate(names):
        away = named_classes(pipe, extractor, prompts, seed, settings, scale, TEMPLATES[0].format(name))
        rates = {"named": (free == i).float().mean().item()}
        rates["named_with_negative_prompt"] = (away == i).float().mean().item()
        rows.append({"class": name, "images": number} | rates)
    return rows


# ------------------------------------------------------------------------------------------------------------- table


def table(result: dict) -> str:
    """Write how often the grader names the class in the prompt, and the class of a negative prompt."""
    runs, settings = result["runs"], result["settings"]
    flow, prior, classes = runs[0]["flow"], runs[0]["prior"], len(runs[0]["negative"])
    text = (
        f"**Does the text decide what is shown?** A flow of {flow['parameters']} and a prior model of {prior['parameters']} "
        f"parameters on {settings['train']['resolution']}² images, trained {flow['steps']} and {prior['steps']} steps of "
        f"{flow['global batch']} and {prior['global batch']} on captions made of the {classes} class names by {len(result['templates'])} "
        f"templates; the text encoder is a frozen T5 encoder with random weights "
        f"({settings['encoder']['num_layers']} layers of {settings['encoder']['d_model']}). "
        f"{settings['steps']} steps of the flow, {settings['prior_steps']} of the prior model. *Named*: how often the "
        f"grader, which is right on {result['accuracy']:.1%} of the real {result['split']} images of this size, names the class "
        f"in the prompt (chance: {1 / classes:.0%}); *if another is asked for*: how often it names a class while the prompt holds "
        "another; *verdict changed*: how often two prompts of different classes with the same noise give different verdicts. "
        f"Means over seeds, each in brackets. {measured_by('text_to_image', result)}"
    )
    header, lines = ["prompts", "guidance", "effective NFE", "named", "if another is asked for", "verdict changed"], []
    for rows in zip(*(run["rows"] for run in runs)):
        first, cells = rows[0], []
        for name in ("class_named", "class_named_if_another_is_asked", "verdict_changed"):
            cells.append(percentages([row[name] for row in rows]))
        lines.append([first["templates"], f"{first['guidance_scale']:g}", f"{first['effective_nfe']:.2f}", *cells])
    negative_text = (
        f"A prompt that names no class (the empty one), without and with a negative prompt that names one, at guidance "
        f"{settings['negative_guidance_scale']:g}; {runs[0]['negative'][0]['images']} images of the same noise each."
    )
    return f"{text}\n\n{markdown(header, lines)}\n\n{negative_text}\n\n{negative_table(runs)}"


def negative_table(runs: list[dict]) -> str:
    """Write how often each class is named without and with a negative prompt of it, and the means over all classes."""
    columns = ("named", "named_with_negative_prompt")
    classes = {}
    for rows in zip(*(run["negative"] for run in runs)):
        classes[rows[0]["class"]] = [[row[name] for row in rows] for name in columns]
    overall = [[sum(shares) / len(shares) for shares in zip(*column)] for column in zip(*classes.values())]
    lines = [[name, *map(percentages, cells)] for name, cells in (classes | {"all": overall}).items()]
    return markdown(["class", "named", "named with it as negative prompt"], lines)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_data", required=True, help="a parquet file")
    parser.add_argument("--test_data", required=True)
    parser.add_argument("--split", default="test", help="the name of the images of `test_data` in the results")
    parser.add_argument("--grader", default=os.path.join(ROOT, "checkpoints/graders/cifar10-32"))
    parser.add_argument("--grader_resolution", type=int, default=32)
    parser.add_argument("--work_dir", default="out/text-to-image")
    parser.add_argument("--output", required=True)
    parser.add_argument("--settings", help="a JSON file of settings to change")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    settings = SETTINGS | (read(args.settings) if args.settings else {})
    extractor, resolution = Extractor(args.grader, args.grader_resolution), settings["train"]["resolution"]
    cache_dir, encoder = (os.path.join(args.work_dir, name) for name in ("cache", "encoder"))
    reference = Reference(args.test_data, args.split, resolution, [extractor], cache_dir, num_held_out=1)
    data, names = caption(args.train_data, args.work_dir, resolution)
    make_encoder(names, encoder, settings["encoder"])
    header = {"script": "text_to_image", "settings": settings, "templates": TEMPLATES, "held_out": HELD_OUT}
    header |= {"accuracy": reference.accuracy[0], "split": args.split, "grader": extractor.name} | environment()
    before = earlier(args.output, header, ("settings", "templates", "held_out", "accuracy", "machine", "torch"))
    result = header | {"runs": before["runs"] if before else []}
    for seed in tqdm(settings["seeds"], desc="seeds"):
        if seed not in [run["seed"] for run in result["runs"]]:
            pipe, facts = build(data, encoder, args.work_dir, seed, settings)
            result["runs"].append({"seed": seed} | facts | grade(pipe, extractor, names, seed, settings))
            write(result, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
