#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Run a study: train every flow and prior that its file names, once each, and grade every pair that it names.

    python benchmarks/run_study.py --study few-steps --tier cpu \
        --train_data cifar10/train.parquet --test_data cifar10/test.parquet

Settings are differences: `benchmarks/tiers.json` holds those of each tier, and a study (`benchmarks/studies/NAME.json`) its own
and those of its runs, which can ask for variants of the tier by name. `examples/train_lowfreq.py` trains,
`benchmarks/evaluate.py` grades. All studies of a tier share their networks, and nothing is done twice: after an interruption
run the command again. The results are written to `benchmarks/results/NAME-TIER.json` after every run.
"""

import argparse
import os
import time

import torch
from evaluate import grade
from evaluate import parse_args as parse_evaluation
from shared.environment import environment
from shared.example_scripts import BENCHMARKS, DECIDED, ROOT, command_line, key, train
from shared.reference import Extractor, Reference, fingerprint
from shared.results import earlier, read, write
from study_figures import figures
from study_tables import table
from tqdm.auto import tqdm

from diffusers_lowfreq import LowFreqPipeline, LowFreqTransformer2DModel
from diffusers_lowfreq.training import LatentCache, load_images


__all__ = ["build", "check_runs", "figures", "main", "read_study", "run_options", "table"]

SAME = ("settings", "graders", "num_reference", "reference_fingerprint", "train_fingerprint")
SAME += ("machine", "torch", "diffusers")  # what a results file must agree on before more runs are added to it


def read_study(name: str, tier: str, folder: str = BENCHMARKS) -> tuple[dict, dict]:
    """Return a study, and the settings of its tier: those of all studies with its own over them."""
    tiers = read(os.path.join(folder, "tiers.json"))
    study = read(os.path.join(folder, "studies", f"{name}.json"))
    if tier not in tiers:
        raise ValueError(f"`tier` must be among {list(tiers)}, got {tier!r}.")
    settings = dict(tiers[tier])
    for group, value in study.get("settings", {}).items():
        settings[group] = settings[group] | value if isinstance(value, dict) else value
    return study, settings


def run_options(run: dict, tier: dict, part: str) -> dict:
    """Return the options of a run for `train`, `flow`, `prior` or `evaluate`: of the tier, the variants, the run itself."""
    options = dict(tier[part])
    for name in run.get("variants", []):
        options |= tier["variants"][name].get(part, {})
    return options | run.get(part, {})


def check_runs(runs: list[str], study: dict):
    """Refuse runs that a study does not have."""
    unknown = set(runs) - set(study["runs"])
    if unknown:
        raise ValueError(f"`runs` must be among {list(study['runs'])}, got {sorted(unknown)}.")


# ------------------------------------------------------------------------------------------------------------- train


def build(run: dict, tier: dict, seed: int, args) -> tuple[LowFreqPipeline, dict]:
    """
    Return the pipeline of a run, and the facts of the training of its `flow` and its `prior`.

    A run with a `student` is a teacher. What `student` names of `flow` and `prior` is distilled from it, with the teacher's
    options and those that `student` gives; what it does not name stays the teacher's.
    """
    folder = os.path.join(args.work_dir, f"models-{args.tier}")
    common = run_options(run, tier, "train") | {"train_data_dir": args.train_data, "seed": seed}
    common["cache_dir"] = os.path.join(args.work_dir, "cache")
    if "student" in run:
        teacher, facts = build({k: v for k, v in run.items() if k != "student"}, tier, seed, args)
        options = {part: common | run_options(run, tier, part) for part in run["student"]}
        return distil(teacher, run["student"], options, facts, folder)
    if tier.get("latents"):
        common |= {"pretrained_vae_model_name_or_path": args.vae, "vae_subfolder": "vae"}
    facts, prior = {}, None
    flow = common | run_options(run, tier, "flow")
    flow_folder, facts["flow"] = train("flow", flow, folder)
    if flow["noise_ratio"] < 1:
        prior_folder, facts["prior"] = train("prior", common | run_options(run, tier, "prior"), folder)
        prior = LowFreqTransformer2DModel.from_pretrained(prior_folder, subfolder="prior", use_safetensors=True)
    pipe = LowFreqPipeline.from_pretrained(flow_folder)
    return LowFreqPipeline(pipe.transformer, pipe.scheduler, pipe.vae, prior, id2label=pipe.config.id2label), facts


def distil(teacher, student: dict, options: dict, facts: dict, folder: str) -> tuple[LowFreqPipeline, dict]:
    """Distil the parts of a teacher that `student` names, with the teacher's `options`; return as `build` does."""
    networks = [network.config["_name_or_path"] for network in (teacher.transformer, teacher.prior) if network]
    teacher_folder = os.path.join(folder, f"teacher-{key(networks)}")
    teacher.save_pretrained(teacher_folder)
    pipe, facts = teacher, dict(facts)
    for part, own in student.items():
        kept = {name: value for name, value in options[part].items() if name not in DECIDED}
        part_folder, facts[f"student {part}"] = train(part, kept | {"teacher": teacher_folder} | own, folder)
        name = "prior" if part == "prior" else "transformer"
        network = getattr(LowFreqPipeline.from_pretrained(part_folder), name)
        pipe = LowFreqPipeline(**pipe.components | {name: network}, id2label=teacher.config.id2label)
    return pipe, facts


