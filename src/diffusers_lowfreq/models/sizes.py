# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Sizes of networks, by name or by numbers."""

import re


# Layers, heads and head width of the named sizes. The last four are those of DiT (Peebles & Xie 2022, table 1), with a head
# width of 64. `docs/models.md` lists parameters and FLOPs.
SIZES = {
    "nano": {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 64},
    "micro": {"num_layers": 4, "num_attention_heads": 3, "attention_head_dim": 64},
    "tiny": {"num_layers": 6, "num_attention_heads": 4, "attention_head_dim": 64},
    "small": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64},
    "base": {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64},
    "large": {"num_layers": 24, "num_attention_heads": 16, "attention_head_dim": 64},
    "xlarge": {"num_layers": 28, "num_attention_heads": 18, "attention_head_dim": 64},
}


def read_size(size: str) -> dict[str, int]:
    """
    Read the size of a network, as the arguments of [`LowFreqTransformer2DModel`].

    Args:
        size (`str`):
            A name of `SIZES`, or `LAYERSxHEADSxHEAD_DIM`, such as `"6x4x64"`.

    Returns:
        `dict[str, int]`: `num_layers`, `num_attention_heads` and `attention_head_dim`.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(size, str) and size in SIZES:
        return dict(SIZES[size])
    numbers = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)x([1-9][0-9]*)", size) if isinstance(size, str) else None
    if numbers is None:
        raise ValueError(f"`size` must be among {list(SIZES)} or LAYERSxHEADSxHEAD_DIM, got {size!r}.")
    names = ("num_layers", "num_attention_heads", "attention_head_dim")
    return dict(zip(names, map(int, numbers.groups())))
