#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure how fast `examples/train_lowfreq.py` trains, as ratios in one run.

    python benchmarks/training_speed.py --output benchmarks/results/training-speed.json

The loop is the script's own, timed from inside its sampler. Between two blocks of its steps runs a block of steps of a plain
PyTorch loop around a matcher of torchcfm (`pip install --no-deps torchcfm POT`), with the same size of network, batch,
optimiser, averages and clipping, on the same latents. The images are noise: what they show does not matter to the time.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import psutil
import torch
import torch.nn.functional as F
from shared.environment import environment
from shared.example_scripts import command_line as write_command_line
from shared.example_scripts import train_lowfreq
from shared.formats import markdown, measured_by
from shared.noise_images import make_noise_images
from shared.results import read, write
from shared.timing import summarize_ratios
from tqdm.auto import tqdm

from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers_lowfreq import LowFreqPipeline, LowFreqTransformer2DModel
from diffusers_lowfreq.autoencoding import normalize_latents
from diffusers_lowfreq.training import KeyedBatchSampler, LatentCache, load_images


CLASSES = 10
COUPLINGS = {  # the results of a comparison, and the name of the coupling in the table
    "independent": "independent coupling",
    "minibatch_ot": "minibatch optimal transport",
}


def command_line(args, folder: str, output_dir: str, steps: int, batch_size: int, **options) -> list[str]:
    """Return the options that train the flow of the shipped configuration on the images, and do nothing else."""
    options = {"transformer_size": args.transformer_size, "checkpointing_steps": steps} | options
    options |= {"train_data_dir": f"{folder}/images", "output_dir": f"{folder}/{output_dir}", "train": "flow"}
    options |= {"cache_dir": f"{folder}/cache", "max_train_steps": steps, "train_batch_size": batch_size}
    options |= {"validation_steps": 10 * steps, "num_validation_images": 1, "seed": args.seed}
    options |= {"resolution": args.resolution}
    if args.vae is not None:
        options |= {"pretrained_vae_model_name_or_path": os.path.abspath(args.vae), "factor": 2}
        options |= {"vae_subfolder": "vae"} if os.path.isdir(os.path.join(args.vae, "vae")) else {}
    return write_command_line(options)


def at_every_step(action):
    """Have the training loop of this process call `action(step)` whenever it asks for a batch."""
    batches = KeyedBatchSampler.__iter__

    def watched(self):
        for step, batch in enumerate(batches(self)):
            action(step)
            yield batch

    KeyedBatchSampler.__iter__ = watched


def now() -> float:
    """Return the time once everything that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# ----------------------------------------------------------------------------------------------- against a plain loop


def make_matcher(coupling: str):
    from torchcfm.conditional_flow_matching import (
        ConditionalFlowMatcher,
        ExactOptimalTransportConditionalFlowMatcher,
    )

    matchers = {
        "independent": ConditionalFlowMatcher,
        "minibatch_ot": ExactOptimalTransportConditionalFlowMatcher,
    }
    return matchers[coupling](sigma=0.0)


def load_latents(args, folder: str, vae) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents that the script trains on, and their labels."""
    images = load_images(train_data_dir=f"{folder}/images", resolution=args.resolution)
    cache = LatentCache.build(images, vae, f"{folder}/cache")
    batch = cache.__getitems__([(i, False) for i in range(len(cache))])
    return normalize_latents(vae, batch["sample"]), batch["label"]


