# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Results of which every value can be worked out by hand, and studies small enough to run here."""

import json
from pathlib import Path

from scripts import make_folder
from shared.example_scripts import command_line


ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def call(script, *arguments, **options):
    """Call the `main` of a script with a command line."""
    script.main([*command_line({name: paths(value) for name, value in options.items()}), *arguments])


def paths(value):
    """Write paths as text, in lists too."""
    if isinstance(value, list):
        return [paths(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def read(path="out.json"):
    return json.loads(Path(path).read_text())


def study_results() -> dict:
    """Two runs with two seeds each."""
    facts = {"FLOPs of a forward pass for one image": "2,000,000", "steps": "1,000", "global batch": 50}
    grading = {"extractor": "tiny-grader", "split": "test", "num_images": 2000, "num_reference": 10000}
    result = {
        "script": "run_study",
        "study": "few",
        "question": "Which?",
        "tier": "cpu",
        "machine": "CPU, 2 cores",
        "torch": "2.13.0",
    }
    result |= {
        "diffusers": "0.42.1",
        "spectrum": [4.0, 2.0, 1.0],
        "extractor": "tiny-grader",
        "graders": {"tiny-grader": {}},
        "runs": [],
    }
    for seed in (0, 1):
        for run in ("plain", "ours"):
            entry = {"run": run, "seed": seed, "options": {}, "flow": facts, "rows": [], "curvature": []}
            if run == "ours":
                entry["prior"] = facts | {"FLOPs of a forward pass for one image": "200,000"}
            kinds = [("generated", 1), ("generated", 2), ("true", None)] if run == "ours" else [(None, None)]
            for coarse, prior_steps in kinds:
                setting = {"coarse": coarse, "prior_steps": prior_steps, "noise_ratio": 0.5, "guidance_scale": 1.0}
                for steps in (1, 2):
                    row = {"steps": steps, "effective_nfe": steps + 0.1 * (prior_steps or 0)}
                    row |= {"frechet_distance": 12 / steps + 0.8 * seed, "kernel_distance": 0.03 / steps}
                    if coarse == "generated":
                        row |= {"coarse_frechet_distance": 0.25, "frechet_distance": row["frechet_distance"] + 1}
                    entry["rows"].append(setting | row | grading | {"spectrum": [4.0, 1.0, 0.25 * steps]})
                bend = {"curvature": 0.02 + 0.01 * seed, "squared_path_length": 0.5, "normalized_curvature": 0.04 + 0.02 * seed}  # fmt: skip
                entry["curvature"].append(setting | bend | {"curvature_images": 250})
            result["runs"].append(entry)
    return result


TIERS = {
    "cpu": {
        "train": {
            "resolution": 16, "conditional": False, "factor": 4, "patch_size": 4, "prior_patch_size": 2,
            "transformer_size": "1x2x8", "prior_size": "1x2x8", "max_train_steps": 2, "prior_max_train_steps": 2,
            "train_batch_size": 4, "prior_train_batch_size": 4, "lr_warmup_steps": 1, "num_validation_images": 2,
        },
        "flow": {"noise_ratio": 0.5},
        "prior": {},
        "split": "test",
        "graders": ["tiny-grader", "not-there"],
        "num_graders": 1,
        "evaluate": {"num_images": 10, "batch_size": 10, "steps": [1], "prior_steps": [1]},
        "seeds": [0],
        "variants": {"long": {"flow": {"max_train_steps": 3}}},
    }
}  # fmt: skip
STUDY = {
    "question": "Which?",
    "settings": {"evaluate": {"spectrum": True}},
    "runs": {"plain": {"variants": ["long"], "flow": {"noise_ratio": 1.0}}, "ours": {}},
}


def write_study(root: Path, study=STUDY, name="tiny") -> Path:
    """Write a study and the tiers into a folder of benchmarks, and images beside it; return that folder."""
    (root / "benchmarks/studies").mkdir(parents=True, exist_ok=True)
    (root / "benchmarks/tiers.json").write_text(json.dumps(TIERS))
    (root / f"benchmarks/studies/{name}.json").write_text(json.dumps(study))
    if not (root / "images").exists():
        make_folder(root / "images")
    return root / "benchmarks"
