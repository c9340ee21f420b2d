#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune somebody else's flow model to start from a low-frequency source: a LoRA, or all its weights.

    accelerate launch examples/finetune_lora.py --pretrained_model_name_or_path a/flow-model \
        --train_data_dir my_images --caption_column text --resolution 512 --output_dir out/lora

Stable Diffusion 3, FLUX, SANA, Lumina 2 and others whose call takes `latents` and `sigmas`, and our own pipelines of noise ratio 1.
How a pipeline calls its network is read off its own call. Latents and text embeddings are encoded once and cached. What comes
out loads with `pipe.load_lora_weights(output_dir)`, and knows the source that it is for:

    generate_from_coarse(pipe, image=picture, prompt="...", num_inference_steps=4)

The loop is `train` below; every draw is keyed by seed, step and position in the global batch.
"""

import argparse
import hashlib
import json
import os
import time

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from huggingface_hub import create_repo, upload_folder
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from diffusers.utils import check_min_version, make_image_grid
from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, generate_from_coarse
from diffusers_lowfreq.autoencoding import normalize_latents
from diffusers_lowfreq.model_card import save_lora_card
from diffusers_lowfreq.objectives import FlowMatching
from diffusers_lowfreq.projections import PROJECTIONS
from diffusers_lowfreq.stock import (
    describe_adapter,
    latent_size,
    pack_latents,
    read_condition,
    read_convention,
    weights_fingerprint,
)
from diffusers_lowfreq.training import (
    LR_SCHEDULERS,
    GradientGuard,
    KeyedBatchSampler,
    LatentCache,
    Termination,
    check_engine,
    check_processes,
    get_lr_scheduler,
    keyed_generator,
    load_images,
    machine_kind,
    parse_with_config,
    register_model_hooks,
    register_schedule,
    resume_checkpoint,
    save_checkpoint,
    uniform,
)


check_min_version("0.40.0")

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", help="JSON file of overrides of the defaults below")
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="a flow pipeline")
    parser.add_argument("--revision")
    parser.add_argument("--variant")
    parser.add_argument("--output_dir", required=True)

    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="name of a dataset on the Hub")
    group.add_argument("--dataset_config_name")
    group.add_argument("--train_data_dir", help="local folder of images or parquet files, or one parquet file")
    group.add_argument("--image_column", default="image")
    group.add_argument("--caption_column", help="strings; for pipelines that take prompts")
    group.add_argument("--instance_prompt", help="one caption for all images, instead of a column")
    group.add_argument("--label_column", default="label", help="integers, for pipelines that take class labels")
    group.add_argument("--resolution", type=int, default=512)
    group.add_argument("--random_flip", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument("--cache_dir", help="where latents and embeddings are cached, by default output_dir/cache")
    group.add_argument("--cache_batch_size", type=int, default=8, help="images per encoder call")
    group.add_argument("--max_skipped_images", type=float, default=0.01, help="tolerated share of unreadable images")
    group.add_argument("--max_sequence_length", type=int, help="of the text encoder, as in the pipeline's call")
    group.add_argument("--dataloader_num_workers", type=int, default=0)

    group = parser.add_argument_group("source")
    group.add_argument("--projection", choices=list(PROJECTIONS), default="bicubic")
    group.add_argument("--factor", type=int, default=4)
    group.add_argument("--noise_ratio", type=float, default=0.5, help="also the level at which sampling starts")

    group = parser.add_argument_group("what is trained")
    group.add_argument("--rank", type=int, default=16, help="of the LoRA")
    group.add_argument("--lora_alpha", type=int, help="by default the rank")
    group.add_argument("--lora_layers", nargs="+", default=ATTENTION, help="names of linear layers")
    group.add_argument("--full", action="store_true", help="all weights instead of a LoRA")
    group.add_argument("--caption_dropout", type=float, default=0.1, help="so that the model can still be guided")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--train_batch_size", type=int, default=4, help="per process and accumulation step")
    group.add_argument("--max_train_steps", type=int, default=1000)
    group.add_argument("--learning_rate", type=float, default=1e-4)
    group.add_argument("--gradient_accumulation_steps", type=int, default=1)
    group.add_argument("--gradient_checkpointing", action="store_true")
    group.add_argument("--lr_scheduler", choices=LR_SCHEDULERS, default="cosine")
    group.add_argument("--lr_warmup_steps", type=int, default=50)
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.99)
    group.add_argument("--adam_weight_decay", type=float, default=0.01)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"])

    group = parser.add_argument_group("checkpoints, logs and validation")
    group.add_argument("--checkpointing_steps", type=int, default=500)
    group.add_argument("--checkpoints_total_limit", type=int)
    group.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or `latest`")
    group.add_argument("--report_to", help="a tracker of accelerate, for example tensorboard")
    group.add_argument("--logging_steps", type=int, default=20)
    group.add_argument("--validation_steps", type=int, default=500)
    group.add_argument("--num_validation_images", type=int, default=4)
    group.add_argument("--push_to_hub", action="store_true")
    group.add_argument("--hub_model_id")
    group.add_argument("--hub_token")
    args = parse_with_config(parser, argv)

    positive = (
        "resolution factor rank train_batch_size max_train_steps gradient_accumulation_steps checkpointing_steps "
    )
    positive += "logging_steps validation_steps cache_batch_size num_validation_images"
    optional = ["lora_alpha", "checkpoints_total_limit", "max_sequence_length"]
    for name in positive.split() + [name for name in optional if getattr(args, name) is not None]:
        if getattr(args, name) < 1:
            parser.error(f"argument --{name}: must be positive, got {getattr(args, name)}")
    for name in ("caption_dropout", "max_skipped_images"):
        if not 0 <= getattr(args, name) <= 1:
            parser.error(f"argument --{name}: must be in [0, 1], got {getattr(args, name)}")
    if not 0 < args.noise_ratio < 1:
        parser.error(f"argument --noise_ratio: must be between 0 and 1, got {args.noise_ratio}")
    if args.caption_column is not None and args.instance_prompt is not None:
        parser.error("argument --instance_prompt: is instead of --caption_column; leave one of them out")
    for name in ("rank", "lora_alpha", "lora_layers"):
        if args.full and getattr(args, name) != parser.get_default(name):
            parser.error(f"argument --{name}: is of a LoRA; leave it out with --full")
    return args


def takes_labels(pipe):
    return isinstance(pipe, LowFreqPipeline)


def load_data(args, pipe):
    """Load the images, with what the pipeline is told of them: captions, or labels."""
    prompted = not takes_labels(pipe)
    if prompted and args.caption_column is None and args.instance_prompt is None:
        raise ValueError(f"`caption_column` or `instance_prompt` must be given for a {type(pipe).__name__}.")
    if not prompted and (args.caption_column or args.instance_prompt) is not None:
        raise ValueError(
            f"`caption_column` and `instance_prompt` must be left out: a {type(pipe).__name__} takes labels."
        )
    images = load_images(
        args.dataset_name,
        args.train_data_dir,
        resolution=args.resolution,
        dataset_config_name=args.dataset_config_name,
        image_column=args.image_column,
        label_column=args.label_column if not prompted and pipe.transformer.config.num_classes else None,
        caption_column=args.caption_column,
    )
    if args.instance_prompt is not None:
        images.captions = [[args.instance_prompt]] * len(images)
    return images


def build_conditions(args, pipe, convention, images, cache_dir):
    """
    Return what the transformer is told of each distinct caption, the last being none, and of all, and each image's captions.

    The text encoders run once; the rows are kept in a file of `cache_dir`.
    """
    size = (args.resolution, args.resolution)
    if takes_labels(pipe):
        num_classes = pipe.transformer.config.num_classes
        if num_classes is None:
            return {}, {}, None
        number = torch.from_numpy(images.labels)
        if not 0 <= int(number.min()) <= int(number.max()) < num_classes:
            raise ValueError(
                f"`label_column` {args.label_column!r} must hold numbers below {num_classes}, got {int(number.min())} to "
                f"{int(number.max())} (-1: no labels)."
            )
        return {"class_labels": torch.arange(num_classes + 1)}, {}, [[int(n)] for n in number]
    texts = [t for t in dict.fromkeys(t for captions in images.captions for t in captions) if t] + [""]
    call = {} if args.max_sequence_length is None else {"max_sequence_length": args.max_sequence_length}
    others = read_condition(pipe, *size, prompt="", **call)  # what is no row of an image is the same for all
    encoders = {
        name: weights_fingerprint(m) for name, m in pipe.components.items() if name.startswith("text_encoder") and m
    }
    key = json.dumps([type(pipe).__name__, encoders, args.resolution, call, texts])
    path = os.path.join(cache_dir, f"captions-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors")
    if not os.path.isfile(path):
        rows = [read_condition(pipe, *size, prompt=text, **call) for text in tqdm(texts, desc="captions")]
        for name in convention.per_sample:
            if len({row[name].shape for row in rows}) > 1:
                raise ValueError(f"`caption_column`: the pipeline makes `{name}` of another shape for each caption.")
        table = {name: torch.cat([row[name].cpu() for row in rows]).contiguous() for name in convention.per_sample}
        os.makedirs(cache_dir, exist_ok=True)
        save_file(table, f"{path}.{os.getpid()}.tmp")
        os.replace(f"{path}.{os.getpid()}.tmp", path)
    others = {k: v for k, v in others.items() if k not in convention.per_sample}
    number = {text: i for i, text in enumerate(texts)}
    return load_file(path), others, [[number[t] for t in captions] for captions in images.captions]


def add_lora(transformer, args):
    """Freeze the transformer and give it a LoRA that changes nothing yet (arXiv 2106.09685)."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    torch.manual_seed(args.seed)
    alpha = args.lora_alpha or args.rank
    try:
        transformer.add_adapter(LoraConfig(r=args.rank, lora_alpha=alpha, target_modules=args.lora_layers))
    except ValueError as error:
        raise ValueError(f"`lora_layers` must name linear layers of the transformer: {error}") from error


