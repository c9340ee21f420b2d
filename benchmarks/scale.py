#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure what the costs of a large training are made of on this machine, and calculate them for large ones.

    python benchmarks/scale.py --output benchmarks/results/scale.json

Nothing of what is called `calculated` was run: it comes from the formulas below, each of which says its units and what it
assumes. What can be compared with a measurement here is, in `checked`. Cases are timed in turn, A B C A B C …, and medians are
reported.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tqdm.auto import tqdm

from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq import LowFreqTransformer2DModel
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.models import SIZES
from diffusers_lowfreq.objectives import FlowMatching
from diffusers_lowfreq.training import (
    KeyedBatchSampler,
    LatentCache,
    load_images,
    machine_kind,
    register_model_hooks,
    save_checkpoint,
)


SETTINGS = {
    "repeats": 11,
    "batch_size": 8,
    "token_size": "tiny",  # the network that meets more and more tokens
    "sample_sizes": [8, 16, 32],  # latents of 4 channels, patches of 2
    "sizes": ["2x2x64", "nano", "micro", "tiny", "small"],  # the networks that meet 64 tokens
    "images": 2048,
    "shard_size": 256,
    "latents": {"32 px, 8 channels": [8, 8, 8], "512 px, 4 channels": [4, 64, 64]},
    "set_size": 100_000_000,  # of the order of an epoch
    "reduced_bytes": [4, 4_000_000, 32_000_000, 128_000_000],  # the first is the flag of a SIGTERM
    "process_sizes": ["nano", "tiny"],  # the networks that are trained on two processes
    "checkpoint_size": "tiny",
    "activations": [[2, 2, 16], [4, 2, 16], [2, 4, 16], [2, 2, 32]],  # layers, heads of 64, side of the latent
}

# What is assumed of a large machine: nominal rates, which real ones stay under
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
    """Make a network of 4-channel latents by name or as LAYERSxHEADSxHEAD_DIM, as `--transformer_size` takes it."""
    names = ("num_layers", "num_attention_heads", "attention_head_dim")
    shape = SIZES[size] if size in SIZES else dict(zip(names, map(int, size.split("x"))))
    return LowFreqTransformer2DModel(sample_size=sample_size, num_classes=num_classes, **shape, **config)


def forward_flops(layers: int, width: int, tokens: int, patch_numbers: int = 16) -> int:
    """
    FLOPs of a forward pass for one image, a multiply-add as two.

    A layer has 12 width² weights that every token meets, and attention two products of tokens × tokens × width. `patch_numbers`
    are the numbers of a token, read and written; the modulation and the embedding of the time are done once.
    """
    per_layer = 24 * tokens * width**2 + 4 * tokens**2 * width
    once = 2 * (128 * width + width**2 + 8 * width**2)
    return layers * per_layer + 4 * tokens * patch_numbers * width + once


def step_flops(forward: int, images: int, checkpointing: bool = False) -> int:
    """FLOPs of a training step: the backward pass is taken as two forward passes, and checkpointing repeats the forward one."""
    return (4 if checkpointing else 3) * forward * images


def activation_bytes(layers: int, width: int, tokens: int, images: int, bf16: bool, checkpointing: bool) -> int:
    """
    Bytes of what is kept for the backward pass.

    A layer keeps 24 numbers for each token and unit of width: 96 bytes, or 68 under autocast to bf16, where 10 of them stay
    float32; the last norm 12, or 10. With checkpointing a layer keeps its input, 4 bytes, and one layer at a time the rest.
    """
    layer, end = (68, 10) if bf16 else (96, 12)
    kept = 4 * layers + layer if checkpointing else layer * layers
    return images * tokens * width * (kept + end)


