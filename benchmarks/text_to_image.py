#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Does a small text model follow its prompt, and keep away from its negative prompt?

    python benchmarks/text_to_image.py --train_data cifar10/train.parquet --test_data cifar10/test.parquet \
        --output benchmarks/results/text-to-image-cpu.json
    python benchmarks/report.py --results benchmarks/results/text-to-image-cpu.json docs/evidence.md

Captions are made from the names of the classes by `TEMPLATES`; `HELD_OUT` ones are for prompts only. The text encoder is a
frozen T5 encoder with random weights, and its tokenizer is trained on the captions: what the prompt does is learnt by the flow
and the prior model alone. (Relative positions, as T5 has, let a word look alike wherever it stands.) A classifier of real images says what a generated image shows. What is done is not done again.
"""

import argparse
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from evaluate import Extractor, Reference
from run_study import ROOT, train, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

import diffusers
from diffusers_lowfreq import LowFreqTextToImagePipeline, LowFreqTransformer2DModel
from diffusers_lowfreq.training import keyed_generator, load_images, machine_kind


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


def caption(data: str, folder: str) -> tuple[str, list[str]]:
    """Write a copy of a labelled set whose images have, as captions, their class in each of the templates; and its names."""
    images = load_images(train_data_dir=data, resolution=SETTINGS["train"]["resolution"])
    names = [name.replace("_", " ") for name in images.id2label.values()]
    texts = [[template.format(names[label]) for template in TEMPLATES] for label in images.labels]
    path = os.path.join(folder, "captioned.parquet")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        table = pq.read_table(data, columns=["image"]).append_column("text", pa.array(texts))
        pq.write_table(table.replace_schema_metadata(None), path + ".new")
        os.replace(path + ".new", path)
    return path, names


def make_encoder(names: list[str], folder: str):
    """Save a frozen text encoder with random weights and a byte-level tokenizer trained on the captions."""
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
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **SETTINGS["encoder"], **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build(data: str, encoder: str, folder: str, seed: int) -> tuple[LowFreqTextToImagePipeline, dict]:
    """Train a prior model and a flow of one seed unless that was done; their pipeline, and the facts of their training."""
    options = SETTINGS["train"] | {
        "train_data_dir": data,
        "pretrained_text_encoder_name_or_path": encoder,
        "seed": seed,
    }
    options["cache_dir"] = os.path.join(folder, "cache")
    facts = {}
    prior, facts["prior"] = train("prior", options, folder)
    flow, facts["flow"] = train("flow", options, folder)
    pipe = LowFreqTextToImagePipeline.from_pretrained(flow)
    parts = pipe.components | {
        "prior": LowFreqTransformer2DModel.from_pretrained(prior, subfolder="prior", use_safetensors=True)
    }
    pipe = LowFreqTextToImagePipeline(**parts, truncate_prior=pipe.config.truncate_prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe, facts


def shown(pipe, extractor, prompts: list[str], seed: int, scale: float, negative: str | None = None) -> torch.Tensor:
    """Return the class that the grader names of an image of each prompt; image i has the same noise in every call."""
    for start in range(0, len(prompts), 100):
        batch = prompts[start : start + 100]
        generators = [keyed_generator(seed, "text-to-image", start + i) for i in range(len(batch))]
        images = pipe(
            batch,
            negative_prompt=negative,
            num_inference_steps=SETTINGS["steps"],
            prior_num_inference_steps=SETTINGS["prior_steps"],
            guidance_scale=scale,
            prior_guidance_scale=scale,
            generator=generators,
            output_type="pt",
        ).images
        extractor(images)
    classes, extractor.classes = torch.cat(extractor.classes), []
    return classes


@torch.no_grad()
def grade(pipe, extractor, names: list[str], seed: int) -> dict:
    """Ask for every class in turn, and then for none while keeping away from one."""
    rows, number = [], SETTINGS["images"] // len(names)
    for kind, templates in (("as in training", TEMPLATES), ("held out", HELD_OUT)):
        for scale in SETTINGS["guidance_scales"]:
            verdicts = []
            for name in names:  # the same noise for every class: only the prompt differs
                prompts = [templates[i % len(templates)].format(name) for i in range(number)]
                verdicts.append(shown(pipe, extractor, prompts, seed, scale))
            verdicts = torch.stack(verdicts)  # (class asked for, image)
            hit = verdicts[:, None] == torch.arange(len(names))[None, :, None]  # (asked for, named, image)
            asked = torch.eye(len(names), dtype=torch.bool)
            changed = (verdicts[:, None] != verdicts[None])[~asked]
            row = {"templates": kind, "guidance_scale": scale, "images": verdicts.numel()}
            row |= {"effective_nfe": round(pipe.effective_nfe, 4)}
            row["class_named"] = hit[asked].float().mean().item()
            row["class_named_if_another_is_asked"] = hit[~asked].float().mean().item()
            row["verdict_changed"] = changed.float().mean().item()
            rows.append(row)
    negative, number = [], SETTINGS["negative_images"]
    free = shown(pipe, extractor, [NEUTRAL] * number, seed, 1.0)
    for i, name in enumerate(names):
        away = shown(
            pipe, extractor, [NEUTRAL] * number, seed, SETTINGS["negative_guidance_scale"], TEMPLATES[0].format(name)
        )
        rates = {
            "named": (free == i).float().mean().item(),
            "named_with_negative_prompt": (away == i).float().mean().item(),
        }
        negative.append({"class": name, "images": number} | rates)
    return {"rows": rows, "negative": negative}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_data", required=True, help="a parquet file")
    parser.add_argument("--test_data", required=True)
    parser.add_argument("--split", default="test", help="what results call the images of `test_data`")
    parser.add_argument("--grader", default=os.path.join(ROOT, "checkpoints/graders/cifar10-32"))
    parser.add_argument("--grader_resolution", type=int, default=32)
    parser.add_argument("--work_dir", default="out/text-to-image")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()

    extractor = Extractor(args.grader, args.grader_resolution)
    cache_dir = os.path.join(args.work_dir, "cache")
    resolution = SETTINGS["train"]["resolution"]
    reference = Reference(args.test_data, args.split, resolution, [extractor], cache_dir, num_held_out=1)
    data, names = caption(args.train_data, args.work_dir)
    encoder = os.path.join(args.work_dir, "encoder")
    make_encoder(names, encoder)
    result = {"settings": SETTINGS, "templates": TEMPLATES, "held_out": HELD_OUT, "accuracy": reference.accuracy[0]}
    result |= {"split": args.split, "grader": extractor.name, "machine": machine_kind()}
    result |= {"torch": torch.__version__, "diffusers": diffusers.__version__, "runs": []}
    if os.path.exists(args.output):
        with open(args.output, encoding="utf-8") as file:
            before = json.load(file)
        for key in ("settings", "templates", "held_out", "accuracy", "machine", "torch"):
            if before[key] != json.loads(json.dumps(result[key])):
                raise ValueError(f"`output` {args.output!r} holds results of another `{key}`; nothing is overwritten.")
        result["runs"] = before["runs"]
    for seed in tqdm(SETTINGS["seeds"], desc="seeds"):
        if seed not in [run["seed"] for run in result["runs"]]:
            pipe, facts = build(data, encoder, args.work_dir, seed)
            result["runs"].append({"seed": seed} | facts | grade(pipe, extractor, names, seed))
            write(result, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