def train(pipe, scheduler, convention, cache, conditions, texts, args):
    """Train the LoRA, or all weights, of the pipeline's transformer in place, and return the facts of the run."""
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(args.output_dir, os.path.join(args.output_dir, "logs")),
    )
    device = accelerator.device
    model = pipe.transformer.train().to(device)
    if args.full:
        model.requires_grad_(True)
    else:
        add_lora(model, args)
    cast_training_params(model, torch.float32)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
        fused=True,
    )
    # Not prepared: it counts optimiser steps, whatever the number of processes.
    lr_scheduler = get_lr_scheduler(args.lr_scheduler, optimizer, args.lr_warmup_steps, args.max_train_steps)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    register_model_hooks(accelerator, model, None, "transformer")
    register_schedule(accelerator, lr_scheduler)
    global_batch_size = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    step = resume_checkpoint(accelerator, args, global_batch_size) if args.resume_from_checkpoint else 0
    sampler = KeyedBatchSampler(
        len(cache),
        args.train_batch_size,
        args.seed,
        range(step, args.max_train_steps),
        args.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
        args.random_flip,
    )
    loader = torch.utils.data.DataLoader(
        cache, batch_sampler=sampler, collate_fn=_identity, num_workers=args.dataloader_num_workers
    )
    table, others, captions = conditions
    objective, flow = FlowMatching(), convention.low_frequency_flow(wrapped, args.noise_ratio)
    if args.report_to:
        accelerator.init_trackers("finetune", config={k: str(v) for k, v in vars(args).items()})

    progress = tqdm(total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process)
    guard, terminated = GradientGuard(accelerator), Termination(accelerator)
    started, micro_step, running = time.monotonic(), 0, []
    for batch in loader:
        with accelerator.accumulate(wrapped):
            # 1. The pair (source, sample). Each draw has its own generator, keyed by seed, step and position.
            generators = sampler.generators(step, micro_step)
            sample = batch["sample"].to(device)
            sample = normalize_latents(pipe.vae, sample) if pipe.vae is not None else sample
            noise = randn_tensor(sample.shape, generator=generators, device=device, dtype=sample.dtype)
            source = scheduler.make_source_from_sample(sample, noise)
            # 2. Its caption, dropped now and then so that the model can be guided.
            chosen, dropped = (uniform(len(sample), generators) for _ in range(2))
            condition = dict(others)
            if captions is not None:
                of_each = [captions[row] for row in batch["position"].tolist()]
                numbers = [n[min(int(u * len(n)), len(n) - 1)] for n, u in zip(of_each, chosen.tolist())]
                last = len(next(iter(table.values()))) - 1
                numbers = torch.where(dropped < args.caption_dropout, last, torch.tensor(numbers))
                condition |= {name: rows[numbers].to(device) for name, rows in table.items()}
            # 3. The loss, in the stock model's unit: its target is (source - sample) / noise_ratio.
            with accelerator.autocast():
                pair = (pack_latents(pipe, x) for x in (source, sample))
                loss = objective(flow, *pair, generator=generators, **condition).mean() / args.noise_ratio**2
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                guard.clip(trained, args.max_grad_norm, optimizer, step + 1)
            optimizer.step()
            optimizer.zero_grad()
        running.append(loss.detach())
        micro_step = (micro_step + 1) % args.gradient_accumulation_steps
        if micro_step:
            continue

        lr_scheduler.step()
        step += 1
        progress.update()
        if step % args.logging_steps == 0 or step == args.max_train_steps:
            mean_loss = accelerator.reduce(torch.stack(running).mean(), "mean").item()
            running = []
            progress.set_postfix(loss=f"{mean_loss:.4f}")
            accelerator.log({"loss": mean_loss, "lr": lr_scheduler.get_last_lr()[0]}, step=step)
        is_last = step == args.max_train_steps or terminated()
        if step % args.checkpointing_steps == 0 or is_last:
            path = save_checkpoint(accelerator, args, step, global_batch_size)
        if is_last and step < args.max_train_steps:
            terminated.leave(path)
        if (step % args.validation_steps == 0 or step == args.max_train_steps) and accelerator.is_main_process:
            validate(step, pipe, scheduler, cache, conditions, texts, args, accelerator)
    progress.close()
    terminated.restore()
    accelerator.wait_for_everyone()
    model.eval()
    return accelerator, {
        "trained": f"{sum(p.numel() for p in trained):,} weights"
        + ("" if args.full else f", a LoRA of rank {args.rank}"),
        "steps": f"{step:,}",
        "global batch": global_batch_size,
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler}",
        "mixed precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "wall time": f"{(time.monotonic() - started) / 60:.1f} min",
    }