def memory_bytes(engine: str, parameters: int, gpus: int, block: int, rest: int, ema: bool = True) -> dict[str, float]:
    """
    Bytes on each GPU besides activations, in bf16 mixed precision as the engines do it with AdamW.

    `block` and `rest` are the parameters of a layer and of all that is in none. DDP: all whole in float32, gradients once more in
    its buckets. FSDP2: all in float32 in parts; two layers and the rest whole in bf16 with their gradients. ZeRO-2: bf16 weights
    whole; bf16 gradients, float32 weights and moments in parts; a bucket for 5e8 bf16 gradients. ZeRO-3: the weights in
    parts as well, at most 1e9 of them whole. The averages of `EMAModel` are float32: in parts under FSDP2, else whole.
    `temporaries`: float32 numbers of the optimiser's step, as many as it updates, and under ZeRO as many float32 gradients.
    """
    p, part, bucket = parameters, parameters / gpus, 2 * 5e8
    sizes = {
        "DDP": {"weights": 4 * p, "gradients": 8 * p, "moments": 8 * p},
        "FSDP2": {"weights": 4 * part + 2 * (2 * block + rest), "gradients": 4 * part + 2 * (2 * block + rest), "moments": 8 * part},
        "ZeRO-2": {"weights": 2 * p + 4 * part, "gradients": 2 * part + bucket, "moments": 8 * part},
        "ZeRO-3": {"weights": 6 * part + 2 * min(p, 1e9), "gradients": 2 * part + bucket, "moments": 8 * part},
    }[engine]  # fmt: skip
    sizes["averages"] = ema * 4 * (part if engine == "FSDP2" else p)
    sizes["temporaries"] = {"DDP": 4 * p, "FSDP2": 4 * part}.get(engine, 8 * part)
    return sizes | {"all": sum(sizes.values())}


def start_bytes(engine: str, parameters: int, ema: bool = True) -> int:
    """Bytes on each GPU before the engine takes parts: float32 weights, and but for FSDP2 the averages that are made of them."""
    return 4 * parameters * (2 if ema and engine != "FSDP2" else 1)


def communicated_bytes(engine: str, parameters: int, gpus: int, ema: bool = True) -> float:
    """
    Bytes that each GPU sends in a step (and receives as many), in rings.

    DDP: an all-reduce of float32 gradients, twice their size. FSDP2 and ZeRO-3: bf16 weights are gathered for the forward and for
    the backward pass, bf16 gradients scattered. ZeRO-2: bf16 gradients are scattered, new bf16 weights gathered. The averages
    under ZeRO-3 gather the weights once more.
    """
    per_parameter = {"DDP": 8, "FSDP2": 6, "ZeRO-2": 4, "ZeRO-3": 8 if ema else 6}[engine]
    return per_parameter * parameters * (gpus - 1) / gpus


def latent_bytes(shape: list[int], number: int = 2, orientations: int = 2) -> int:
    """Bytes of an image in a latent cache, float16 in both orientations by default, without its label and row (16)."""
    return orientations * math.prod(shape) * number


def semi_discrete_bytes(shape: list[int], orientations: int = 2) -> int:
    """Bytes for each image of `--prior_coupling semi_discrete`: two float32 copies of the coarse latents, two float64 numbers."""
    return orientations * (2 * 4 * math.prod(shape) // FACTOR**2 + 16)


def checkpoint_seconds(parameters: int, bytes_per_parameter: float, rate: float) -> float:
    """Seconds in which one process writes a checkpoint under data parallelism, while the others wait."""
    return parameters * bytes_per_parameter / rate


def best_interval(write: float, gpus: int, failure_hours: float) -> float:
    """Seconds between checkpoints that lose least, `sqrt(2 * write * time between failures)` (Young 1974)."""
    return math.sqrt(2 * write * failure_hours * 3600 / gpus)


def validation_steps(images: int, batch: int) -> float:
    """Training steps that cost as much as a validation: 1, 2, 4 and 8 guided steps of the flow for `images`."""
    return (1 + 2 + 4 + 8) * 2 * images / (3 * batch)


def calculate(measured: dict) -> dict:
    """Everything that was not run here; `measured` gives bytes of a checkpoint and of an open cache."""
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


# ------------------------------------------------------------------------------------------------------ measurements


def medians(cases: dict, repeats: int, title: str) -> dict:
    """Time callables in turn; seconds: the median of each, and its quartiles."""
    times = {name: [] for name in cases}
    for call in cases.values():
        call()
    for _ in tqdm(range(repeats), desc=title):
        for name, call in cases.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    result = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        result[name] = {"seconds": median, "quartiles": [low, high], "repeats": repeats}
    return result


def training_step(model, batch_size: int, bare=None):
    """A step of training as the script does it, on one batch: loss, gradient, clipping, AdamW, averages."""
    bare = model if bare is None else bare
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    ema = EMAModel(parameters, decay=0.999, foreach=True)
    objective = FlowMatching()
    size = bare.config.sample_size
    source, sample = torch.randn(2, batch_size, bare.config.in_channels, size, size)
    labels = torch.zeros(batch_size, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)

    def step():
        objective(model, source, sample, generator=generator, class_labels=labels).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)

    return step


