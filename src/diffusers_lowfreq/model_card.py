# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A model card made of facts."""

import inspect
import json
import os

from huggingface_hub import ModelCard, ModelCardData

from diffusers.utils.hub_utils import populate_model_card


def takes_image(pipeline) -> bool:
    """Whether a call starts from a picture."""
    return "image" in inspect.signature(pipeline.__call__).parameters


def usage_arguments(pipeline) -> str:
    """
    Write the arguments of a first call: text, labels or a number of images, steps, and what it starts from where that is asked
    for.
    """
    is_text = pipeline.transformer.config.get("caption_channels") is not None
    labels = [] if is_text else list(pipeline.labels)[:4]
    first = '"a photo of a cat"' if is_text else json.dumps(labels) if labels else "num_images_per_prompt=4"
    if pipeline.prior is None and pipeline.scheduler.config.noise_ratio < 1:
        first = "image" if takes_image(pipeline) else f"{first}, prior_latents=low" if is_text else "prior_latents=low"
    arguments = f"{first}, num_inference_steps={1 if pipeline.transformer.config.get('use_meanflow') else 4}"
    if pipeline.prior is not None and pipeline.prior.config.get("use_meanflow"):
        arguments += ", prior_num_inference_steps=1"
    return arguments


def pipeline_facts(pipeline) -> dict[str, dict[str, object]]:
    """Gather what a pipeline says about itself: its source and its networks."""
    scheduler = pipeline.scheduler.config
    facts = {"Source": {k: scheduler[k] for k in ("projection", "factor", "noise_ratio", "noise_ratio_range")}}
    for title, model in (("Flow", pipeline.transformer), ("Prior model", pipeline.prior)):
        if model is not None:
            steps = "one and more (mean velocity)" if model.config.use_meanflow else "several"
            facts[title] = {"parameters": f"{model.num_parameters():,}", "steps": steps}
            told = "num_classes" if model.config.get("caption_channels") is None else "caption_channels"
            facts[title] |= {k: model.config[k] for k in ("sample_size", "in_channels", told, "guidance_scale")}
    return facts


def save_model_card(
    folder: str,
    repo_id: str,
    pipeline,
    facts: dict[str, dict[str, object]] | None = None,
    base_model: str | None = None,
) -> str:
    """
    Write `README.md` beside a pipeline, or beside a LoRA of its flow.

    Args:
        folder (`str`):
            The folder of the pipeline.
        repo_id (`str`):
            The name under which it is, or would be, on the Hub.
        pipeline ([`LowFreqPipeline`] or [`LowFreqTextToImagePipeline`]):
            What the card is of; it decides the usage.
        facts (`dict[str, dict[str, object]]`, *optional*):
            Tables: heading, then name and value of each row. Omitted: what the pipeline says about itself.
        base_model (`str`, *optional*):
            The pipeline that a LoRA in `folder` is for. Omitted: the folder holds a pipeline.

    Returns:
        `str`: The path of the card.
    """
    facts = pipeline_facts(pipeline) if facts is None else facts
    arguments = usage_arguments(pipeline)
    name = type(pipeline).__name__ if base_model is not None else "DiffusionPipeline"
    load = f'pipe = {name}.from_pretrained("{base_model or repo_id}")\n'
    if base_model is None:
        install = "Install `diffusers-lowfreq` and import `diffusers_lowfreq` before loading this pipeline; it needs no remote code."
        imports = "import diffusers_lowfreq  # pip install diffusers-lowfreq; makes the classes known to diffusers\n"
        imports += "from diffusers import DiffusionPipeline\n\n"
    else:
        install = f"A LoRA of the flow of `{base_model}`: install `diffusers-lowfreq` and `peft`, load that pipeline and then this."
        imports = f"from diffusers_lowfreq import {name}  # pip install diffusers-lowfreq peft\n\n"
        load += f'pipe.load_lora_weights("{repo_id}")\n'
    coarse = "a small prior model samples a coarse latent"
    if takes_image(pipeline):
        coarse = "your picture, of any size, is encoded and projected to a coarse latent"
    parts = [
        install,
        f"# {os.path.basename(repo_id.rstrip('/'))}",
        f"A latent flow that starts from a low-frequency prior: {coarse}, which is upsampled, mixed with Gaussian noise, and "
        "refined by the flow in few steps (*Optimal Transport Flow Matching by Design*, arXiv 2606.04092).",
        f"```py\n{imports}{load}images = pipe({arguments}).images\n```",
    ]
    if "prior_latents=low" in arguments:
        parts.append("There is no prior model: `low` is yours.")
    task = "unconditional-image-generation"
    if pipeline.transformer.config.get("caption_channels") is not None:
        task = "text-to-image"
    elif takes_image(pipeline):
        task = "image-to-image"
    return _write(folder, parts, facts, task, base_model)