def _identity(batch):
    return batch


@torch.no_grad()
def validate(step, pipe, scheduler, cache, conditions, texts, args, accelerator):
    """Write a grid from the coarse latents of the first images, with their captions: a row each for 1, 2, 4 and 8 steps."""
    model = pipe.transformer.eval()
    was_at = {name: module.device for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    pipe.to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    n = min(args.num_validation_images, len(cache))
    batch = cache.__getitems__([(i, False) for i in range(n)])
    sample = batch["sample"].to(accelerator.device)
    sample = normalize_latents(pipe.vae, sample) if pipe.vae is not None else sample
    call = {"num_images_per_prompt": n} if conditions[2] is None else {}
    if "class_labels" in conditions[0]:
        call["class_labels"] = [conditions[2][row][0] for row in batch["position"].tolist()]
    elif conditions[2] is not None:
        call["prompt"] = [texts[row][0] for row in batch["position"].tolist()]
        if args.max_sequence_length is not None:
            call["max_sequence_length"] = args.max_sequence_length
    images = []
    for num_inference_steps in (1, 2, 4, 8):
        images += generate_from_coarse(
            pipe,
            scheduler,
            prior_latents=scheduler.projection.downsample(sample),
            num_inference_steps=num_inference_steps,
            generator=[keyed_generator(args.seed, "validation", i) for i in range(n)],
            **call,
        ).images
    folder = os.path.join(args.output_dir, "samples")
    os.makedirs(folder, exist_ok=True)
    grid = make_image_grid(images, rows=4, cols=n)
    grid.save(os.path.join(folder, f"{step:06d}-true-coarse-steps-1-2-4-8.png"))
    for name, device in was_at.items():
        getattr(pipe, name).to(device)
    model.train()


def save(pipe, scheduler, args):
    """Write the LoRA as the pipeline itself does, with what it is for in it; or all weights, with it beside them."""
    base_model = args.pretrained_model_name_or_path
    base_model = os.path.basename(base_model.rstrip("/")) if os.path.isdir(base_model) else base_model
    scheduler.save_pretrained(os.path.join(args.output_dir, "coarse_scheduler"))
    if args.full:
        pipe.transformer.save_pretrained(os.path.join(args.output_dir, "transformer"))
        return base_model
    from peft import get_peft_model_state_dict

    config = pipe.transformer.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_model, "auto_mapping": describe_adapter(pipe, scheduler, base_model)}
    type(pipe).save_lora_weights(
        args.output_dir,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        transformer_lora_adapter_metadata=config,
    )
    return base_model


