# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What a large training costs, calculated: each formula says its units and what it assumes."""

import math

import torch

from diffusers_lowfreq import LowFreqTransformer2DModel
from diffusers_lowfreq.models import read_size


# What is assumed of a large machine. The rates are nominal; real ones are lower
ASSUMED = {
    "flops_per_second": 989e12,  # of an H100 SXM, bf16, dense
    "utilisation": 0.4,
    "memory_bytes": 80e9,
    "link_within_machine": 450e9,  # bytes a second, a direction and GPU: NVLink 4
    "link_between_machines": 50e9,  # 400 Gb/s a GPU: InfiniBand NDR
    "gpus_per_machine": 8,
    "images_per_gpu": 16,
    "sample": [4, 64, 64],  # 512 px through an autoencoder that divides sides by 8; 1,024 tokens
    "encoded_per_second": [100, 1000],  # images, of the one process that builds a cache
    "disk_write": 1e9,  # bytes a second of one process
    "failure_hours": 50_000,  # of one GPU, on average: 419 in 54 days of 16,384 GPUs (Llama 3, arXiv 2407.21783)
    "images": 1_000_000,
    "many_images": 1_000_000_000,
    "shard_size": 8192,  # of `LatentCache.build`
    "maps": 65_530,  # of a process under Linux, unless `vm.max_map_count` says otherwise
    "checkpointing_steps": 500,  # these three as the script has them
    "validation_images": 16,
    "validation_steps": 1000,
}
NETWORKS = {"0.1 B": "12x12x64", "1 B": "28x27x64", "10 B": "48x64x64"}
GPUS = [8, 64, 1024]
ENGINES = ["DDP", "FSDP2", "ZeRO-2", "ZeRO-3"]
LATENTS = {  # shape, bytes of a number, orientations
    "32 px, pixels": ([3, 32, 32], 1, 1),
    "32 px, autoencoder of `cifar10-32` (f4, 8 channels)": ([8, 8, 8], 2, 2),
    "256 px, f8, 4 channels": ([4, 32, 32], 2, 2),
    "256 px, f8, 16 channels": ([16, 32, 32], 2, 2),
    "512 px, f32, 32 channels (AutoencoderDC)": ([32, 16, 16], 2, 2),
    "1024 px, f32, 32 channels (AutoencoderDC)": ([32, 32, 32], 2, 2),
}
FACTOR = 4  # of the coarse latents


# ---------------------------------------------------------------------------------------------------------- formulas


def network(size: str, sample_size: int = 32, num_classes: int = 1000, **config) -> LowFreqTransformer2DModel:
    """Make a network of 4-channel latents, of a size as `--transformer_size` takes it."""
    return LowFreqTransformer2DModel(sample_size=sample_size, num_classes=num_classes, **read_size(size), **config)


def forward_flops(layers: int, width: int, tokens: int, patch_numbers: int = 16) -> int:
    """
    Count the FLOPs of a forward pass for one image; a multiply-add is two.

    Every token meets the 12 width² weights of a layer, and attention takes two products of tokens × tokens × width.
    `patch_numbers` are the numbers of a token, read and written. The modulation and the embedding of the time are done once.
    """
    per_layer = 24 * tokens * width**2 + 4 * tokens**2 * width
    once = 2 * (128 * width + width**2 + 8 * width**2)
    return layers * per_layer + 4 * tokens * patch_numbers * width + once


def step_flops(forward: int, images: int, checkpointing: bool = False) -> int:
    """Count the FLOPs of a training step: a backward pass is two forward passes, and checkpointing repeats the forward one."""
    return (4 if checkpointing else 3) * forward * images


def activation_bytes(layers: int, width: int, tokens: int, images: int, bf16: bool, checkpointing: bool) -> int:
    """
    Count the bytes that are kept for the backward pass.

    A layer keeps 24 numbers for each token and unit of width: 96 bytes, or 68 under autocast to bf16, where 10 numbers stay
    float32. The last norm keeps 12 bytes, or 10. With checkpointing a layer keeps only its input, 4 bytes; one layer at a time
    keeps the rest.
    """
    layer, end = (68, 10) if bf16 else (96, 12)
    kept = 4 * layers + layer if checkpointing else layer * layers
    return images * tokens * width * (kept + end)


def memory_bytes(engine: str, parameters: int, gpus: int, block: int, rest: int, ema: bool = True) -> dict[str, float]:
    """
    Count the bytes on each GPU beside the activations, with AdamW in bf16 mixed precision as each engine does it.

    `block` is the number of parameters of a layer, `rest` of those in no layer.

    - DDP: everything is whole and float32; the buckets hold the gradients once more.
    - FSDP2: everything is sharded and float32; two layers and the rest are whole in bf16, with their gradients.
    - ZeRO-2: bf16 weights are whole; bf16 gradients, float32 weights and moments are sharded; a bucket holds 5e8 bf16 gradients.
    - ZeRO-3: the weights are sharded as well; at most 1e9 of them are whole.

    The averages of `EMAModel` are float32, sharded under FSDP2 and otherwise whole. `temporaries` are the float32 numbers of the
    optimiser's step, as many as it updates, and under ZeRO as many float32 gradients.
    """
    p, shard, bucket = parameters, parameters / gpus, 2 * 5e8
    sizes = {
        "DDP": {"weights": 4 * p, "gradients": 8 * p, "moments": 8 * p},
        "FSDP2": {"weights": 4 * shard + 2 * (2 * block + rest), "gradients": 4 * shard + 2 * (2 * block + rest), "moments": 8 * shard},
        "ZeRO-2": {"weights": 2 * p + 4 * shard, "gradients": 2 * shard + bucket, "moments": 8 * shard},
        "ZeRO-3": {"weights": 6 * shard + 2 * min(p, 1e9), "gradients": 2 * shard + bucket, "moments": 8 * shard},
    }[engine]  # fmt: skip
    sizes["averages"] = ema * 4 * (shard if engine == "FSDP2" else p)
    sizes["temporaries"] = {"DDP": 4 * p, "FSDP2": 4 * shard}.get(engine, 8 * shard)
    return sizes | {"all": sum(sizes.values())}


