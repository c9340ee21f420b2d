# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: what they hold, how they are written, and how a run is resumed from them."""

import argparse
import glob
import json
import os
import pickle
import shutil
from dataclasses import asdict

import torch
from accelerate.utils import load
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.training_utils import EMAModel
from diffusers.utils import logging

from .engines import check_sharded_checkpoint, engine, weights_only
from .resume import (
    ARGUMENTS,
    RunIdentity,
    find_checkpoint,
    fixed_settings,
    list_checkpoints,
    read_settings,
    refuse_other_images,
    refuse_other_settings,
    run_of,
    step_of,
)


logger = logging.get_logger(__name__)

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


def save_checkpoint(
    accelerator,
    args: argparse.Namespace,
    step: int,
    global_batch_size: int,
    prefix: str = "",
    identity: RunIdentity | None = None,
) -> str:
    """
    Save the state of a run as `<output_dir>/<prefix>checkpoint-<step>`, on every process, and prune old ones.

    The folder is written under a temporary name and renamed once it is complete, so a kill never leaves a broken `latest`. Only
    earlier checkpoints of the same run are pruned.

    Args:
        accelerator (`Accelerator`):
            The accelerator of the run.
        args ([`Options`]):
            The options of the script.
        step (`int`), global_batch_size (`int`):
            The step, and the size of its batch over all processes and accumulation steps.
        prefix (`str`, defaults to `""`):
            What the names of the checkpoints begin with.
        identity ([`RunIdentity`], *optional*):
            The run. Omitted: checkpoints with the same settings are of this run.

    Raises:
        OSError: If it cannot be written, for example on a full disk. The partial folder is removed, and earlier checkpoints
            stay complete.
        ValueError: If another run has written a checkpoint of that name meanwhile.
    """
    name = f"{prefix}checkpoint-{step}"
    path, temporary = (os.path.join(args.output_dir, n) for n in (name, f".{name}.tmp"))
    if identity is not None and run_of(path, args) not in (identity.run, None):
        raise ValueError(
            f"`output_dir` {args.output_dir!r} holds {name} of another run, and it is kept. Go on in another `output_dir`."
        )
    try:
        if accelerator.is_main_process:
            left = os.path.join(glob.escape(args.output_dir), f".{prefix}checkpoint-*.old")  # by a kill while pruning
            for folder in [temporary, *glob.glob(left)]:
                shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(temporary)
        accelerator.wait_for_everyone()
        accelerator.save_state(temporary)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            settings = fixed_settings(accelerator, args, global_batch_size)
            with open(os.path.join(temporary, ARGUMENTS), "w", encoding="utf-8") as file:
                json.dump(settings | (asdict(identity) if identity is not None else {}), file, indent=1)
            _flush(temporary)
            _remove(path)
            os.replace(temporary, path)
    except (CheckpointException, OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        complete = list_checkpoints(args.output_dir, prefix)
        last = f"{complete[-1]} in {args.output_dir!r} is whole: go on from it" if complete else None
        raise OSError(
            f"The checkpoint of step {step} cannot be written ({error}). Is the disk full? "
            f"{last or 'there is none before it'}."
        ) from error
    if accelerator.is_main_process and args.checkpoints_total_limit is not None:
        _prune(args, step, prefix)
    accelerator.wait_for_everyone()
    return path


def _flush(folder: str):
    """Write a folder's files through to the disk: without it, a power failure after the renaming might lose them."""
    for path, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(path, name), "r+b") as file:  # Windows flushes only what may be written
                os.fsync(file.fileno())


def _prune(args: argparse.Namespace, step: int, prefix: str):
    """Remove the oldest checkpoints of the run that has just saved step `step`. Later ones, and other runs, are left alone."""
    paths = [os.path.join(args.output_dir, name) for name in list_checkpoints(args.output_dir, prefix)]
    run = run_of(os.path.join(args.output_dir, f"{prefix}checkpoint-{step}"), args)
    own = [path for path in paths if step_of(path) <= step and run_of(path, args) == run]
    for path in own[: -args.checkpoints_total_limit]:
        try:
            _remove(path)
        except OSError as error:  # Windows removes no file that is open, and a network file system may not either
            logger.warning(f"The old checkpoint {path!r} cannot be removed: {error}")


def _remove(path: str):
    """Remove a checkpoint, if it is there. It is renamed first, so a kill leaves no part of it under its name."""
    if not os.path.isdir(path):
        return
    hidden = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------- resume


def resume_checkpoint(
    accelerator,
    args: argparse.Namespace,
    global_batch_size: int,
    prefix: str = "",
    identity: RunIdentity | None = None,
) -> int:
    """
    Load the state named by `args.resume_from_checkpoint` (a folder, or `latest`) and return its step.

    With `latest` and no checkpoint yet the run starts at step 0. The options must be those of the checkpoint, except the free
    ones (see [`Options`]), and so must the images. An option that the checkpoint does not know must have its default.

    Args:
        accelerator (`Accelerator`):
            The accelerator of the run.
        args ([`Options`]):
            The options of the script.
        global_batch_size (`int`):
            The size of a batch over all processes and accumulation steps.
        prefix (`str`, defaults to `""`):
            What the names of the checkpoints begin with.
        identity ([`RunIdentity`], *optional*):
            The run; it becomes that of the checkpoint.

    Raises:
        ValueError: If the folder is not a local checkpoint, is damaged, would run code when it is loaded, or comes from a run
            with another configuration or engine, or on other images.
    """
    path = find_checkpoint(args.resume_from_checkpoint, args.output_dir, prefix)
    if path is None:
        return 0
    saved, images = read_settings(path), identity.images if identity is not None else None
    refuse_other_images(path, saved, images)
    refuse_other_settings(path, saved, prefix, fixed_settings(accelerator, args, global_batch_size), images, args)
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
    if identity is not None:
        identity.run = run_of(path, args)
        later = [name for name in list_checkpoints(args.output_dir, prefix) if step_of(name) > step_of(path)]
        if later and accelerator.is_main_process:
            logger.warning(
                f"`output_dir` {args.output_dir!r} holds later checkpoints of this run ({', '.join(later[:3])}). Each is kept until "
                "its step is saved again; until then `latest` means the last of them."
            )
    return step_of(path)
