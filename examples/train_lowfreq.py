#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Train a low-frequency flow and its prior model, from scratch or from an existing pipeline.

    accelerate launch examples/train_lowfreq.py --config examples/configs/cifar10.json \
        --train_data_dir my_images --pretrained_vae_model_name_or_path out/vae --output_dir out/model

The latents are encoded once and cached. The prior model is trained on D(x), then the flow on pairs (source, x); `--train`
chooses one of them. With `--objective mean_flow`, or from a trained pipeline with `--teacher`, both become one-step models:

    accelerate launch examples/train_lowfreq.py --teacher out/model --guidance_scale 3 --prior_guidance_scale 3 \
        --train_data_dir my_images --output_dir out/one-step

With `--caption_column` and a text encoder the models are conditioned on text instead of labels:

    accelerate launch examples/train_lowfreq.py --train_data_dir my_captioned_images --caption_column text \
        --pretrained_text_encoder_name_or_path google-t5/t5-small --output_dir out/text-to-image

The loop is in `train` below. Every draw in it is keyed by seed, step and position in the global batch, so the run gives the same
weights, up to rounding, on another number of processes and after a resume. (Two things depend on the split: minibatch optimal
transport, which works on the batch of each process, and streaming.)
"""

import argparse
import os
from datetime import timedelta
from functools import partial

import torch
from accelerate.utils import InitProcessGroupKwargs
from tqdm.auto import tqdm

from diffusers.utils import check_min_version
from diffusers_lowfreq import LowFreqUpscalePipeline
from diffusers_lowfreq.adapters import add_lora, base_model_name, save_lora
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.model_card import save_model_card, source_facts
from diffusers_lowfreq.models import SIZES
from diffusers_lowfreq.objectives import Distillation, FlowMatching, MeanFlow, check_derivative
from diffusers_lowfreq.projections import PROJECTIONS
from diffusers_lowfreq.training import (
    DegradedImages,
    DegradedPairs,
    Run,
    StreamedCaptions,
    check_engine,
    check_output_dir,
    check_processes,
    describe_images,
    engine,
    machine_kind,
    make_accelerator,
    make_adamw,
    parse_with_config,
    whole_text_encoder,
)
from diffusers_lowfreq.training import options as opt
from diffusers_lowfreq.training.conditions import Captions, Labels, Unconditional
from diffusers_lowfreq.training.data.captions import open_captions
from diffusers_lowfreq.training.data.latent_cache import open_latents
from diffusers_lowfreq.training.data.load import open_images
from diffusers_lowfreq.training.hub import prepare_repository, upload_output
from diffusers_lowfreq.training.options import Clash, free, refuse_clashes
from diffusers_lowfreq.training.pairs import (
    DegradedShare,
    FlowPairs,
    MinibatchTransport,
    NoiseRatioRange,
    NoiseTransport,
    PriorPairs,
    SemiDiscretePairs,
)
from diffusers_lowfreq.training.start_pipeline import (
    NETWORKS,
    build_pipeline,
    has_start,
    is_one_step,
    load_teacher,
    trained_parts,
)
from diffusers_lowfreq.training.validation import validate_pipeline


check_min_version("0.40.0")

NOISE_RATIO = 0.25  # better than the paper's 0.5 in the study of docs/evidence.md
PREFIXES = {"prior": "prior-", "flow": ""}  # of the names of checkpoints
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]

# Options of one-step models only. `make_objective` passes most of them to the objective by name
ONE_STEP = ["guidance_scale", "prior_guidance_scale", "guidance_scale_range", "guidance_interval", "equal_share"]
ONE_STEP += ["tangent", "adaptive_power", "derivative"]
NEW_PRIOR = ["prior_size", "prior_patch_size"]  # options of a new prior model
TEXT_ENCODER = ["pretrained_text_encoder_name_or_path", "text_encoder_subfolder", "tokenizer_subfolder"]
# Options that the pipeline to start from, or the teacher, decides
FROM_PIPELINE_ONLY = ["conditional", "pretrained_vae_model_name_or_path", "vae_subfolder", "latent_statistics"]
FROM_PIPELINE_ONLY += ["pretrained_prior_model_name_or_path", "prior_subfolder", "transformer_size", "patch_size"]
FROM_PIPELINE_ONLY += ["projection", "factor", "noise_ratio", "noise_ratio_range", *TEXT_ENCODER]
FROM_PIPELINE = "taken from the pipeline with --pretrained_model_name_or_path"


def is_outside(value, bounds):
    """Whether a value and its bounds are both given, and the value is outside."""
    return None not in (value, bounds) and not bounds[0] <= value <= bounds[1]


def guidance_clashes(part, name):
    """The rows of the guidance scale of the flow or of the prior model. (`refuse_clashes` fills doubled braces.)"""
    unused = f"is for the {part}, which is not trained; leave it out"
    outside = f"must be a positive number, in --guidance_scale_range, got {{{name}}}"
    alone = f"must be two rising numbers from 1 on, with --{name} for the default, got {{guidance_scale_range}}"
    return [
        Clash([name], lambda a: part not in trained_parts(a), unused),
        Clash([name], lambda a: is_outside(getattr(a, name), a.guidance_scale_range), outside),
        Clash(["guidance_scale_range"], lambda a: part in trained_parts(a) and getattr(a, name) is None, alone),
    ]


# Options, when they are refused, and why
RATIO = "must be two rising numbers in [0, 1] with --noise_ratio {noise_ratio} between them, got {noise_ratio_range}"
INTERVAL = "must be two rising numbers in [0, 1], with --guidance_scale, got {guidance_interval}"
LORA = "needs --train flow and --pretrained_model_name_or_path, and no one-step objective"
TAKEN = "is taken from the pretrained model; leave it out"
NO_LABELS = "is for labels, and with --caption_column there are none; leave it out"
CLASHES = [
    Clash(["noise_ratio_range"], lambda a: is_outside(a.noise_ratio, a.noise_ratio_range), RATIO),
    Clash(["objective"], lambda a: a.teacher, "is distillation with --teacher; leave it out"),
    Clash(["tangent"], lambda a: a.teacher, "is the teacher's velocity with --teacher; leave it out"),
    Clash(ONE_STEP, lambda a: not is_one_step(a), "needs --objective mean_flow or --teacher"),
    Clash(["degraded_share"], lambda a: a.train == "prior", "is for the flow, which is not trained; leave it out"),
    Clash(["rank"], lambda a: is_one_step(a) or a.train != "flow" or not a.pretrained_model_name_or_path, LORA),
    *guidance_clashes("flow", "guidance_scale"),
    *guidance_clashes("prior", "prior_guidance_scale"),
    Clash(["guidance_interval"], lambda a: a.guidance_scale is None, INTERVAL),
    Clash(FROM_PIPELINE_ONLY, has_start, TAKEN),
    Clash(NEW_PRIOR, lambda a: a.pretrained_prior_model_name_or_path, TAKEN),
    Clash(["label_column", "conditional"], lambda a: a.caption_column, NO_LABELS),
    Clash(["degraded_share"], lambda a: a.caption_column, "must be left out with --caption_column"),
    Clash(
        ["prior_coupling"],
        lambda a: a.caption_column and a.prior_coupling == "semi_discrete",
        "must be minibatch_ot or independent with --caption_column",
    ),
    Clash(
        TEXT_ENCODER[:1],
        lambda a: a.caption_column and not has_start(a),
        "must be given with --caption_column",
        missing=True,
    ),
    Clash(TEXT_ENCODER, lambda a: a.caption_column is None, "needs --caption_column"),
    Clash(["degraded_share"], lambda a: a.streaming, "must be left out with --streaming"),
    Clash(
        ["prior_coupling"],
        lambda a: a.streaming and a.prior_coupling == "semi_discrete" and a.train != "flow",
        "must be minibatch_ot or independent with --streaming",
    ),
    Clash(["shuffle_buffer_size"], lambda a: not a.streaming, "needs --streaming"),
]


def parse_args(argv=None):
    parser = opt.make_parser(__doc__)
    free(parser.add_argument("--train", choices=["both", "prior", "flow"], default="both"))

    group = parser.add_argument_group("data")
    opt.add_image_options(group, resolution=32)
    group.add_argument("--dataset_config_name")
    help = "integers; without the default column, a set has no labels"
    group.add_argument("--label_column", default="label", help=help)
    help = "strings, or lists of them to draw from (txt: text files beside the images), instead of labels"
    group.add_argument("--caption_column", help=help)
    group.add_argument("--conditional", action=argparse.BooleanOptionalAction, default=True, help="use the labels")
    help = "read and encode the images while training instead of once, for sets that do not fit; sharded by process"
    group.add_argument("--streaming", action="store_true", help=help)
    help = "images of a stream that are shuffled at a time, per process"
    group.add_argument("--shuffle_buffer_size", type=opt.count(), default=8192, help=help)
    opt.add_cache_options(group, cache_batch_size=64)

    group = parser.add_argument_group("models")
    group.add_argument("--pretrained_model_name_or_path", help="a low-frequency pipeline to start from")
    group.add_argument("--teacher", help="distil this pipeline into one-step models, which start from its weights")
    group.add_argument("--pretrained_vae_model_name_or_path", help="any autoencoder of diffusers; none: pixels")
    group.add_argument("--vae_subfolder")
    group.add_argument("--pretrained_prior_model_name_or_path", help="a prior model to use or to train further")
    group.add_argument("--prior_subfolder")
    group.add_argument("--pretrained_text_encoder_name_or_path", help="a CLIP or T5 encoder and its tokenizer")
    group.add_argument("--text_encoder_subfolder")
    group.add_argument("--tokenizer_subfolder")
    opt.add_revision_options(group)
    group.add_argument("--latent_statistics", choices=["measured", "config"], default="measured")
    help = f"{list(SIZES)} or LAYERSxHEADSxHEAD_DIM; {FROM_PIPELINE}"
    group.add_argument("--transformer_size", type=opt.network_size, default="tiny", help=help)
    group.add_argument("--patch_size", type=opt.size, default=2, help=FROM_PIPELINE)
    group.add_argument("--prior_size", type=opt.network_size, default="micro", help="size of a new prior model")
    group.add_argument("--prior_patch_size", type=opt.size, default=1, help="patch size of a new prior model")
    group.add_argument("--rank", type=opt.size, help="train a LoRA of this rank of the flow, not all its weights")

    group = parser.add_argument_group("source")
    opt.add_projection_options(group, [*PROJECTIONS, "pca"], factor=4, help=FROM_PIPELINE)
    help = f"by default {NOISE_RATIO}, or the end of the range next to it; {FROM_PIPELINE}"
    group.add_argument("--noise_ratio", type=opt.share, help=help)
    help = f"train over a range; {FROM_PIPELINE}"
    group.add_argument("--noise_ratio_range", action=opt.RisingPair, least=0, most=1, help=help)
    help = "share of pairs whose source is made from a thumbnail (by 2 to 8) or a blurred copy, for upscaling"
    group.add_argument("--degraded_share", type=opt.share, help=help)
    couplings = ["identity", "noise_ot", "minibatch_ot"]
    group.add_argument("--coupling", choices=couplings, default="identity", help="of the flow")
    couplings = ["minibatch_ot", "semi_discrete", "independent"]
    group.add_argument("--prior_coupling", choices=couplings, default="minibatch_ot")

    group = parser.add_argument_group("objective")
    objectives, help = ["flow_matching", "mean_flow"], "mean_flow: one-step models"
    group.add_argument("--objective", choices=objectives, default="flow_matching", help=help)
    group.add_argument("--time_sampling", choices=["uniform", "logit_normal"], default="uniform")
    group.add_argument("--logit_mean", type=opt.finite, default=0.0)
    group.add_argument("--logit_std", type=opt.not_negative, default=1.0)
    help = "share of labels or captions to drop, for guidance"
    group.add_argument("--label_dropout", type=opt.share, default=0.1, help=help)

    group = parser.add_argument_group("one-step models: --objective mean_flow or --teacher")
    group.add_argument("--guidance_scale", type=opt.positive, help="fold classifier-free guidance into the flow")
    group.add_argument("--prior_guidance_scale", type=opt.positive, help="fold it into the prior model")
    bounds = {"action": opt.RisingPair, "least": 1, "most": float("inf")}
    group.add_argument("--guidance_scale_range", **bounds, help="train over a range, to choose from at each call")
    bounds = {"action": opt.RisingPair, "least": 0, "most": 1, "strictly": False, "default": [0.0, 1.0]}
    group.add_argument("--guidance_interval", **bounds, help="times between which the flow is guided")
    help = "share of time pairs with r = t, which are plain flow matching"
    group.add_argument("--equal_share", type=opt.share, default=0.5, help=help)
    group.add_argument("--tangent", choices=["pair", "network"], default="pair", help="MeanFlow or improved MeanFlow")
    help = "the gradient of a sample is divided by its error to this power"
    group.add_argument("--adaptive_power", type=opt.not_negative, default=1.0, help=help)
    group.add_argument("--derivative", choices=["forward", "central"], default="forward", help="forward: exact")

    group = parser.add_argument_group("optimisation (the options of the prior model carry its name)")
    opt.add_step_options(group, train_batch_size=128, max_train_steps=10_000, learning_rate=5e-4, lr_warmup_steps=200)
    free(group.add_argument("--prior_train_batch_size", type=opt.size, default=512))
    group.add_argument("--prior_max_train_steps", type=opt.count(), default=5_000)
    group.add_argument("--prior_learning_rate", type=opt.not_negative, default=1e-3)
    opt.add_adam_options(group)
    group.add_argument("--use_ema", action=argparse.BooleanOptionalAction, default=True)
    help = "the decay at the end of a ramp, (1 + n) / (10 + n) after n steps"
    group.add_argument("--ema_decay", type=opt.below_one, default=0.999, help=help)

    group = parser.add_argument_group("checkpoints, logs and validation")
    opt.add_checkpoint_options(group)
    opt.add_validation_options(group, logging_steps=50, validation_steps=1000, num_validation_images=16)
    free(group.add_argument("--validation_guidance_scale", type=opt.not_negative, default=2.0))
    opt.add_hub_options(group)

    args = parse_with_config(parser, argv)
    refuse_clashes(parser, args, CLASHES)
    if args.noise_ratio is None:
        low, high = args.noise_ratio_range or (0, 1)
        args.noise_ratio = min(max(NOISE_RATIO, low), high)
    return args


# ------------------------------------------------------------------------------------------------------------- training


def of_part(args, part, name):
    """Return an option of the flow, or that of the prior model, which has the same name after `prior_`."""
    return getattr(args, f"prior_{name}" if part == "prior" else name)


def make_objective(part, args, teacher, unconditional=None, device="cpu"):
    """Return what is minimised: flow matching, MeanFlow, or the distillation of a teacher."""
    times = {k: getattr(args, k) for k in ("time_sampling", "logit_mean", "logit_std")}
    if not is_one_step(args):
        return FlowMatching(**times)
    settings = {k: getattr(args, k) for k in ONE_STEP if k not in ("prior_guidance_scale", "tangent")}
    settings |= {"guidance_scale": of_part(args, part, "guidance_scale"), "unconditional": unconditional}
    if part == "prior":
        del settings["guidance_interval"]  # guides the flow only, as in a call of the pipeline
    if teacher is None:
        return MeanFlow(**times, **settings, tangent=args.tangent)
    return Distillation(**times, **settings, teacher=getattr(teacher, NETWORKS[part]).to(device))


def make_conditions(pipeline, captions, stream, num_classes, args, device):
    """Return the callable that makes the inputs of the network from labels or captions."""
    if captions is None:
        return Unconditional() if num_classes is None else Labels(num_classes, args.label_dropout)
    texts, empty = captions, captions.embeddings(torch.tensor([captions.empty]), device)
    if stream is not None:
        texts = StreamedCaptions(captions, pipeline.text_encoder, pipeline.tokenizer)
    return Captions(texts, args.label_dropout, empty)


def make_pairs(part, pipeline, cache, conditions, args, run):
    """Return the callable that makes a batch of pairs (source, sample)."""
    scheduler, vae = pipeline.scheduler, pipeline.vae
    coupling = args.prior_coupling if part == "prior" else args.coupling
    if part == "prior":
        pairs = PriorPairs(scheduler.projection, pipeline.prior.normalize, vae, conditions.choose)
    else:
        noise_ratio = scheduler.config.noise_ratio_range
        pairs = FlowPairs(
            scheduler,
            vae,
            conditions.choose,
            transport=NoiseTransport(scheduler.projection) if coupling == "noise_ot" else None,
            noise_ratio=NoiseRatioRange(*noise_ratio) if noise_ratio is not None else None,
            degraded=DegradedShare(args.degraded_share, vae) if args.degraded_share is not None else None,
        )
    if coupling == "minibatch_ot":
        return MinibatchTransport(pairs)
    if coupling == "semi_discrete":
        flips = (False, True) if args.random_flip else (False,)
        is_labelled = isinstance(conditions, Labels)
        bar = partial(tqdm, desc="semi-discrete coupling", disable=not run.accelerator.is_local_main_process)
        return SemiDiscretePairs.fit(pairs, cache, flips, is_labelled, args.seed, run.device, bar)
    return pairs


def train(part, pipeline, cache, captions, args, images, teacher=None, stream=None):
    """Train `pipeline.prior` or `pipeline.transformer` in place, and return the facts of the run."""
    accelerator = make_accelerator(args)
    model = getattr(pipeline, NETWORKS[part]).train().to(accelerator.device)
    if args.rank is not None:
        add_lora(model, args.rank, args.rank, LORA_LAYERS, args.seed)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    run = Run(
        accelerator,
        args,
        model,
        make_adamw(model, of_part(args, part, "learning_rate"), args),
        batch_size=of_part(args, part, "train_batch_size"),
        max_train_steps=of_part(args, part, "max_train_steps"),
        logging_steps=args.logging_steps,
        validation_steps=args.validation_steps,
        component=NETWORKS[part],
        title=part,
        tracker=f"train_{part}",
        prefix=PREFIXES[part],
        ema_decay=args.ema_decay if args.use_ema else None,
        images=images,
    )
    if model.config.use_meanflow:
        check_derivative(model, args.derivative)
    conditions = make_conditions(pipeline, captions, stream, model.config.num_classes, args, run.device)
    # Before the resume, which also restores the position of the stream
    loader = stream and run.stream(stream, pipeline.vae, getattr(conditions, "texts", None))
    run.resume()
    sampler = run.sampler(len(cache))
    pairs = make_pairs(part, pipeline, cache, conditions, args, run)
    objective = make_objective(part, args, teacher, conditions.unconditional, run.device)
    validate = partial(validate_pipeline, run, part, pipeline, cache, captions, teacher)

    for batch, draws in run.batches(loader or run.loader(cache, sampler), sampler, validate):
        pair = pairs(batch, draws)  # 1. source and sample
        condition = pair.condition | conditions(pair.labels, draws)  # 2. the other inputs of the network
        with run.autocast():  # 3. the loss
            loss = objective(run.model, pair.source, pair.sample, generator=draws.generators, **condition).mean()
        run.take(loss)  # 4. the gradient and the step

    # Every process keeps the prior model: where weights are sharded, all of them run it as the flow is validated
    model = run.finish(keep=accelerator.is_main_process or part == "prior")
    setattr(pipeline, NETWORKS[part], model)
    if model is None:  # its weights are sharded, and this process needs no copy
        return {}
    return run.kept_facts(
        {
            "parameters": f"{model.num_parameters(only_trainable=True):,}",
            "FLOPs of a forward pass for one image": f"{count_model_flops(model, captions):,}",
        }
    )


def count_model_flops(model, captions):
    text = {}
    if captions is not None:
        shape = (1, captions.mean_tokens, model.config.caption_channels)
        text["encoder_hidden_states"] = torch.zeros(shape, device=model.device)
    return count_flops(model, model.sample_shape, **text)


# ------------------------------------------------------------------------------------------- data, and what a run leaves


def refuse_sharding(accelerator, args):
    """Refuse what cannot be done with sharded weights, before the images are read."""
    if engine(accelerator) in ("fsdp", "zero3"):
        if args.rank is not None:
            raise ValueError(
                "`rank` must be left out where the weights are sharded; a LoRA trains under DDP or ZeRO-2."
            )
        if is_one_step(args) and args.derivative == "forward":
            raise ValueError("`derivative` must be 'central' where the weights are sharded, got 'forward'.")


def describe(pipeline, cache, captions, args):
    """The tables of the model card that are known before the training."""
    network, name = pipeline.transformer or pipeline.prior, args.dataset_name
    name = name or os.path.basename(args.train_data_dir.rstrip("/"))
    data = {
        "images": f"{'a stream' if args.streaming else f'{len(cache):,}'} of {name}",
        "unreadable and skipped": cache.index["skipped"],
        "resolution": args.resolution,
        "mirrored": args.random_flip,
    }
    if captions is None:
        data["classes"] = network.config.num_classes
    else:
        head = " in its head" if args.streaming else ""
        data["captions"] = f"{captions.empty:,} different ones{head}, of {captions.mean_tokens} tokens on average"
        data["text encoder"] = type(pipeline.text_encoder).__name__
    facts = {"Data": data, "Source": source_facts(pipeline.scheduler)}
    if args.degraded_share is not None:
        facts["Source"]["share of degraded coarse latents"] = args.degraded_share
    if args.rank is not None:
        facts["LoRA"] = {"rank": args.rank, "alpha": args.rank, "of": "the linear layers of the blocks of the flow"}
    if is_one_step(args):
        one_step = {"objective": "distillation" if args.teacher is not None else args.objective}
        if args.teacher is not None:
            one_step["teacher"] = base_model_name(args.teacher)
        names = [k for k in ONE_STEP if not (k == "tangent" and args.teacher is not None)]
        facts["One-step training"] = one_step | {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    return facts


def save(pipeline, repo_id, facts, args):
    """Write the pipeline, or the LoRA, or the prior model alone, and its card."""
    pipeline.to("cpu")
    if args.rank is not None:
        base_model = base_model_name(args.pretrained_model_name_or_path)
        save_lora(pipeline, pipeline.scheduler, base_model, args.output_dir)
        if args.degraded_share is not None:
            parts = {k: getattr(pipeline, k) for k in ("transformer", "scheduler", "vae")}
            pipeline = LowFreqUpscalePipeline(**parts, id2label=pipeline.config.id2label)
        save_model_card(args.output_dir, repo_id, pipeline, facts, base_model)
    elif pipeline.transformer is not None:
        pipeline.save_pretrained(args.output_dir)
        save_model_card(args.output_dir, repo_id, pipeline, facts)
    else:
        pipeline.prior.save_pretrained(os.path.join(args.output_dir, "prior"))
    upload_output(repo_id, args)


def main(args):
    # The other processes wait while the main one encodes the images, which may take hours
    timeout = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = make_accelerator(args, [timeout])
    check_engine(accelerator)
    refuse_sharding(accelerator, args)
    repo_id = prepare_repository(accelerator, args)
    label_column = args.label_column if args.conditional and args.caption_column is None else None
    columns = {"label_column": label_column, "caption_column": args.caption_column}
    images = open_images(args, **columns, streaming=args.streaming)
    image_facts = describe_images(images)
    check_output_dir(args, image_facts, [PREFIXES[part] for part in trained_parts(args)])
    stream = None
    if args.streaming:  # the head stands for the set wherever a cache is needed
        stream, images = images, images.head
    check_processes(accelerator, images)
    cache_latents = partial(open_latents, accelerator, images, args=args)
    cache_captions = partial(open_captions, accelerator, images.captions, args=args)
    with whole_text_encoder(accelerator):
        teacher = load_teacher(args)
        pipeline, cache, captions = build_pipeline(args, cache_latents, cache_captions, teacher)
    facts = describe(pipeline, cache, captions, args)
    data = cache
    if args.degraded_share is not None:
        data = DegradedPairs(cache, open_latents(accelerator, DegradedImages(images), pipeline.vae, args))
    for part in trained_parts(args):
        facts[f"Training of the {part}"] = train(part, pipeline, data, captions, args, image_facts, teacher, stream)

    if accelerator.is_main_process:
        facts["Environment"] = {"machine": machine_kind(), "torch": torch.__version__, "seed": args.seed}
        save(pipeline, repo_id, facts, args)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