# ------------------------------------------------------------------------------------------------------------- grade


def evaluation_options(tier: dict, args, path: str) -> dict:
    """Return the options of `evaluate.py` that all runs of a study share."""
    graders = [os.path.join(args.graders_dir, name) for name in tier["graders"][: tier["num_graders"]]]
    options = {"pipeline": "-", "data": args.test_data, "split": tier["split"], "output": path, "grader": graders}
    return options | tier["evaluate"]


def load_reference(tier: dict, args, options) -> Reference:
    """Load the graders and the test images of a tier."""
    extractors = [Extractor(grader, options.grader_resolution).to(options.device) for grader in options.grader]
    cache_dir = os.path.join(args.work_dir, "cache")
    return Reference(
        args.test_data, tier["split"], tier["train"]["resolution"], extractors, cache_dir, options.num_images
    )


def train_facts(tier: dict, args) -> dict:
    """Return how many training images there are, and their fingerprint."""
    label_column = "label" if tier["train"]["conditional"] else None
    images = load_images(
        train_data_dir=args.train_data, resolution=tier["train"]["resolution"], label_column=label_column
    )
    cache = LatentCache.build(images, None, os.path.join(args.work_dir, "cache"), progress=tqdm)
    return {"train_images": len(cache), "train_fingerprint": fingerprint(cache)}


def begin(header: dict, study: dict, path: str) -> dict:
    """Return the results so far, of the same settings, images and versions."""
    before = earlier(path, header, SAME)
    if before is None:
        return header | {"runs": []}
    result = header | {"runs": before["runs"]}
    if any(before.get(name) != study.get(name) for name in ("question", "sweep")):
        write(result, path)  # only what it is called has changed
    return result


def is_done(result: dict, run: str, seed: int, options: dict, path: str) -> bool:
    """Say whether a run is in the results; refuse one of other options."""
    found = [entry for entry in result["runs"] if (entry["run"], entry["seed"]) == (run, seed)]
    if found and found[0]["options"] != options:
        raise ValueError(f"`output` {path!r} holds run {run!r} of another configuration; nothing is overwritten.")
    return bool(found)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", required=True, help="name of a file in benchmarks/studies")
    parser.add_argument("--tier", required=True, help="a key of benchmarks/tiers.json")
    parser.add_argument("--train_data", required=True)
    parser.add_argument("--test_data", required=True)
    parser.add_argument(
        "--graders_dir", default=os.path.join(ROOT, "checkpoints/graders"), help="the folder of the graders of a tier"
    )
    parser.add_argument(
        "--vae", default=os.path.join(ROOT, "checkpoints/cifar10-32"), help="of the studies in latents"
    )
    parser.add_argument("--work_dir", default="out/studies")
    parser.add_argument("--output", help="by default benchmarks/results/STUDY-TIER.json")
    parser.add_argument("--runs", nargs="+", help="only these runs")
    parser.add_argument("--benchmarks_dir", default=BENCHMARKS, help="the folder of tiers.json, studies/ and results/")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    study, tier = read_study(args.study, args.tier, args.benchmarks_dir)
    check_runs(args.runs or [], study)
    path = args.output or os.path.join(args.benchmarks_dir, "results", f"{args.study}-{args.tier}.json")
    evaluation = evaluation_options(tier, args, path)
    options = parse_evaluation(command_line(evaluation))
    reference = load_reference(tier, args, options)
    header = {"script": "run_study", "study": args.study, "question": study["question"], "tier": args.tier}
    header |= {"settings": tier} | reference.facts | train_facts(tier, args)
    header |= {"num_images": options.num_images, "seed": options.seed} | environment()
    header |= {"threads": torch.get_num_threads()}
    header |= {"spectrum": reference.spectrum} if evaluation.get("spectrum") else {}
    header |= {"sweep": study["sweep"]} if "sweep" in study else {}
    result = begin(header, study, path)
    for seed, run in tqdm([(s, r) for s in tier["seeds"] for r in args.runs or study["runs"]], desc=args.study):
        own = study["runs"][run]
        if is_done(result, run, seed, own, path):
            continue
        pipe, facts = build(own, tier, seed, args)
        started = time.monotonic()
        line = command_line(evaluation | run_options(own, tier, "evaluate") | {"seed": seed})
        graded = grade(pipe.to(options.device), reference, parse_evaluation(line))
        minutes = round((time.monotonic() - started) / 60, 2)
        result["runs"].append(
            {"run": run, "seed": seed, "options": own} | facts | graded | {"grading_minutes": minutes}
        )
        write(result, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
