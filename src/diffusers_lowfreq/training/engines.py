# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The differences between the engines of accelerate: plain data parallelism, FSDP2 and DeepSpeed ZeRO."""

import importlib.util
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache

import torch
from torch import nn

import diffusers.training_utils
from diffusers.utils import logging


logger = logging.get_logger(__name__)
_warn_once = cache(logger.warning)

PRECISIONS = ["no", "fp16", "bf16"]

# What the index of a sharded checkpoint of torch (`.metadata`) may hold, besides dtypes
_INDEX = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # an environment variable of torch


def engine(accelerator) -> str:
    """Return `"data_parallel"`, `"fsdp"`, `"zero"` (stages 1 and 2) or `"zero3"`."""
    distributed_type = accelerator.distributed_type.name
    if distributed_type == "DEEPSPEED":
        return "zero3" if accelerator.state.deepspeed_plugin.zero_stage == 3 else "zero"
    return "fsdp" if distributed_type == "FSDP" else "data_parallel"


def check_environment(args):
    """
    Refuse variables of accelerate that ask for what the scripts do not support, and name those that the options override.

    (`accelerate launch` sets such variables, and so may a user. Those of the engine are checked by [`check_engine`].)

    Args:
        args ([`Options`]):
            The options of the script.

    Raises:
        ValueError: If a variable asks for a precision other than those of `--mixed_precision`, or for tensor, context or sequence
            parallelism, under which several processes would have to read the same images.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if args.mixed_precision is None and precision not in PRECISIONS:
        raise ValueError(
            f"`mixed_precision` of the accelerate configuration must be one of {PRECISIONS}, got {precision!r} in "
            "ACCELERATE_MIXED_PRECISION."
        )
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true":
        for kind in ("tp", "cp", "sp"):
            name = f"PARALLELISM_CONFIG_{kind.upper()}_SIZE"
            if os.environ.get(name, "1") != "1":
                raise ValueError(
                    f"`parallelism_config_{kind}_size` of the accelerate configuration must be 1, got {os.environ[name]} in {name}."
                )
    options = {"GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps", "GRADIENT_CLIPPING": "max_grad_norm"}
    for variable, option in options.items():
        asked, used = os.environ.get(f"ACCELERATE_{variable}", "auto"), getattr(args, option)
        if asked not in ("auto", "none", str(used), f"{used:g}"):
            _warn_once(f"ACCELERATE_{variable} is {asked}, and it is not used: `--{option}` decides, which is {used}.")


def check_engine(accelerator, data_parallel_only: bool = False):
    """
    Refuse a configuration of accelerate that a training script does not support.

    Args:
        accelerator (`Accelerator`):
            The accelerator of the run.
        data_parallel_only (`bool`, defaults to `False`):
            Whether the script supports plain data parallelism only.

    Raises:
        ValueError: If the engine is not supported: another one than data parallelism where only that is, Megatron-LM, FSDP1,
            FSDP2 that gathers its checkpoints on one process, one that accelerate silently leaves out on this device; or if
            float16 is asked for and nothing scales the gradient.
    """
    distributed_type = accelerator.distributed_type.name
    for requested in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{requested}", "").lower() == "true" and distributed_type != requested:
            raise ValueError(
                f"`distributed_type` of the accelerate configuration is {requested}, which accelerate leaves out on this "
                f"device (it made it {distributed_type})."
            )
    is_parallel_only = data_parallel_only and distributed_type in ("FSDP", "DEEPSPEED")
    if distributed_type == "MEGATRON_LM" or is_parallel_only:
        allowed = "one of plain data parallelism" if data_parallel_only else "data parallelism, FSDP or DEEPSPEED"
        raise ValueError(
            f"`distributed_type` of the accelerate configuration must be {allowed}, got {distributed_type}."
        )
    if distributed_type == "FSDP":
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ValueError("`fsdp_version` of the accelerate configuration must be 2.")
        if plugin.state_dict_type.name != "SHARDED_STATE_DICT":
            raise ValueError(
                "`fsdp_state_dict_type` of the accelerate configuration must be SHARDED_STATE_DICT, got "
                f"{plugin.state_dict_type.name}."
            )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None and distributed_type != "DEEPSPEED":
        raise ValueError(
            "`mixed_precision` must be 'no' or 'bf16' here: 'fp16' needs a gradient scaler, which this device has not."
        )


def check_processes(accelerator, images):
    """
    Refuse to run more processes than there are images, before any image is encoded.

    Raises:
        ValueError: If there are more processes than images.
    """
    if accelerator.num_processes > len(images):
        raise ValueError(
            f"`num_processes` of the accelerate configuration must not exceed the number of images, {len(images)}, got "
            f"{accelerator.num_processes}."
        )


def configure_engine(accelerator, batch_size: int, accumulation: int, max_grad_norm: float):
    """
    Tell DeepSpeed what the options of the script decide, so that its configuration file need not repeat them, and keep FSDP2
    from casting inputs.

    (FSDP2 would round the times to half precision. Autocast, which is on anyway, only rounds the factors of products.)
    """
    if engine(accelerator) == "fsdp":
        plugin = accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        if policy is not None:
            plugin.mixed_precision_policy = replace(policy, cast_forward_inputs=False, output_dtype=None)
    if engine(accelerator) == "zero3":
        # `EMAModel` gathers by itself, with a module that diffusers imports only if ZeRO-3 was on before
        diffusers.training_utils.deepspeed = importlib.import_module("deepspeed")
    if engine(accelerator).startswith("zero"):
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": accumulation,
            "train_batch_size": batch_size * accumulation * accelerator.num_processes,
            "gradient_clipping": max_grad_norm,
        }


def autocast(accelerator):
    """The context of mixed precision. It also works under DeepSpeed, where that of accelerate does nothing."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    if engine(accelerator).startswith("zero") and half is not None:
        return torch.autocast(accelerator.device.type, half)
    return accelerator.autocast()


