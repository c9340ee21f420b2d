# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: what they hold, how they are written, and which run may resume from them."""

import argparse
import glob
import json
import os
import pickle
import re
import shutil

import torch
from accelerate.utils import load
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.training_utils import EMAModel

from .engines import check_sharded_checkpoint, engine, weights_only
from .schedule import decay_start


ARGUMENTS = "training_args.json"
SCHEDULE = "lr_scheduler.json"


# -------------------------------------------------------------------------------------------------- what a checkpoint holds


def register_model_hooks(accelerator, model, ema, name: str):
    """
    Have `accelerator.save_state` write `<name>/` and `<name>_ema/` as ordinary model folders, and `load_state` read them.

    Of a model with a LoRA, only the LoRA is trained and saved. An engine that shards the weights saves them itself, and FSDP2
    the averages too.

    Args:
        accelerator (`Accelerator`):
            The accelerator that has prepared the model.
        model (`ModelMixin`):
            The bare model.
        ema (`EMAModel`, *optional*):
            Its averages.
        name (`str`):
            The component's name in the pipeline.
    """
    is_lora = bool(getattr(model, "peft_config", None))
    is_sharded_by = engine(accelerator)

    def save(models, weights, output_dir):
        folder = os.path.join(output_dir, name)
        if is_sharded_by == "fsdp" and ema is not None:  # on every process
            torch.distributed.checkpoint.save(_sharded(ema), checkpoint_id=f"{folder}_ema")
        if accelerator.is_main_process:
            if is_sharded_by == "data_parallel" and is_lora:
                from peft import get_peft_model_state_dict

                os.makedirs(folder)
                save_file(get_peft_model_state_dict(model), os.path.join(folder, LORA_WEIGHT_NAME_SAFE))
            elif is_sharded_by == "data_parallel":
                model.save_pretrained(folder)
            if ema is not None and is_lora:  # diffusers makes no model of the averages of a LoRA
                save_ema_state(ema, f"{folder}_ema.safetensors")
            elif ema is not None and is_sharded_by != "fsdp":
                ema.save_pretrained(f"{folder}_ema")
        weights.clear()  # or accelerate would write the weights once more

    def load(models, input_dir):
        models.clear()
        folder = os.path.join(input_dir, name)
        if is_sharded_by == "data_parallel" and is_lora:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(model, load_file(os.path.join(folder, LORA_WEIGHT_NAME_SAFE)))
        elif is_sharded_by == "data_parallel":
            saved = type(model).from_pretrained(input_dir, subfolder=name, use_safetensors=True)
            model.load_state_dict(saved.state_dict())
        if ema is not None:
            _load_averages(ema, folder, is_sharded_by, is_lora)
            ema.to(accelerator.device)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _load_averages(ema: EMAModel, folder: str, is_sharded_by: str, is_lora: bool):
    if is_sharded_by == "fsdp":
        saved = _sharded(ema)
        torch.distributed.checkpoint.load(saved, checkpoint_id=f"{folder}_ema")
        ema.optimization_step = saved["optimization_step"]
    elif is_lora:
        ema.load_state_dict(load_ema_state(f"{folder}_ema.safetensors"))
    else:
        saved = ema.from_pretrained(f"{folder}_ema", ema.model_cls, foreach=ema.foreach)
        ema.load_state_dict(saved.state_dict())


def _sharded(ema: EMAModel) -> dict:
    return {"averages": dict(enumerate(ema.shadow_params)), "optimization_step": ema.optimization_step}


def save_ema_state(ema: EMAModel, path: str):
    """Save averages that are not a whole model: the tensors in their order, settings and step count as metadata."""
    state = ema.state_dict()
    averages = {f"{i:06d}": value.contiguous() for i, value in enumerate(state.pop("shadow_params"))}
    save_file(averages, path, metadata={"ema": json.dumps(state)})


def load_ema_state(path: str) -> dict:
    """Read what `save_ema_state` wrote, as `EMAModel.load_state_dict` takes it."""
    with safe_open(path, framework="pt") as file:
        averages = [file.get_tensor(name) for name in sorted(file.keys())]
        return json.loads(file.metadata()["ema"]) | {"shadow_params": averages}


