#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune somebody else's flow model to start from a low-frequency source: a LoRA, or all its weights.

    accelerate launch examples/finetune_lora.py --pretrained_model_name_or_path a/flow-model \
        --train_data_dir my_images --caption_column text --resolution 512 --output_dir out/lora

It works on Stable Diffusion 3, FLUX, SANA, Lumina 2 and others whose call takes `latents` and `sigmas`, and on our own pipelines of
noise ratio 1. How a pipeline calls its network is read off its own call. Latents and text embeddings are encoded once and cached.
The result loads with `pipe.load_lora_weights(output_dir)`, and knows its source:

    generate_from_coarse(pipe, image=picture, prompt="...", num_inference_steps=4)

The loop is in `train` below. Every draw in it is keyed by seed, step and position in the global batch.
"""

import hashlib
import json
import os
from functools import partial

import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from diffusers.utils import check_min_version
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline
from diffusers_lowfreq.adapters import add_lora, base_model_name, save_lora
from diffusers_lowfreq.model_card import save_lora_card
from diffusers_lowfreq.objectives import FlowMatching
from diffusers_lowfreq.projections import PROJECTIONS
from diffusers_lowfreq.stock import latent_size, pack_latents, read_condition, read_convention, weights_fingerprint
from diffusers_lowfreq.training import (
    Run,
    check_engine,
    check_output_dir,
    check_processes,
    describe_images,
    machine_kind,
    make_accelerator,
    make_adamw,
    parse_with_config,
    trainable,
)
from diffusers_lowfreq.training import options as opt
from diffusers_lowfreq.training.conditions import EncodedConditions
from diffusers_lowfreq.training.data.latent_cache import open_latents
from diffusers_lowfreq.training.data.load import open_images
from diffusers_lowfreq.training.data.shards import save_shard
from diffusers_lowfreq.training.hub import prepare_repository, upload_output
from diffusers_lowfreq.training.options import Clash, refuse_clashes
from diffusers_lowfreq.training.pairs import FlowPairs
from diffusers_lowfreq.training.validation import validate_stock_pipeline


check_min_version("0.40.0")

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]

TWICE = "is instead of --caption_column; leave one of them out"
CLASHES = [
    Clash(["instance_prompt"], lambda a: a.caption_column is not None, TWICE),
    Clash(["rank", "lora_alpha", "lora_layers"], lambda a: a.full, "is of a LoRA; leave it out with --full"),
]


def parse_args(argv=None):
    parser = opt.make_parser(__doc__)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="a flow pipeline")
    opt.add_revision_options(parser)

    group = parser.add_argument_group("data")
    opt.add_image_options(group, resolution=512)
    group.add_argument("--dataset_config_name")
    help = "strings, for pipelines that take prompts; txt: text files beside the images"
    group.add_argument("--caption_column", help=help)
    group.add_argument("--instance_prompt", help="one caption for all images, instead of a column")
    group.add_argument("--label_column", default="label", help="integers, for pipelines that take class labels")
    group.add_argument("--max_sequence_length", type=opt.size, help="of the text encoder, as in the pipeline's call")
    opt.add_cache_options(group, cache_batch_size=8)

    group = parser.add_argument_group("source")
    opt.add_projection_options(group, PROJECTIONS, factor=4)
    ratio = opt.number(above=0, below=1, allowed="between 0 and 1")
    group.add_argument("--noise_ratio", type=ratio, default=0.5, help="also the level at which sampling starts")

    group = parser.add_argument_group("what is trained")
    group.add_argument("--rank", type=opt.size, default=16, help="of the LoRA")
    group.add_argument("--lora_alpha", type=opt.size, help="by default the rank")
    group.add_argument("--lora_layers", nargs="+", default=ATTENTION, help="names of linear layers")
    group.add_argument("--full", action="store_true", help="all weights instead of a LoRA")
    help = "share of captions to drop, so that the model can still be guided"
    group.add_argument("--caption_dropout", type=opt.share, default=0.1, help=help)

    group = parser.add_argument_group("optimisation")
    opt.add_step_options(group, train_batch_size=4, max_train_steps=1000, learning_rate=1e-4, lr_warmup_steps=50)
    opt.add_adam_options(group)

    group = parser.add_argument_group("checkpoints, logs and validation")
    opt.add_checkpoint_options(group)
    opt.add_validation_options(group, logging_steps=20, validation_steps=500, num_validation_images=4)
    opt.add_hub_options(group)
    args = parse_with_config(parser, argv)
    refuse_clashes(parser, args, CLASHES)
    return args


# ----------------------------------------------------------------------------------------------------------------- data


def takes_labels(pipe):
    return isinstance(pipe, LowFreqPipeline)


def load_data(args, pipe):
    """Load the images, with their captions or labels, whichever the pipeline takes."""
    is_prompted = not takes_labels(pipe)
    if is_prompted and args.caption_column is None and args.instance_prompt is None:
        raise ValueError(f"`caption_column` or `instance_prompt` must be given for a {type(pipe).__name__}.")
    if not is_prompted and (args.caption_column or args.instance_prompt) is not None:
        raise ValueError(
            f"`caption_column` and `instance_prompt` must be left out: a {type(pipe).__name__} takes labels."
        )
    label_column = args.label_column if not is_prompted and pipe.transformer.config.num_classes else None
    images = open_images(args, label_column=label_column, caption_column=args.caption_column)
    if args.instance_prompt is not None:
        images.captions = [[args.instance_prompt]] * len(images)
    return images


def encode_labels(args, pipe, images):
    """Return the labels of the images as conditions; none for a pipeline without classes."""
    num_classes = pipe.transformer.config.num_classes
    if num_classes is None:
        return EncodedConditions({}, {}, None, args.caption_dropout)
    labels = torch.from_numpy(images.labels)
    lowest, highest = int(labels.min()), int(labels.max())
    if not 0 <= lowest <= highest < num_classes:
        raise ValueError(
            f"`label_column` {args.label_column!r} must hold numbers below {num_classes}, got {lowest} to {highest} (-1: no "
            "labels)."
        )
    table = {"class_labels": torch.arange(num_classes + 1)}
    return EncodedConditions(table, {}, [[int(label)] for label in labels], args.caption_dropout)


def encode_prompts(args, pipe, convention, images):
    """Return the captions of the images as conditions. The text encoders run once; their output is kept in a file of the cache."""
    size = (args.resolution, args.resolution)
    texts = [t for t in dict.fromkeys(t for captions in images.captions for t in captions) if t] + [""]
    call = {} if args.max_sequence_length is None else {"max_sequence_length": args.max_sequence_length}
    encoders = {k: weights_fingerprint(m) for k, m in pipe.components.items() if k.startswith("text_encoder") and m}
    key = json.dumps([type(pipe).__name__, encoders, args.resolution, call, texts])
    folder = args.cache_dir or os.path.join(args.output_dir, "cache")
    path = os.path.join(folder, f"captions-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors")
    shared = read_condition(pipe, *size, prompt="", **call)
    if not os.path.isfile(path):
        rows = [read_condition(pipe, *size, prompt=text, **call) for text in tqdm(texts, desc="captions")]
        for name in convention.per_sample:
            if len({row[name].shape for row in rows}) > 1:
                raise ValueError(f"`caption_column`: the pipeline makes `{name}` of another shape for each caption.")
        os.makedirs(folder, exist_ok=True)
        save_shard({k: torch.cat([row[k].cpu() for row in rows]).contiguous() for k in convention.per_sample}, path)
    shared = {k: v for k, v in shared.items() if k not in convention.per_sample}
    number = {text: i for i, text in enumerate(texts)}
    numbers = [[number[text] for text in captions] for captions in images.captions]
    return EncodedConditions(load_file(path), shared, numbers, args.caption_dropout)


def validation_inputs(positions, conditions, captions, args):
    """The labels or prompts of some images, as a call of the pipeline takes them."""
    if conditions.numbers is None:
        return {"num_images_per_prompt": len(positions)}
    if captions is None:
        return {"class_labels": [conditions.numbers[position][0] for position in positions]}
    call = {"prompt": [captions[position][0] for position in positions]}
    return call | ({} if args.max_sequence_length is None else {"max_sequence_length": args.max_sequence_length})


# ------------------------------------------------------------------------------------------------------------- training


def train(pipe, scheduler, convention, cache, conditions, captions, args, images):
    """Train the LoRA, or all weights, of the pipeline's transformer in place, and return the facts of the run."""
    accelerator = make_accelerator(args)
    model = pipe.transformer.train().to(accelerator.device)
    if args.full:
        model.requires_grad_(True)
    else:
        add_lora(model, args.rank, args.lora_alpha or args.rank, args.lora_layers, args.seed)
    cast_training_params(model, torch.float32)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    run = Run(
        accelerator,
        args,
        model,
        make_adamw(model, args.learning_rate, args),
        batch_size=args.train_batch_size,
        max_train_steps=args.max_train_steps,
        logging_steps=args.logging_steps,
        validation_steps=args.validation_steps,
        component="transformer",
        tracker="finetune",
        images=images,
    )
    run.resume()
    sampler = run.sampler(len(cache))
    pairs = FlowPairs(scheduler, pipe.vae, conditions.choose)
    objective, flow = FlowMatching(), convention.low_frequency_flow(run.model, args.noise_ratio)
    inputs = partial(validation_inputs, conditions=conditions, captions=captions, args=args)
    validate = partial(validate_stock_pipeline, run, pipe, scheduler, cache, args.num_validation_images, inputs)

    for batch, draws in run.batches(run.loader(cache, sampler), sampler, validate):
        pair = pairs(batch, draws)  # 1. source and sample
        condition = conditions(pair.labels, draws)  # 2. the other inputs of the network
        # 3. the loss, in the unit of the stock model: its target is (source - sample) / noise_ratio
        with run.autocast():
            source, sample = (pack_latents(pipe, x) for x in (pair.source, pair.sample))
            loss = objective(flow, source, sample, generator=draws.generators, **condition).mean()
            loss = loss / args.noise_ratio**2
        run.take(loss)  # 4. the gradient and the step

    weights = sum(parameter.numel() for parameter in trainable(run.finish()))
    lora = "" if args.full else f", a LoRA of rank {args.rank}"
    return run.facts({"trained": f"{weights:,} weights{lora}"})


