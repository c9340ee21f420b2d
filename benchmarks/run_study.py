#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Run a study: train every flow and prior that its file names, once each, and grade every pair that it names.

    python benchmarks/run_study.py --study few-steps --tier cpu \
        --train_data cifar10/train.parquet --test_data cifar10/test.parquet

Settings are differences: `benchmarks/tiers.json` holds those of each tier, a study (`benchmarks/studies/NAME.json`) its own
and those of its runs, which can ask for variants of the tier by name. The training is `examples/train_lowfreq.py`, the
grading `benchmarks/evaluate.py`. Networks are shared by all studies of a tier, and what is done is not done again: run the
command once more after an interruption. The results are written to `benchmarks/results/NAME-TIER.json` after every run.
"""

import argparse
import hashlib
import json
import os
import sys
import time

import torch
from evaluate import Extractor, Reference, environment, fingerprint, grade
from evaluate import parse_args as parse_evaluation
from filelock import FileLock
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFreqPipeline, LowFreqTransformer2DModel
from diffusers_lowfreq.training import LatentCache, load_images


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
    os.makedirs(folder, exist_ok=True)
    with FileLock(f"{output}.lock"):  # another study may be training it
        if not os.path.exists(done):
            line = command_line(options | {"train": part, "output_dir": output, "resume_from_checkpoint": "latest"})
            train_lowfreq.main(train_lowfreq.parse_args(line))
    with open(facts, encoding="utf-8") as file:
        return output, json.load(file)


def read_study(name: str, tier: str) -> tuple[dict, dict]:
    """Return a study, and the settings of its tier: those of all studies with its own over them."""
    with open(os.path.join(ROOT, "benchmarks/tiers.json"), encoding="utf-8") as file:
        tiers = json.load(file)
    with open(os.path.join(ROOT, "benchmarks/studies", f"{name}.json"), encoding="utf-8") as file:
        study = json.load(file)
    if tier not in tiers:
        raise ValueError(f"`tier` must be among {list(tiers)}, got {tier!r}.")
    settings, own = dict(tiers[tier]), study.get("settings", {})
    for key, value in own.items():
        settings[key] = settings[key] | value if isinstance(value, dict) else value
    return study, settings


def run_options(run: dict, tier: dict, part: str) -> dict:
    """Return the options of a run for `train`, `flow`, `prior` or `evaluate`: of the tier, the variants, the run itself."""
    options = dict(tier[part])
    for name in run.get("variants", []):
        options |= tier["variants"][name].get(part, {})
    return options | run.get(part, {})


def check_runs(runs: list[str], study: dict):
    unknown = set(runs) - set(study["runs"])
    if unknown:
        raise ValueError(f"`runs` must be among {list(study['runs'])}, got {sorted(unknown)}.")


def build(run: dict, tier: dict, seed: int, args) -> tuple[LowFreqPipeline, dict]:
    """
    Return the pipeline of a run and the facts of the training of its `flow` and its `prior`.

    A run with a `student` is a teacher; what `student` names of `flow` and `prior` is distilled from it, with the teacher's
    options and those that it gives, and what it does not name stays the teacher's.
    """
    folder = os.path.join(args.work_dir, f"models-{args.tier}")
    common = run_options(run, tier, "train") | {"train_data_dir": args.train_data, "seed": seed}
    common["cache_dir"] = os.path.join(args.work_dir, "cache")
    if "student" in run:
        teacher, facts = build({k: v for k, v in run.items() if k != "student"}, tier, seed, args)
        decided = {*train_lowfreq.FROM_PIPELINE_ONLY, *train_lowfreq.NEW_PRIOR}
        names = [network.config["_name_or_path"] for network in (teacher.transformer, teacher.prior) if network]
        key = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]
        teacher_folder = os.path.join(folder, f"teacher-{key}")
        teacher.save_pretrained(teacher_folder)
        pipe = teacher
        for part, own in run["student"].items():
            options = {k: v for k, v in (common | run_options(run, tier, part)).items() if k not in decided}
            part_folder, part_facts = train(part, options | {"teacher": teacher_folder} | own, folder)
            student = LowFreqPipeline.from_pretrained(part_folder)
            name = "prior" if part == "prior" else "transformer"
            pipe = LowFreqPipeline(
                **pipe.components | {name: getattr(student, name)}, id2label=teacher.config.id2label
            )
            facts[f"student {part}"] = part_facts
        return pipe, facts
    if tier.get("latents"):
        common |= {"pretrained_vae_model_name_or_path": args.vae, "vae_subfolder": "vae"}
    facts, prior = {}, None
    flow = common | run_options(run, tier, "flow")
    flow_folder, facts["flow"] = train("flow", flow, folder)
    if flow["noise_ratio"] < 1:
        prior_folder, facts["prior"] = train("prior", common | run_options(run, tier, "prior"), folder)
        prior = LowFreqTransformer2DModel.from_pretrained(prior_folder, subfolder="prior", use_safetensors=True)
    pipe = LowFreqPipeline.from_pretrained(flow_folder)
    pipe = LowFreqPipeline(pipe.transformer, pipe.scheduler, pipe.vae, prior, id2label=pipe.config.id2label)
    return pipe, facts


def write(result: dict, path: str):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    os.replace(path + ".new", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", required=True, help="name of a file in benchmarks/studies")
    parser.add_argument("--tier", required=True, help="a key of benchmarks/tiers.json")
    parser.add_argument("--train_data", required=True)
    parser.add_argument("--test_data", required=True)
    parser.add_argument(
        "--graders_dir", default=os.path.join(ROOT, "checkpoints/graders"), help="where the graders of a tier lie"
    )
    parser.add_argument(
        "--vae", default=os.path.join(ROOT, "checkpoints/cifar10-32"), help="of the studies in latents"
    )
    parser.add_argument("--work_dir", default="out/studies")
    parser.add_argument("--output", help="by default benchmarks/results/STUDY-TIER.json")
    parser.add_argument("--runs", nargs="+", help="only these runs")
    args = parser.parse_args()

    study, tier = read_study(args.study, args.tier)
    check_runs(args.runs or [], study)
    path = args.output or os.path.join(ROOT, "benchmarks/results", f"{args.study}-{args.tier}.json")
    evaluation = {"pipeline": "-", "data": args.test_data, "split": tier["split"], "output": path}
    evaluation |= {
        "grader": [os.path.join(args.graders_dir, name) for name in tier["graders"][: tier["num_graders"]]]
    } | tier["evaluate"]
    defaults = parse_evaluation(command_line(evaluation))
    extractors = [Extractor(grader, defaults.grader_resolution).to(defaults.device) for grader in defaults.grader]
    cache_dir, resolution = os.path.join(args.work_dir, "cache"), tier["train"]["resolution"]
    reference = Reference(args.test_data, tier["split"], resolution, extractors, cache_dir, defaults.num_images)
    label_column = "label" if tier["train"]["conditional"] else None
    images = load_images(train_data_dir=args.train_data, resolution=resolution, label_column=label_column)
    train_cache = LatentCache.build(images, None, cache_dir, progress=tqdm)
    header = {"study": args.study, "question": study["question"], "tier": args.tier, "settings": tier}
    header |= reference.facts | {"train_images": len(train_cache), "train_fingerprint": fingerprint(train_cache)}
    header |= environment(defaults) | {"threads": torch.get_num_threads()}
    if evaluation.get("spectrum"):
        header["spectrum"] = reference.spectrum
    header |= {"sweep": study["sweep"]} if "sweep" in study else {}
    result = header | {"runs": []}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        same = ("settings", "graders", "num_reference", "reference_fingerprint", "train_fingerprint")
        for key in (*same, "machine", "torch", "diffusers"):
            if before[key] != json.loads(json.dumps(header[key])):
                raise ValueError(
                    f"`output` {path!r} holds results of another configuration (`{key}`); nothing is overwritten."
                )
        result["runs"] = before["runs"]
        if any(before.get(key) != study.get(key) for key in ("question", "sweep")):
            write(result, path)  # only what it is called has changed
    todo = [(seed, run) for seed in tier["seeds"] for run in args.runs or study["runs"]]
    for seed, run in tqdm(todo, desc=args.study):
        options = study["runs"][run]
        entry = {"run": run, "seed": seed, "options": options}
        old = [r for r in result["runs"] if (r["run"], r["seed"]) == (run, seed)]
        if old and old[0]["options"] != options:
            raise ValueError(f"`output` {path!r} holds run {run!r} of another configuration; nothing is overwritten.")
        if old:
            continue
        pipe, facts = build(options, tier, seed, args)
        entry |= facts
        started = time.monotonic()
        line = command_line(evaluation | run_options(options, tier, "evaluate") | {"seed": seed})
        entry |= grade(pipe.to(defaults.device), reference, parse_evaluation(line))
        entry["grading_minutes"] = round((time.monotonic() - started) / 60, 2)
        result["runs"].append(entry)
        write(result, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
