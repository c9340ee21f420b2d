#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Train a low-frequency flow and its prior model, from scratch or from an existing pipeline.

    accelerate launch examples/train_lowfreq.py --config examples/configs/cifar10.json \
        --train_data_dir my_images --pretrained_vae_model_name_or_path out/vae --output_dir out/model

The latents are encoded once and cached. The prior model is trained on D(x), then the flow on pairs (source, x); `--train`
chooses one of them. With `--objective mean_flow`, or from a trained pipeline with `--teacher`, both become one-step models:

    accelerate launch examples/train_lowfreq.py --teacher out/model --guidance_scale 3 --prior_guidance_scale 3 \
        --train_data_dir my_images --output_dir out/one-step

With `--caption_column` and a text encoder the models are told text instead of labels:

    accelerate launch examples/train_lowfreq.py --train_data_dir my_captioned_images --caption_column text \
        --pretrained_text_encoder_name_or_path google-t5/t5-small --output_dir out/text-to-image

The loop is `train` below; everything that is drawn in it is keyed by seed, step and position in the
global batch, so the same run on other numbers of processes, or after a resume, takes the same path. (The minibatch
optimal transport of the prior is the exception: it depends on the batch of each process.)
"""

import argparse
import json
import os
import re
import time
from datetime import timedelta
from functools import partial
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from huggingface_hub import create_repo, upload_folder
from tqdm.auto import tqdm

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import check_min_version, make_image_grid
from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTextToImagePipeline,
    LowFreqTransformer2DModel,
    LowFreqUpscalePipeline,
)
from diffusers_lowfreq.autoencoding import load_autoencoder, normalize_latents, set_latent_statistics
from diffusers_lowfreq.couplings import SemiDiscreteCoupling, minibatch_optimal_transport
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.model_card import save_model_card
from diffusers_lowfreq.models import SIZES
from diffusers_lowfreq.objectives import Distillation, FlowMatching, MeanFlow, check_derivative
from diffusers_lowfreq.projections import PROJECTIONS, fit_projection_basis
from diffusers_lowfreq.stock import describe_adapter
from diffusers_lowfreq.text_encoding import fingerprint, load_text_encoder
from diffusers_lowfreq.training import (
    LR_SCHEDULERS,
    CaptionCache,
    DegradedImages,
    DegradedPairs,
    GradientGuard,
    KeyedBatchSampler,
    LatentCache,
    LatentStream,
    StreamedCaptions,
    Termination,
    autocast,
    averaged_weights,
    check_engine,
    check_processes,
    configure_engine,
    engine,
    finish,
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
    whole_text_encoder,
)


check_min_version("0.40.0")

SOURCE = ("projection", "factor", "noise_ratio", "noise_ratio_range", "projection_basis")
FROM_PIPELINE = "taken from the pipeline with --pretrained_model_name_or_path"
NOISE_RATIO = 0.25  # better than the paper's 0.5 in the study of docs/evidence.md
# Options that only the training of one-step models has
ONE_STEP = ["guidance_scale", "prior_guidance_scale", "guidance_scale_range", "guidance_interval", "equal_share"]
ONE_STEP += ["tangent", "adaptive_power", "derivative"]
NEW_PRIOR = {"prior_size": "micro", "prior_patch_size": 1}
# Options that a pipeline to start from, or a teacher, has decided
FROM_PIPELINE_ONLY = ["conditional", "pretrained_vae_model_name_or_path", "vae_subfolder", "latent_statistics"]
FROM_PIPELINE_ONLY += ["pretrained_prior_model_name_or_path", "prior_subfolder", "transformer_size", "patch_size"]
FROM_PIPELINE_ONLY += ["projection", "factor", "noise_ratio", "noise_ratio_range"]
TEXT_ENCODER = ["pretrained_text_encoder_name_or_path", "text_encoder_subfolder", "tokenizer_subfolder"]
FROM_PIPELINE_ONLY += TEXT_ENCODER


def network_size(value):
    """Read a name of `SIZES`, or `LAYERSxHEADSxHEAD_DIM`."""
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", value)
    if value not in SIZES and numbers is None:
        raise argparse.ArgumentTypeError(f"must be among {list(SIZES)} or LAYERSxHEADSxHEAD_DIM, got {value!r}")
    return value


def size_config(size):
    """Turn a size that `network_size` has read into arguments of the model."""
    names = ("num_layers", "num_attention_heads", "attention_head_dim")
    return SIZES[size] if size in SIZES else dict(zip(names, map(int, size.split("x"))))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", help="JSON file of overrides of the defaults below")
    parser.add_argument("--train", choices=["both", "prior", "flow"], default="both")
    parser.add_argument("--output_dir", required=True)

    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="name of a dataset on the Hub")
    group.add_argument("--dataset_config_name")
    group.add_argument("--train_data_dir", help="local folder of images or parquet files, or one parquet file")
    group.add_argument("--image_column", default="image")
    group.add_argument("--label_column", default="label", help="integers; a set without the default column has none")
    group.add_argument(
        "--caption_column", help="strings, or lists of them to draw from: the models are told text instead of labels"
    )
    group.add_argument("--conditional", action=argparse.BooleanOptionalAction, default=True, help="use the labels")
    group.add_argument("--resolution", type=int, default=32)
    group.add_argument("--random_flip", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument(
        "--streaming",
        action="store_true",
        help="read and encode the images on the way, not once: for sets that do not fit; sharded by process",
    )
    group.add_argument("--shuffle_buffer_size", type=int, default=8192, help="images of a stream, per process")
    group.add_argument("--cache_dir", help="where latents are cached, by default output_dir/cache")
    group.add_argument("--cache_batch_size", type=int, default=64, help="images per encoder call")
    group.add_argument("--max_skipped_images", type=float, default=0.01, help="tolerated share of unreadable images")
    group.add_argument("--dataloader_num_workers", type=int, default=0)

    group = parser.add_argument_group("models")
    group.add_argument("--pretrained_model_name_or_path", help="a low-frequency pipeline to start from")
    group.add_argument("--teacher", help="distil this pipeline into one-step models; they start from its weights")
    group.add_argument("--pretrained_vae_model_name_or_path", help="any autoencoder of diffusers; none: pixels")
    group.add_argument("--vae_subfolder")
    group.add_argument("--pretrained_prior_model_name_or_path", help="a prior model to use or to go on training")
    group.add_argument("--prior_subfolder")
    group.add_argument("--pretrained_text_encoder_name_or_path", help="a CLIP or T5 encoder and its tokenizer")
    group.add_argument("--text_encoder_subfolder")
    group.add_argument("--tokenizer_subfolder")
    group.add_argument("--revision")
    group.add_argument("--variant")
    group.add_argument("--latent_statistics", choices=["measured", "config"], default="measured")
    group.add_argument("--transformer_size", type=network_size, default="tiny", help=f"{list(SIZES)}; {FROM_PIPELINE}")
    group.add_argument("--patch_size", type=int, default=2, help=FROM_PIPELINE)
    group.add_argument("--prior_size", type=network_size, help="size of a new prior model")
    group.add_argument("--prior_patch_size", type=int, help="patch size of a new prior model")
    group.add_argument("--rank", type=int, help="train a LoRA of this rank of the flow, instead of all its weights")
    parser.set_defaults(**NEW_PRIOR)

    group = parser.add_argument_group("source")
    group.add_argument("--projection", choices=[*PROJECTIONS, "pca"], default="bicubic", help=FROM_PIPELINE)
    group.add_argument("--factor", type=int, default=4, help=FROM_PIPELINE)
    group.add_argument(
        "--noise_ratio",
        type=float,
        help=f"by default {NOISE_RATIO}, or the end of the range next to it; {FROM_PIPELINE}",
    )
    group.add_argument("--noise_ratio_range", type=float, nargs=2, help=f"train over a range; {FROM_PIPELINE}")
    group.add_argument(
        "--degraded_share",
        type=float,
        help="of pairs whose coarse latent is that of a thumbnail (by 2 to 8) or a blurred copy, for upscaling",
    )
    group.add_argument(
        "--coupling", choices=["identity", "noise_ot", "minibatch_ot"], default="identity", help="of the flow"
    )
    group.add_argument(
        "--prior_coupling", choices=["minibatch_ot", "semi_discrete", "independent"], default="minibatch_ot"
    )

    group = parser.add_argument_group("objective")
    group.add_argument(
        "--objective",
        choices=["flow_matching", "mean_flow"],
        default="flow_matching",
        help="mean_flow: one-step models",
    )
    group.add_argument("--time_sampling", choices=["uniform", "logit_normal"], default="uniform")
    group.add_argument("--logit_mean", type=float, default=0.0)
    group.add_argument("--logit_std", type=float, default=1.0)
    group.add_argument("--label_dropout", type=float, default=0.1, help="of labels or captions, for guidance")

    group = parser.add_argument_group("one-step models: --objective mean_flow or --teacher")
    group.add_argument("--guidance_scale", type=float, help="fold classifier-free guidance into the flow")
    group.add_argument("--prior_guidance_scale", type=float, help="and into the prior model")
    group.add_argument("--guidance_scale_range", type=float, nargs=2, help="train over a range, to choose at sampling")
    group.add_argument(
        "--guidance_interval", type=float, nargs=2, default=[0.0, 1.0], help="times at which the flow is guided"
    )
    group.add_argument("--equal_share", type=float, default=0.5, help="of pairs of times r = t: plain flow matching")
    group.add_argument("--tangent", choices=["pair", "network"], default="pair", help="MeanFlow or improved MeanFlow")
    group.add_argument("--adaptive_power", type=float, default=1.0, help="of the error that divides the gradient")
    group.add_argument("--derivative", choices=["forward", "central"], default="forward", help="forward: exact")

    group = parser.add_argument_group("optimisation (the prior's own numbers carry its name)")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--train_batch_size", type=int, default=128, help="per process and accumulation step")
    group.add_argument("--prior_train_batch_size", type=int, default=512)
    group.add_argument("--max_train_steps", type=int, default=10_000)
    group.add_argument("--prior_max_train_steps", type=int, default=5_000)
    group.add_argument("--learning_rate", type=float, default=5e-4)
    group.add_argument("--prior_learning_rate", type=float, default=1e-3)
    group.add_argument("--gradient_accumulation_steps", type=int, default=1)
    group.add_argument("--gradient_checkpointing", action="store_true")
    group.add_argument("--lr_scheduler", choices=LR_SCHEDULERS, default="cosine")
    group.add_argument("--lr_warmup_steps", type=int, default=200)
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.99)
    group.add_argument("--adam_weight_decay", type=float, default=0.01)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument("--use_ema", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument("--ema_decay", type=float, default=0.999, help="reached by a ramp, (1 + n) / (10 + n)")
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"])

    group = parser.add_argument_group("checkpoints, logs and validation")
    group.add_argument("--checkpointing_steps", type=int, default=500)
    group.add_argument("--checkpoints_total_limit", type=int)
    group.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or `latest`")
    group.add_argument("--report_to", help="a tracker of accelerate, for example tensorboard")
    group.add_argument("--logging_steps", type=int, default=50)
    group.add_argument("--validation_steps", type=int, default=1000)
    group.add_argument("--num_validation_images", type=int, default=16)
    group.add_argument("--validation_guidance_scale", type=float, default=2.0)
    group.add_argument("--push_to_hub", action="store_true")
    group.add_argument("--hub_model_id")
    group.add_argument("--hub_token")
    args = parse_with_config(parser, argv)

    positive = "resolution factor train_batch_size prior_train_batch_size max_train_steps prior_max_train_steps "
    positive += "gradient_accumulation_steps checkpointing_steps logging_steps validation_steps patch_size "
    positive += "shuffle_buffer_size prior_patch_size cache_batch_size num_validation_images"
    for name in positive.split() + ["rank"] * (args.rank is not None):
        if getattr(args, name) < 1:
            parser.error(f"argument --{name}: must be positive, got {getattr(args, name)}")
    if args.checkpoints_total_limit is not None and args.checkpoints_total_limit < 1:
        parser.error(f"argument --checkpoints_total_limit: must be positive, got {args.checkpoints_total_limit}")
    for name in ("label_dropout", "noise_ratio", "max_skipped_images", "equal_share", "degraded_share"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) <= 1:
            parser.error(f"argument --{name}: must be in [0, 1], got {getattr(args, name)}")
    if args.noise_ratio_range is not None:
        low, high = args.noise_ratio_range
        if not 0 <= low < high <= 1 or (args.noise_ratio is not None and not low <= args.noise_ratio <= high):
            between = "" if args.noise_ratio is None else f" with --noise_ratio {args.noise_ratio} between them"
            parser.error(
                f"argument --noise_ratio_range: must be two rising numbers in [0, 1]{between}, got {low} {high}"
            )
    if args.teacher is not None and args.objective != "flow_matching":
        parser.error("argument --objective: is distillation with --teacher; leave it out")
    if args.teacher is not None and args.tangent != parser.get_default("tangent"):
        parser.error("argument --tangent: is the teacher's velocity with --teacher; leave it out")
    one_step = args.teacher is not None or args.objective == "mean_flow"
    for name in ONE_STEP:
        if not one_step and getattr(args, name) != parser.get_default(name):
            parser.error(f"argument --{name}: needs --objective mean_flow or --teacher")
    if args.degraded_share is not None and args.train == "prior":
        parser.error("argument --degraded_share: is for the flow, which is not trained; leave it out")
    if args.rank is not None and (one_step or args.train != "flow" or args.pretrained_model_name_or_path is None):
        parser.error(
            "argument --rank: needs --train flow and --pretrained_model_name_or_path, and no one-step objective"
        )
    scales = {"flow": "guidance_scale", "prior": "prior_guidance_scale"}
    low, high = args.guidance_scale_range or (0, float("inf"))
    for part, name in scales.items():
        scale = getattr(args, name)
        if scale is not None and args.train not in (part, "both"):
            parser.error(f"argument --{name}: is for the {part}, which is not trained; leave it out")
        if scale is not None and not (0 < scale < float("inf") and low <= scale <= high):
            parser.error(f"argument --{name}: must be a positive number, in --guidance_scale_range, got {scale}")
        is_missing = scale is None and args.train in (part, "both")
        if args.guidance_scale_range is not None and (is_missing or not 1 <= low < high):
            parser.error(
                f"argument --guidance_scale_range: must be two rising numbers from 1 on, with --{name} for the default, got "
                f"{low} {high}"
            )
    low, high = args.guidance_interval
    if not 0 <= low <= high <= 1 or (args.guidance_scale is None and (low, high) != (0, 1)):
        parser.error(
            "argument --guidance_interval: must be two rising numbers in [0, 1], with --guidance_scale, got "
            f"{low} {high}"
        )
    if not 0 <= args.adaptive_power < float("inf"):
        parser.error(f"argument --adaptive_power: must not be negative, got {args.adaptive_power}")
    taken = []
    if args.pretrained_model_name_or_path is not None or args.teacher is not None:
        taken = FROM_PIPELINE_ONLY
    elif args.pretrained_prior_model_name_or_path is not None:
        taken = NEW_PRIOR
    for name in taken:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"argument --{name}: is taken from the pretrained model; leave it out")
    if args.caption_column is not None:
        for name in ("label_column", "conditional"):
            if getattr(args, name) != parser.get_default(name):
                parser.error(
                    f"argument --{name}: is for labels, and with --caption_column there are none; leave it out"
                )
        if args.degraded_share is not None:
            parser.error("argument --degraded_share: must be left out with --caption_column")
        if args.prior_coupling == "semi_discrete":
            parser.error("argument --prior_coupling: must be minibatch_ot or independent with --caption_column")
        if args.pretrained_text_encoder_name_or_path is None and taken != FROM_PIPELINE_ONLY:
            parser.error("argument --pretrained_text_encoder_name_or_path: must be given with --caption_column")
    for name in TEXT_ENCODER:
        if args.caption_column is None and getattr(args, name) is not None:
            parser.error(f"argument --{name}: needs --caption_column")
    if args.streaming and args.degraded_share is not None:
        parser.error("argument --degraded_share: must be left out with --streaming")
    if args.streaming and args.prior_coupling == "semi_discrete" and args.train != "flow":
        parser.error("argument --prior_coupling: must be minibatch_ot or independent with --streaming")
    if not args.streaming and args.shuffle_buffer_size != parser.get_default("shuffle_buffer_size"):
        parser.error("argument --shuffle_buffer_size: needs --streaming")
    if args.noise_ratio is None:
        low, high = args.noise_ratio_range or (0, 1)
        args.noise_ratio = min(max(NOISE_RATIO, low), high)
    return args


def load_pipeline(name_or_path, args):
    """Load a pipeline of text where there are captions, else of labels or unconditional."""
    pipeline_class = LowFreqPipeline if args.caption_column is None else LowFreqTextToImagePipeline
    return pipeline_class.from_pretrained(name_or_path, revision=args.revision, variant=args.variant)


def load_teacher(args):
    """Load the pipeline to distil, if there is one, and refuse what cannot be distilled as it was asked for."""
    if args.teacher is None:
        return None
    teacher = load_pipeline(args.teacher, args)
    for part, name, scale in (
        ("flow", "transformer", args.guidance_scale),
        ("prior", "prior", args.prior_guidance_scale),
    ):
        if args.train not in (part, "both"):
            continue
        model = getattr(teacher, name)
        if model is None:
            raise ValueError(
                f"`teacher` must have a `{name}` to distil, {args.teacher!r} has none; use `--train flow`."
            )
        if model.config.use_meanflow:
            raise ValueError(f"`teacher` must be a flow of many steps, the `{name}` of {args.teacher!r} is one-step.")
        if scale is not None and model.config.num_classes is None and model.config.caption_channels is None:
            option = "guidance_scale" if part == "flow" else "prior_guidance_scale"
            raise ValueError(
                f"`{option}` needs a `teacher` with labels or text, the `{name}` of {args.teacher!r} has none."
            )
        model.requires_grad_(False).eval()
    return teacher


def check_teacher(teacher, pipeline, latent_shape, parts):
    """Refuse a teacher of another source, latent space or set of classes than the student or the data."""
    facts = []
    for pipe in (teacher, pipeline):
        source = {k: pipe.scheduler.config[k] for k in SOURCE}
        source["id2label"] = {str(k): v for k, v in (pipe.config.get("id2label") or {}).items()}
        if isinstance(pipe, LowFreqTextToImagePipeline):
            source["text encoder"] = fingerprint(pipe.text_encoder, pipe.tokenizer)
        facts.append(source | {"latents": pipe.vae and {k: v for k, v in pipe.vae.config.items() if k[0] != "_"}})
        for part in parts:
            config = getattr(pipe, "prior" if part == "prior" else "transformer").config
            names = ("in_channels", "sample_size", "num_classes", "caption_channels", "use_noise_ratio")
            names += ("sample_mean", "sample_std")
            facts[-1] |= {f"{k} of the {part}": config[k] for k in names}
    for key, value in json.loads(json.dumps(facts[0])).items():
        student = json.loads(json.dumps(facts[1]))[key]
        if value != student:
            raise ValueError(f"`teacher` must have the {key} of the pipeline to train, {student!r}, got {value!r}.")
    size = teacher.transformer.config.sample_size
    size = [size, size] if isinstance(size, int) else list(size)
    shape = [teacher.transformer.config.in_channels, *size]
    if shape != list(latent_shape):
        raise ValueError(
            f"`teacher` must work on latents of the shape of the data, {list(latent_shape)}, got {shape}; look at "
            "`resolution`."
        )


def one_step_model(model, guidance_scale, guidance_scale_range, seed=0):
    """Turn a flow into a one-step model of the same weights. What is new in it starts at zero, so it is the flow at first."""
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    config |= {"use_meanflow": True, "guidance_scale": guidance_scale, "guidance_scale_range": guidance_scale_range}
    if model.config.use_meanflow and any(
        model.config[k] != config[k] for k in ("guidance_scale", "guidance_scale_range")
    ):
        has = [model.config[k] for k in ("guidance_scale", "guidance_scale_range")]
        raise ValueError(
            "`guidance_scale`, `prior_guidance_scale` and `guidance_scale_range` must be those of the one-step pipeline to go "
            f"on with, {has[0]} and {has[1]} of one of its networks, got {guidance_scale} and {guidance_scale_range}."
        )
    torch.manual_seed(seed)
    student = LowFreqTransformer2DModel.from_config(config)
    student.load_state_dict(student.state_dict() | model.state_dict())
    return student


def build_pipeline(args, cache_latents, cache_captions, teacher=None):
    """
    Build the untrained pipeline, or load the one to start from, and the caches of its latents and, if any, captions.

    `cache_latents(vae)` encodes the images, and is called once the autoencoder is known; `cache_captions(text_encoder,
    tokenizer)` the captions.
    """
    text, captions = {}, None
    if args.pretrained_model_name_or_path is not None or teacher is not None:
        pipeline = teacher
        if args.pretrained_model_name_or_path is not None:
            pipeline = load_pipeline(args.pretrained_model_name_or_path, args)
        for name, default in NEW_PRIOR.items():
            if pipeline.prior is not None and getattr(args, name) != default:
                raise ValueError(f"`{name}` must be left out: the pipeline has a prior, got {getattr(args, name)!r}.")
        parts = pipeline.components
        cache = cache_latents(pipeline.vae)
        transformer, prior, scheduler, vae = (parts[k] for k in ("transformer", "prior", "scheduler", "vae"))
        text = {k: parts[k] for k in ("text_encoder", "tokenizer") if k in parts}
        id2label = {int(k): v for k, v in (pipeline.config.get("id2label") or {}).items()} or None
        names = {k: v for k, v in (cache.id2label or {}).items() if v != str(k)}
        if id2label and not names.items() <= id2label.items():
            raise ValueError(
                f"`label_column` {args.label_column!r} names the classes {names}, but the pipeline {id2label}."
            )
    else:
        vae = None
        if args.pretrained_vae_model_name_or_path is not None:
            name, options = (
                args.pretrained_vae_model_name_or_path,
                {"revision": args.revision, "variant": args.variant},
            )
            vae = load_autoencoder(name, args.vae_subfolder, **options)
        if args.caption_column is not None:
            subfolders = args.text_encoder_subfolder, args.tokenizer_subfolder
            loaded = load_text_encoder(args.pretrained_text_encoder_name_or_path, *subfolders, revision=args.revision)
            text = dict(zip(("text_encoder", "tokenizer"), loaded))
        cache = cache_latents(vae)
        if vae is not None and args.latent_statistics == "measured":
            set_latent_statistics(vae, cache.mean, cache.std)
        basis = None
        if args.projection == "pca":
            basis = fit_projection_basis((x for x, _ in samples(cache, thinned(cache), vae)), args.factor)
        scheduler = LowFreqFlowMatchScheduler(
            projection=args.projection,
            projection_basis=basis,
            factor=args.factor,
            noise_ratio=args.noise_ratio,
            noise_ratio_range=args.noise_ratio_range,
        )
        id2label = cache.id2label if args.conditional else None
        transformer = prior = None
        if args.pretrained_prior_model_name_or_path is not None:
            prior = LowFreqTransformer2DModel.from_pretrained(
                args.pretrained_prior_model_name_or_path, subfolder=args.prior_subfolder, use_safetensors=True
            )

    if text:
        captions = cache_captions(**text)
    for model in (transformer, prior):
        num_classes = model.config.num_classes if model is not None else None
        if num_classes is not None and not 0 <= int(cache.labels.min()) <= int(cache.labels.max()) < num_classes:
            raise ValueError(
                f"`label_column` {args.label_column!r} must hold numbers below {num_classes}, the number of classes of "
                f"the pretrained model, got {int(cache.labels.min())} to {int(cache.labels.max())} (-1: no labels)."
            )
    channels, height, width = cache[0, False]["sample"].shape
    shared = {"in_channels": channels, "num_classes": len(id2label) if id2label else None}
    shared["caption_channels"] = text["text_encoder"].config.hidden_size if text else None
    factor = scheduler.config.factor
    patch_size = args.patch_size if transformer is None else transformer.config.patch_size
    prior_patch_size = args.prior_patch_size if prior is None else prior.config.patch_size
    for name, p in (("patch_size", patch_size), ("factor", factor), ("prior_patch_size", factor * prior_patch_size)):
        if height % p or width % p:
            raise ValueError(
                f"`{name}` must divide the size {height}x{width} of the latents"
                + (f" after `factor` {factor}, got {prior_patch_size}." if name.startswith("prior") else f", got {p}.")
            )
    # The seed sets the initial weights only, of each network by itself: every draw of the training is keyed.
    torch.manual_seed(args.seed)
    if transformer is None and args.train != "prior":
        transformer = LowFreqTransformer2DModel(
            sample_size=[height, width],
            patch_size=args.patch_size,
            use_noise_ratio=args.noise_ratio_range is not None,
            **shared,
            **size_config(args.transformer_size),
        )
    if prior is None and args.train != "flow":
        # D(x) is smaller than x: measure it, so that the prior model works at unit scale.
        total = square = count = 0
        for x, _ in samples(cache, thinned(cache), vae):
            low = scheduler.projection.downsample(x)
            total = total + low.double().sum((0, 2, 3))
            square = square + low.double().square().sum((0, 2, 3))
            count += low.numel() // channels
        mean = total / count
        torch.manual_seed(args.seed)
        prior = LowFreqTransformer2DModel(
            sample_size=[height // factor, width // factor],
            patch_size=args.prior_patch_size,
            sample_mean=mean.tolist(),
            sample_std=(square / count - mean**2).sqrt().tolist(),
            **shared,
            **size_config(args.prior_size),
        )
    if teacher is not None:
        parts = ("flow", "prior") if args.train == "both" else (args.train,)
        check_teacher(teacher, pipeline, (channels, height, width), parts)
    if teacher is not None or args.objective == "mean_flow":
        if args.train != "prior":
            transformer = one_step_model(transformer, args.guidance_scale, args.guidance_scale_range, args.seed)
            if (
                scheduler.config.solver_order != 1
            ):  # a mean velocity is walked in one stride, whatever solver a flow has
                scheduler = LowFreqFlowMatchScheduler.from_config(scheduler.config, solver_order=1)
        if args.train != "flow":
            prior = one_step_model(prior, args.prior_guidance_scale, args.guidance_scale_range, args.seed)
    else:
        trained = {"flow": (transformer,), "prior": (prior,), "both": (transformer, prior)}[args.train]
        if any(model.config.use_meanflow for model in trained):
            raise ValueError(
                "`objective` must be 'mean_flow' to go on with one-step models, which 'flow_matching' would spoil; or distil "
                "again, with `teacher`."
            )
    prior_scheduler = FlowMatchEulerDiscreteScheduler() if prior is not None else None
    # A pipeline that was made before keeps its own setting
    started_from = args.pretrained_model_name_or_path or args.teacher
    early = pipeline.config.truncate_prior if started_from is not None else True
    parts = {"transformer": transformer, "scheduler": scheduler, "vae": vae, "prior": prior}
    parts |= {"prior_scheduler": prior_scheduler, "truncate_prior": early}
    if text:
        return LowFreqTextToImagePipeline(**parts, **text), cache, captions
    return LowFreqPipeline(**parts, id2label=id2label), cache, None


def make_objective(part, args, teacher, unconditional=None):
    """Return what is minimised: flow matching, MeanFlow, or the distillation of a teacher."""
    times = {k: getattr(args, k) for k in ("time_sampling", "logit_mean", "logit_std")}
    if teacher is None and args.objective == "flow_matching":
        return FlowMatching(**times)
    settings = {k: getattr(args, k) for k in ONE_STEP if k not in ("prior_guidance_scale", "tangent")}
    settings["unconditional"] = unconditional
    if part == "prior":
        settings["guidance_scale"] = args.prior_guidance_scale
        del settings["guidance_interval"]  # of the flow, as in a call of the pipeline
    if teacher is None:
        return MeanFlow(**times, **settings, tangent=args.tangent)
    return Distillation(**times, **settings, teacher=teacher.prior if part == "prior" else teacher.transformer)


def add_lora(model, rank, seed):
    """Freeze a model and give every linear layer of its blocks a LoRA that changes nothing yet (arXiv 2106.09685)."""
    from peft import LoraConfig

    model.requires_grad_(False)
    torch.manual_seed(seed)
    linears = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=linears))


def save_lora(pipeline, repo_id, facts, args):
    """Write the LoRA as diffusers' own scripts do, with the source that it is for, and its card."""
    from peft import get_peft_model_state_dict

    base_model = args.pretrained_model_name_or_path
    base_model = os.path.basename(base_model.rstrip("/")) if os.path.isdir(base_model) else base_model
    config = pipeline.transformer.peft_config["default"].to_dict()
    config["auto_mapping"] = describe_adapter(pipeline, pipeline.scheduler, base_model)
    type(pipeline).save_lora_weights(
        args.output_dir,
        transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer),
        transformer_lora_adapter_metadata=config,
    )
    if args.degraded_share is not None:
        parts = {k: getattr(pipeline, k) for k in ("transformer", "scheduler", "vae")}
        pipeline = LowFreqUpscalePipeline(**parts, id2label=pipeline.config.id2label)
    save_model_card(args.output_dir, repo_id, pipeline, facts, base_model)


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def thinned(cache):
    """Items of the cache, evenly spread, as many as statistics need."""
    return [(i, False) for i in range(0, len(cache), max(1, len(cache) // 65_536))]


def samples(cache, items, vae):
    """Yield the latents and the labels of cached items, in batches."""
    for start in range(0, len(items), 1024):
        batch = cache.__getitems__(items[start : start + 1024])
        yield normalize_latents(vae, batch["sample"]) if vae is not None else batch["sample"], batch["label"]


def train(part, pipeline, cache, captions, args, teacher=None, stream=None):
    """Train `pipeline.prior` or `pipeline.transformer` in place, and return the facts of the run."""
    is_prior = part == "prior"
    prefix, name = ("prior-", "prior") if is_prior else ("", "transformer")
    batch_size = args.prior_train_batch_size if is_prior else args.train_batch_size
    max_train_steps = args.prior_max_train_steps if is_prior else args.max_train_steps
    learning_rate = args.prior_learning_rate if is_prior else args.learning_rate
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(args.output_dir, os.path.join(args.output_dir, "logs")),
    )
    device = accelerator.device
    model = getattr(pipeline, name).train().to(device)
    model_class = type(model)
    if args.rank is not None:
        add_lora(model, args.rank, args.seed)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(
        trainable(model),
        lr=learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
        fused=True,
    )
    # Not prepared: it counts optimiser steps, whatever the number of processes.
    lr_scheduler = get_lr_scheduler(args.lr_scheduler, optimizer, args.lr_warmup_steps, max_train_steps)
    kind = engine(accelerator)
    # Under ZeRO tensor by tensor: at once `EMAModel` would need all of them whole, and as many float32 differences
    at_once = not kind.startswith("zero")
    make_ema = partial(
        EMAModel, decay=args.ema_decay, model_cls=model_class, model_config=model.config, foreach=at_once
    )
    configure_engine(accelerator, batch_size, args.gradient_accumulation_steps, args.max_grad_norm)
    # DeepSpeed may take the weights away, or to half precision, and FSDP2 replaces them: before the one, after the other
    ema = make_ema(trainable(model)) if args.use_ema and kind != "fsdp" else None
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if args.use_ema and kind == "fsdp":
        ema = make_ema(trainable(model))
    if ema is not None:
        ema.to(device)
    parameters = trainable(model)
    if model.config.use_meanflow:
        check_derivative(model, args.derivative)
    register_model_hooks(accelerator, model, ema, name)
    register_schedule(accelerator, lr_scheduler)
    global_batch_size = batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    texts, loader = captions, None
    if stream is not None:
        if captions is not None:
            texts = StreamedCaptions(captions, pipeline.text_encoder, pipeline.tokenizer)
        loader = LatentStream(
            stream,
            pipeline.vae.to(device) if pipeline.vae is not None else None,
            batch_size,
            args.seed,
            accelerator.process_index,
            accelerator.num_processes,
            args.random_flip,
            args.shuffle_buffer_size,
            args.max_skipped_images,
            args.dataloader_num_workers,
            device,
            texts,
        )
        loader.register(accelerator)
    step = resume_checkpoint(accelerator, args, global_batch_size, prefix) if args.resume_from_checkpoint else 0

    sampler = KeyedBatchSampler(
        len(cache),
        batch_size,
        args.seed,
        range(step, max_train_steps),
        args.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
        args.random_flip,
    )
    if stream is None:
        loader = torch.utils.data.DataLoader(
            cache,
            batch_sampler=sampler,
            collate_fn=_identity,
            num_workers=args.dataloader_num_workers,
            pin_memory=device.type == "cuda",
        )
    scheduler, projection, vae = pipeline.scheduler, pipeline.scheduler.projection, pipeline.vae
    num_classes = model.config.num_classes
    nothing, unconditional = num_classes, None  # the label, or the text, of "nothing in particular"
    if captions is not None:
        nothing = texts.empty
        unconditional = captions.embeddings(torch.tensor([captions.empty]), device)
    objective = make_objective(part, args, teacher, unconditional)
    if teacher is not None:
        objective.teacher.to(device)
    if is_prior:
        low_mean = torch.tensor(model.config.sample_mean or [0.0], device=device).view(-1, 1, 1)
        low_std = torch.tensor(model.config.sample_std or [1.0], device=device).view(-1, 1, 1)
    coupling = args.prior_coupling if is_prior else args.coupling
    if coupling == "semi_discrete":
        items = [(i, flip) for flip in (False, True)[: 1 + args.random_flip] for i in range(len(cache))]
        pairs = ((projection.downsample(x), labels) for x, labels in samples(cache, items, vae))
        low, labels = (torch.cat(parts) for parts in zip(*pairs))
        low = (low.to(device) - low_mean) / low_std
        semi_discrete = SemiDiscreteCoupling(low, labels.to(device) if num_classes is not None else None)
        bar = partial(tqdm, desc="semi-discrete coupling", disable=not accelerator.is_local_main_process)
        semi_discrete.fit(generator=keyed_generator(args.seed, "semi-discrete"), progress=bar)
    noise_ratio_range = None if is_prior else scheduler.config.noise_ratio_range
    if args.report_to:
        accelerator.init_trackers(f"train_{part}", config={k: str(v) for k, v in vars(args).items()})

    guard, terminated = GradientGuard(accelerator), Termination(accelerator)
    progress = tqdm(
        total=max_train_steps, initial=step, desc=part, disable=not accelerator.is_local_main_process, smoothing=0.05
    )
    started = since = time.monotonic()
    first_step = logged_step = step
    micro_step, running = 0, torch.zeros(2, device=device)  # the sum of the losses that are finite, and their number
    for batch in islice(loader, len(sampler)):
        with accelerator.accumulate(wrapped):
            # 1. The pair (source, sample). Each draw has its own generator, keyed by seed, step and position.
            generators = sampler.generators(step, micro_step)
            sample = batch["sample"].to(device, non_blocking=True)
            sample = normalize_latents(vae, sample) if vae is not None else sample
            condition = {}
            if is_prior:
                sample = (projection.downsample(sample) - low_mean) / low_std
            noise = randn_tensor(sample.shape, generator=generators, device=device, dtype=sample.dtype)
            labels = batch["label"].to(device) if num_classes is not None else None
            if captions is not None:  # a number for each text, which is to the couplings what a label is
                labels = texts.choose(batch["position"], uniform(len(sample), generators)).to(device)
            if is_prior:
                source = noise
            else:
                if coupling == "noise_ot":  # each sample keeps its coarse version, the batch shares out the noise
                    noise = noise[minibatch_optimal_transport(noise, projection.complement(sample), labels)]
                noise_ratio = None
                if noise_ratio_range is not None:
                    lowest, highest = noise_ratio_range
                    noise_ratio = lowest + (highest - lowest) * uniform(len(sample), generators, device)
                    condition["noise_ratio"] = noise_ratio
                coarse = sample
                if args.degraded_share is not None:
                    degraded = batch["degraded"].to(device, non_blocking=True)
                    degraded = normalize_latents(vae, degraded) if vae is not None else degraded
                    is_degraded = uniform(len(sample), generators, device) < args.degraded_share
                    coarse = torch.where(is_degraded[:, None, None, None], degraded, sample)
                source = scheduler.make_source_from_sample(coarse, noise, noise_ratio)
            if coupling == "semi_discrete":  # here the noise chooses its sample, of the label of the batch
                sample = low[semi_discrete.assign(source, labels)]
            elif coupling == "minibatch_ot":
                order = minibatch_optimal_transport(source, sample, labels)
                source, condition = source[order], {k: v[order] for k, v in condition.items()}
            # 2. The label or the text, dropped now and then so that the model can be guided.
            if labels is not None:
                drop = uniform(len(sample), generators, device) < args.label_dropout
                labels = labels.masked_fill(drop, nothing)
                condition |= {"class_labels": labels} if captions is None else texts.embeddings(labels, device)
            # 3. The loss and the step.
            with autocast(accelerator):
                loss = objective(wrapped, source, sample, generator=generators, **condition).mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                guard.clip(wrapped.parameters(), args.max_grad_norm, optimizer, step + 1)
            optimizer.step()
            optimizer.zero_grad()
        is_finite = loss.detach().isfinite()
        running += torch.stack([torch.where(is_finite, loss.detach(), 0.0), is_finite.float()])
        micro_step = (micro_step + 1) % args.gradient_accumulation_steps
        if micro_step:
            continue

        lr_scheduler.step()
        if ema is not None:
            ema.step(parameters)
        step += 1
        progress.update()
        if step % args.logging_steps == 0 or step == max_train_steps:
            steps, logged_step = step - logged_step, step
            total, count = accelerator.reduce(running, "sum").tolist()
            mean_loss = total / count if count else float("nan")
            rate = steps * global_batch_size / (time.monotonic() - since)
            since, running = time.monotonic(), torch.zeros(2, device=device)
            progress.set_postfix(loss=f"{mean_loss:.4f}", images_per_second=f"{rate:.0f}")
            logs = {"loss": mean_loss, "lr": lr_scheduler.get_last_lr()[0], "images_per_second": rate}
            logs |= {"grad_norm": guard.grad_norm.item(), "skipped_steps": guard.skipped / (step - first_step)}
            accelerator.log({f"{part}/{k}": v for k, v in logs.items()}, step=step)
        is_last = step == max_train_steps or terminated()
        if step % args.checkpointing_steps == 0 or is_last:
            path = save_checkpoint(accelerator, args, step, global_batch_size, prefix)
        if is_last and step < max_train_steps:
            terminated.leave(path)
        # What is in parts, all processes must run together
        if (step % args.validation_steps == 0 or step == max_train_steps) and (
            accelerator.is_main_process or kind in ("fsdp", "zero3")
        ):
            with autocast(accelerator):
                validate(part, step, pipeline, cache, captions, ema, args, accelerator, teacher)
            since = time.monotonic()
    progress.close()
    terminated.restore()

    model = finish(accelerator, model, model_class, ema, keep=accelerator.is_main_process or is_prior)
    setattr(pipeline, name, model)
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:  # not `end_training`: the flow comes after the prior
        tracker.finish()
    if model is None:
        return {}
    model.eval()
    facts = {
        "parameters": f"{model.num_parameters(only_trainable=True):,}",
        "FLOPs of a forward pass for one image": f"{count_model_flops(model, captions):,}",
        "steps": f"{step:,}",
        "global batch": global_batch_size,
        "learning rate": f"{learning_rate:g}, {args.lr_scheduler}",
        "EMA decay": args.ema_decay if args.use_ema else "none",
        "mixed precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "engine": kind,
    }
    # What a run that took the last step measured is kept for one that only assembles the pipeline.
    path = os.path.join(args.output_dir, f"{prefix}training.json")
    if step > first_step:
        facts |= {
            f"training loss, mean of the last {steps} steps": f"{mean_loss:.4f}",
            "steps skipped, their gradient not finite": f"{guard.skipped} of steps {first_step + 1} to {step}",
            "wall time": f"{(time.monotonic() - started) / 60:.1f} min for steps {first_step + 1} to {step}",
        }
        if accelerator.is_main_process:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(facts, file, indent=1)
    elif os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            facts = json.load(file)
    return facts


def _identity(batch):
    return batch


def count_model_flops(model, captions):
    size = model.config.sample_size
    size = (size, size) if isinstance(size, int) else size
    told = {}
    if captions is not None:
        told["encoder_hidden_states"] = torch.zeros(1, captions.mean_tokens, model.config.caption_channels)
    return count_flops(model, (model.config.in_channels, *size), **{k: v.to(model.device) for k, v in told.items()})


@torch.no_grad()
def validate(part, step, pipeline, cache, captions, ema, args, accelerator, teacher=None):
    """
    Write a grid with fixed seeds, a row of images for each number of steps, with the averaged weights.

    While the prior trains, the images are its coarse latents, upsampled and decoded. While the flow does, they are its
    own, from coarse latents of the prior model where there is one, else of the first images (degraded, where it is trained
    on such); a source that is all noise needs none. With captions they are, as these images, spread over the set. The rows of a
    teacher come first, with the guidance that is folded into the student.
    """
    if pipeline.transformer is None:
        return  # a prior alone shows nothing yet
    model = pipeline.prior if part == "prior" else pipeline.transformer
    model.eval()
    n, num_classes = args.num_validation_images, pipeline.transformer.config.num_classes
    inputs, negative, origin = {}, {}, "generated"
    rows = [i % len(cache) if captions is None else i * len(cache) // n for i in range(n)]
    steps_of_part = "prior_num_inference_steps" if part == "prior" else "num_inference_steps"
    if num_classes is not None:
        inputs["class_labels"] = [i % num_classes for i in range(n)]
    if captions is not None:  # the text encoder stays where it is
        shown = captions.choose(cache.positions[rows], torch.zeros(n))
        for of, texts in ((inputs, shown), (negative, torch.tensor([captions.empty]))):
            prefix = "negative_" if of is negative else ""
            told = captions.embeddings(texts, accelerator.device)
            of[f"{prefix}prompt_embeds"] = told["encoder_hidden_states"]
            of[f"{prefix}prompt_attention_mask"] = told["encoder_attention_mask"]
    is_upscaler = part == "flow" and args.degraded_share is not None
    if (pipeline.prior is None or is_upscaler) and pipeline.scheduler.config.noise_ratio < 1:
        batch = cache.__getitems__([(row, False) for row in rows])
        name, origin = ("degraded", "degraded") if is_upscaler else ("sample", "true")
        sample = batch[name].to(accelerator.device)
        sample = normalize_latents(pipeline.vae, sample) if pipeline.vae is not None else sample
        inputs["prior_latents"] = pipeline.scheduler.projection.downsample(sample)
        if "class_labels" in inputs:
            inputs["class_labels"] = batch["label"]
    images = []
    with averaged_weights(accelerator, trainable(model), ema):
        for pipe in (pipeline,) if teacher is None else (teacher, pipeline):
            for network in (pipe.transformer, pipe.prior, pipe.vae):
                if network is not None:
                    network.to(accelerator.device)
            pipe.set_progress_bar_config(disable=True)
            scales = {"guidance_interval": args.guidance_interval} if pipe is teacher else {}
            for of, name, network in (
                ("flow", "guidance_scale", pipe.transformer),
                ("prior", "prior_guidance_scale", pipe.prior),
            ):
                is_conditional = num_classes is not None or captions is not None
                if is_conditional and network is not None and not network.config.use_meanflow:
                    is_distilled = teacher is not None and args.train in (of, "both")
                    scales[name] = (getattr(args, name) or 1.0) if is_distilled else args.validation_guidance_scale
            for num_inference_steps in (1, 2, 4, 8):
                generators = [keyed_generator(args.seed, "validation", i) for i in range(n)]
                output = pipe(
                    num_images_per_prompt=1 if inputs else n,
                    generator=generators,
                    output_prior_images=part == "prior",
                    **{steps_of_part: num_inference_steps},
                    **inputs,
                    **scales,
                    **(negative if scales else {}),
                )
                images += output.prior_images if part == "prior" else output.images
    model.train()
    if not accelerator.is_main_process:
        return
    grid = make_image_grid(images, rows=len(images) // n, cols=n)
    folder = os.path.join(args.output_dir, "samples")
    os.makedirs(folder, exist_ok=True)
    of_teacher = "-teacher-then-student" if teacher is not None else ""
    grid.save(os.path.join(folder, f"{part}-{step:06d}-{origin}-coarse{of_teacher}-steps-1-2-4-8.png"))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({f"{part}/samples": np.asarray(grid)[None]}, step=step, dataformats="NHWC")


def main(args):
    # The other processes wait while the main one encodes the images, which may take hours.
    timeout = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[timeout])
    check_engine(accelerator)
    if engine(accelerator) in ("fsdp", "zero3"):
        if args.rank is not None:
            raise ValueError(
                "`rank` must be left out where the weights are sharded; a LoRA trains under DDP or ZeRO-2."
            )
        if (args.teacher is not None or args.objective == "mean_flow") and args.derivative == "forward":
            raise ValueError("`derivative` must be 'central' where the weights are sharded, got 'forward'.")
    repo_id = args.hub_model_id or os.path.basename(os.path.abspath(args.output_dir))
    if args.push_to_hub and accelerator.is_main_process:  # first of all: a wrong name or token shows now
        repo_id = create_repo(repo_id, exist_ok=True, token=args.hub_token).repo_id
    images = load_images(
        args.dataset_name,
        args.train_data_dir,
        resolution=args.resolution,
        dataset_config_name=args.dataset_config_name,
        image_column=args.image_column,
        label_column=args.label_column if args.conditional and args.caption_column is None else None,
        caption_column=args.caption_column,
        streaming=args.streaming,
    )
    stream = None
    if args.streaming:
        stream, images = images, images.head
    check_processes(accelerator, images)

    def cache_latents(vae, images=images):
        with accelerator.main_process_first():
            return LatentCache.build(
                images,
                vae.to(accelerator.device) if vae is not None else None,
                args.cache_dir or os.path.join(args.output_dir, "cache"),
                batch_size=args.cache_batch_size,
                max_skipped=args.max_skipped_images,
                device=accelerator.device,
                progress=lambda shards: tqdm(shards, desc="encode", disable=not accelerator.is_main_process),
            )

    def cache_captions(text_encoder, tokenizer):
        with accelerator.main_process_first():
            return CaptionCache.build(
                images.captions,
                text_encoder,
                tokenizer,
                args.cache_dir or os.path.join(args.output_dir, "cache"),
                batch_size=args.cache_batch_size,
                device=accelerator.device,
                progress=lambda shards: tqdm(shards, desc="encode captions", disable=not accelerator.is_main_process),
            )

    with whole_text_encoder(accelerator):
        teacher = load_teacher(args)
        pipeline, cache, captions = build_pipeline(args, cache_latents, cache_captions, teacher)
    pairs = cache
    if args.degraded_share is not None:
        pairs = DegradedPairs(cache, cache_latents(pipeline.vae, DegradedImages(images)))
    facts = {
        "Data": {
            "images": f"{'a stream' if args.streaming else f'{len(cache):,}'} of "
            + (args.dataset_name or os.path.basename(args.train_data_dir.rstrip("/"))),
            "unreadable and skipped": cache.index["skipped"],
            "resolution": args.resolution,
            "mirrored": args.random_flip,
            "classes": pipeline.transformer.config.num_classes
            if pipeline.transformer is not None
            else pipeline.prior.config.num_classes,
        },
        "Source": {
            k: pipeline.scheduler.config[k] for k in ("projection", "factor", "noise_ratio", "noise_ratio_range")
        },
    }
    if args.degraded_share is not None:
        facts["Source"]["share of degraded coarse latents"] = args.degraded_share
    if args.rank is not None:
        facts["LoRA"] = {"rank": args.rank, "alpha": args.rank, "of": "the linear layers of the blocks of the flow"}
    if captions is not None:
        del facts["Data"]["classes"]
        facts["Data"] |= {
            "captions": f"{captions.empty:,} different ones{' in its head' if args.streaming else ''}, of {captions.mean_tokens} tokens on average",
            "text encoder": type(pipeline.text_encoder).__name__,
        }
    if teacher is not None or args.objective == "mean_flow":
        facts["One-step training"] = {"objective": "distillation" if teacher is not None else args.objective}
        if teacher is not None:
            is_folder = os.path.isdir(args.teacher)
            facts["One-step training"]["teacher"] = (
                os.path.basename(args.teacher.rstrip("/")) if is_folder else args.teacher
            )
        names = [k for k in ONE_STEP if getattr(args, k) is not None and not (k == "tangent" and teacher is not None)]
        facts["One-step training"] |= {k: getattr(args, k) for k in names}
    for part in ("prior", "flow") if args.train == "both" else (args.train,):
        facts[f"Training of the {part}"] = train(part, pipeline, pairs, captions, args, teacher, stream)

    if accelerator.is_main_process:
        facts["Environment"] = {
            "machine": machine_kind(),
            "torch": torch.__version__,
            "seed": args.seed,
        }
        pipeline.to("cpu")
        if args.rank is not None:
            save_lora(pipeline, repo_id, facts, args)
        elif pipeline.transformer is not None:
            pipeline.save_pretrained(args.output_dir)
            save_model_card(args.output_dir, repo_id, pipeline, facts)
        else:
            pipeline.prior.save_pretrained(os.path.join(args.output_dir, "prior"))
        if args.push_to_hub:
            ignored = ["*checkpoint-*", "cache/*", "logs/*", ".*"]
            upload_folder(repo_id=repo_id, folder_path=args.output_dir, ignore_patterns=ignored, token=args.hub_token)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
