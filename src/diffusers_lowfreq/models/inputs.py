# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Every check of a network: of its configuration, and of the inputs of a forward pass."""

import math

import torch

from ..guards.values import MAX_SIZE, check_flag, check_number, check_rising_pair, check_setting, is_number


INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_config(config):
    """Raise a `ValueError` that names the first setting of a [`LowFreqTransformer2DModel`] that is not allowed."""
    for name in ("patch_size", "in_channels", "num_layers", "num_attention_heads", "attention_head_dim"):
        check_setting(name, config[name])
    size = config.sample_size
    sides = [size] * 2 if isinstance(size, int) else size
    is_pair = isinstance(sides, (list, tuple)) and len(sides) == 2
    if not is_pair or not all(type(side) is int and 1 <= side <= MAX_SIZE for side in sides):
        raise ValueError(f"`sample_size` must be a positive integer or two, got {size!r}; the most is {MAX_SIZE}.")
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    if heads * head_dim > MAX_SIZE:
        raise ValueError(
            f"`num_attention_heads` times `attention_head_dim` must be at most {MAX_SIZE}, got {heads} times {head_dim}."
        )
    if head_dim % 4:
        raise ValueError(f"`attention_head_dim` must be a multiple of 4, got {head_dim}.")
    for name in ("num_classes", "caption_channels"):
        check_setting(name, config[name], int(MAX_SIZE**1.5), optional=True)
    if config.num_classes is not None and config.caption_channels is not None:
        raise ValueError(
            "`caption_channels` must be None with `num_classes`: text or labels, got "
            f"{config.caption_channels} and {config.num_classes}."
        )
    for name in ("mlp_ratio", "time_max_frequency"):
        check_number(name, config[name], 0, MAX_SIZE, open="(")
    for name in ("use_meanflow", "use_noise_ratio"):
        check_flag(name, config[name])
    _check_guidance(config)
    _check_statistics(config)


def _check_guidance(config):
    scale, interval = config.guidance_scale, config.guidance_scale_range
    if scale is None and interval is None:
        return
    if not config.use_meanflow or (config.num_classes is None and config.caption_channels is None):
        raise ValueError(
            "`guidance_scale` needs a model with `use_meanflow=True` and `num_classes` or `caption_channels`."
        )
    check_number("guidance_scale", scale, 0, open="(")
    if interval is not None:
        check_rising_pair("guidance_scale_range", interval, 1, math.inf)
        if not interval[0] <= scale <= interval[1]:
            raise ValueError(f"`guidance_scale` must be in the `guidance_scale_range` {interval!r}, got {scale!r}.")


def _check_statistics(config):
    if (config.sample_mean is None) != (config.sample_std is None):
        raise ValueError("`sample_mean` and `sample_std` must be given together.")
    for name, kind, least in (("sample_mean", "numbers", -math.inf), ("sample_std", "positive numbers", 0)):
        values, channels = config[name], config.in_channels
        is_list = isinstance(values, (list, tuple)) and len(values) == channels
        if values is not None and not (is_list and all(is_number(x) and least < x < math.inf for x in values)):
            raise ValueError(f"`{name}` must be a list of {channels} {kind}, one a channel, got {values!r}.")


def check_inputs(config, hidden_states, inputs: dict, encoder_attention_mask):
    """Raise a `ValueError` that names the first input that does not fit the configuration."""
    p = config.patch_size
    if (
        not isinstance(hidden_states, torch.Tensor)
        or not hidden_states.is_floating_point()
        or hidden_states.ndim != 4
        or hidden_states.shape[1] != config.in_channels
        or hidden_states.shape[2] % p
        or hidden_states.shape[3] % p
    ):
        raise ValueError(
            f"`hidden_states` must be floating point of shape (batch, {config.in_channels}, height, width) with sides "
            f"divisible by {p}, got {_shape(hidden_states)}."
        )
    batch = hidden_states.shape[0]
    for name in ("timestep", "timestep_r", "noise_ratio", "guidance"):
        value = inputs[name]
        if (value is not None or name == "timestep") and _shape(value) not in ((), (1,), (batch,)):
            raise ValueError(f"`{name}` must be a tensor of shape () or ({batch},), got {_shape(value)}.")
    labels, text = inputs["class_labels"], inputs["encoder_hidden_states"]
    if labels is not None and (_shape(labels) != (batch,) or labels.dtype not in INTEGERS):
        raise ValueError(f"`class_labels` must be integers of shape ({batch},), got {_shape(labels)}.")
    for name, is_taken in (
        ("encoder_hidden_states", config.caption_channels is not None),
        ("noise_ratio", config.use_noise_ratio),
        ("guidance", config.guidance_scale_range is not None),
    ):
        if (inputs[name] is not None) != is_taken:
            raise ValueError(f"`{name}` must {'' if is_taken else 'not '}be given to this model.")
    if text is not None and (text.ndim != 3 or text.shape[0] != batch or text.shape[2] != config.caption_channels):
        raise ValueError(
            f"`encoder_hidden_states` must be of shape ({batch}, text_tokens, {config.caption_channels}), got "
            f"{tuple(text.shape)}."
        )
    text_shape = None if text is None else text.shape[:2]
    if encoder_attention_mask is not None and encoder_attention_mask.shape != text_shape:
        raise ValueError(
            "`encoder_attention_mask` must have the batch and tokens of `encoder_hidden_states`, "
            f"{text_shape and tuple(text_shape)}, got {tuple(encoder_attention_mask.shape)}."
        )
    if inputs["timestep_r"] is not None and not config.use_meanflow:
        raise ValueError("`timestep_r` needs a model with `use_meanflow=True`.")
    if labels is not None and config.num_classes is None:
        raise ValueError("`class_labels` must not be given to a model without `num_classes`.")


def _shape(x) -> tuple[int, ...] | str:
    """Return the shape of a tensor, and the name of its type for anything else."""
    return tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
