# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of one network call, counted on a copy without weights."""

import copy
from collections import OrderedDict
from weakref import WeakKeyDictionary

import torch


ADAPTERS = ("active_adapters", "merged_adapters", "disable_adapters")  # attributes of layers of peft

_COUNTS = WeakKeyDictionary()  # the counts of each network, by its structure and the shapes of its inputs


@torch.no_grad()
def count_flops(model: torch.nn.Module, sample_shape: tuple[int, ...], **condition) -> int:
    """
    Count the floating point operations of one unguided forward pass for one image.

    Matrix products, convolutions and attention are counted (`torch.utils.flop_counter`), a multiply-add as two. Quantised
    weights count like plain ones. The count is made once for each shape, on a copy without weights: nothing is computed, and
    the network itself does not run. Only a network whose forward pass depends on its numbers has to run, once.

    Args:
        model (`torch.nn.Module`):
            The flow or the prior model.
        sample_shape (`tuple[int, ...]`):
            `(channels, height, width)` of its input.
        condition:
            Further inputs of the model. Those that a [`LowFreqTransformer2DModel`] requires are filled in, with a text of one
            token: give `encoder_hidden_states` for longer texts.

    Returns:
        `int`: The count.
    """
    model = getattr(model, "_orig_mod", model)  # of a compiled one
    shapes = {name: tuple(value.shape) for name, value in condition.items()}
    key = (_structure(model), tuple(sample_shape), tuple(sorted(shapes.items())))
    counts = _COUNTS.setdefault(model, {})
    if key not in counts:
        try:
            counts[key] = _run(_without_weights(model), torch.device("meta"), torch.float32, sample_shape, condition)
        except Exception:  # the forward pass depends on numbers; a bad input raises its error again
            counts[key] = _run(model, model.device, model.dtype, sample_shape, condition)
    return counts[key]


def _run(model, device: torch.device, dtype: torch.dtype, sample_shape: tuple[int, ...], condition: dict) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    sample, one = torch.zeros(1, *sample_shape, dtype=dtype, device=device), torch.ones(1, device=device)
    config = getattr(model, "config", {})
    required = {"noise_ratio": "use_noise_ratio", "guidance": "guidance_scale_range"}
    inputs = {name: one for name, setting in required.items() if config.get(setting)}
    if config.get("caption_channels"):
        inputs["encoder_hidden_states"] = sample.new_zeros(1, 1, config["caption_channels"])
    inputs |= {name: value.to(device) for name, value in condition.items()}
    # The counter does not know the fused attention of a CPU; the mathematical one consists of matrix products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(sample, 500.0 * one, **inputs)
    return counter.get_total_flops()


def _without_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a network and its adapters onto the `meta` device, in float32, without hooks or replaced `forward` methods."""
    memo = {}  # the copies that `deepcopy` is given
    for x in (*model.parameters(), *model.buffers()):
        memo[id(x)] = torch.empty(x.shape, dtype=torch.float32 if x.is_floating_point() else x.dtype, device="meta")
    for module in model.modules():
        for name, value in vars(module).items():
            if not isinstance(value, (bool, type(None))) and ("hook" in name or name == "forward"):
                memo[id(value)] = OrderedDict()
    bare = copy.deepcopy(model, memo)
    for module in bare.modules():
        vars(module).pop("forward", None)
    return bare


def _structure(model: torch.nn.Module) -> tuple:
    """Describe what the cost of a network depends on besides its inputs: classes, shapes of weights, adapters in use."""
    return tuple(
        (
            type(module),
            *(tuple(weight.shape) for weight in module.parameters(recurse=False)),
            *(str(getattr(module, name, None)) for name in ADAPTERS),
        )
        for module in model.modules()
    )