def save(pipe, scheduler, base_model, args):
    """Write the LoRA as the pipeline itself does, with its source in it; or all weights, with the source beside them."""
    scheduler.save_pretrained(os.path.join(args.output_dir, "coarse_scheduler"))
    if args.full:
        pipe.transformer.save_pretrained(os.path.join(args.output_dir, "transformer"))
    else:
        save_lora(pipe, scheduler, base_model, args.output_dir, base_model_name_or_path=base_model)


def main(args):
    accelerator = make_accelerator(args)
    check_engine(accelerator, data_parallel_only=True)
    repo_id = prepare_repository(accelerator, args)
    pipe = DiffusionPipeline.from_pretrained(
        args.pretrained_model_name_or_path, revision=args.revision, variant=args.variant, use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    modules = {name: m for name, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    for module in modules.values():
        module.requires_grad_(False).eval()
    scheduler = LowFreqFlowMatchScheduler(projection=args.projection, factor=args.factor, noise_ratio=args.noise_ratio)
    sides = latent_size(pipe, args.resolution, args.resolution)
    if any(side % args.factor for side in sides):
        raise ValueError(f"`factor` must divide the size {sides[0]}x{sides[1]} of the latents, got {args.factor}.")
    images = load_data(args, pipe)
    image_facts = describe_images(images)
    check_output_dir(args, image_facts)
    check_processes(accelerator, images)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision)
    for name, module in modules.items():
        is_frozen = not args.full and (name.startswith("text_encoder") or name == "transformer")
        module.to(accelerator.device, half if is_frozen else None)
    first = {"prompt": ""}
    if takes_labels(pipe):
        first = {"class_labels": [0]} if pipe.transformer.config.num_classes else {}
    convention = read_convention(pipe, args.resolution, args.resolution, **first)
    cache = open_latents(accelerator, images, pipe.vae, args)
    with accelerator.main_process_first():
        if takes_labels(pipe):
            conditions = encode_labels(args, pipe, images)
        else:
            conditions = encode_prompts(args, pipe, convention, images)
    for name, module in modules.items():  # only the transformer is needed from here on
        if name != "transformer":
            module.to("cpu")
    run = train(pipe, scheduler, convention, cache, conditions, images.captions, args, image_facts)
    if accelerator.is_main_process:
        pipe.to("cpu")
        base_model = base_model_name(args.pretrained_model_name_or_path)
        save(pipe, scheduler, base_model, args)
        name = args.dataset_name or os.path.basename(args.train_data_dir.rstrip("/"))
        facts = {
            "Data": {"images": f"{len(cache):,} of {name}", "resolution": args.resolution},
            "Source": scheduler.source,
            "Training": run,
            "Environment": {"machine": machine_kind(), "torch": torch.__version__, "seed": args.seed},
        }
        save_lora_card(args.output_dir, repo_id, base_model, not takes_labels(pipe), args.full, facts)
        upload_output(repo_id, args)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
