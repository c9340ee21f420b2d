# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Command line, checkpoints and resume."""

import argparse
import glob
import json
import os
import pickle
import re
import shutil
import signal
import sys
import threading

import torch
from accelerate.utils import load
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging

from .engines import check_sharded_checkpoint, engine, weights_only


logger = logging.get_logger(__name__)

ARGUMENTS = "training_args.json"
SCHEDULE = "lr_scheduler.json"

# What may differ between a run and its resume without changing the trajectory. How a global batch is split is here
# because every draw is keyed by the position in it; its total size is compared apart.
_FREE = {
    "config",
    "train",
    "output_dir",
    "cache_dir",
    "train_batch_size",
    "prior_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "dataloader_num_workers",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "logging_steps",
    "validation_steps",
    "validation_guidance_scale",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
}


# Those of diffusers that need no table of steps, and one whose length need not be known when a run starts
LR_SCHEDULERS = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
LR_SCHEDULERS += ["warmup_stable_decay"]


def get_lr_scheduler(
    name: str, optimizer: torch.optim.Optimizer, num_warmup_steps: int, num_training_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """
    Make the schedule of the learning rate: one of diffusers', or `"warmup_stable_decay"`.

    The latter rises linearly, stays constant, and falls as `1 - sqrt(share)` over the last tenth of the steps (Hägele et al.
    2024, arXiv 2405.18392). Until the fall begins, a resumed run may change `num_training_steps`.

    Args:
        name (`str`):
            One of `LR_SCHEDULERS`.
        optimizer (`torch.optim.Optimizer`):
            The optimizer.
        num_warmup_steps (`int`), num_training_steps (`int`):
            In optimizer steps.
    """
    if name != "warmup_stable_decay":
        return get_scheduler(name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps)
    start = decay_start(num_training_steps)

    def factor(step):
        share = (step - start) / max(num_training_steps - start, 1)
        return min((step + 1) / (num_warmup_steps + 1), 1 - min(max(share, 0.0), 1.0) ** 0.5)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def decay_start(num_training_steps: int) -> int:
    """Return the step at which `"warmup_stable_decay"` begins to fall."""
    return num_training_steps - num_training_steps // 10


# What the numbers of the training scripts may be beside finite, by name
_NOT_NEGATIVE = {
    "learning_rate",
    "prior_learning_rate",
    "lr_warmup_steps",
    "adam_weight_decay",
    "adam_epsilon",
    "seed",
}
_NOT_NEGATIVE |= {"max_grad_norm", "dataloader_num_workers", "logit_std", "kl_weight", "l1_weight"}
_NOT_NEGATIVE |= {"validation_guidance_scale"}
_BELOW_ONE = {"adam_beta1", "adam_beta2", "ema_decay"}
_LARGEST = dict.fromkeys(("train_batch_size", "prior_train_batch_size", "cache_batch_size", "batch_size"), 2**16)
_LARGEST |= dict.fromkeys(("resolution", "factor", "patch_size", "prior_patch_size", "rank", "lora_alpha"), 2**16)
_LARGEST |= dict.fromkeys(("gradient_accumulation_steps", "num_validation_images", "dataloader_num_workers"), 2**16)
_LARGEST |= dict.fromkeys(("block_out_channels", "latent_channels", "layers_per_block", "max_sequence_length"), 2**16)


def check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """End the program as `parser.error` does at a number that no script can use, such as NaN or a size beyond all memory."""
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            least = 0 if name in _NOT_NEGATIVE | _BELOW_ONE else -(2**63)
            most = _LARGEST.get(name, 2**63 - 1)
            if not least <= number <= most or (name in _BELOW_ONE and number >= 1):
                parser.error(
                    f"argument --{name}: must be a finite number"
                    + (" from 0 on" if least == 0 else "")
                    + (f", at most {most}" if name in _LARGEST else ", below 1" if name in _BELOW_ONE else "")
                    + f", got {number}"
                )


def parse_with_config(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """
    Parse the command line; a `--config` JSON file of overrides goes before it, checked by the same parser.

    Args:
        parser (`argparse.ArgumentParser`):
            A parser with a `--config` argument.
        argv (`list[str]`, *optional*):
            The command line, `sys.argv[1:]` when omitted.
    """
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    path = config.parse_known_args(argv)[0].config
    from_file = []
    if path is not None:
        try:
            with open(path, encoding="utf-8") as file:
                values = json.load(file)
            if not isinstance(values, dict):
                raise ValueError("it must hold one JSON object")
        except (OSError, RecursionError, ValueError) as error:
            parser.error(f"argument --config: cannot read {path!r}: {error}")
        options = {action.dest: action for action in parser._actions if action.dest not in ("config", "help")}
        for key, value in values.items():
            if key not in options:
                parser.error(f"argument --config: unknown key {key!r} in {path!r}")
            if value is None:
                continue
            is_flag, is_list = options[key].nargs == 0, options[key].nargs not in (None, 0)
            if isinstance(value, bool) != is_flag or isinstance(value, list) != is_list or isinstance(value, dict):
                kind = "true or false" if is_flag else "a list" if is_list else "a number or a string"
                parser.error(f"argument --config: key {key!r} in {path!r} must be {kind}, got {value!r}")
            if is_list:
                from_file += [f"--{key}", *map(str, value)]
            elif not is_flag:
                from_file.append(f"--{key}={value}")
            elif value or isinstance(options[key], argparse.BooleanOptionalAction):
                from_file.append(f"--{key}" if value else f"--no-{key}")
        # A bad value is reported as coming from the file: checked here without the command line and what it must hold.
        required = [action for action in parser._actions if action.required]
        prog, parser.prog = parser.prog, f"{parser.prog} ({path})"
        for action in required:
            action.required = False
        parser.parse_args(from_file)
        for action in required:
            action.required = True
        parser.prog = prog
    args = parser.parse_args(from_file + (sys.argv[1:] if argv is None else argv))
    check_numbers(parser, args)
    return args


def _comparable(accelerator, args: argparse.Namespace, global_batch_size: int) -> dict:
    values = {k: v for k, v in vars(args).items() if k not in _FREE}
    return json.loads(json.dumps(values | {"global_batch_size": global_batch_size, "engine": engine(accelerator)}))


def _checkpoints(output_dir: str, prefix: str) -> list[str]:
    pattern = re.compile(rf"{re.escape(prefix)}checkpoint-(\d+)")
    found = [name for name in os.listdir(output_dir) if pattern.fullmatch(name)] if os.path.isdir(output_dir) else []
    return sorted(found, key=lambda name: int(name.rsplit("-", 1)[1]))


def save_ema_state(ema: EMAModel, path: str):
    """Save averages that are no whole model: the tensors in their order, the settings and the count as metadata."""
    state = ema.state_dict()
    averages = {f"{i:06d}": value.contiguous() for i, value in enumerate(state.pop("shadow_params"))}
    save_file(averages, path, metadata={"ema": json.dumps(state)})


def load_ema_state(path: str) -> dict:
    """Read what `save_ema_state` wrote, as `EMAModel.load_state_dict` takes it."""
    with safe_open(path, framework="pt") as file:
        averages = [file.get_tensor(name) for name in sorted(file.keys())]
        return json.loads(file.metadata()["ema"]) | {"shadow_params": averages}


def register_model_hooks(accelerator, model, ema, name: str):
    """
    Have `accelerator.save_state` write `<name>/` and `<name>_ema/` as ordinary model folders, and `load_state` read them.

    Of a model with a LoRA only that is trained, and saved. What an engine keeps in parts, the engine saves in parts: the
    weights, and under FSDP2 the averages.

    Args:
        accelerator (`Accelerator`):
            The accelerator that has prepared the model.
        model (`ModelMixin`):
            The bare model.
        ema (`EMAModel`, *optional*):
            Its averaged copy.
        name (`str`):
            The component's name in the pipeline.
    """

    is_lora = bool(getattr(model, "peft_config", None))
    kind = engine(accelerator)

    def save(models, weights, output_dir):
        folder = os.path.join(output_dir, name)
        if kind == "fsdp" and ema is not None:  # on every process
            torch.distributed.checkpoint.save(_sharded(ema), checkpoint_id=f"{folder}_ema")
        if accelerator.is_main_process:
            if kind == "data_parallel" and is_lora:
                from peft import get_peft_model_state_dict

                os.makedirs(folder)
                save_file(get_peft_model_state_dict(model), os.path.join(folder, LORA_WEIGHT_NAME_SAFE))
            elif kind == "data_parallel":
                model.save_pretrained(folder)
            if ema is not None and is_lora:  # the averages of a LoRA, of which diffusers makes no model
                save_ema_state(ema, f"{folder}_ema.safetensors")
            elif ema is not None and kind != "fsdp":
                ema.save_pretrained(f"{folder}_ema")
        weights.clear()  # or accelerate would write them once more

    def load(models, input_dir):
        models.clear()
        folder = os.path.join(input_dir, name)
        if kind == "data_parallel" and is_lora:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(model, load_file(os.path.join(folder, LORA_WEIGHT_NAME_SAFE)))
        elif kind == "data_parallel":
            saved = type(model).from_pretrained(input_dir, subfolder=name, use_safetensors=True)
            model.load_state_dict(saved.state_dict())
        if ema is not None:
            if kind == "fsdp":
                saved = _sharded(ema)
                torch.distributed.checkpoint.load(saved, checkpoint_id=f"{folder}_ema")
                ema.optimization_step = saved["optimization_step"]
            elif is_lora:
                ema.load_state_dict(load_ema_state(f"{folder}_ema.safetensors"))
            else:
                saved = ema.from_pretrained(f"{folder}_ema", ema.model_cls, foreach=ema.foreach)
                ema.load_state_dict(saved.state_dict())
            ema.to(accelerator.device)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def register_schedule(accelerator, lr_scheduler):
    """
    Have `accelerator.save_state` write the schedule of the learning rate as JSON, and `load_state` read it.

    (`register_for_checkpointing` would unpickle whatever the file asks for.)
    """

    def save(models, weights, output_dir):
        if accelerator.is_main_process:
            with open(os.path.join(output_dir, SCHEDULE), "w", encoding="utf-8") as file:
                json.dump(lr_scheduler.state_dict(), file)

    def load(models, input_dir):
        with open(os.path.join(input_dir, SCHEDULE), encoding="utf-8") as file:
            lr_scheduler.load_state_dict(json.load(file))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _sharded(ema: EMAModel) -> dict:
    return {"averages": dict(enumerate(ema.shadow_params)), "optimization_step": ema.optimization_step}


class Termination:
    """
    Notes a SIGTERM, as batch systems send it before they kill, so that a run can save and leave between two steps.

    Args:
        accelerator (`Accelerator`):
            The accelerator of the run.
    """

    EXIT_CODE = 128 + signal.SIGTERM

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.noted = False
        self._before = None
        if threading.current_thread() is threading.main_thread():  # no other may set a handler
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_):
        self.noted = True

    def __call__(self) -> bool:
        """Return whether any process of the run has had the signal; every process must ask at the same step."""
        if self.accelerator.num_processes == 1:
            return self.noted
        noted = torch.tensor(float(self.noted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(noted, "sum"))

    def leave(self, path: str):
        """Exit as a process does that a SIGTERM ends, and say where the run was saved."""
        self.restore()
        self.accelerator.print(f"SIGTERM: {path} is saved; go on with `--resume_from_checkpoint latest`.")
        sys.exit(self.EXIT_CODE)

    def restore(self):
        """Put back what was done at a SIGTERM before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def save_checkpoint(accelerator, args: argparse.Namespace, step: int, global_batch_size: int, prefix: str = "") -> str:
    """
    Save the state of a run as `<output_dir>/<prefix>checkpoint-<step>`, on every rank, and prune old ones.

    The folder is written beside and renamed when it is whole, so a kill never leaves a broken `latest`.

    Raises:
        OSError: If it cannot be written, for example on a full disk. What was written of it is removed; the checkpoints
            before it are whole.
    """
    path = os.path.join(args.output_dir, f"{prefix}checkpoint-{step}")
    temporary = os.path.join(args.output_dir, f".{prefix}checkpoint-{step}.tmp")
    try:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            os.makedirs(temporary)
        accelerator.wait_for_everyone()
        accelerator.save_state(temporary)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with open(os.path.join(temporary, ARGUMENTS), "w", encoding="utf-8") as file:
                json.dump(_comparable(accelerator, args, global_batch_size), file, indent=1)
            # Or a power failure after the renaming might lose what is inside
            for folder, _, files in os.walk(temporary):
                for name in files:
                    with open(os.path.join(folder, name), "rb") as file:
                        os.fsync(file.fileno())
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
    except (CheckpointException, OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        whole = _checkpoints(args.output_dir, prefix)
        last = f"{whole[-1]} in {args.output_dir!r} is whole: go on from it" if whole else "there is none before it"
        raise OSError(
            f"The checkpoint of step {step} cannot be written ({error}). Is the disk full? {last}."
        ) from error
    if accelerator.is_main_process and args.checkpoints_total_limit is not None:
        for name in _checkpoints(args.output_dir, prefix)[: -args.checkpoints_total_limit]:
            shutil.rmtree(os.path.join(args.output_dir, name))
    accelerator.wait_for_everyone()
    return path


def resume_checkpoint(accelerator, args: argparse.Namespace, global_batch_size: int, prefix: str = "") -> int:
    """
    Load the state named by `args.resume_from_checkpoint` (a folder, or `latest`) and return its step.

    With `latest` and no checkpoint yet the run starts at step 0.

    Raises:
        ValueError: If the folder is not a local one or no checkpoint, is damaged or would run something when it is loaded, or
            comes from a run with another configuration or engine.
    """
    path, latest_in = args.resume_from_checkpoint.rstrip("/"), None
    if path == "latest":
        latest_in = args.output_dir
    elif not os.path.isdir(path):
        raise ValueError(
            f"`resume_from_checkpoint` must be `latest` or a local folder `checkpoint-<step>`, got {path!r}."
        )
    elif not re.fullmatch(r"(prior-)?checkpoint-\d+", os.path.basename(path)):
        raise ValueError(f"`resume_from_checkpoint` must be `latest` or a folder `checkpoint-<step>`, got {path!r}.")
    elif not re.fullmatch(rf"{re.escape(prefix)}checkpoint-\d+", os.path.basename(path)):
        latest_in = os.path.dirname(path)  # it is of the other network of the run: take this one's last
    if latest_in is not None:
        names = _checkpoints(latest_in, prefix)
        if not names:
            return 0
        path = os.path.join(latest_in, names[-1])
    try:
        with open(os.path.join(path, ARGUMENTS), encoding="utf-8") as file:
            saved = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"`resume_from_checkpoint` {path!r} is not a whole checkpoint: {error}") from error
    now = _comparable(accelerator, args, global_batch_size)
    if now.get("lr_scheduler") == saved.get("lr_scheduler") == "warmup_stable_decay":
        name, step = f"{prefix.replace('-', '_')}max_train_steps", int(path.rsplit("-", 1)[1])
        if step <= min(
            decay_start(run[name]) for run in (saved, now)
        ):  # as long as the rate is constant, its end is open
            now |= {k: saved.get(k, now[k]) for k in now if k.endswith("max_train_steps")}
    changed = [f"{k}: {saved.get(k)!r} -> {now.get(k)!r}" for k in sorted(saved | now) if saved.get(k) != now.get(k)]
    if changed:
        raise ValueError(
            f"`resume_from_checkpoint` {path!r} comes from another configuration ({'; '.join(changed)}). Use the same "
            "arguments, or another `output_dir`."
        )
    from torch.distributed.checkpoint.api import CheckpointException

    check_sharded_checkpoint(path)
    try:
        with weights_only(accelerator):
            for states in glob.glob(os.path.join(glob.escape(path), "random_states_*.pkl")):
                load(states)  # accelerate goes on without what it cannot read
            accelerator.load_state(path)
    except (pickle.UnpicklingError, CheckpointException) as error:
        raise ValueError(
            f"`resume_from_checkpoint` {path!r} is damaged, or holds more than tensors and numbers: {error}"
        ) from error
    accelerator.step = 0  # it counts micro-steps, of which there may now be another number in a step
    return int(path.rsplit("-", 1)[1])
