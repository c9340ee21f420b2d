# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The example scripts that benchmarks train and draw with, and the command lines that they are given."""

import hashlib
import json
import os
import sys

from filelock import FileLock


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BENCHMARKS = os.path.join(ROOT, "benchmarks")
sys.path.insert(0, os.path.join(ROOT, "examples"))
import finetune_lora  # noqa: E402
import train_lowfreq  # noqa: E402
from demo import picture  # noqa: E402


__all__ = ["BENCHMARKS", "DECIDED", "ROOT", "command_line", "key", "picture", "train", "train_lora", "train_lowfreq"]

# Options of the tiers that the training script refuses beside a pipeline to start from, which has decided them
DECIDED = ("conditional", "transformer_size", "patch_size", "prior_size", "prior_patch_size", "factor", "projection")
DECIDED += ("noise_ratio", "noise_ratio_range", "pretrained_vae_model_name_or_path", "vae_subfolder")


def command_line(options: dict) -> list[str]:
    """Turn options into the arguments of a script."""
    line = []
    for name, value in options.items():
        if isinstance(value, bool):
            line.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            line += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return line


def key(value) -> str:
    """Return a short name for a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def train(part: str, options: dict, folder: str) -> tuple[str, dict]:
    """Train a prior or a flow unless that is done; return its folder and the facts of its training."""
    output = os.path.join(folder, f"{part}-{key([part, options])}")
    facts = os.path.join(output, "prior-training.json" if part == "prior" else "training.json")
    last = "prior/diffusion_pytorch_model.safetensors" if part == "prior" else "model_index.json"
    os.makedirs(folder, exist_ok=True)
    with FileLock(f"{output}.lock"):  # another study may be training it
        if not os.path.exists(os.path.join(output, last)):
            line = command_line(options | {"train": part, "output_dir": output, "resume_from_checkpoint": "latest"})
            train_lowfreq.main(train_lowfreq.parse_args(line))
    with open(facts, encoding="utf-8") as file:
        return output, json.load(file)


def train_lora(stranger: str, options: dict, folder: str) -> str:
    """Fine-tune a LoRA of a stranger's flow unless that is done; return its folder."""
    output = os.path.join(folder, f"lora-{key([stranger, options])}")
    if not os.path.exists(os.path.join(output, "README.md")):
        line = command_line(options | {"pretrained_model_name_or_path": stranger, "output_dir": output})
        finetune_lora.main(finetune_lora.parse_args(line + ["--resume_from_checkpoint", "latest"]))
    return output
