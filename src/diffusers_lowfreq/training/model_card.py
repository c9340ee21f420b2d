# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A model card made of facts."""

import os
import platform

import torch
from huggingface_hub import ModelCard, ModelCardData

from diffusers.utils.hub_utils import populate_model_card


def machine_kind() -> str:
    """Say what kind of machine this is, for the line beside a figure."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}"


def save_model_card(
    folder: str,
    repo_id: str,
    facts: dict[str, dict[str, object]],
    text: str = "",
    arguments: str = "num_images_per_prompt=4, num_inference_steps=4",
) -> str:
    """
    Write `README.md` beside a pipeline.

    Args:
        folder (`str`):
            The folder of the pipeline.
        repo_id (`str`):
            The name under which it is, or would be, on the Hub.
        facts (`dict[str, dict[str, object]]`):
            Tables: heading, then name and value of each row.
        text (`str`, *optional*):
            Paragraphs between the usage and the tables.
        arguments (`str`, defaults to `"num_images_per_prompt=4, num_inference_steps=4"`):
            The arguments of the call in the usage.

    Returns:
        `str`: The path of the card.
    """
    usage = (
        "```py\n"
        "import diffusers_lowfreq  # pip install diffusers-lowfreq; makes the classes known to diffusers\n"
        "from diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{repo_id}")\n'
        f"images = pipe({arguments}).images\n"
        "```"
    )
    parts = [
        "Install `diffusers-lowfreq` and import `diffusers_lowfreq` before loading this pipeline; it needs no remote "
        "code.",
        f"# {os.path.basename(repo_id.rstrip('/'))}",
        "A latent flow that starts from a low-frequency prior: a small prior model samples a coarse latent, which is "
        "upsampled, mixed with Gaussian noise, and refined by the flow in few steps (*Optimal Transport Flow Matching "
        "by Design*, arXiv 2606.04092).",
        usage,
    ]
    if text:
        parts.append(text)
    for heading, rows in facts.items():
        lines = [f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in rows.items()]
        parts.append("\n".join(lines))
    path = os.path.join(folder, "README.md")
    data = ModelCardData(license="apache-2.0", library_name="diffusers", inference=False)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    card = populate_model_card(card, tags=["diffusers-lowfreq", "flow-matching", "unconditional-image-generation"])
    card.save(path)
    return path
