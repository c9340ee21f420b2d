# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A LoRA that starts a flow from a coarse latent. Its file says which source and which weights it was trained for."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging

from .schedulers import SOURCE, LowFreqFlowMatchScheduler


logger = logging.get_logger(__name__)

LORA_SOURCE = tuple(name for name in SOURCE if name != "noise_ratio_range")  # a LoRA is for one noise ratio


def unwrap(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network inside `torch.compile` (`_orig_mod`) and data-parallel or accelerate wrappers (`module`)."""
    while isinstance(network, torch.nn.Module):
        children = dict(network.named_children())
        if len(children) != 1 or not children.keys() <= {"_orig_mod", "module"}:
            break
        (network,) = children.values()
    return network


def weights_fingerprint(transformer: torch.nn.Module) -> list[float]:
    """
    Sample 64 weights of a network, to tell it from others. They are the same in half precision, and nearly so after fine-tuning.

    A LoRA in the network is ignored, fused or not. The list is empty for weights that cannot be sampled: quantised or
    offloaded ones, and those that a DoRA is fused into.
    """
    transformer = unwrap(transformer)
    weights = {
        name.replace(".base_layer", "").replace("._orig_mod", ""): (name, p)
        for name, p in transformer.named_parameters()
        if p.ndim == 2 and ".lora_" not in name
    }
    if not all(_is_plain(p) for _, p in weights.values()):
        return []
    names = sorted(weights)
    numbers = []
    for name in names[:: max(1, len(names) // 8)][:8]:
        path, weight = weights[name]
        weight = weight.detach()
        layer = transformer.get_submodule(path.rpartition(".base_layer.")[0])  # without a LoRA, the network itself
        for fused in _fused(layer) if ".base_layer." in path else ():
            if fused in layer.lora_variant:
                return []
            weight = weight - layer.get_delta_weight(fused).detach().to(weight.dtype)
        flat = weight.flatten()
        numbers += flat[:: max(1, len(flat) // 8)][:8].float().tolist()
    return [float(f"{number:.4g}") for number in numbers]


def _is_plain(weight: torch.nn.Parameter) -> bool:
    """Whether a weight is neither quantised nor offloaded."""
    return type(weight.data) is torch.Tensor and weight.is_floating_point() and not weight.is_meta


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
    name = type(unwrap(pipe.transformer)).__name__
    facts = {"base_model": base_model, "base_model_class": name} | scheduler.source
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

    transformer = unwrap(transformer)
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

    transformer = unwrap(pipe.transformer)  # `torch.compile` would add its prefix to the names of the tensors
    metadata = transformer.peft_config["default"].to_dict()
    metadata |= configuration | {"auto_mapping": describe_adapter(pipe, scheduler, base_model)}
    type(pipe).save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
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
        found[name] = {k: facts.get(k) for k in LORA_SOURCE}
    if len({json.dumps(source, sort_keys=True) for source in found.values()}) > 1:
        raise ValueError(f"`pipe` must not use LoRAs of different sources together, got {found}.")
    return LowFreqFlowMatchScheduler(**next(iter(found.values()))) if found else None


def _sources(transformer: torch.nn.Module | None) -> dict[str, dict]:
    """The adapters in use, active or fused, that describe their source, with the descriptions."""
    transformer = unwrap(transformer)
    configurations = getattr(transformer, "peft_config", None)
    if not configurations or _are_disabled(transformer):
        return {}
    fused = (name for layer in _adapter_layers(transformer) for name in _fused(layer))
    names = dict.fromkeys([*transformer.active_adapters(), *fused])
    facts = {name: getattr(configurations.get(name), "auto_mapping", None) or {} for name in names}
    return {name: of for name, of in facts.items() if "factor" in of and "noise_ratio" in of}


def _adapter_layers(transformer: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that hold adapters."""
    if not getattr(transformer, "peft_config", None):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]


def _fused(layer: torch.nn.Module) -> list[str]:
    """The adapters that are fused into the weights of a layer and can be taken out again."""
    return [name for name in layer.merged_adapters if name in layer.scaling]