def plain_loop(args, folder: str, coupling: str, options, total: int):
    """Train as a user of torchcfm would, in a plain PyTorch loop; an iterator that makes a step each time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = LowFreqPipeline.from_pretrained(f"{folder}/prepared")
    torch.manual_seed(args.seed)
    model = LowFreqTransformer2DModel.from_config(pipe.transformer.config).train().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        weight_decay=options.adam_weight_decay,
    )
    schedule = get_scheduler(
        options.lr_scheduler, optimizer, num_warmup_steps=options.lr_warmup_steps, num_training_steps=total
    )
    ema = EMAModel(model.parameters(), options.ema_decay, foreach=True)
    matcher, tensors = make_matcher(coupling), load_latents(args, folder, pipe.vae)
    data = torch.utils.data.TensorDataset(*(tensor.to(device) for tensor in tensors))
    while True:
        for x1, y in torch.utils.data.DataLoader(data, args.batch_size, shuffle=True, drop_last=True):
            x0 = torch.randn_like(x1)
            t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
            y = torch.where(torch.rand(len(y), device=device) < options.label_dropout, CLASSES, y)
            loss = F.mse_loss(model(xt, t * 1000, class_labels=y).sample, ut)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            ema.step(model.parameters())
            yield


def against_plain_loop(args, folder: str, coupling: str) -> dict:
    """Measure images per second of the script's loop over those of the plain loop, in blocks in turn."""
    block, steps = args.block, args.block * (args.blocks + 1)
    options = train_lowfreq.parse_args(command_line(args, folder, f"against-{coupling}", steps, args.batch_size))
    plain = plain_loop(args, folder, coupling, options, steps)
    ours, theirs, started = [], [], 0.0
    progress = tqdm(total=args.blocks, desc=f"torchcfm, {coupling}")

    def between_blocks(step):
        nonlocal started
        if step % block:
            return
        if step > block:  # the first block warms both up
            ours.append(now() - started)
        started = now()
        for _ in range(block):
            next(plain)
        if step:
            theirs.append(now() - started)
            progress.update()
        started = now()

    at_every_step(between_blocks)
    train_lowfreq.main(options)
    rate = block * args.batch_size
    return summarize_ratios(theirs[: len(ours)], ours) | {
        "blocks": len(ours),
        "steps_of_a_block": block,
        "images_per_second": round(rate / statistics.median(ours), 1),
        "images_per_second_of_the_plain_loop": round(rate / statistics.median(theirs), 1),
    }


# ------------------------------------------------------------------------------------------- runs in their own processes


def loopback_bytes() -> int | None:
    """Return the bytes that this machine has sent to itself."""
    counters = psutil.net_io_counters(pernic=True).get("lo")
    return counters.bytes_sent if counters else None


def worker(record: str, line: list[str]):
    """Run the script in this process, and write down the time, the traffic and the resident memory at each step."""
    rows, process = [], psutil.Process()
    at_every_step(lambda _: rows.append((now(), loopback_bytes(), process.memory_info().rss)))
    train_lowfreq.main(train_lowfreq.parse_args(line))
    if int(os.environ.get("RANK", 0)) == 0:
        write({"rows": rows}, record)
    sys.stdout.flush()
    os._exit(0)  # or gloo's threads may let go of tensors in an interpreter that is gone, which aborts


def start(processes: int, folder: str, line: list[str], threads: int, name: str = "record") -> tuple:
    """Start the script on so many processes; `finish` waits for it."""
    record = f"{folder}/{name}.json"
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
        launcher += ["--num_machines=1", "--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "1"
    command = [*launcher, __file__, "--worker", record, *line]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE), record


def finish(run: subprocess.Popen, record: str) -> dict:
    """Wait for a run; return what its first process wrote down."""
    _, error = run.communicate()
    if run.returncode:
        raise RuntimeError(f"A run ended with code {run.returncode}: {error.decode()[-2000:]}")
    return read(record)


def step_time(record: dict, warmup: int) -> float:
    """Return the median time of a step."""
    times = [row[0] for row in record["rows"][warmup:]]
    return statistics.median(b - a for a, b in zip(times, times[1:]))


