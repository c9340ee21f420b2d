#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure what the costs of a large training are made of on this machine, and calculate them for large ones.

    python benchmarks/scale.py --output benchmarks/results/scale.json

Nothing of what is called `calculated` was run: it comes from the formulas of `scale_formulas.py`. What can be compared with a
measurement here is, in `checked`. Cases are timed in turn, A B C A B C …; the medians are reported.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from scale_formulas import ASSUMED, activation_bytes, calculate, forward_flops, latent_bytes, network, step_flops
from scale_tables import table
from shared.environment import environment
from shared.noise_images import make_noise_images
from shared.results import read, write
from shared.timing import medians

from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.objectives import FlowMatching
from diffusers_lowfreq.training import (
    KeyedBatchSampler,
    LatentCache,
    load_images,
    register_model_hooks,
    save_checkpoint,
)


__all__ = ["main", "table"]

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

# ------------------------------------------------------------------------------------------------------ measurements


def training_step(model, batch_size: int, bare=None):
    """Make a step of training as the script does it, on one batch: loss, gradient, clipping, AdamW, averages."""
    bare = model if bare is None else bare
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    ema = EMAModel(parameters, decay=0.999, foreach=True)
    objective = FlowMatching()
    source, sample = torch.randn(2, batch_size, *bare.sample_shape)
    labels = torch.zeros(batch_size, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)

    def step():
        objective(model, source, sample, generator=generator, class_labels=labels).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)

    return step


