# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A LoRA for somebody else's flow model says which source it was trained for, and of which weights."""

import json
from contextlib import contextmanager

import torch

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .schedulers import LowFreqFlowMatchScheduler


SOURCE = ("projection", "factor", "projection_basis", "noise_ratio")


def weights_fingerprint(transformer: torch.nn.Module) -> list[float]:
    """
    Sample 64 weights of a network, to tell it from others: the same in half precision, and nearly so after a fine-tuning.

    A LoRA in it is not looked at. Empty for quantised or offloaded weights, of which that cannot be said.
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
    Say what a LoRA is for. It goes under `auto_mapping` into its configuration, which diffusers keeps in the file and
    hands back to peft when the LoRA is loaded.

    Args:
        pipe (`DiffusionPipeline`):
            What it was trained on.
        scheduler ([`LowFreqFlowMatchScheduler`]):
            What made the source.
        base_model (`str`):
            The name of the pipeline.
    """
    facts = {"base_model": base_model, "base_model_class": type(pipe.transformer).__name__} | scheduler.source
    return facts | {"base_model_weights": weights_fingerprint(pipe.transformer)}


def adapter_source(pipe: DiffusionPipeline) -> LowFreqFlowMatchScheduler | None:
    """
    Return what makes the source that the LoRA in use was trained for; `None` without such a LoRA.

    Raises:
        ValueError: If it was trained on other weights, or if two in use are for different sources.
    """
    found = {}
    for name, facts in _sources(getattr(pipe, "transformer", None)).items():
        refuse_other_weights("pipe", pipe.transformer, facts)
        found[name] = {k: facts.get(k) for k in SOURCE}
    if len({json.dumps(source, sort_keys=True) for source in found.values()}) > 1:
        raise ValueError(f"`pipe` must not use LoRAs of different sources together, got {found}.")
    return LowFreqFlowMatchScheduler(**next(iter(found.values()))) if found else None


def _sources(transformer) -> dict[str, dict]:
    """The adapters in use that say what source they are for, and what they say."""
    if not getattr(transformer, "peft_config", None) or _are_disabled(transformer):
        return {}
    facts = {
        name: getattr(transformer.peft_config.get(name), "auto_mapping", None) or {}
        for name in transformer.active_adapters()
    }
    return {name: said for name, said in facts.items() if "factor" in said and "noise_ratio" in said}


@contextmanager
def adapters_left_out(pipe: DiffusionPipeline):
    """Let the pipeline run without the LoRAs that were trained to start from a coarse latent; others stay in use."""
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
    """Raise a `ValueError` that names `argument` if what a LoRA says of itself is of other weights than these."""
    own, base = type(transformer).__name__, facts.get("base_model")
    theirs = facts.get("base_model_weights")
    if facts.get("base_model_class", own) != own or (
        theirs is not None and not _agree(weights_fingerprint(transformer), theirs)
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