def save_lora_card(
    folder: str, repo_id: str, base_model: str, is_prompted: bool, is_full: bool, facts: dict[str, dict[str, object]]
) -> str:
    """
    Write `README.md` beside what `examples/finetune_lora.py` made of somebody else's flow model.

    Args:
        folder (`str`), repo_id (`str`), facts (`dict[str, dict[str, object]]`):
            As in [`save_model_card`].
        base_model (`str`):
            The pipeline that was trained.
        is_prompted (`bool`):
            Whether its calls take a prompt, rather than class labels.
        is_full (`bool`):
            Whether all its weights were trained, instead of a LoRA.

    Returns:
        `str`: The path of the card.
    """
    load = f'pipe = DiffusionPipeline.from_pretrained("{base_model}")\n'
    if is_full:
        network = "AutoModel" if is_prompted else "LowFreqTransformer2DModel"
        load = f'transformer = {network}.from_pretrained("{repo_id}", subfolder="transformer")\n'
        load += f'pipe = DiffusionPipeline.from_pretrained("{base_model}", transformer=transformer)\n'
        load += f'scheduler = LowFreqFlowMatchScheduler.from_pretrained("{repo_id}", subfolder="coarse_scheduler")\n'
    else:
        load += f'pipe.load_lora_weights("{repo_id}")\n'
    diffusers = "AutoModel, DiffusionPipeline" if is_full and is_prompted else "DiffusionPipeline"
    ours = "LowFreqFlowMatchScheduler, " if is_full else ""
    ours += "LowFreqTransformer2DModel, " if is_full and not is_prompted else ""
    ours += "generate_from_coarse"
    call = "scheduler=scheduler, " if is_full else ""
    call += 'prompt="...", ' if is_prompted else "class_labels=[0], "
    what = "weights" if is_full else "LoRA"
    parts = [
        f"A {what} for `{base_model}`, to be started from a coarse image: install `diffusers-lowfreq`"
        + ("." if is_full else " and `peft`."),
        f"# {os.path.basename(repo_id.rstrip('/'))}",
        "Fine-tuned on pairs of images and their own coarse versions, mixed with noise (*Optimal Transport Flow Matching by "
        "Design*, arXiv 2606.04092), so that few steps lead from one to the other.",
        f"```py\nfrom diffusers import {diffusers}\nfrom diffusers_lowfreq import {ours}\n\n{load}"
        f"images = generate_from_coarse(pipe, {call}image=picture, num_inference_steps=4).images\n```",
    ]
    return _write(
        folder, parts, facts, "text-to-image" if is_prompted else "unconditional-image-generation", base_model
    )


def _write(folder: str, parts: list[str], facts: dict, task: str, base_model: str | None = None) -> str:
    parts = list(parts)
    for heading, rows in facts.items():
        lines = [f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in rows.items()]
        parts.append("\n".join(lines))
    path = os.path.join(folder, "README.md")
    data = ModelCardData(license="apache-2.0", library_name="diffusers", inference=False, base_model=base_model)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    card = populate_model_card(card, tags=["diffusers-lowfreq", "flow-matching", task])
    card.save(path)
    return path
