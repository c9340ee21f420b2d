#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure how fast `examples/train_lowfreq.py` trains, as ratios in one run.

    python benchmarks/training_speed.py --output benchmarks/results/training-speed.json

The loop is the script's own. It is timed from inside its sampler: between two blocks of its steps a block of steps of a plain
PyTorch loop around a matcher of torchcfm (`pip install --no-deps torchcfm POT`) runs, with the same kind of network, batch,
optimiser, averages and clipping, on the same latents. The images are noise: what they show does not matter to the time.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from tqdm.auto import tqdm

from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers_lowfreq import LowFreqTransformer2DModel
from diffusers_lowfreq.training import machine_kind


ROOT = Path(__file__).parents[1]
CLASSES = 10


def load_script():
    spec = importlib.util.spec_from_file_location("train_lowfreq", ROOT / "examples" / "train_lowfreq.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def make_images(folder: str, number: int, resolution: int):
    random = np.random.default_rng(0)
    for i in range(number):
        os.makedirs(f"{folder}/{i % CLASSES}", exist_ok=True)
        pixels = random.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{folder}/{i % CLASSES}/{i:05d}.png")


def command_line(args, folder: str, output_dir: str, steps: int, batch_size: int, **options) -> list[str]:
    """What trains the flow of the shipped configuration on the images, with nothing on the way but the steps."""
    options = {"transformer_size": args.transformer_size, "checkpointing_steps": steps} | options
    options |= {"train_data_dir": f"{folder}/images", "output_dir": f"{folder}/{output_dir}", "train": "flow"}
    options |= {"cache_dir": f"{folder}/cache", "max_train_steps": steps, "train_batch_size": batch_size}
    options |= {"validation_steps": 10 * steps, "num_validation_images": 1, "seed": args.seed}
    if args.vae is not None:
        options |= {"pretrained_vae_model_name_or_path": os.path.abspath(args.vae), "factor": 2}
        options |= {"vae_subfolder": "vae"} if os.path.isdir(os.path.join(args.vae, "vae")) else {}
    line = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return [*line, "--resolution", str(args.resolution)]


def at_every_step(script, action):
    """Have the script's loop call `action(step)` whenever it asks for a batch."""
    batches = script.KeyedBatchSampler.__iter__

    def watched(self):
        for step, batch in enumerate(batches(self)):
            action(step)
            yield batch

    script.KeyedBatchSampler.__iter__ = watched
    return batches


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# ----------------------------------------------------------------------------------------------- against a plain loop


def plain_loop(script, matcher, model, samples, labels, batch_size, args, total):
    """A plain PyTorch loop of a user of torchcfm, as an iterator that makes a step each time."""
    device = samples.device
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
    )
    schedule = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=total
    )
    ema = EMAModel(model.parameters(), args.ema_decay, foreach=True)
    data = torch.utils.data.TensorDataset(samples, labels)
    while True:
        for x1, y in torch.utils.data.DataLoader(data, batch_size, shuffle=True, drop_last=True):
            x0 = torch.randn_like(x1)
            t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
            y = torch.where(torch.rand(len(y), device=device) < args.label_dropout, CLASSES, y)
            loss = F.mse_loss(model(xt, t * 1000, class_labels=y).sample, ut)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            ema.step(model.parameters())
            yield


def against_plain_loop(args, folder: str, matcher, title: str) -> dict:
    """Images per second of the script's loop over those of the plain loop, in blocks in turn."""
    script, block, blocks = load_script(), args.block, args.blocks
    steps = block * (blocks + 1)
    line = command_line(args, folder, "plain", steps, args.batch_size)
    parsed = script.parse_args(line)
    ours, theirs, plain, mark = [], [], None, 0.0
    progress = tqdm(total=blocks, desc=title)

    def action(step):
        nonlocal plain, mark
        if step % block:
            return
        if plain is None:  # the script has made its cache and its network by now
            pipeline, cache = built
            config = {k: v for k, v in pipeline.transformer.config.items() if not k.startswith("_")}
            torch.manual_seed(args.seed)
            model = LowFreqTransformer2DModel.from_config(config).train().to(pipeline.transformer.device)
            items = [(i, False) for i in range(len(cache))]
            parts = list(zip(*script.samples(cache, items, pipeline.vae)))
            samples, labels = (torch.cat(part).to(model.device) for part in parts)
            plain = plain_loop(script, matcher, model, samples, labels, args.batch_size, parsed, steps)
        elif step > block:  # the first block warms both up
            ours.append(now() - mark)
        started = now()
        for _ in range(block):
            next(plain)
        if step >= block:
            theirs.append(now() - started)
            progress.update()
        mark = now()

    build, built = script.build_pipeline, []

    def build_pipeline(*arguments):
        found = build(*arguments)
        built[:] = found[:2]
        return found

    script.build_pipeline = build_pipeline
    original = at_every_step(script, action)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    random_state = torch.get_rng_state()
    script.main(parsed)
    torch.set_rng_state(random_state)
    script.KeyedBatchSampler.__iter__ = original
    rate = block * args.batch_size
    ratios = [b / a for a, b in zip(ours, theirs)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(quartiles[1], 4),
        "quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "blocks": len(ratios),
        "steps_of_a_block": block,
        "images_per_second": round(rate / statistics.median(ours), 1),
        "images_per_second_of_the_plain_loop": round(rate / statistics.median(theirs), 1),
    }