@contextmanager
def adapters_left_out(pipe: DiffusionPipeline) -> Iterator[None]:
    """
    A context without the LoRAs that start from a coarse latent, active or fused. Others stay as they are.

    A fused one is taken out of the weights. The weights come back bit by bit, from copies that are held meanwhile.

    Raises:
        ValueError: If one is fused into quantised or offloaded weights, and cannot be taken out.
    """
    transformer = unwrap(pipe.transformer)
    layers, names = _adapter_layers(transformer), _sources(transformer)
    unknown = {name for layer in layers for name in layer.merged_adapters} | set(getattr(pipe, "fused_loras", ()))
    unknown -= set(getattr(transformer, "peft_config", None) or ())
    if unknown:
        logger.warning(
            f"The LoRAs {sorted(unknown)} were fused and then unloaded: what they were trained for is no longer known, and they "
            "stay in the coarse run. If one was trained to start from a coarse latent, keep it loaded."
        )
    for layer in layers:
        for name in _fused(layer):
            if name in names and not _is_plain(layer.get_base_layer().weight):
                raise ValueError(
                    f"`pipe`: the LoRA {name!r} must be left out of the coarse run, but is fused into quantised or offloaded "
                    "weights: call `pipe.unfuse_lora()` first."
                )
    with ExitStack() as undo:
        for layer in layers if names else ():
            undo.callback(layer.scaling.update, dict(layer.scaling))
            undo.callback(setattr, layer, "_active_adapter", layer.active_adapter)
            left_out = [name for name in names if name in layer.scaling]
            if any(name in names for name in _fused(layer)):
                _take_out(layer, names, undo)
                left_out = list(layer.scaling)  # a layer with a fused LoRA uses no other
            layer.scaling.update(dict.fromkeys(left_out, 0.0))
            # A DoRA changes the magnitude of the weights at any scale, and diffusers may reset the scale of what is active
            layer._active_adapter = [name for name in layer.active_adapters if name not in left_out]
        yield


def _take_out(layer: torch.nn.Module, names: dict, undo: ExitStack):
    """Take some of the fused adapters out of the weights of a layer; `undo` puts the same weights back."""
    base, fused = layer.get_base_layer(), list(layer.merged_adapters)
    for parameter in base.parameters(recurse=False):
        undo.callback(lambda parameter, kept: parameter.data.copy_(kept), parameter, parameter.data.clone())
    undo.callback(layer.merged_adapters.__setitem__, slice(None), fused)
    undo.callback(layer._caches.update, dict(layer._caches))  # the norms of a DoRA, which its removal uses up
    layer.unmerge()
    others = [name for name in fused if name in layer.scaling and name not in names]
    if others:
        layer.merge(adapter_names=others)


def refuse_other_weights(argument: str, transformer: torch.nn.Module, facts: dict):
    """Raise a `ValueError` that names `argument` if the description of a LoRA does not match the weights of a transformer."""
    own, base = type(unwrap(transformer)).__name__, facts.get("base_model")
    trained_on = facts.get("base_model_weights")
    known = (None, own, "OptimizedModule")  # older files name the wrapper of `torch.compile` instead of the network
    if facts.get("base_model_class") not in known or (
        trained_on is not None and not _agree(weights_fingerprint(transformer), trained_on)
    ):
        raise ValueError(
            f"`{argument}`: the LoRA was trained on {base!r} and must be used with that or a copy of it; these are other weights "
            f"of a {own}, or another LoRA was fused into them and then unloaded."
        )


def _agree(one: list[float], other: list[float]) -> bool:
    if not one or not other:
        return True  # quantised
    if len(one) != len(other):
        return False
    similarity = torch.nn.functional.cosine_similarity(torch.tensor(one), torch.tensor(other), dim=0)
    return bool(similarity > 0.9)


def _are_disabled(transformer: torch.nn.Module) -> bool:
    return any(layer.disable_adapters for layer in _adapter_layers(transformer))
