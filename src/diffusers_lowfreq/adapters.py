# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A LoRA that starts a flow from a coarse latent. Its file says which source and which weights it was trained for."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .schedulers import LowFreqFlowMatchScheduler


SOURCE = ("projection", "factor", "projection_basis", "noise_ratio")


def weights_fingerprint(transformer: torch.nn.Module) -> list[float]:
    """
    Sample 64 weights of a network, to tell it from others. They are the same in half precision, and nearly so after fine-tuning.

    A LoRA in the network is ignored. The list is empty for quantised and offloaded weights, which cannot be sampled.
    """
    weights = {
        name.replace(".base_layer", ""): p
        for name, p in transformer.named_parameters()
        if p.ndim == 2 and ".lora_" not in name
    }
    if not all(type(p.data) is torch.Tensor and p.is_floating_point() and not p.is_meta for p in weights.values()):
        return []
    names = sorted(weights)
    numbers = []
    for name in names[:: max(1, len(names) // 8)][:8]:
        flat = weights[name].detach().flatten()
        numbers += flat[:: max(1, len(flat) // 8)][:8].float().tolist()
    return [float(f"{number:.4g}") for number in numbers]


def describe_adapter(pipe: DiffusionPipeline, scheduler: LowFreqFlowMatchScheduler, base_model: str) -> dict:
    """
    Describe what a LoRA is for. The description is stored under `auto_mapping` in its configuration, which diffusers keeps in
    the file and hands to peft when it loads the LoRA.

    Args:
        pipe (`DiffusionPipeline`):
            The pipeline that it was trained on.
        scheduler ([`LowFreqFlowMatchScheduler`]):
            The scheduler that made the source.
        base_model (`str`):
            The name of the pipeline.
    """
    facts = {"base_model": base_model, "base_model_class": type(pipe.transformer).__name__} | scheduler.source
    return facts | {"base_model_weights": weights_fingerprint(pipe.transformer)}


def add_lora(transformer: torch.nn.Module, rank: int, alpha: int, layers: list[str], seed: int):
    """
    Freeze a transformer and add a LoRA that changes nothing yet (arXiv 2106.09685).

    Args:
        transformer (`ModelMixin`):
            The transformer.
        rank (`int`), alpha (`int`):
            The rank, and the factor `alpha / rank` of what is added.
        layers (`list[str]`):
            Names, or ends of names, of linear layers.
        seed (`int`):
            The seed of the first weights.

    Raises:
        ValueError: If `layers` names no linear layer of the transformer.
    """
    from peft import LoraConfig

    transformer.requires_grad_(False)
    torch.manual_seed(seed)
    try:
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers))
    except ValueError as error:
        raise ValueError(f"`lora_layers` must name linear layers of the transformer: {error}") from error


def save_lora(
    pipe: DiffusionPipeline, scheduler: LowFreqFlowMatchScheduler, base_model: str, folder: str, **configuration
):
    """
    Save the LoRA of a pipeline's transformer as the pipeline itself does, with what it is for.

    Args:
        pipe (`DiffusionPipeline`), scheduler ([`LowFreqFlowMatchScheduler`]), base_model (`str`):
            As in [`describe_adapter`].
        folder (`str`):
            Where to save it.
        configuration:
            Further entries of its configuration.
    """
    from peft import get_peft_model_state_dict

    metadata = pipe.transformer.peft_config["default"].to_dict()
    metadata |= configuration | {"auto_mapping": describe_adapter(pipe, scheduler, base_model)}
    type(pipe).save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        transformer_lora_adapter_metadata=metadata,
    )


def base_model_name(name_or_path: str) -> str:
    """Name the pipeline that a LoRA is for: its name on the Hub, or that of its folder without the path."""
    return os.path.basename(name_or_path.rstrip("/")) if os.path.isdir(name_or_path) else name_or_path


def adapter_source(pipe: DiffusionPipeline) -> LowFreqFlowMatchScheduler | None:
    """
    Return the scheduler of the source that the active LoRA was trained for; `None` without such a LoRA.

    Raises:
        ValueError: If it was trained on other weights, or if two active ones are for different sources.
    """
    found = {}
    for name, facts in _sources(getattr(pipe, "transformer", None)).items():
        refuse_other_weights("pipe", pipe.transformer, facts)
        found[name] = {k: facts.get(k) for k in SOURCE}
    if len({json.dumps(source, sort_keys=True) for source in found.values()}) > 1:
        raise ValueError(f"`pipe` must not use LoRAs of different sources together, got {found}.")
    return LowFreqFlowMatchScheduler(**next(iter(found.values()))) if found else None


def _sources(transformer) -> dict[str, dict]:
    """The active adapters that describe their source, with the descriptions."""
    if not getattr(transformer, "peft_config", None) or _are_disabled(transformer):
        return {}
    facts = {
        name: getattr(transformer.peft_config.get(name), "auto_mapping", None) or {}
        for name in transformer.active_adapters()
    }
    return {name: of for name, of in facts.items() if "factor" in of and "noise_ratio" in of}


@contextmanager
def adapters_left_out(pipe: DiffusionPipeline) -> Iterator[None]:
    """A context in which the LoRAs that start from a coarse latent are switched off; others stay active."""
    names, scales = _sources(pipe.transformer), []
    for module in pipe.transformer.modules() if names else ():
        for name in names:
            if name in getattr(module, "scaling", {}):
                scales.append((module, name, module.scaling[name]))
                module.scaling[name] = 0.0
    try:
        yield
    finally:
        for module, name, scale in scales:
            module.scaling[name] = scale


def refuse_other_weights(argument: str, transformer: torch.nn.Module, facts: dict):
    """Raise a `ValueError` that names `argument` if the description of a LoRA does not match the weights of a transformer."""
    own, base = type(transformer).__name__, facts.get("base_model")
    trained_on = facts.get("base_model_weights")
    if facts.get("base_model_class", own) != own or (
        trained_on is not None and not _agree(weights_fingerprint(transformer), trained_on)
    ):
        raise ValueError(
            f"`{argument}`: the LoRA was trained on {base!r} and must be used with that or a copy of it; these are other weights "
            f"of a {own}."
        )


def _agree(one: list[float], other: list[float]) -> bool:
    if not one or not other:
        return True  # quantised
    if len(one) != len(other):
        return False
    similarity = torch.nn.functional.cosine_similarity(torch.tensor(one), torch.tensor(other), dim=0)
    return bool(similarity > 0.9)


def _are_disabled(transformer) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(module.disable_adapters for module in transformer.modules() if isinstance(module, BaseTunerLayer))
