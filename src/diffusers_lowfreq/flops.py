# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of one network call, measured."""

import torch


@torch.no_grad()
def count_flops(model: torch.nn.Module, sample_shape: tuple[int, ...], **condition) -> int:
    """
    Count the floating point operations of one unguided forward pass for one image, by running it.

    Matrix products, convolutions and attention are counted (`torch.utils.flop_counter`), a multiply-add as two.

    Args:
        model (`torch.nn.Module`):
            The flow or the prior model.
        sample_shape (`tuple[int, ...]`):
            `(channels, height, width)` of its input.
        condition:
            Further inputs of the model; what a [`LowFreqTransformer2DModel`] requires beside the time is filled in. Text is
            one token then: give `encoder_hidden_states` of the length to count.

    Returns:
        `int`: The count.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    sample = torch.zeros(1, *sample_shape, dtype=model.dtype, device=model.device)
    timestep = torch.full((1,), 500.0, device=model.device)
    config, one = getattr(model, "config", {}), torch.ones(1, device=model.device)
    required = {"noise_ratio": "use_noise_ratio", "guidance": "guidance_scale_range"}
    required = {name: one for name, flag in required.items() if config.get(flag)}
    if config.get("caption_channels"):
        required["encoder_hidden_states"] = sample.new_zeros(1, 1, config["caption_channels"])
    condition = required | condition
    # The fused CPU attention is unknown to the counter; the mathematical one is made of matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(sample, timestep, **condition)
    return counter.get_total_flops()