@contextmanager
def whole_text_encoder(accelerator) -> Iterator[None]:
    """A context in which transformers loads models whole although ZeRO-3 is on."""
    if engine(accelerator) != "zero3":
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(accelerator.state.deepspeed_plugin.dschf)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a tensor that FSDP2 has sharded; every process must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class GradientGuard:
    """
    Clip gradients, skip and count the steps whose gradient is not finite, and stop a run after too many of them in a row.

    With float16, the scaler of accelerate or DeepSpeed skips them. In other precisions DeepSpeed has taken the step before it
    tells the norm, so the run stops at once.

    Args:
        accelerator (`Accelerator`):
            The accelerator of the run.

    Attributes:
        skipped (`int`):
            The number of skipped steps.
        grad_norm (`torch.Tensor`):
            The norm of the last gradient before clipping.
    """

    MAX_IN_A_ROW = 50

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.skipped = self._in_a_row = 0
        can_skip = not engine(accelerator).startswith("zero") or accelerator.mixed_precision == "fp16"
        self._max_in_a_row = self.MAX_IN_A_ROW if can_skip else 1

    def clip(self, parameters, max_norm: float, optimizer, step: int):
        """
        Clip the gradient of step number `step`, or clear it if it is not finite.

        Raises:
            RuntimeError: If `MAX_IN_A_ROW` gradients in a row were not finite.
        """
        self.grad_norm = torch.as_tensor(whole(self.accelerator.clip_grad_norm_(parameters, max_norm)))
        if self.grad_norm.isfinite():
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == self._max_in_a_row:
            raise RuntimeError(
                f"The training was stopped at step {step}: {self._in_a_row} gradients in a row were not finite. The last "
                "checkpoint is whole; go on from it with a lower learning rate."
            )
        if self.accelerator.scaler is None:
            optimizer.zero_grad()


def gathered(accelerator, parameter: nn.Parameter, write: bool = False):
    """A context in which a parameter that ZeRO-3 has sharded is whole, to read or to write."""
    if engine(accelerator) != "zero3":
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if write else None)


@contextmanager
def averaged_weights(accelerator, parameters: list[nn.Parameter], ema) -> Iterator[None]:
    """A context in which the parameters hold their averages. Under ZeRO-3 the main process keeps the weights on the CPU meanwhile."""
    if ema is None:
        yield
        return
    is_gathered = engine(accelerator) == "zero3"
    kept = []
    with torch.no_grad():
        for parameter, average in zip(parameters, ema.shadow_params):
            with gathered(accelerator, parameter, write=True):
                if not is_gathered or accelerator.is_main_process:
                    kept.append(parameter.detach().to("cpu" if is_gathered else parameter.device, copy=True))
                parameter.copy_(average)
        try:
            yield
        finally:
            for i, parameter in enumerate(parameters):
                with gathered(accelerator, parameter, write=True):
                    if kept:
                        parameter.copy_(kept[i])


@torch.no_grad()
def finish(accelerator, model: nn.Module, model_class: type[nn.Module], ema, keep: bool = True) -> nn.Module | None:
    """
    Return the trained model as an ordinary one in float32, with its averaged weights if there are any.

    Every process must call it. Under data parallelism it returns `model` itself. If the weights are sharded, it returns a new
    model on the CPU, or `None` without `keep`.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if engine(accelerator) == "zero":
        model.float()  # DeepSpeed trains it in half precision
    if engine(accelerator) not in ("fsdp", "zero3"):
        if ema is not None:
            ema.copy_to([parameter for _, parameter in named])
        return model
    values = {}
    for i, (name, parameter) in enumerate(named):
        with gathered(accelerator, parameter) if ema is None else nullcontext():
            value = whole(ema.shadow_params[i] if ema is not None else parameter)
            if keep:
                values[name] = value.detach().to("cpu", copy=True)
    if not keep:
        return None
    plain = model_class.from_config(model.config)
    plain.load_state_dict(plain.state_dict() | values)
    return plain


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _INDEX.get(module, ()):
            raise ValueError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def check_sharded_checkpoint(folder: str):
    """
    Refuse a sharded checkpoint that would run code when FSDP2 or DeepSpeed unpickles it.

    Raises:
        ValueError: If an index of torch (`.metadata`) or a file of DeepSpeed (`*.pt`) below `folder` names anything that such
            files do not hold.
    """
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                if name == ".metadata":
                    with open(os.path.join(path, name), "rb") as file:
                        _IndexUnpickler(io.BytesIO(file.read())).load()
                elif name.endswith(".pt"):
                    with torch.serialization.safe_globals(_of_deepspeed()):
                        torch.load(os.path.join(path, name), weights_only=True, mmap=True)
            except Exception as error:  # a broken pickle may raise anything
                raise ValueError(
                    f"`resume_from_checkpoint`: {os.path.join(path, name)!r} is no part of a checkpoint: {error}"
                ) from error


def _of_deepspeed() -> list[type]:
    """The classes that DeepSpeed puts into its files beside tensors."""
    if importlib.util.find_spec("deepspeed") is None:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


@contextmanager
def weights_only(accelerator) -> Iterator[None]:
    """
    A context in which `torch.load` only loads tensors and plain values, whatever its arguments.

    DeepSpeed asks for whole pickles, and so does torch itself for the other values of a sharded checkpoint.
    """
    known = _of_deepspeed() if engine(accelerator).startswith("zero") else []
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        os.environ.pop(_FORCE)
        os.environ.update({_FORCE: before} if before is not None else {})