def step_times(settings: dict) -> dict[str, list]:
    """Measure the step against tokens and against parameters."""
    cases = []
    for against, networks in {
        "tokens": [(settings["token_size"], side) for side in settings["sample_sizes"]],
        "parameters": [(size, 16) for size in settings["sizes"]],
    }.items():
        for size, side in networks:
            torch.manual_seed(0)
            model = network(size, side, num_classes=10).train()
            flops = count_flops(model, (4, side, side))
            width = model.config.num_attention_heads * model.config.attention_head_dim
            tokens = (side // 2) ** 2
            case = {"size": size, "tokens": tokens, "parameters": model.num_parameters(), "forward_flops": flops}
            case["calculated_flops"] = forward_flops(model.config.num_layers, width, tokens)
            cases.append((against, case, training_step(model, settings["batch_size"])))
    times = medians({i: step for i, (_, _, step) in enumerate(cases)}, settings["repeats"], "steps")
    rows = {"tokens": [], "parameters": []}
    for i, (against, case, _) in enumerate(cases):
        flops = step_flops(case["forward_flops"], settings["batch_size"])
        rate = {"step_flops": flops, "flops_per_second": flops / times[i]["seconds"]}
        rows[against].append(case | times[i] | rate)
    return rows


def write_cache(folder: str, number: int, shape: list[int], shard_size: int) -> LatentCache:
    """Write a cache of noise of any shape, as `LatentCache.build` would."""
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
    """Count the memory maps of this process, if the system tells."""
    if not os.path.isfile("/proc/self/maps"):
        return None
    with open("/proc/self/maps", encoding="utf-8") as file:
        return len(file.readlines())


def held_bytes(holder) -> int:
    """Count the bytes of the tensors that an object keeps in its attributes, by themselves or in tuples."""
    values = [v for value in vars(holder).values() for v in (value if isinstance(value, tuple) else (value,))]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def cache_costs(vae, folder: str, settings: dict) -> dict:
    """Measure building a latent cache, opening it, and reading it through the loader of the training script."""
    make_noise_images(os.path.join(folder, "images"), settings["images"])
    images = load_images(
        train_data_dir=os.path.join(folder, "images"), resolution=32, cache_dir=os.path.join(folder, "hf")
    )
    started = time.perf_counter()
    built = LatentCache.build(images, vae, os.path.join(folder, "cache"), shard_size=settings["shard_size"])
    seconds = time.perf_counter() - started
    stored = sum(entry.stat().st_size for entry in os.scandir(built.folder))
    result = {
        "images": len(built),
        "built_per_second": len(built) / seconds,
        "stored_bytes_per_image": stored / len(built),
        "calculated_bytes_per_image": latent_bytes(built.latents[0].shape[2:]) + 16,
        "held_bytes_per_image": held_bytes(built) / len(built),
    }
    before, shards = maps(), len(built.latents)
    again = LatentCache(built.folder)
    result["maps_per_shard"] = None if before is None else (maps() - before) / shards
    opened = medians({"open": lambda: LatentCache(built.folder)}, settings["repeats"], "open")["open"]
    del again
    result |= {"shards": shards, "open_seconds_per_shard": opened["seconds"] / shards}
    return result | {"reading": reading_costs(folder, settings)}


def reading_costs(folder: str, settings: dict) -> list[dict]:
    """Measure reading latents of several shapes, in turn and shuffled."""
    cases, sizes, rows = {}, {}, []
    for name, shape in settings["latents"].items():
        cache = write_cache(os.path.join(folder, name), settings["images"], shape, settings["shard_size"])
        batches = [[(i, False) for i in range(k, k + 64)] for k in range(0, len(cache) - 63, 64)]
        sampler = KeyedBatchSampler(len(cache), 64, 0, range(len(batches)), random_flip=True)
        for order, samples in (("in turn", batches), ("shuffled", sampler)):
            loader = torch.utils.data.DataLoader(cache, batch_sampler=samples, collate_fn=lambda batch: batch)
            cases[name, order] = lambda loader=loader: [None for _ in loader]
            sizes[name, order] = 64 * len(batches), latent_bytes(shape, orientations=1)
    for (name, order), row in medians(cases, settings["repeats"], "read").items():
        number, size = sizes[name, order]
        rate = number / row["seconds"]
        case = {"latents": name, "order": order, "images": number, "repeats": settings["repeats"]}
        rows.append(case | {"images_per_second": rate, "bytes_per_second": rate * size})
    return rows


def order_costs(settings: dict) -> dict:
    """Measure the order of an epoch of a large set, and the noise of a batch, a generator for each image."""
    seconds = []
    for seed in range(3):
        sampler = KeyedBatchSampler(settings["set_size"], 1, seed, range(1), random_flip=True)
        started = time.perf_counter()
        next(iter(sampler))
        seconds.append(time.perf_counter() - started)
    held, repeats = held_bytes(sampler), settings["repeats"]
    sampler = KeyedBatchSampler(64, 64, 0, range(1))
    shape = (64, *ASSUMED["sample"])
    draw = medians({"draw": lambda: randn_tensor(shape, generator=sampler.generators(0, 0))}, repeats, "draws")
    return {
        "set_size": settings["set_size"],
        "seconds": statistics.median(seconds),
        "repeats": len(seconds),
        "bytes_per_image": held / settings["set_size"],
        "noise_per_second": 64 / draw["draw"]["seconds"],
        "noise_repeats": repeats,
    }


def checkpoint_costs(folder: str, settings: dict) -> dict:
    """Measure a checkpoint as the training script writes it, on one process."""
    accelerator, repeats = Accelerator(cpu=True), settings["repeats"]
    model = network(settings["checkpoint_size"], 16, num_classes=10).train()
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
    saved = medians({"save": lambda: save_checkpoint(accelerator, args, next(steps), 1)}, repeats, "checkpoints")
    (path,) = [entry.path for entry in os.scandir(folder) if "checkpoint-" in entry.name]
    files = [os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names]
    size, parameters = sum(map(os.path.getsize, files)), model.num_parameters()
    return {
        "parameters": parameters,
        "bytes_per_parameter": size / parameters,
        "state_bytes_per_parameter": {k: v / parameters for k, v in state.items()},
        "bytes_per_second": size / saved["save"]["seconds"],
        "repeats": repeats,
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


def activations(settings: dict) -> list[dict]:
    """Measure what autograd keeps beside the formula (with checkpointing: without the layer that is made again)."""
    rows = []
    for layers, heads, side in settings["activations"]:
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


def shared_step_times(settings: dict) -> list[dict]:
    """Measure the step under DDP against that of a process alone, on each of two processes."""
    rows, repeats = [], settings["repeats"]
    for size in settings["process_sizes"]:
        torch.manual_seed(0)
        alone, shared = (network(size, 16, num_classes=10).train() for _ in range(2))
        ddp = torch.nn.parallel.DistributedDataParallel(shared)
        cases = {
            "alone": training_step(alone, settings["batch_size"]),
            "DDP": training_step(ddp, settings["batch_size"], shared),
        }
        times = medians(cases, repeats, "two processes")
        row = {"size": size, "parameters": shared.num_parameters(), "repeats": repeats}
        rows.append(row | {name: found["seconds"] for name, found in times.items()})
    return rows


def fsdp2_state_bytes(size: str) -> dict[str, float]:
    """Count the bytes for each parameter that this process holds under FSDP2."""
    from torch.distributed.fsdp import fully_shard

    model = network(size, 16, num_classes=10).train()
    parameters = model.num_parameters()
    for block in model.transformer_blocks:
        fully_shard(block)
    fully_shard(model)
    shards = list(model.parameters())
    optimizer, ema = torch.optim.AdamW(shards), EMAModel(shards, foreach=True)
    labels = torch.zeros(1, dtype=torch.long)
    FlowMatching()(model, *torch.randn(2, 1, 4, 16, 16), class_labels=labels).mean().backward()
    optimizer.step()
    ema.step(shards)
    state = {
        "weights": shards,
        "gradients": [p.grad for p in shards],
        "moments": [v for moments in optimizer.state.values() for v in moments.values() if v.ndim],
        "averages": ema.shadow_params,
    }
    return {name: sum(t.to_local().nbytes for t in tensors) / parameters for name, tensors in state.items()}


def measure_as_one_of_two(rank: int, folder: str, settings: dict):
    """Measure as one of two processes; the first writes `result.json`."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reduced = {size: torch.zeros(size // 4) for size in settings["reduced_bytes"]}
    cases = {size: lambda tensor=tensor: dist.all_reduce(tensor) for size, tensor in reduced.items()}
    times = medians(cases, settings["repeats"], "all-reduce")
    result = {"all_reduce": [{"bytes": size} | row for size, row in times.items()]}
    result["steps"] = shared_step_times(settings)
    result["fsdp2_state_bytes_per_parameter"] = fsdp2_state_bytes(settings["process_sizes"][0])
    if rank == 0:
        write(result, f"{folder}/result.json")
    dist.barrier()
    os._exit(0)  # gloo's threads may outlive the interpreter under FSDP2, which aborts


def two_processes(folder: str, settings: dict) -> dict:
    """Measure the all-reduce, the step and the parts of FSDP2 on two processes of this machine, over gloo."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=measure_as_one_of_two, args=(rank, folder, settings)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return read(f"{folder}/result.json")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--vae", default="checkpoints/cifar10-32/vae", help="the autoencoder of the cache that is built"
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--settings", help="a JSON file of settings to change, such as the sizes of the networks")
    args = parser.parse_args(argv)
    settings = SETTINGS | (read(args.settings) if args.settings else {})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = round(os.getloadavg()[0], 1)
    result = {"script": "scale"} | environment() | {"load": load, "threads": 1, "seed": 0}
    measured = {"steps": step_times(settings), "activations": activations(settings)}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("images", "checkpoints", "processes"):
            os.mkdir(os.path.join(folder, name))
        measured["cache"] = cache_costs(AutoencoderKL.from_pretrained(args.vae), folder, settings)
        measured["order"] = order_costs(settings)
        measured["checkpoint"] = checkpoint_costs(os.path.join(folder, "checkpoints"), settings)
        measured["two_processes"] = two_processes(os.path.join(folder, "processes"), settings)
    result |= {"settings": settings, "assumed": ASSUMED, "measured": measured, "calculated": calculate(measured)}
    write(result, args.output)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
