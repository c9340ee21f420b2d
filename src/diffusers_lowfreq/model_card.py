# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The model cards of pipelines and LoRAs, made of facts."""

import inspect
import json
import os

from huggingface_hub import ModelCard, ModelCardData

from diffusers.utils.hub_utils import populate_model_card

from .schedulers import SOURCE


def takes_image(pipeline) -> bool:
    """Whether the call of a pipeline takes an image."""
    return "image" in inspect.signature(pipeline.__call__).parameters


def takes_text(pipeline) -> bool:
    """Whether the flow of a pipeline is a model of text."""
    return pipeline.transformer.config.get("caption_channels") is not None


def usage_arguments(pipeline) -> str:
    """
    Return the arguments of a first call: a prompt, labels or a number of images, the steps, and the image or the coarse latents
    that it starts from if the pipeline has no prior model.
    """
    is_text = takes_text(pipeline)
    labels = [] if is_text else list(pipeline.labels)[:4]
    arguments = '"a photo of a cat"' if is_text else json.dumps(labels) if labels else "num_images_per_prompt=4"
    if pipeline.prior is None and pipeline.scheduler.config.noise_ratio < 1:
        if takes_image(pipeline):
            arguments = "image"
        else:
            arguments = f"{arguments}, prior_latents=low" if is_text else "prior_latents=low"
    arguments += f", num_inference_steps={1 if pipeline.transformer.config.get('use_meanflow') else 4}"
    if pipeline.prior is not None and pipeline.prior.config.get("use_meanflow"):
        arguments += ", prior_num_inference_steps=1"
    return arguments


def source_facts(scheduler) -> dict[str, object]:
    """Collect the settings of the source, apart from the table of a fitted projection."""
    return {name: scheduler.config[name] for name in SOURCE if name != "projection_basis"}


def pipeline_facts(pipeline) -> dict[str, dict[str, object]]:
    """Collect the facts of a pipeline: its source and its networks."""
    facts = {"Source": source_facts(pipeline.scheduler)}
    for title, model in (("Flow", pipeline.transformer), ("Prior model", pipeline.prior)):
        if model is not None:
            steps = "one and more (mean velocity)" if model.config.use_meanflow else "several"
            facts[title] = {"parameters": f"{model.num_parameters():,}", "steps": steps}
            condition = "num_classes" if model.config.get("caption_channels") is None else "caption_channels"
            facts[title] |= {k: model.config[k] for k in ("sample_size", "in_channels", condition, "guidance_scale")}
    return facts


def save_model_card(
    folder: str,
    repo_id: str,
    pipeline,
    facts: dict[str, dict[str, object]] | None = None,
    base_model: str | None = None,
) -> str:
    """
    Write the `README.md` of a pipeline, or of a LoRA for its flow.

    Args:
        folder (`str`):
            The folder of the pipeline or of the LoRA.
        repo_id (`str`):
            Its name on the Hub, whether or not it is there yet.
        pipeline ([`LowFreqPipeline`] or [`LowFreqTextToImagePipeline`]):
            The pipeline that the card describes and shows how to call.
        facts (`dict[str, dict[str, object]]`, *optional*):
            The tables: for each heading, the names and values of the rows. By default the facts of the pipeline.
        base_model (`str`, *optional*):
            The pipeline that the LoRA in `folder` is for. By default the folder holds a pipeline.

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
    sections = [
        install,
        f"# {os.path.basename(repo_id.rstrip('/'))}",
        f"A latent flow that starts from a low-frequency prior: {coarse}, which is upsampled, mixed with Gaussian noise, and "
        "refined by the flow in few steps (*Optimal Transport Flow Matching by Design*, arXiv 2606.04092).",
        f"```py\n{imports}{load}images = pipe({arguments}).images\n```",
    ]
    if "prior_latents=low" in arguments:
        sections.append("There is no prior model: provide the coarse latents `low` yourself.")
    task = "unconditional-image-generation"
    if takes_text(pipeline):
        task = "text-to-image"
    elif takes_image(pipeline):
        task = "image-to-image"
    return _write(folder, sections, facts, task, base_model)


def save_lora_card(
    folder: str, repo_id: str, base_model: str, is_prompted: bool, is_full: bool, facts: dict[str, dict[str, object]]
) -> str:
    """
    Write the `README.md` of what `examples/finetune_lora.py` trains: a LoRA or new weights for another flow model.

    Args:
        folder (`str`), repo_id (`str`), facts (`dict[str, dict[str, object]]`):
            As in [`save_model_card`].
        base_model (`str`):
            The pipeline that was fine-tuned.
        is_prompted (`bool`):
            Whether its call takes a prompt rather than class labels.
        is_full (`bool`):
            Whether all weights were trained rather than a LoRA.

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
    of_diffusers = "AutoModel, DiffusionPipeline" if is_full and is_prompted else "DiffusionPipeline"
    own = "LowFreqFlowMatchScheduler, " if is_full else ""
    own += "LowFreqTransformer2DModel, " if is_full and not is_prompted else ""
    own += "generate_from_coarse"
    arguments = "scheduler=scheduler, " if is_full else ""
    arguments += 'prompt="...", ' if is_prompted else "class_labels=[0], "
    summary = f"Weights for `{base_model}`" if is_full else f"A LoRA for `{base_model}`"
    sections = [
        f"{summary}, to be started from a coarse image: install `diffusers-lowfreq`"
        + ("." if is_full else " and `peft`."),
        f"# {os.path.basename(repo_id.rstrip('/'))}",
        "Fine-tuned on pairs of an image and its own coarse version mixed with noise (*Optimal Transport Flow Matching by "
        "Design*, arXiv 2606.04092), so that few steps lead from one to the other.",
        f"```py\nfrom diffusers import {of_diffusers}\nfrom diffusers_lowfreq import {own}\n\n{load}"
        f"images = generate_from_coarse(pipe, {arguments}image=picture, num_inference_steps=4).images\n```",
    ]
    task = "text-to-image" if is_prompted else "unconditional-image-generation"
    return _write(folder, sections, facts, task, base_model)


def _write(folder: str, sections: list[str], facts: dict, task: str, base_model: str | None = None) -> str:
    for heading, rows in facts.items():
        lines = [f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in rows.items()]
        sections = [*sections, "\n".join(lines)]
    path = os.path.join(folder, "README.md")
    data = ModelCardData(license="apache-2.0", library_name="diffusers", inference=False, base_model=base_model)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    card = populate_model_card(card, tags=["diffusers-lowfreq", "flow-matching", task])
    card.save(path)
    return path