def two_processes(args, folder: str) -> dict:
    """
    Measure images per second of two single-threaded processes over those of one, with the same total batch, launched in turn.

    Two processes that do not talk to each other are measured as well: that is all that the machine allows.
    """
    warmup = min(10, args.steps // 4)
    times = {"one": [], "two": [], "two apart": []}
    for repeat in tqdm(range(args.repeats), desc="two processes"):
        line = partial(command_line, args, folder, steps=args.steps)
        whole, half = args.process_batch_size, args.process_batch_size // 2
        one, two, *apart = (f"{name}-{repeat}" for name in ("one", "two", "first", "second"))  # a folder for each run
        trained = f"{folder}/{two}/transformer"
        one = finish(*start(1, folder, line(output_dir=one, batch_size=whole), 1))
        two = finish(*start(2, folder, line(output_dir=two, batch_size=half), 1))
        apart = [start(1, folder, line(output_dir=name, batch_size=half), 1, name) for name in apart]
        apart = [finish(*run) for run in apart]
        times["one"].append(step_time(one, warmup))
        times["two"].append(step_time(two, warmup))
        times["two apart"].append(statistics.mean(step_time(run, warmup) for run in apart))
    with open(f"{trained}/config.json") as file, torch.device("meta"):
        parameters = LowFreqTransformer2DModel.from_config(json.load(file)).num_parameters()
    rows = two["rows"][warmup:]
    sent = None if rows[0][1] is None else (rows[-1][1] - rows[0][1]) / (len(rows) - 1)
    ratios = {name: [a / b for a, b in zip(times["one"], times[name])] for name in ("two", "two apart")}
    return {
        "ratio": round(statistics.median(ratios["two"]), 3),
        "ratios": [round(ratio, 3) for ratio in ratios["two"]],
        "ratio_of_two_apart": round(statistics.median(ratios["two apart"]), 3),
        "total_batch": args.process_batch_size,
        "steps": args.steps - warmup,
        "step_ms": {name: round(1000 * statistics.median(values), 1) for name, values in times.items()},
        "parameters": parameters,
        "mb_sent_by_each_calculated": round(4 * parameters * 2 * (2 - 1) / 2 / 1e6, 2),
        "mb_sent_by_each_measured": None if sent is None else round(sent / 2 / 1e6, 2),
    }


def checkpoints(args, folder: str) -> dict:
    """
    Measure the share of a run that goes into checkpoints at the script's default interval.

    A checkpoint takes as long as its step takes more than the others, by the medians of steps that are as far from one.
    """
    default = train_lowfreq.parse_args(["--output_dir", "x", "--train_data_dir", "x"]).checkpointing_steps
    every, warmup = max(2, args.steps // 8), min(10, args.steps // 4)
    line = command_line(args, folder, "saves", args.steps, args.batch_size, checkpointing_steps=every)
    times = [row[0] for row in finish(*start(1, folder, line, torch.get_num_threads()))["rows"][warmup:]]
    steps = [b - a for a, b in zip(times, times[1:])]
    *others, longest = sorted(statistics.median(steps[phase::every]) for phase in range(every))
    step = statistics.median(others)
    return {
        "share": round((longest - step) / (default * step), 5),
        "save_ms": round(1000 * (longest - step), 1),
        "saves": len(glob.glob(f"{folder}/saves/checkpoint-*")),
        "step_ms": round(1000 * step, 1),
        "checkpointing_steps": default,
    }


def memory(args, folder: str) -> dict:
    """Measure the resident memory over a long run of a small network, with checkpoints and logs."""
    line = command_line(
        args,
        folder,
        "memory",
        args.memory_steps,
        8,
        transformer_size="2x2x16",
        checkpointing_steps=max(1, args.memory_steps // 10),
        checkpoints_total_limit=2,
        report_to="tensorboard",
    )
    rss = [row[2] / 2**20 for row in finish(*start(1, folder, line, 1))["rows"]]
    tenth = args.memory_steps // 10
    means = [statistics.mean(rss[i * tenth : (i + 1) * tenth]) for i in range(10)]
    return {
        "steps": args.memory_steps,
        "mib_by_tenth_of_the_run": [round(mean, 1) for mean in means],
        "growth_mib_from_the_second_to_the_last_tenth": round(means[-1] - means[1], 2),
    }


# ------------------------------------------------------------------------------------------------------------- table


def table(result: dict) -> str:
    """Write what the training script makes of the time it has."""
    rows, processes, saves, memory = [], result["two_processes"], result["checkpoints"], result["memory"]
    for name, title in COUPLINGS.items():
        found = result[name]
        low, high = found["quartiles"]
        rows.append(
            (
                f"images a second, over a plain loop around torchcfm's matcher, {title}",
                f"**{found['ratio']:.3f}** (quartiles {low:.3f} to {high:.3f} of {found['blocks']} pairs of blocks of "
                f"{found['steps_of_a_block']} steps): {found['images_per_second']:.0f} against "
                f"{found['images_per_second_of_the_plain_loop']:.0f}",
            )
        )
    times = processes["step_ms"]
    rows += [
        (
            f"images a second of two single-threaded processes over one, total batch {processes['total_batch']}",
            f"**{processes['ratio']:.2f}** ({', '.join(f'{r:.2f}' for r in processes['ratios'])}); two that know nothing of each "
            f"other: {processes['ratio_of_two_apart']:.2f}. A step takes {times['one']:.0f}, {times['two']:.0f} and "
            f"{times['two apart']:.0f} ms",
        ),
        (
            f"sent by each of the two in a step, {processes['parameters'] / 1e6:.2f} M parameters",
            f"{processes['mb_sent_by_each_measured']} MB measured, {processes['mb_sent_by_each_calculated']} MB calculated",
        ),
        (
            f"share of a run for a checkpoint every {saves['checkpointing_steps']} steps",
            f"**{saves['share']:.2%}**: {saves['save_ms']:.0f} ms against steps of {saves['step_ms']:.0f} ms",
        ),
        (
            f"growth of the resident memory over {memory['steps']:,} steps, from the second tenth to the last",
            f"**{memory['growth_mib_from_the_second_to_the_last_tenth']:.1f} MiB** of {memory['mib_by_tenth_of_the_run'][-1]:.0f}",
        ),
    ]
    threads = f"{result['threads']} threads where nothing else is said"
    text = (
        f"{measured_by('training_speed', result, threads)} Seed {result['seed']}, "
        f"batch {result['batch_size']}, network {result['transformer_size']}; load before: {result['load_at_start']}. The plain loop "
        "has the same network, batch, optimiser (in the default kernel of torch, where the script asks for the fused one), averages "
        "and clipping."
    )
    return f"{text}\n\n{markdown(['', ''], rows)}"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--vae", default="checkpoints/cifar10-32", help="an autoencoder, or a pipeline with one")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--num_images", type=int, default=4096)
    parser.add_argument("--transformer_size", default="6x3x64")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--process_batch_size", type=int, default=256, help="of all processes together")
    parser.add_argument("--block", type=int, default=10, help="steps of each loop in turn")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=30, help="of each run in a process of its own")
    parser.add_argument("--repeats", type=int, default=4, help="launches of one and of two processes")
    parser.add_argument("--memory_steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--worker"]:
        worker(argv[1], argv[2:])
    args = parse_args(argv)
    result = {"script": "training_speed"} | environment() | {"threads": torch.get_num_threads()}
    result |= {name: getattr(args, name) for name in ("transformer_size", "batch_size", "num_images", "seed")}
    result["load_at_start"] = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        make_noise_images(f"{folder}/images", args.num_images, args.resolution, CLASSES)
        # One step makes the cache, and the pipeline whose network the plain loop trains too
        finish(*start(1, folder, command_line(args, folder, "prepared", 1, args.batch_size), torch.get_num_threads()))
        for coupling in COUPLINGS:  # in a process of its own: the script's loop is timed from inside
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                result[coupling] = process.submit(against_plain_loop, args, folder, coupling).result()
        result["two_processes"] = two_processes(args, folder)
        result["checkpoints"] = checkpoints(args, folder)
        result["memory"] = memory(args, folder)
    write(result, args.output)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
