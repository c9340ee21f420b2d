# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The pipeline that a run starts from: a new one, a trained one, or the one-step student of a teacher.

The functions take the options of `examples/train_lowfreq.py`.
"""

import json

import torch

from diffusers import FlowMatchEulerDiscreteScheduler

from ..autoencoding import load_autoencoder, set_latent_statistics
from ..models import LowFreqTransformer2DModel, read_size
from ..pipelines.pipeline_lowfreq import LowFreqPipeline
from ..pipelines.pipeline_lowfreq_text_to_image import LowFreqTextToImagePipeline
from ..projections import fit_projection_basis
from ..schedulers import SOURCE, LowFreqFlowMatchScheduler
from ..text_encoding import fingerprint, load_text_encoder
from .data.latent_cache import read_samples, spread_items


NETWORKS = {"flow": "transformer", "prior": "prior"}
TEXT = ("text_encoder", "tokenizer")


def trained_parts(args) -> tuple[str, ...]:
    """List what is trained, in this order: `"prior"`, `"flow"` or both."""
    return ("prior", "flow") if args.train == "both" else (args.train,)


def is_one_step(args) -> bool:
    """Whether one-step models are trained: by MeanFlow, or from a teacher."""
    return args.teacher is not None or args.objective == "mean_flow"


def has_start(args) -> bool:
    """Whether a pipeline to start from, or a teacher, is given."""
    return args.pretrained_model_name_or_path is not None or args.teacher is not None


def load_pipeline(name_or_path: str, args):
    """Load a pipeline of text if there are captions, otherwise one of labels or none."""
    pipeline_class = LowFreqPipeline if args.caption_column is None else LowFreqTextToImagePipeline
    return pipeline_class.from_pretrained(name_or_path, revision=args.revision, variant=args.variant)


def is_conditional(model) -> bool:
    """Whether a network takes labels or text."""
    return model.config.num_classes is not None or model.config.caption_channels is not None


# ------------------------------------------------------------------------------------------------------------- teacher


def load_teacher(args):
    """
    Load the pipeline to distil; `None` without one.

    Raises:
        ValueError: If it lacks a network to distil, the network is one-step, or guidance is asked of an unconditional one.
    """
    if args.teacher is None:
        return None
    teacher = load_pipeline(args.teacher, args)
    scales = {"flow": "guidance_scale", "prior": "prior_guidance_scale"}
    for part in trained_parts(args):
        name, option = NETWORKS[part], scales[part]
        model = getattr(teacher, name)
        if model is None:
            raise ValueError(
                f"`teacher` must have a `{name}` to distil, {args.teacher!r} has none; use `--train flow`."
            )
        if model.config.use_meanflow:
            raise ValueError(f"`teacher` must be a flow of many steps, the `{name}` of {args.teacher!r} is one-step.")
        if getattr(args, option) is not None and not is_conditional(model):
            raise ValueError(
                f"`{option}` needs a `teacher` with labels or text, the `{name}` of {args.teacher!r} has none."
            )
        model.requires_grad_(False).eval()
    return teacher


def _teaching_facts(pipe, parts) -> dict:
    """What must be the same in a teacher and its student, as JSON holds it."""
    facts = {k: pipe.scheduler.config[k] for k in SOURCE}
    facts["id2label"] = {str(k): v for k, v in (pipe.config.get("id2label") or {}).items()}
    if isinstance(pipe, LowFreqTextToImagePipeline):
        facts["text encoder"] = fingerprint(pipe.text_encoder, pipe.tokenizer)
    facts["latents"] = pipe.vae and {k: v for k, v in pipe.vae.config.items() if k[0] != "_"}
    names = ("in_channels", "sample_size", "num_classes", "caption_channels", "use_noise_ratio")
    names += ("sample_mean", "sample_std")
    for part in parts:
        config = getattr(pipe, NETWORKS[part]).config
        facts |= {f"{k} of the {part}": config[k] for k in names}
    return json.loads(json.dumps(facts))


def check_teacher(teacher, pipeline, latent_shape: tuple[int, ...], parts: tuple[str, ...]):
    """
    Refuse a teacher that does not match the student or the data.

    Raises:
        ValueError: If source, latent space, classes or text encoder differ.
    """
    facts, own = _teaching_facts(teacher, parts), _teaching_facts(pipeline, parts)
    for key, value in facts.items():
        if value != own[key]:
            raise ValueError(f"`teacher` must have the {key} of the pipeline to train, {own[key]!r}, got {value!r}.")
    shape = list(teacher.transformer.sample_shape)
    if shape != list(latent_shape):
        raise ValueError(
            f"`teacher` must work on latents of the shape of the data, {list(latent_shape)}, got {shape}; look at "
            "`resolution`."
        )


def one_step_model(model, guidance_scale, guidance_scale_range, seed: int = 0) -> LowFreqTransformer2DModel:
    """
    Turn a flow into a one-step model with the same weights. New weights start at zero, so it is the flow at first.

    Raises:
        ValueError: If the model is a one-step model with another guidance scale.
    """
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    config |= {"use_meanflow": True, "guidance_scale": guidance_scale, "guidance_scale_range": guidance_scale_range}
    own = [model.config[k] for k in ("guidance_scale", "guidance_scale_range")]
    if model.config.use_meanflow and own != [guidance_scale, guidance_scale_range]:
        raise ValueError(
            "`guidance_scale`, `prior_guidance_scale` and `guidance_scale_range` must be those of the one-step pipeline to go "
            f"on with, {own[0]} and {own[1]} of one of its networks, got {guidance_scale} and {guidance_scale_range}."
        )
    torch.manual_seed(seed)
    student = LowFreqTransformer2DModel.from_config(config)
    student.load_state_dict(student.state_dict() | model.state_dict())
    return student


# ------------------------------------------------------------------------------------------------------------ the start


def build_pipeline(args, cache_latents, cache_captions, teacher=None):
    """
    Build an untrained pipeline, or load the one to start from, and open the caches of its latents and captions.

    Args:
        args ([`Options`]):
            The options.
        cache_latents (`Callable`):
            `cache_latents(vae)` encodes the images. It is called once the autoencoder is known.
        cache_captions (`Callable`):
            `cache_captions(text_encoder, tokenizer)` encodes the captions.
        teacher ([`LowFreqPipeline`] or [`LowFreqTextToImagePipeline`], *optional*):
            The pipeline to distil, from [`load_teacher`].

    Returns:
        The pipeline, the [`LatentCache`], and the [`CaptionCache`] or `None`.

    Raises:
        ValueError: If images, labels and networks do not fit together.
    """
    start = teacher
    if args.pretrained_model_name_or_path is not None:
        start = load_pipeline(args.pretrained_model_name_or_path, args)
    if start is None:
        parts, id2label, cache = _new_parts(args, cache_latents)
    else:
        parts, id2label, cache = _parts_of(start, args, cache_latents)
    text = {k: parts[k] for k in TEXT if k in parts}
    captions = cache_captions(**text) if text else None

    _check_labels(args, cache, parts)
    shape = tuple(cache[0, False]["sample"].shape)
    _check_sizes(args, parts, shape)
    shared = {"in_channels": shape[0], "num_classes": len(id2label) if id2label else None}
    shared["caption_channels"] = text["text_encoder"].config.hidden_size if text else None
    # The seed sets the first weights, of each network by itself; every draw of the training has its own key
    torch.manual_seed(args.seed)
    if parts["transformer"] is None and "flow" in trained_parts(args):
        parts["transformer"] = _new_flow(args, shape, shared)
    if parts["prior"] is None and "prior" in trained_parts(args):
        parts["prior"] = _new_prior(args, cache, parts, shape, shared)

    if teacher is not None:
        check_teacher(teacher, start, shape, trained_parts(args))
    if is_one_step(args):
        _make_one_step(args, parts)
    elif any(parts[NETWORKS[part]].config.use_meanflow for part in trained_parts(args)):
        raise ValueError(
            "`objective` must be 'mean_flow' to go on with one-step models, which 'flow_matching' would spoil; or distil "
            "again, with `teacher`."
        )
    parts["prior_scheduler"] = FlowMatchEulerDiscreteScheduler() if parts["prior"] is not None else None
    # A pipeline that was made before keeps its own setting
    parts["truncate_prior"] = True if start is None else start.config.truncate_prior
    if text:
        return LowFreqTextToImagePipeline(**parts), cache, captions
    return LowFreqPipeline(**parts, id2label=id2label), cache, None


def _parts_of(pipeline, args, cache_latents):
    """The components of the pipeline to start from, its class names, and the cache of its latents."""
    for name in ("prior_size", "prior_patch_size"):
        if pipeline.prior is not None and name in args.given:
            raise ValueError(f"`{name}` must be left out: the pipeline has a prior, got {getattr(args, name)!r}.")
    names = ("transformer", "prior", "scheduler", "vae", *TEXT)
    parts = {k: v for k, v in pipeline.components.items() if k in names}
    cache = cache_latents(pipeline.vae)
    id2label = {int(k): v for k, v in (pipeline.config.get("id2label") or {}).items()} or None
    class_names = {k: v for k, v in (cache.id2label or {}).items() if v != str(k)}
    if id2label and not class_names.items() <= id2label.items():
        raise ValueError(
            f"`label_column` {args.label_column!r} names the classes {class_names}, but the pipeline {id2label}."
        )
    return parts, id2label, cache


def _new_parts(args, cache_latents):
    """The components that new networks need: autoencoder, text encoder, scheduler, and a prior model if one is given."""
    options = {"revision": args.revision, "variant": args.variant}
    vae = load_autoencoder(args.pretrained_vae_model_name_or_path, args.vae_subfolder, **options)
    text = {}
    if args.caption_column is not None:
        subfolders = args.text_encoder_subfolder, args.tokenizer_subfolder
        loaded = load_text_encoder(args.pretrained_text_encoder_name_or_path, *subfolders, revision=args.revision)
        text = dict(zip(TEXT, loaded))
    cache = cache_latents(vae)
    if vae is not None and args.latent_statistics == "measured":
        set_latent_statistics(vae, cache.mean, cache.std)
    basis = None
    if args.projection == "pca":
        basis = fit_projection_basis((x for x, _ in read_samples(cache, spread_items(cache), vae)), args.factor)
    scheduler = LowFreqFlowMatchScheduler(
        projection=args.projection,
        projection_basis=basis,
        factor=args.factor,
        noise_ratio=args.noise_ratio,
        noise_ratio_range=args.noise_ratio_range,
    )
    prior = None
    if args.pretrained_prior_model_name_or_path is not None:
        prior = LowFreqTransformer2DModel.from_pretrained(
            args.pretrained_prior_model_name_or_path, subfolder=args.prior_subfolder, use_safetensors=True
        )
    parts = {"transformer": None, "prior": prior, "scheduler": scheduler, "vae": vae} | text
    return parts, cache.id2label if args.conditional else None, cache


def _check_labels(args, cache, parts: dict):
    """Refuse labels that a pretrained network does not know."""
    lowest, highest = int(cache.labels.min()), int(cache.labels.max())
    for model in (parts["transformer"], parts["prior"]):
        num_classes = model.config.num_classes if model is not None else None
        if num_classes is not None and not 0 <= lowest <= highest < num_classes:
            raise ValueError(
                f"`label_column` {args.label_column!r} must hold numbers below {num_classes}, the number of classes of "
                f"the pretrained model, got {lowest} to {highest} (-1: no labels)."
            )


def _check_sizes(args, parts: dict, shape: tuple[int, int, int]):
    """Refuse latents that the factor or the patches of a network do not divide."""
    _, height, width = shape
    transformer, prior, factor = parts["transformer"], parts["prior"], parts["scheduler"].config.factor
    patch_size = args.patch_size if transformer is None else transformer.config.patch_size
    prior_patch_size = args.prior_patch_size if prior is None else prior.config.patch_size
    for name, divisor in (
        ("patch_size", patch_size),
        ("factor", factor),
        ("prior_patch_size", factor * prior_patch_size),
    ):
        if height % divisor or width % divisor:
            after = f" after `factor` {factor}, got {prior_patch_size}." if name.startswith("prior") else None
            raise ValueError(
                f"`{name}` must divide the size {height}x{width} of the latents" + (after or f", got {divisor}.")
            )


def _new_flow(args, shape: tuple[int, int, int], shared: dict) -> LowFreqTransformer2DModel:
    return LowFreqTransformer2DModel(
        sample_size=list(shape[1:]),
        patch_size=args.patch_size,
        use_noise_ratio=args.noise_ratio_range is not None,
        **shared,
        **read_size(args.transformer_size),
    )


def _new_prior(args, cache, parts: dict, shape: tuple[int, int, int], shared: dict) -> LowFreqTransformer2DModel:
    """Make a prior model. It works at unit scale, so the scale of D(x), which is smaller than x, is measured."""
    total = square = count = 0
    for x, _ in read_samples(cache, spread_items(cache), parts["vae"]):
        low = parts["scheduler"].projection.downsample(x)
        total = total + low.double().sum((0, 2, 3))
        square = square + low.double().square().sum((0, 2, 3))
        count += low.numel() // low.shape[1]
    mean = total / count
    torch.manual_seed(args.seed)
    return LowFreqTransformer2DModel(
        sample_size=[side // parts["scheduler"].config.factor for side in shape[1:]],
        patch_size=args.prior_patch_size,
        sample_mean=mean.tolist(),
        sample_std=(square / count - mean**2).clamp(min=1e-12).sqrt().tolist(),  # a channel may never vary
        **shared,
        **read_size(args.prior_size),
    )


def _make_one_step(args, parts: dict):
    """Replace the networks to train by one-step models."""
    if "flow" in trained_parts(args):
        flow = parts["transformer"]
        parts["transformer"] = one_step_model(flow, args.guidance_scale, args.guidance_scale_range, args.seed)
        if parts["scheduler"].config.solver_order != 1:  # of the flow; a mean velocity is stepped along at first order
            parts["scheduler"] = LowFreqFlowMatchScheduler.from_config(parts["scheduler"].config, solver_order=1)
    if "prior" in trained_parts(args):
        prior = parts["prior"]
        parts["prior"] = one_step_model(prior, args.prior_guidance_scale, args.guidance_scale_range, args.seed)