def main(args):
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    check_engine(accelerator, data_parallel_only=True)
    repo_id = args.hub_model_id or os.path.basename(os.path.abspath(args.output_dir))
    if args.push_to_hub and accelerator.is_main_process:  # first of all: a wrong name or token shows now
        repo_id = create_repo(repo_id, exist_ok=True, token=args.hub_token).repo_id
    pipe = DiffusionPipeline.from_pretrained(
        args.pretrained_model_name_or_path, revision=args.revision, variant=args.variant, use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval()
    scheduler = LowFreqFlowMatchScheduler(projection=args.projection, factor=args.factor, noise_ratio=args.noise_ratio)
    sides = latent_size(pipe, args.resolution, args.resolution)
    if any(side % args.factor for side in sides):
        raise ValueError(f"`factor` must divide the size {sides[0]}x{sides[1]} of the latents, got {args.factor}.")
    images = load_data(args, pipe)
    check_processes(accelerator, images)
    cache_dir = args.cache_dir or os.path.join(args.output_dir, "cache")
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision)
    for name, module in pipe.components.items():
        is_frozen = not args.full and (name.startswith("text_encoder") or name == "transformer")
        if isinstance(module, torch.nn.Module):
            module.to(accelerator.device, half if is_frozen else None)
    first = {} if takes_labels(pipe) else {"prompt": ""}
    if takes_labels(pipe) and pipe.transformer.config.num_classes:
        first = {"class_labels": [0]}
    convention = read_convention(pipe, args.resolution, args.resolution, **first)
    with accelerator.main_process_first():
        cache = LatentCache.build(
            images,
            pipe.vae,
            cache_dir,
            batch_size=args.cache_batch_size,
            max_skipped=args.max_skipped_images,
            device=accelerator.device,
            progress=lambda shards: tqdm(shards, desc="encode", disable=not accelerator.is_main_process),
        )
        conditions = build_conditions(args, pipe, convention, images, cache_dir)
    for name, module in pipe.components.items():  # only the transformer is needed from here on
        if isinstance(module, torch.nn.Module) and name != "transformer":
            module.to("cpu")
    accelerator, run = train(pipe, scheduler, convention, cache, conditions, images.captions, args)
    if accelerator.is_main_process:
        pipe.to("cpu")
        base_model = save(pipe, scheduler, args)
        facts = {
            "Data": {
                "images": f"{len(cache):,} of {args.dataset_name or os.path.basename(args.train_data_dir.rstrip('/'))}",
                "resolution": args.resolution,
            },
            "Source": scheduler.source,
            "Training": run,
            "Environment": {"machine": machine_kind(), "torch": torch.__version__, "seed": args.seed},
        }
        save_lora_card(args.output_dir, repo_id, base_model, not takes_labels(pipe), args.full, facts)
        if args.push_to_hub:
            ignored = ["*checkpoint-*", "cache/*", "logs/*", ".*"]
            upload_folder(repo_id=repo_id, folder_path=args.output_dir, ignore_patterns=ignored, token=args.hub_token)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
