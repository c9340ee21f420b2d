#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Run a study: train every flow and prior that its file names, once each, and grade every pair that it names.

    python benchmarks/run_study.py --study few-steps --tier cpu \
        --train_data cifar10/train.parquet --test_data cifar10/test.parquet

A study (`benchmarks/studies/NAME.json`) is settings as differences: those of its tier, then those of the run; the training
is `examples/train_lowfreq.py`, the grading `benchmarks/evaluate.py`. What is done is not done again: run the command once
more after an interruption. The results are written to `benchmarks/results/NAME-TIER.json` after every run.
"""

import argparse
import hashlib
import json
import os
import sys
import time

import torch
from evaluate import Extractor, Reference, environment, grade
from evaluate import parse_args as parse_evaluation
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFreqPipeline, LowFreqTransformer2DModel


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "examples"))
import train_lowfreq  # noqa: E402


def command_line(options: dict) -> list[str]:
    line = []
    for key, value in options.items():
        if isinstance(value, bool):
            line.append(f"--{key}" if value else f"--no-{key}")
        elif value is not None:
            line += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return line


def train(part: str, options: dict, folder: str) -> tuple[str, dict]:
    """Train a prior or a flow unless that was done, and return its folder and the facts of its training."""
    key = hashlib.sha256(json.dumps([part, options], sort_keys=True).encode()).hexdigest()[:12]
    output = os.path.join(folder, f"{part}-{key}")
    facts = os.path.join(output, "prior-training.json" if part == "prior" else "training.json")
    last = "prior/diffusion_pytorch_model.safetensors" if part == "prior" else "model_index.json"
    done = os.path.join(output, last)
    if not os.path.exists(done):
        line = command_line(options | {"train": part, "output_dir": output, "resume_from_checkpoint": "latest"})
        train_lowfreq.main(train_lowfreq.parse_args(line))
    with open(facts, encoding="utf-8") as file:
        return output, json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", required=True, help="name of a file in benchmarks/studies")
    parser.add_argument("--tier", required=True, choices=["cpu", "gpu"])
    parser.add_argument("--train_data", required=True)
    parser.add_argument("--test_data", required=True)
    parser.add_argument("--grader", default=os.path.join(ROOT, "checkpoints/graders/cifar10-32"))
    parser.add_argument(
        "--vae", default=os.path.join(ROOT, "checkpoints/cifar10-32"), help="of the studies in latents"
    )
    parser.add_argument("--work_dir", default="out/studies")
    parser.add_argument("--output", help="by default benchmarks/results/STUDY-TIER.json")
    parser.add_argument("--runs", nargs="+", help="only these runs")
    args = parser.parse_args()

    with open(os.path.join(ROOT, "benchmarks/studies", f"{args.study}.json"), encoding="utf-8") as file:
        study = json.load(file)
    tier = study["tiers"][args.tier]
    unknown = set(args.runs or []) - set(study["runs"])
    if unknown:
        raise ValueError(f"`runs` must be among {list(study['runs'])}, got {sorted(unknown)}.")
    folder = os.path.join(args.work_dir, f"{args.study}-{args.tier}")
    path = args.output or os.path.join(ROOT, "benchmarks/results", f"{args.study}-{args.tier}.json")
    extractor = Extractor(args.grader, tier["evaluate"].get("grader_resolution"))
    evaluation = {"pipeline": "-", "grader": args.grader, "data": args.test_data, "split": "test", "output": path}
    evaluation |= tier["evaluate"]
    header = {"study": args.study, "question": study["question"], "tier": args.tier, "settings": tier}
    header |= {"extractor": extractor.name} | environment(parse_evaluation(command_line(evaluation)))
    header |= {"threads": torch.get_num_threads(), "runs": []}
    result = header
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        if result["settings"] != tier or result["extractor"] != extractor.name:
            raise ValueError(f"`output` {path!r} holds results of another configuration; nothing is overwritten.")
    cache_dir = os.path.join(args.work_dir, "cache")
    reference = Reference(args.test_data, "test", tier["train"]["resolution"], extractor, cache_dir, 0)
    if evaluation.get("spectrum"):
        header["spectrum"] = reference.spectrum
    todo = [(seed, run) for seed in tier["seeds"] for run in args.runs or study["runs"]]
    for seed, run in tqdm(todo, desc=args.study):
        options = study["runs"][run]
        entry = {"run": run, "seed": seed, "options": options}
        old = [r for r in result["runs"] if (r["run"], r["seed"]) == (run, seed)]
        if old and old[0]["options"] != options:
            raise ValueError(f"`output` {path!r} holds run {run!r} of another configuration; nothing is overwritten.")
        if old:
            continue
        common = tier["train"] | options.get("train", {})
        common |= {"train_data_dir": args.train_data, "cache_dir": cache_dir, "seed": seed}
        if tier.get("latents"):
            common |= {"pretrained_vae_model_name_or_path": args.vae, "vae_subfolder": "vae"}
        flow = common | tier["flow"] | options.get("flow", {})
        flow_folder, entry["flow"] = train("flow", flow, folder)
        prior = None
        if flow["noise_ratio"] < 1:
            prior_folder, entry["prior"] = train("prior", common | tier["prior"] | options.get("prior", {}), folder)
            prior = LowFreqTransformer2DModel.from_pretrained(prior_folder, subfolder="prior", use_safetensors=True)
        pipe = LowFreqPipeline.from_pretrained(flow_folder, prior=prior)
        pipe = LowFreqPipeline(pipe.transformer, pipe.scheduler, pipe.vae, prior, id2label=pipe.config.id2label)
        started = time.monotonic()
        line = command_line(evaluation | options.get("evaluate", {}) | {"seed": seed})
        entry |= grade(pipe, reference, parse_evaluation(line))
        entry["grading_minutes"] = round((time.monotonic() - started) / 60, 2)
        result["runs"].append(entry)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
        os.replace(path + ".new", path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