def step_times() -> dict[str, list]:
    """The step against tokens and against parameters."""
    s, cases = SETTINGS, []
    for kind, pairs in {
        "tokens": [(s["token_size"], side) for side in s["sample_sizes"]],
        "parameters": [(size, 16) for size in s["sizes"]],
    }.items():
        for size, side in pairs:
            torch.manual_seed(0)
            model = network(size, side, num_classes=10).train()
            flops = count_flops(model, (4, side, side))
            width = model.config.num_attention_heads * model.config.attention_head_dim
            tokens = (side // 2) ** 2
            case = {"size": size, "tokens": tokens, "parameters": model.num_parameters(), "forward_flops": flops}
            case["calculated_flops"] = forward_flops(model.config.num_layers, width, tokens)
            cases.append((kind, case, training_step(model, s["batch_size"])))
    times = medians({i: step for i, (_, _, step) in enumerate(cases)}, s["repeats"], "steps")
    rows = {"tokens": [], "parameters": []}
    for i, (kind, case, _) in enumerate(cases):
        flops = step_flops(case["forward_flops"], s["batch_size"])
        rate = {"step_flops": flops, "flops_per_second": flops / times[i]["seconds"]}
        rows[kind].append(case | times[i] | rate)
    return rows


def make_images(folder: str, number: int):
    """Noise as PNG files: what decoding costs at the least."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for i in range(number):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"{folder}/{i:05d}.png")
    return load_images(train_data_dir=folder, resolution=32, cache_dir=f"{folder}/hf")


def write_cache(folder: str, number: int, shape: list[int], shard_size: int) -> LatentCache:
    """A cache of noise of any shape, as `LatentCache.build` would write it."""
    os.makedirs(folder)
    index = {"mean": [0.0] * shape[0], "std": [1.0] * shape[0], "id2label": None, "shards": [], "skipped": 0}
    for start in range(0, number, shard_size):
        rows = torch.arange(start, min(start + shard_size, number))
        latents = torch.randn(len(rows), 2, *shape).half()
        index["shards"].append(f"latents-{start // shard_size:05d}.safetensors")
        shard = {"latents": latents, "labels": torch.zeros(len(rows), dtype=torch.long), "positions": rows}
        save_file(shard, os.path.join(folder, index["shards"][-1]))
    with open(os.path.join(folder, "index.json"), "w", encoding="utf-8") as file:
        json.dump(index, file)
    return LatentCache(folder)


def maps() -> int | None:
    """Mappings of this process, where the system tells."""
    if not os.path.isfile("/proc/self/maps"):
        return None
    with open("/proc/self/maps", encoding="utf-8") as file:
        return len(file.readlines())


def cache_costs(vae, folder: str) -> dict:
    """Building a latent cache, opening it, and reading it through the loader of the training script."""
    s = SETTINGS
    images = make_images(os.path.join(folder, "images"), s["images"])
    started = time.perf_counter()
    built = LatentCache.build(images, vae, os.path.join(folder, "cache"), shard_size=s["shard_size"])
    seconds = time.perf_counter() - started
    stored = sum(entry.stat().st_size for entry in os.scandir(built.folder))
    held = sum(value.nbytes for value in vars(built).values() if isinstance(value, torch.Tensor))
    result = {
        "images": len(built),
        "built_per_second": len(built) / seconds,
        "stored_bytes_per_image": stored / len(built),
        "calculated_bytes_per_image": latent_bytes(built.latents[0].shape[2:]) + 16,
        "held_bytes_per_image": held / len(built),
    }
    before, shards = maps(), len(built.latents)
    again = LatentCache(built.folder)
    result["maps_per_shard"] = None if before is None else (maps() - before) / shards
    opened = medians({"open": lambda: LatentCache(built.folder)}, s["repeats"], "open")["open"]
    result |= {"shards": shards, "open_seconds_per_shard": opened["seconds"] / shards, "reading": []}
    del again
    cases, sizes = {}, {}
    for name, shape in s["latents"].items():
        cache = write_cache(os.path.join(folder, name), s["images"], shape, s["shard_size"])
        batches = [[(i, False) for i in range(k, k + 64)] for k in range(0, len(cache) - 63, 64)]
        sampler = KeyedBatchSampler(len(cache), 64, 0, range(len(batches)), random_flip=True)
        for order, samples in (("in turn", batches), ("shuffled", sampler)):
            loader = torch.utils.data.DataLoader(cache, batch_sampler=samples, collate_fn=_identity)
            cases[name, order] = lambda loader=loader: [None for _ in loader]
            sizes[name, order] = 64 * len(batches), latent_bytes(shape, orientations=1)
    for key, row in medians(cases, s["repeats"], "read").items():
        number, size = sizes[key]
        rate = number / row["seconds"]
        case = {"latents": key[0], "order": key[1], "images": number, "repeats": s["repeats"]}
        result["reading"].append(case | {"images_per_second": rate, "bytes_per_second": rate * size})
    return result


def _identity(batch):
    return batch


def order_costs() -> dict:
    """The order of an epoch of a large set, and the noise of a batch, a generator for each image."""
    s, seconds = SETTINGS, []
    for seed in range(3):
        sampler = KeyedBatchSampler(s["set_size"], 1, seed, range(1), random_flip=True)
        started = time.perf_counter()
        next(iter(sampler))
        seconds.append(time.perf_counter() - started)
    held = sum(tensor.nbytes for tensor in sampler._drawn)
    sampler = KeyedBatchSampler(64, 64, 0, range(1))
    shape = (64, *ASSUMED["sample"])
    draw = medians({"draw": lambda: randn_tensor(shape, generator=sampler.generators(0, 0))}, s["repeats"], "draws")
    return {
        "set_size": s["set_size"],
        "seconds": statistics.median(seconds),
        "repeats": len(seconds),
        "bytes_per_image": held / s["set_size"],
        "noise_per_second": 64 / draw["draw"]["seconds"],
        "noise_repeats": s["repeats"],
    }


def checkpoint_costs(folder: str) -> dict:
    """A checkpoint as the training script writes it, on one process."""
    s = SETTINGS
    accelerator = Accelerator(cpu=True)
    model = network(s["checkpoint_size"], 16, num_classes=10).train()
    ema = EMAModel(list(model.parameters()), model_cls=type(model), model_config=model.config, foreach=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    labels = torch.zeros(1, dtype=torch.long)
    FlowMatching()(prepared, *torch.randn(2, 1, 4, 16, 16), class_labels=labels).mean().backward()
    optimizer.step()
    state = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters()),
        "moments": sum(v.nbytes for moments in optimizer.state.values() for v in moments.values() if v.ndim),
        "averages": sum(p.nbytes for p in ema.shadow_params),
    }
    register_model_hooks(accelerator, model, ema, "transformer")
    args, steps = SimpleNamespace(output_dir=folder, checkpoints_total_limit=1), iter(range(10**6))
    write = medians({"write": lambda: save_checkpoint(accelerator, args, next(steps), 1)}, s["repeats"], "checkpoints")
    (path,) = [entry.path for entry in os.scandir(folder) if "checkpoint-" in entry.name]
    files = [os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names]
    size, parameters = sum(map(os.path.getsize, files)), model.num_parameters()
    return {
        "parameters": parameters,
        "bytes_per_parameter": size / parameters,
        "state_bytes_per_parameter": {k: v / parameters for k, v in state.items()},
        "bytes_per_second": size / write["write"]["seconds"],
        "repeats": s["repeats"],
    }


def kept_bytes(layers: int, heads: int, side: int, bf16: bool, checkpointing: bool) -> float:
    """Measure the bytes that autograd keeps for each image: those of a batch of 4 less those of 2, over 2."""
    model = network(f"{layers}x{heads}x64", side, num_classes=10).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    sizes = []
    for batch in (2, 4):
        kept = []
        labels = torch.zeros(batch, dtype=torch.long)
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            output = model(torch.randn(batch, 4, side, side), torch.full((batch,), 500.0), class_labels=labels)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        sizes.append(sum(storages.values()))
        del output
    return (sizes[1] - sizes[0]) / 2


def activations() -> list[dict]:
    """What autograd keeps, beside the formula (with checkpointing: without the layer that is made again)."""
    rows = []
    for layers, heads, side in SETTINGS["activations"]:
        for bf16 in (False, True):
            for checkpointing in (False, True):
                width, tokens = 64 * heads, (side // 2) ** 2
                formula = activation_bytes(layers, width, tokens, 1, bf16, checkpointing)
                if checkpointing:
                    formula -= tokens * width * (68 if bf16 else 96)
                row = {"layers": layers, "width": width, "tokens": tokens, "bf16": bf16}
                row |= {"checkpointing": checkpointing, "calculated": formula}
                rows.append(row | {"measured": kept_bytes(layers, heads, side, bf16, checkpointing)})
    return rows


def _on_two_processes(rank: int, folder: str, settings: dict):
    """What one of two processes does; the first writes `result.json`."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    SETTINGS.update(settings)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reduced = {size: torch.zeros(size // 4) for size in SETTINGS["reduced_bytes"]}
    cases = {size: lambda tensor=tensor: dist.all_reduce(tensor) for size, tensor in reduced.items()}
    times = medians(cases, SETTINGS["repeats"], "all-reduce")
    result = {"all_reduce": [{"bytes": size} | row for size, row in times.items()], "steps": []}
    for size in SETTINGS["process_sizes"]:
        torch.manual_seed(0)
        alone, shared = (network(size, 16, num_classes=10).train() for _ in range(2))
        ddp = torch.nn.parallel.DistributedDataParallel(shared)
        cases = {
            "alone": training_step(alone, SETTINGS["batch_size"]),
            "DDP": training_step(ddp, SETTINGS["batch_size"], shared),
        }
        times = medians(cases, SETTINGS["repeats"], "two processes")
        row = {"size": size, "parameters": shared.num_parameters(), "repeats": SETTINGS["repeats"]}
        result["steps"].append(row | {name: t["seconds"] for name, t in times.items()})
    model = network(SETTINGS["process_sizes"][0], 16, num_classes=10).train()
    parameters = model.num_parameters()
    for block in model.transformer_blocks:
        fully_shard(block)
    fully_shard(model)
    parts = list(model.parameters())
    optimizer, ema = torch.optim.AdamW(parts), EMAModel(parts, foreach=True)
    labels = torch.zeros(1, dtype=torch.long)
    FlowMatching()(model, *torch.randn(2, 1, 4, 16, 16), class_labels=labels).mean().backward()
    optimizer.step()
    ema.step(parts)
    state = {
        "weights": parts,
        "gradients": [p.grad for p in parts],
        "moments": [v for moments in optimizer.state.values() for v in moments.values() if v.ndim],
        "averages": ema.shadow_params,
    }
    state = {name: sum(t.to_local().nbytes for t in tensors) / parameters for name, tensors in state.items()}
    result["fsdp2_state_bytes_per_parameter"] = state
    if rank == 0:
        with open(f"{folder}/result.json", "w", encoding="utf-8") as file:
            json.dump(result, file)
    dist.barrier()
    os._exit(0)  # gloo's threads may outlive the interpreter under FSDP2, which aborts


def two_processes(folder: str) -> dict:
    """The all-reduce, the step and the parts of FSDP2 on two processes of this machine, over gloo."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_on_two_processes, args=(rank, folder, SETTINGS)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    with open(f"{folder}/result.json", encoding="utf-8") as file:
        return json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--vae", default="checkpoints/cifar10-32/vae", help="the autoencoder of the cache that is built"
    )
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = round(os.getloadavg()[0], 1)
    result = {
        "machine": machine_kind(),
        "load": load,
        "threads": 1,
        "torch": torch.__version__,
        "seed": 0,
        "settings": SETTINGS,
    }
    result |= {"assumed": ASSUMED, "measured": {"steps": step_times(), "activations": activations()}}
    measured = result["measured"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("images", "checkpoints", "processes"):
            os.mkdir(os.path.join(folder, name))
        measured["cache"] = cache_costs(AutoencoderKL.from_pretrained(args.vae), folder)
        measured["order"] = order_costs()
        measured["checkpoint"] = checkpoint_costs(os.path.join(folder, "checkpoints"))
        measured["two_processes"] = two_processes(os.path.join(folder, "processes"))
    result["calculated"] = calculate(measured)
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