# ------------------------------------------------------------------------------------------- runs in their own processes


def loopback_bytes() -> int | None:
    """Bytes that this machine has sent to itself."""
    counters = psutil.net_io_counters(pernic=True).get("lo")
    return counters.bytes_sent if counters else None


def worker(record: str, line: list[str]):
    """Run the script in this process, and write down the time, the traffic and the resident memory at each step."""
    script, rows, process = load_script(), [], psutil.Process()
    at_every_step(script, lambda _: rows.append((now(), loopback_bytes(), process.memory_info().rss)))
    save, saves = script.save_checkpoint, []

    def save_checkpoint(*arguments):
        started = now()
        path = save(*arguments)
        saves.append(now() - started)
        return path

    script.save_checkpoint = save_checkpoint
    script.main(script.parse_args(line))
    if int(os.environ.get("RANK", 0)) == 0:
        with open(record, "w") as file:
            json.dump({"rows": rows, "saves": saves}, file)
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
    """What the first process of a run wrote down."""
    _, error = run.communicate()
    if run.returncode:
        raise RuntimeError(f"A run ended with code {run.returncode}: {error.decode()[-2000:]}")
    with open(record) as file:
        return json.load(file)


def step_time(record: dict, warmup: int) -> float:
    times = [row[0] for row in record["rows"][warmup:]]
    return statistics.median(b - a for a, b in zip(times, times[1:]))


def two_processes(args, folder: str) -> dict:
    """
    Images per second of two single-threaded processes over those of one, same total batch, launched in turn.

    And those of two that know nothing of each other, which is all that the machine allows.
    """
    warmup = min(10, args.steps // 4)
    times = {"one": [], "two": [], "two apart": []}
    for _ in tqdm(range(args.repeats), desc="two processes"):
        line = partial(command_line, args, folder, steps=args.steps)
        whole, half = args.process_batch_size, args.process_batch_size // 2
        one = finish(*start(1, folder, line(output_dir="one", batch_size=whole), 1))
        two = finish(*start(2, folder, line(output_dir="two", batch_size=half), 1))
        apart = [start(1, folder, line(output_dir=name, batch_size=half), 1, name) for name in ("first", "second")]
        apart = [finish(*run) for run in apart]
        times["one"].append(step_time(one, warmup))
        times["two"].append(step_time(two, warmup))
        times["two apart"].append(statistics.mean(step_time(run, warmup) for run in apart))
    with open(f"{folder}/two/transformer/config.json") as file, torch.device("meta"):
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
    """The share of a run that goes into saving checkpoints at the script's default interval."""
    parser_default = load_script().parse_args(["--output_dir", "x", "--train_data_dir", "x"]).checkpointing_steps
    line = command_line(
        args, folder, "saves", args.steps, args.batch_size, checkpointing_steps=max(1, args.steps // 8)
    )
    run = finish(*start(1, folder, line, torch.get_num_threads()))
    save, step = statistics.median(run["saves"]), step_time(run, min(10, args.steps // 4))
    return {
        "share": round(save / (parser_default * step), 5),
        "save_ms": round(1000 * save, 1),
        "saves": len(run["saves"]),
        "step_ms": round(1000 * step, 1),
        "checkpointing_steps": parser_default,
    }


def memory(args, folder: str) -> dict:
    """Resident memory over a long run of a small network, checkpoints and logs included."""
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


def main():
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3:])
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
    args = parser.parse_args()
    result = {"machine": machine_kind(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result |= {k: getattr(args, k) for k in ("transformer_size", "batch_size", "num_images", "seed")}
    result["load_at_start"] = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        make_images(f"{folder}/images", args.num_images, args.resolution)
        for name, matcher in (
            ("independent", ConditionalFlowMatcher(sigma=0.0)),
            ("minibatch_ot", ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)),
        ):
            result[name] = against_plain_loop(args, folder, matcher, f"torchcfm, {name}")
        result["two_processes"] = two_processes(args, folder)
        result["checkpoints"] = checkpoints(args, folder)
        result["memory"] = memory(args, folder)
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    with open(args.output, "w") as file:
        json.dump(result, file, indent=1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