def register_schedule(accelerator, lr_scheduler):
    """
    Have `accelerator.save_state` write the schedule of the learning rate as JSON, and `load_state` read it.

    (`register_for_checkpointing` would unpickle anything.)
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


# ----------------------------------------------------------------------------------------------------------------- saving


def _checkpoints(output_dir: str, prefix: str) -> list[str]:
    pattern = re.compile(rf"{re.escape(prefix)}checkpoint-(\d+)")
    found = [name for name in os.listdir(output_dir) if pattern.fullmatch(name)] if os.path.isdir(output_dir) else []
    return sorted(found, key=lambda name: int(name.rsplit("-", 1)[1]))


def _fixed_settings(accelerator, args: argparse.Namespace, global_batch_size: int) -> dict:
    """What a resume must not change: the options that are not free, the size of the global batch, and the engine."""
    values = {k: v for k, v in vars(args).items() if k not in getattr(args, "free", ())}
    return json.loads(json.dumps(values | {"global_batch_size": global_batch_size, "engine": engine(accelerator)}))


def save_checkpoint(accelerator, args: argparse.Namespace, step: int, global_batch_size: int, prefix: str = "") -> str:
    """
    Save the state of a run as `<output_dir>/<prefix>checkpoint-<step>`, on every process, and prune old ones.

    The folder is written under a temporary name and renamed once it is complete, so a kill never leaves a broken `latest`.

    Raises:
        OSError: If it cannot be written, for example on a full disk. The partial folder is removed, and earlier checkpoints
            stay complete.
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
                json.dump(_fixed_settings(accelerator, args, global_batch_size), file, indent=1)
            _flush(temporary)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
    except (CheckpointException, OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        complete = _checkpoints(args.output_dir, prefix)
        last = f"{complete[-1]} in {args.output_dir!r} is whole: go on from it" if complete else None
        raise OSError(
            f"The checkpoint of step {step} cannot be written ({error}). Is the disk full? "
            f"{last or 'there is none before it'}."
        ) from error
    if accelerator.is_main_process and args.checkpoints_total_limit is not None:
        for name in _checkpoints(args.output_dir, prefix)[: -args.checkpoints_total_limit]:
            shutil.rmtree(os.path.join(args.output_dir, name))
    accelerator.wait_for_everyone()
    return path


def _flush(folder: str):
    """Write a folder's files through to the disk: without it, a power failure after the renaming might lose them."""
    for path, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(path, name), "rb") as file:
                os.fsync(file.fileno())


# ----------------------------------------------------------------------------------------------------------------- resume


def resume_checkpoint(accelerator, args: argparse.Namespace, global_batch_size: int, prefix: str = "") -> int:
    """
    Load the state named by `args.resume_from_checkpoint` (a folder, or `latest`) and return its step.

    With `latest` and no checkpoint yet the run starts at step 0. The options must be those of the checkpoint, except the free
    ones (see [`Options`]). An option that the checkpoint does not know must have its default.

    Raises:
        ValueError: If the folder is not a local checkpoint, is damaged, would run code when it is loaded, or comes from a run
            with another configuration or engine.
    """
    path = _find_checkpoint(args.resume_from_checkpoint.rstrip("/"), args.output_dir, prefix)
    if path is None:
        return 0
    step = int(path.rsplit("-", 1)[1])
    _refuse_other_settings(path, step, prefix, _fixed_settings(accelerator, args, global_batch_size), args)
    check_sharded_checkpoint(path)
    try:
        with weights_only(accelerator):
            for states in glob.glob(os.path.join(glob.escape(path), "random_states_*.pkl")):
                load(states)  # accelerate goes on without states that it cannot read
            accelerator.load_state(path)
    except (pickle.UnpicklingError, CheckpointException) as error:
        raise ValueError(
            f"`resume_from_checkpoint` {path!r} is damaged, or holds more than tensors and numbers: {error}"
        ) from error
    accelerator.step = 0  # it counts micro-steps, and a step may now have another number of them
    return step


def _find_checkpoint(path: str, output_dir: str, prefix: str) -> str | None:
    """Find the checkpoint of the network with this prefix; `None` if there is none yet."""
    latest_in = None
    if path == "latest":
        latest_in = output_dir
    elif not os.path.isdir(path):
        raise ValueError(
            f"`resume_from_checkpoint` must be `latest` or a local folder `checkpoint-<step>`, got {path!r}."
        )
    elif not re.fullmatch(r"(prior-)?checkpoint-\d+", os.path.basename(path)):
        raise ValueError(f"`resume_from_checkpoint` must be `latest` or a folder `checkpoint-<step>`, got {path!r}.")
    elif not re.fullmatch(rf"{re.escape(prefix)}checkpoint-\d+", os.path.basename(path)):
        latest_in = os.path.dirname(path)  # it belongs to the other network of the run
    if latest_in is None:
        return path
    names = _checkpoints(latest_in, prefix)
    return os.path.join(latest_in, names[-1]) if names else None


def _refuse_other_settings(path: str, step: int, prefix: str, current: dict, args: argparse.Namespace):
    """Refuse a checkpoint of other settings than `current`. What it does not know counts as the default."""
    try:
        with open(os.path.join(path, ARGUMENTS), encoding="utf-8") as file:
            saved = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"`resume_from_checkpoint` {path!r} is not a whole checkpoint: {error}") from error
    defaults = json.loads(json.dumps({k: v for k, v in getattr(args, "defaults", {}).items() if k in current}))
    saved = defaults | saved
    if current.get("lr_scheduler") == saved.get("lr_scheduler") == "warmup_stable_decay":
        name = f"{prefix.replace('-', '_')}max_train_steps"
        if step <= min(decay_start(settings[name]) for settings in (saved, current)):  # while the rate is constant
            current = current | {k: saved.get(k, current[k]) for k in current if k.endswith("max_train_steps")}
    changed = [
        f"{k}: {saved.get(k)!r} -> {current.get(k)!r}"
        for k in sorted(saved | current)
        if saved.get(k) != current.get(k)
    ]
    if changed:
        raise ValueError(
            f"`resume_from_checkpoint` {path!r} comes from another configuration ({'; '.join(changed)}). Use the same "
            "arguments, or another `output_dir`."
        )