def start_bytes(engine: str, parameters: int, ema: bool = True) -> int:
    """Count the bytes on each GPU before the engine shards: the float32 weights, and but for FSDP2 their averages."""
    return 4 * parameters * (2 if ema and engine != "FSDP2" else 1)


def communicated_bytes(engine: str, parameters: int, gpus: int, ema: bool = True) -> float:
    """
    Count the bytes that each GPU sends in a step, in rings. It receives as many.

    - DDP: an all-reduce of float32 gradients, twice their size.
    - FSDP2 and ZeRO-3: bf16 weights are gathered for the forward and for the backward pass, bf16 gradients are scattered.
    - ZeRO-2: bf16 gradients are scattered, new bf16 weights are gathered.

    Under ZeRO-3 the averages gather the weights once more.
    """
    per_parameter = {"DDP": 8, "FSDP2": 6, "ZeRO-2": 4, "ZeRO-3": 8 if ema else 6}[engine]
    return per_parameter * parameters * (gpus - 1) / gpus


def latent_bytes(shape: list[int], number: int = 2, orientations: int = 2) -> int:
    """Count the bytes of an image in a latent cache, without the 16 of its label and row; by default float16, both orientations."""
    return orientations * math.prod(shape) * number


def semi_discrete_bytes(shape: list[int], orientations: int = 2) -> int:
    """Count the bytes of an image in `--prior_coupling semi_discrete`: its coarse latents twice in float32, two float64 numbers."""
    return orientations * (2 * 4 * math.prod(shape) // FACTOR**2 + 16)


def checkpoint_seconds(parameters: int, bytes_per_parameter: float, rate: float) -> float:
    """Return the seconds in which one process writes a checkpoint under data parallelism; the others wait."""
    return parameters * bytes_per_parameter / rate


def best_interval(write: float, gpus: int, failure_hours: float) -> float:
    """Return the seconds between checkpoints that lose least: `sqrt(2 * write * time between failures)` (Young 1974)."""
    return math.sqrt(2 * write * failure_hours * 3600 / gpus)


def validation_steps(images: int, batch: int) -> float:
    """Return the training steps that cost as much as a validation: 1, 2, 4 and 8 guided steps of the flow for `images`."""
    return (1 + 2 + 4 + 8) * 2 * images / (3 * batch)


def calculate(measured: dict) -> dict:
    """Calculate everything that was not run here; `measured` gives the bytes of a checkpoint and of an open cache."""
    a = ASSUMED
    tokens, batch = (a["sample"][1] // 2) ** 2, a["images_per_gpu"]
    rate = a["flops_per_second"] * a["utilisation"]
    networks, memory, communication = [], [], []
    for name, size in NETWORKS.items():
        with torch.device("meta"):
            model = network(size, a["sample"][1])
        layers, width = model.config.num_layers, model.config.num_attention_heads * model.config.attention_head_dim
        parameters = model.num_parameters()
        block = sum(p.numel() for p in model.transformer_blocks[0].parameters())
        forward = forward_flops(layers, width, tokens)
        write = checkpoint_seconds(parameters, measured["checkpoint"]["bytes_per_parameter"], a["disk_write"])
        row = {"network": name, "size": size, "parameters": parameters, "forward_flops": forward}
        for suffix, checkpointing in (("", False), ("_checkpointed", True)):
            row[f"activations{suffix}"] = activation_bytes(layers, width, tokens, batch, True, checkpointing)
            row[f"step_seconds{suffix}"] = step_flops(forward, batch, checkpointing) / rate
        row |= {
            "checkpoint": parameters * measured["checkpoint"]["bytes_per_parameter"],
            "write_seconds": write,
            "best_interval_seconds": {str(n): best_interval(write, n, a["failure_hours"]) for n in GPUS},
            "host_at_start": 4 * parameters * a["gpus_per_machine"],
            "unscattered_gradients": 2 * parameters,
        }
        networks.append(row)
        for engine in ENGINES:
            for gpus in GPUS:
                case = {"network": name, "engine": engine, "gpus": gpus}
                sizes = (parameters, gpus, block, parameters - layers * block)
                without = memory_bytes(engine, *sizes, ema=False)["all"]
                at_start = {"at_start": start_bytes(engine, parameters), "without_averages": without}
                memory.append(case | memory_bytes(engine, *sizes) | at_start)
                sent = communicated_bytes(engine, parameters, gpus)
                link = a["link_within_machine" if gpus <= a["gpus_per_machine"] else "link_between_machines"]
                communication.append(case | {"bytes": sent, "seconds": sent / link})
    fastest = max(batch / row["step_seconds"] for row in networks)
    cache = []
    for name, (shape, number, orientations) in LATENTS.items():
        read = latent_bytes(shape, number, orientations=1)
        row = {"latents": name, "bytes": latent_bytes(shape, number, orientations) + 16, "read": read}
        cache.append(row | {"read_per_gpu": read * fastest, "semi_discrete": semi_discrete_bytes(shape)})
    return {
        "networks": networks,
        "memory": memory,
        "communication": communication,
        "cache": cache,
        "images_per_second": fastest,
        "held_bytes_per_image": measured["cache"]["held_bytes_per_image"] + measured["order"]["bytes_per_image"],
        "validation_steps": validation_steps(a["validation_images"], batch),
        "failure_hours": {str(n): a["failure_hours"] / n for n in GPUS},
    }
